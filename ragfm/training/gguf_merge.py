"""A GGUF model and a GGUF adapter as one GGUF file, quantised anew: for servers that know no adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from ragfm.core.durable_files import sync_file, sync_folder, temporary_path
from ragfm.core.errors import UnsupportedError
from ragfm.training.gguf_lora import Matrix

Quantisation: TypeAlias = Literal["f16", "q8_0", "q4_0", "iq4_nl"]
QUANTISATIONS: tuple[Quantisation, ...] = get_args(Quantisation)


def merge_gguf(base: Path, adapter: Path, out: Path, quantisation: Quantisation) -> None:
    """Write the base's weights plus what the adapter adds, whole or not at all.

    Raises UnsupportedError where the adapter changes what the base does not have.
    """
    whole = temporary_path(out)
    quantised = whole.with_name(f"{whole.name}.q")
    try:
        _write(base, _additions(adapter), whole)
        made = whole
        if quantisation != "f16":
            from ragfm.generation.readers.weight_format import WEIGHT_FORMATS, quantize

            made = quantize(whole, quantised, WEIGHT_FORMATS[quantisation.upper()])
        sync_file(made)
        made.replace(out)
    finally:
        whole.unlink(missing_ok=True)
        quantised.unlink(missing_ok=True)
    sync_folder(out.parent)


def _additions(adapter: Path) -> dict[str, Matrix]:
    """What is added to each weight: alpha / rank times B A."""
    import gguf

    reader = gguf.GGUFReader(adapter)
    alpha = reader.get_field(gguf.Keys.Adapter.LORA_ALPHA)
    halves: dict[str, dict[str, Matrix]] = {}
    for tensor in reader.tensors:
        name, _, which = tensor.name.rpartition(".lora_")
        halves.setdefault(name, {})[which] = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    scale = float(alpha.contents()) if alpha else 1.0
    return {name: pair["b"] @ pair["a"] * (scale / pair["a"].shape[0]) for name, pair in halves.items()}


def _write(base: Path, additions: dict[str, Matrix], out: Path) -> None:
    import gguf

    reader = gguf.GGUFReader(base)
    if missing := additions.keys() - {tensor.name for tensor in reader.tensors}:
        raise UnsupportedError(f"The adapter changes {min(missing)}, which {base} does not have.", "Name its own base.")
    writer = gguf.GGUFWriter(out, _text(reader, gguf.Keys.General.ARCHITECTURE))
    for field in reader.fields.values():
        ours = field.name.startswith("GGUF.") or field.name in (gguf.Keys.General.ARCHITECTURE, _FILE_TYPE)
        if not ours:
            kind = field.types[0]
            inside = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=inside)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name in additions:
            values = values + additions[tensor.name]
        writer.add_tensor(tensor.name, values.astype(np.float16 if values.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_FILE_TYPE = "general.file_type"


def _text(reader: Any, key: str) -> str:
    return str(reader.get_field(key).contents())
