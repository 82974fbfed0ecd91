"""Merge a GGUF adapter into a GGUF model and quantise the result, for servers that do not support adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from ragfm.core.durable_files import sync_file, sync_folder, temporary_path
from ragfm.core.errors import UnsupportedError
from ragfm.training.gguf_library import gguf
from ragfm.training.gguf_lora import Matrix, lora_deltas, write_file

Quantisation: TypeAlias = Literal["f16", "q8_0", "q4_0", "iq4_nl"]
_FILE_TYPE = "general.file_type"


def merge_gguf(base: Path, adapter: Path | Mapping[str, Matrix], out: Path, quantisation: Quantisation) -> None:
    """Write the base with the adapter added to its weights, quantised, atomically.

    `adapter` is a GGUF adapter, or the weights that replace those of the base, by their names in the file.

    Raises UnsupportedError if the adapter changes a weight that the base does not have.
    """
    replaced = {} if isinstance(adapter, Path) else adapter
    deltas = lora_deltas(adapter) if isinstance(adapter, Path) else {}
    reader = gguf.GGUFReader(base)
    if missing := (deltas.keys() | replaced.keys()) - {tensor.name for tensor in reader.tensors}:
        raise UnsupportedError(
            f"The adapter changes {min(missing)}, which {base} does not have.",
            "Use the base that the adapter was trained on.",
        )
    merged = temporary_path(out)
    quantised = merged.with_name(f"{merged.name}.q")
    try:
        architecture = reader.get_field(gguf.Keys.General.ARCHITECTURE)
        writer = gguf.GGUFWriter(merged, str(architecture.contents()))
        for field in reader.fields.values():
            # The writer adds these fields itself.
            if field.name.startswith("GGUF.") or field.name in (gguf.Keys.General.ARCHITECTURE, _FILE_TYPE):
                continue
            kind = field.types[0]
            item_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=item_type)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
        for tensor in reader.tensors:  # matrices in float16, vectors in float32
            values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            values = replaced.get(tensor.name, values + deltas.get(tensor.name, np.float32(0)))
            writer.add_tensor(tensor.name, values.astype(np.float16 if values.ndim > 1 else np.float32))
        write_file(writer)
        result = merged
        if quantisation != "f16":
            from ragfm.generation.readers.weight_format import WEIGHT_FORMATS, quantize

            result = quantize(merged, quantised, WEIGHT_FORMATS[quantisation.upper()])
        sync_file(result)
        result.replace(out)
    finally:
        merged.unlink(missing_ok=True)
        quantised.unlink(missing_ok=True)
    sync_folder(out.parent)
