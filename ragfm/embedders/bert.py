"""The network BERT (Devlin et al. 2019), written once for numpy, torch and OpenVINO.

`B` texts are padded to `L` tokens; `H` is the width, `D` that of one attention head.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Bert", "Linear", "Operations", "forward", "read_weights", "token_vectors"]

MASKED = -3e4
"""Added to the attention to padding: exp gives 0, and half precision still holds it."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Weight and bias, for a product with `weight` or a normalisation. *Shape:* (out, in) or (H,), and (out,)."""

    weight: Any
    bias: Any


@dataclass(frozen=True, slots=True)
class Layer:
    """`qkv` gives query, key and value one behind the other, so *shape* (3 H, H)."""

    qkv: Linear
    out: Linear
    out_norm: Linear
    up: Linear
    down: Linear
    down_norm: Linear


@dataclass(frozen=True, slots=True)
class Bert:
    """Weights. *Shape:* `words` (vocabulary, H), `positions` (longest, H), with the first token type's added."""

    words: Any
    positions: Any
    norm: Linear
    layers: tuple[Layer, ...]


class Operations(Protocol):
    """What a library does differently; sums are written as `+` in all of them."""

    def rows(self, table: Any, ids: Any) -> Any:
        """*Shape:* (B, L, H) for ids (B, L)."""

    def first(self, table: Any, ids: Any) -> Any:
        """As many of a table's first rows as the ids are long. *Shape:* (L, H)."""

    def linear(self, x: Any, by: Linear) -> Any:
        """The product x Wᵀ + b."""

    def norm(self, x: Any, by: Linear) -> Any:
        """Layer normalisation (Ba et al. 2016)."""

    def gelu(self, x: Any) -> Any:
        """The product x Φ(x) (Hendrycks and Gimpel 2016), by the error function and not by tanh."""

    def attend(self, qkv: Any, mask: Any) -> Any:
        """Softmax attention of all heads. *Shape:* (B, L, H) for qkv (B, L, 3 H)."""

    def pool(self, x: Any, mask: Any) -> Any:
        """One vector for a text, of any length. *Shape:* (B, H)."""


def forward(ops: Operations, bert: Bert, ids: Any, mask: Any) -> Any:
    """The texts' vectors. *Shape:* (B, H) for ids (B, L); `mask` is 1 for tokens and 0 for padding."""
    return ops.pool(token_vectors(ops, bert, ids, mask), mask)


def token_vectors(ops: Operations, bert: Bert, ids: Any, mask: Any) -> Any:
    """The same before pooling. *Shape:* (B, L, H)."""
    x = ops.norm(ops.rows(bert.words, ids) + ops.first(bert.positions, ids), bert.norm)
    for layer in bert.layers:
        x = ops.norm(x + ops.linear(ops.attend(ops.linear(x, layer.qkv), mask), layer.out), layer.out_norm)
        x = ops.norm(x + ops.linear(ops.gelu(ops.linear(x, layer.up)), layer.down), layer.down_norm)
    return x


def read_weights(path: Path) -> Bert:
    """The weights of a folder's `model.safetensors`, in fp32. Raises KeyError where one is missing."""
    import numpy as np
    from safetensors.numpy import load_file

    tensors = load_file(path / "model.safetensors")
    start = next(name for name in tensors if name.endswith("embeddings.word_embeddings.weight"))
    start = start.removesuffix("embeddings.word_embeddings.weight")

    def tensor(name: str) -> Floats:
        return np.ascontiguousarray(tensors[start + name], dtype=np.float32)

    def linear(name: str) -> Linear:
        return Linear(tensor(f"{name}.weight"), tensor(f"{name}.bias"))

    def layer(name: str) -> Layer:
        three = [linear(f"{name}.attention.self.{part}") for part in ("query", "key", "value")]
        return Layer(
            qkv=Linear(np.concatenate([one.weight for one in three]), np.concatenate([one.bias for one in three])),
            out=linear(f"{name}.attention.output.dense"),
            out_norm=linear(f"{name}.attention.output.LayerNorm"),
            up=linear(f"{name}.intermediate.dense"),
            down=linear(f"{name}.output.dense"),
            down_norm=linear(f"{name}.output.LayerNorm"),
        )

    count = len([name for name in tensors if name.endswith("attention.self.query.weight")])
    return Bert(
        words=tensor("embeddings.word_embeddings.weight"),
        positions=tensor("embeddings.position_embeddings.weight")
        + tensor("embeddings.token_type_embeddings.weight")[0],
        norm=linear("embeddings.LayerNorm"),
        layers=tuple(layer(f"encoder.layer.{number}") for number in range(count)),
    )
