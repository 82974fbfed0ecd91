"""GGUF adapters as PEFT folders, the format that training and merging need."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ragfm.core.durable_files import write_durably
from ragfm.models.adapters import (
    BUNDLED_ADAPTER,
    GGUF,
    GGUF_PROMPT,
    RECORD,
    SHIPPED,
    WEIGHTS,
    AdapterRecord,
    check_adapter,
    read_record,
    trained_weights_sha256,
)
from ragfm.models.model_lookup import weights_sha256
from ragfm.training.base_model import Base
from ragfm.training.gguf_lora import LICENCE, ModelShape, gguf_to_peft


def gguf_adapter_file(adapter: Path) -> Path | None:
    """The GGUF file of an adapter that exists only in this format; None for a folder with PEFT's weights.

    `adapter` is a GGUF file or an adapter's folder.
    """
    if adapter.is_dir():
        return adapter / GGUF if (adapter / GGUF).is_file() and not (adapter / WEIGHTS).is_file() else None
    return adapter if adapter.is_file() else None


def exported_record(file: Path) -> AdapterRecord | None:
    """The record in the folder of a GGUF adapter, if the adapter was exported there."""
    return read_record(file.parent) if file.name == GGUF and (file.parent / RECORD).is_file() else None


def convert_to_peft(file: Path, base: Base, folder: Path) -> None:
    """Write a GGUF adapter as a PEFT folder with a record. Raises AdapterMismatchError if it is for another base."""
    check_adapter(file, base.path)
    head = base.model.lm_head
    linear = ((name, module) for name, module in base.model.named_modules() if isinstance(module, torch.nn.Linear))
    modules = [name for name, module in linear if module is not head]
    metadata = gguf_to_peft(file, folder, ModelShape.from_config(base.model.config), modules, base=base.name)
    source = exported_record(file)
    record = AdapterRecord(
        method="lora",
        base={"name": base.name, "sha256": weights_sha256(base.path)},
        prompt=metadata[GGUF_PROMPT],
        weights=trained_weights_sha256(folder),
        licence=metadata[LICENCE] or (source.licence if source else None),
    )
    write_durably(folder / RECORD, record.to_json())


@contextmanager
def as_peft_folder(adapter: str | Path, base: Base) -> Iterator[Path]:
    """An adapter as a PEFT folder; a GGUF adapter is converted into a temporary one.

    `bundled` is the adapter that ships with ragfm. Raises AdapterMismatchError if the adapter is for another base.
    """
    path = SHIPPED / GGUF if adapter == BUNDLED_ADAPTER else Path(adapter).expanduser()
    file = gguf_adapter_file(path)
    if file is None:
        check_adapter(path, base.path)
        yield path
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "adapter"
        convert_to_peft(file, base, folder)
        yield folder
