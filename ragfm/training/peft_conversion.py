"""A GGUF adapter in PEFT's form, in which training and merging take it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ragfm.core.durable_files import write_durably
from ragfm.models.adapters import (
    GGUF,
    GGUF_PROMPT,
    RECORD,
    WEIGHTS,
    AdapterRecord,
    check_adapter,
    read_record,
    trained_weights_sha256,
)
from ragfm.training.base_model import Base
from ragfm.training.gguf_lora import LICENCE, Shape, gguf_to_peft


def gguf_file(adapter: Path) -> Path | None:
    """The file of an adapter that is in GGUF form alone: itself, or that of a folder without PEFT's weights."""
    if adapter.is_dir():
        return adapter / GGUF if (adapter / GGUF).is_file() and not (adapter / WEIGHTS).is_file() else None
    return adapter if adapter.is_file() else None


def record_beside(file: Path) -> AdapterRecord | None:
    """The record of the folder that a GGUF adapter was exported into."""
    return read_record(file.parent) if file.name == GGUF and (file.parent / RECORD).is_file() else None


def to_peft(file: Path, base: Base, folder: Path) -> None:
    """Write a GGUF adapter as a folder with its record. Raises AdapterMismatchError for another base."""
    check_adapter(file, base.path)
    modules = [module for module, layer in base.model.named_modules() if isinstance(layer, torch.nn.Linear)]
    modules = [module for module in modules if base.model.get_submodule(module) is not base.model.lm_head]
    said = gguf_to_peft(file, folder, Shape.of(base.model.config), modules, base=base.name)
    beside = record_beside(file)
    record = AdapterRecord(
        "lora", {"name": base.name, "sha256": base.sha256}, said[GGUF_PROMPT], trained_weights_sha256(folder),
        licence=said[LICENCE] or (beside.licence if beside else None),
    )  # fmt: skip
    write_durably(folder / RECORD, record.to_json())


@contextmanager
def peft_form(adapter: str | Path, base: Base) -> Iterator[Path]:
    """The folder of an adapter in PEFT's form, checked; of a GGUF adapter one that is there for as long as the block.

    Raises AdapterMismatchError for another base.
    """
    path = Path(adapter).expanduser()
    file = gguf_file(path)
    if file is None:
        check_adapter(path, base.path)
        yield path
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "adapter"
        to_peft(file, base, folder)
        yield folder
