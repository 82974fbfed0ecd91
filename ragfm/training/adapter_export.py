"""Export adapters to other formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ragfm.core.errors import DataError, UnsupportedError
from ragfm.models.adapters import (
    GGUF,
    GGUF_BASE,
    GGUF_PROMPT,
    MERGES,
    check_adapter,
    read_record,
)
from ragfm.models.model_lookup import find_model, weights_sha256
from ragfm.training.adapter_folder import save_model
from ragfm.training.base_model import Base
from ragfm.training.gguf_lora import (
    LICENCE,
    ModelShape,
    as_peft_folder,
    check_same_weights,
    convert_to_peft,
    exported_record,
    gguf_adapter_file,
    peft_to_gguf,
)
from ragfm.training.methods import import_peft, refuse_other_adapters
from ragfm.training.output_checks import check_no_adapter, check_output_file, check_output_folder


def export_adapter(
    adapter: str | Path,
    form: str,
    *,
    out: str | Path | None = None,
    base: str | None = None,
    dtype: str = "f16",
) -> Path:
    """Write an adapter in another format; returns the path of the result.

    `form` is `gguf` (an adapter for llama.cpp in `dtype` `f16` or `f32`), `merged` (a model folder of safetensors) or
    `peft` (a PEFT folder made from a GGUF adapter).

    `adapter` is an adapter's folder or a GGUF adapter. `base` is by default the model that it was trained on. For
    `gguf` it may be a GGUF file of that model, which is compared with it. `out` is by default the adapter's folder for
    `gguf`; a folder gets an `adapter.gguf`.

    Raises UnsupportedError if the format cannot represent the adapter, AdapterMismatchError if the base is a different
    model, DataError if `out` is missing or would replace the base or files that ragfm did not write.
    """
    path = Path(adapter).expanduser()
    file = gguf_adapter_file(path)
    if file and form == "gguf":
        raise UnsupportedError(f"{file} is already a GGUF adapter.", "Use it with the model that it was exported for.")
    record = exported_record(file) if file else read_record(path)
    name = base or (record.base["name"] if record else "")
    method = record.method if record and not file else "lora"
    if file and (out is None or not name):
        raise DataError(
            "Exporting a GGUF adapter needs the base and an output path.", "Specify them with --base and --out."
        )
    if not name:
        raise DataError(f"The base model of {path} is not known.", "Specify it with --base.")
    if not file and form == "peft":
        raise UnsupportedError(f"{path} is already a PEFT folder.", "Use a GGUF adapter.")
    if method == "full":
        raise UnsupportedError(f"{path} contains a whole model, not an adapter.", "Use the folder as the reader.")
    if record and form == "gguf":
        target = Path(out or path)
        target = target / GGUF if target.is_dir() else target
        check_output_file(target, find_model(name, "reader"))
        target.parent.mkdir(parents=True, exist_ok=True)
        loaded, serving = _load_bases(path, base)
        about = {GGUF_BASE: weights_sha256(serving), GGUF_PROMPT: record.prompt}
        if record.licence:
            about[LICENCE] = record.licence
        peft_to_gguf(path, target, ModelShape.from_config(loaded.model.config), dtype=dtype, about=about)
        return target
    if out is None:
        raise DataError("A merged model needs an output path.", "Specify one with --out.")
    target = Path(out)
    if method not in MERGES:
        raise UnsupportedError(
            f"Adapters trained with {method} cannot be merged: they add tokens to the prompt.",
            f"Use the adapter as it is, with the transformers reader: `--adapter {path}`.",
        )
    check_output_folder(target, find_model(name, "reader"), adapter=file or path)
    if form == "peft":
        check_no_adapter(target)
    loaded = Base(name)
    if file and form == "peft":
        convert_to_peft(file, loaded, target)
        return target
    with as_peft_folder(path, loaded) as folder:
        save_model(load_adapter(loaded, folder).merge_and_unload(), loaded, target, full=True)
    return target


def load_adapter(base: Base, folder: str | Path) -> Any:
    """The base with the adapter of a PEFT folder, in evaluation mode. Raises AdapterMismatchError."""
    with refuse_other_adapters(folder, base.name):
        return import_peft().PeftModel.from_pretrained(base.model, str(folder)).eval()


def _load_bases(adapter: Path, name: str | None) -> tuple[Base, Path]:
    """The model that an adapter was trained on, and the path of the one it will serve over.

    They are the same unless `name` is a GGUF file of the model; raises AdapterMismatchError if it is not.
    """
    trained = read_record(adapter).base
    serving = find_model(name or trained["name"], "reader")
    unknown = not trained["sha256"]  # of an adapter that ragfm did not train
    same = name is None or serving.is_dir() or unknown or weights_sha256(serving) == trained["sha256"]
    loaded = Base(name if name and same else trained["name"])
    check_adapter(adapter, loaded.path)
    if not same:
        check_same_weights(loaded.model, serving)
    return loaded, serving
