"""Whether a GGUF file has a model's weights: what was learned beside the ones then serves over the other.

Of each tensor in the layers some rows are dequantised and held against the model's. Norms and biases are kept whole in
every quantisation, so that a model that was trained on is mostly told from its origin even where four bits are too few.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ragfm.core.errors import AdapterMismatchError
from ragfm.models.gguf_header import read_header
from ragfm.training.gguf_lora import Shape

_ROWS = 64  # of a tensor
_PLAIN = {"F32": 12.0, "F16": 12.0, "BF16": 10.0}  # bits that count, the model's own rounding among them
_MOST = 0.9  # weights that have nothing to do with each other differ by 1 or more


def check_weights(model: Any, file: Path) -> None:
    """Raise AdapterMismatchError where a GGUF file is not a model of transformers, but for what quantisation changes.

    The error of a tensor is the length of the difference over that of the model's own: 0.005 for Q8_0, 0.09 for Q4_0
    and 0.3 for Q2_K, and at most twice as much passes. Another model of the same shape has one of about 1.4.
    """
    import gguf

    read_header(file)
    shape = Shape.of(model.config)
    reader = gguf.GGUFReader(file)
    there = {tensor.name: tensor for tensor in reader.tensors if tensor.name.startswith("blk.")}
    said = reader.get_field(gguf.Keys.General.ARCHITECTURE)
    if said is None or said.contents() != shape.architecture:
        raise _other(file, f"its architecture is {said and said.contents()}, not {shape.architecture}")
    ours = {name: values for key, values in model.state_dict().items() if (name := _gguf_name(shape, key))}
    if different := ours.keys() ^ there.keys():
        name = min(different)
        raise _other(file, f"{'it lacks' if name in ours else 'only it has'} {name}")
    shapes = {name: tuple(reversed(tensor.shape.tolist())) for name, tensor in there.items()}
    if name := next((name for name, values in ours.items() if shapes[name] != tuple(values.shape)), None):
        raise _other(file, f"{name} has another shape")
    for name, values in ours.items():
        whole = values.float().cpu().numpy()
        if shape.architecture.startswith("gemma") and name.endswith("norm.weight"):
            whole = whole + 1  # llama.cpp multiplies by what is there
        tensor = there[name]
        rows = np.unique(np.linspace(0, len(whole) - 1, _ROWS).astype(int)) if whole.ndim > 1 else slice(None)
        expected = shape.to_gguf(name, whole)[rows]
        found = gguf.dequantize(tensor.data[rows], tensor.tensor_type).astype(np.float32)
        error = float(np.linalg.norm(found - expected) / (np.linalg.norm(expected) or 1.0))
        if not error <= (most := _allowed(tensor.tensor_type)):
            kind = tensor.tensor_type.name
            raise _other(file, f"{name} is off by {error:.1%}, where {kind} explains {most:.1%}")


def _allowed(kind: Any) -> float:
    """Twice the error that a quantisation makes, or somewhat more: that is halved by each bit of a number."""
    import gguf

    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    return min(_MOST, float(4 * 2 ** -_PLAIN.get(kind.name, 8 * size / numbers)))


def _gguf_name(shape: Shape, key: str) -> str | None:
    """Where a weight of a layer stands in a GGUF file; None for others."""
    module, _, what = key.rpartition(".")
    if ".layers." not in key or what not in ("weight", "bias"):
        return None
    return shape.gguf_name(module).removesuffix("weight") + what


def _other(file: Path, why: str) -> AdapterMismatchError:
    return AdapterMismatchError(
        f"{file} is not the model that the adapter was trained on: {why}.",
        "Name a GGUF file that was made of that model.",
    )
