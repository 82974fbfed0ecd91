"""Check that a GGUF file holds the weights of a model, so that an adapter trained on the one can serve over the other.

Some rows of each tensor in the layers are dequantised and compared with the model. Norms and biases are never
quantised, which distinguishes a fine-tuned model from its origin in most cases, even if four bits do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ragfm.core.errors import AdapterMismatchError
from ragfm.models.gguf_header import read_header
from ragfm.training.gguf_lora import ModelShape

_ROWS = 64  # compared per tensor
_UNQUANTISED_BITS = {"F32": 12.0, "F16": 12.0, "BF16": 10.0}  # effective precision, including the model's own rounding
_MAX_ERROR = 0.9  # unrelated weights have an error of 1 or more


def check_same_weights(model: Any, file: Path) -> None:
    """Raise AdapterMismatchError if a GGUF file is not a quantised or exact copy of a model of transformers.

    The error of a tensor is the norm of the difference divided by the norm of the original: 0.005 for Q8_0, 0.09 for
    Q4_0, 0.3 for Q2_K. About twice that is accepted. A different model of the same shape has an error of about 1.4.
    """

    def mismatch(why: str) -> AdapterMismatchError:
        return AdapterMismatchError(
            f"{file} is not the model that the adapter was trained on: {why}.", "Use a GGUF file made from that model."
        )

    read_header(file)
    shape = ModelShape.from_config(model.config)
    reader = gguf.GGUFReader(file)
    tensors = {tensor.name: tensor for tensor in reader.tensors if tensor.name.startswith("blk.")}
    field = reader.get_field(gguf.Keys.General.ARCHITECTURE)
    architecture = field and field.contents()
    if architecture != shape.architecture:
        raise mismatch(f"its architecture is {architecture}, not {shape.architecture}")
    weights = {}
    for key, values in model.state_dict().items():
        module, _, kind = key.rpartition(".")
        if ".layers." in key and kind in ("weight", "bias"):
            weights[shape.gguf_name(module).removesuffix("weight") + kind] = values
    if different := weights.keys() ^ tensors.keys():
        name = min(different)
        raise mismatch(f"{'it lacks' if name in weights else 'only it has'} {name}")
    for name, values in weights.items():
        if tuple(reversed(tensors[name].shape.tolist())) != tuple(values.shape):
            raise mismatch(f"{name} has a different shape")
    for name, values in weights.items():
        original = values.float().cpu().numpy()
        if shape.architecture.startswith("gemma") and name.endswith("norm.weight"):
            original = original + 1  # GGUF files store the factor, transformers its difference from one
        tensor = tensors[name]
        rows = np.unique(np.linspace(0, len(original) - 1, _ROWS).astype(int)) if original.ndim > 1 else slice(None)
        expected = shape.to_gguf(name, original)[rows]
        actual = gguf.dequantize(tensor.data[rows], tensor.tensor_type).astype(np.float32)
        error = float(np.linalg.norm(actual - expected) / (np.linalg.norm(expected) or 1.0))
        numbers, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
        bits = _UNQUANTISED_BITS.get(tensor.tensor_type.name, 8 * size / numbers)
        allowed = min(_MAX_ERROR, float(4 * 2**-bits))  # about twice the error of a quantisation
        if not error <= allowed:
            explained = f"{tensor.tensor_type.name} explains {allowed:.1%}"
            raise mismatch(f"{name} is off by {error:.1%}, where {explained}")
