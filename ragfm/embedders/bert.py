"""The networks BERT (Devlin et al. 2019) and MPNet (Song et al. 2020), independent of the library that runs them.

The libraries are numpy and OpenVINO. MPNet adds a bias to the attention scores, by the distance of two tokens.

Shapes: `B` texts padded to `L` tokens, `H` the hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfm.models.model_lookup import report_damage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MASK_BIAS = -3e4
"""Added to the attention scores of padding: exp of it is 0, and half precision can represent it."""


_FEED_FORWARD = ("intermediate.dense", "output.dense", "output.LayerNorm")
BERT_PARTS = (
    *(f"attention.{one}" for one in ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")),
    *_FEED_FORWARD,
)
MPNET_PARTS = (*(f"attention.{one}" for one in ("attn.q", "attn.k", "attn.v", "attn.o", "LayerNorm")), *_FEED_FORWARD)
"""The names of a layer's tensors in files, in the order of `Layer.of`."""
_BUCKETS, _FARTHEST = 32, 128  # of MPNet's distances: half of the buckets for each direction, and the farthest one


@dataclass(frozen=True, slots=True)
class Linear:
    """Weight and bias of a linear layer or a layer normalization. *Shape:* (out, in) or (H,), and (out,)."""

    weight: Any
    bias: Any


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of a transformer layer. `qkv` is query, key and value concatenated, *shape* (3 H, H)."""

    qkv: Linear
    out: Linear
    out_norm: Linear
    up: Linear
    down: Linear
    down_norm: Linear

    @classmethod
    def of(cls, parts: Iterable[Linear]) -> Layer:
        """The layer of query, key, value, and the other fields, in this order."""
        import numpy as np

        query, key, value, *others = parts
        weight, bias = (np.concatenate([getattr(p, name) for p in (query, key, value)]) for name in ("weight", "bias"))
        return cls(Linear(weight, bias), *others)


@dataclass(frozen=True, slots=True)
class Bert:
    """Weights of a model. *Shape:* `words` (vocabulary, H), `positions` (max tokens, H).

    `positions` includes the embedding of the first token type. `distances` are MPNet's biases of the attention, *shape*
    (heads, max tokens, max tokens). `dense` is a linear layer after the pooling, *shape* (out, H). A model that is not
    `pooled` gives the states of tokens, others embed texts.
    """

    words: Any
    positions: Any
    norm: Linear
    layers: tuple[Layer, ...]
    distances: Any = None
    pooled: bool = True
    dense: Linear | None = None


def forward(ops: Any, bert: Bert, ids: Any, mask: Any) -> Any:
    """Vectors of texts, *shape* (B, H), or if the model is not pooled the states of their tokens, *shape* (B, L, H).

    *Shape:* `ids` and `mask` (B, L); `mask` is 1 for tokens and 0 for padding. `ops` has the operations that differ
    between libraries, see `NumpyOperations`.
    """
    x = ops.norm(ops.lookup(bert.words, ids) + ops.first_rows(bert.positions, ids), bert.norm)
    for layer in bert.layers:
        mixed = ops.attention(ops.linear(x, layer.qkv), mask, bert.distances)
        x = ops.norm(x + ops.linear(mixed, layer.out), layer.out_norm)
        x = ops.norm(x + ops.linear(ops.gelu(ops.linear(x, layer.up)), layer.down), layer.down_norm)
    if bert.dense is not None:  # before the pooling: a sum over tokens, which has the direction of the mean
        x = ops.linear(x, bert.dense)
    return ops.pool(x, mask) if bert.pooled else x


def read_weights(path: Path, dense: Path | None = None) -> Bert:
    """Read the weights from a folder's `model.safetensors` as fp32, and those of its `dense` layer from another one.

    Raises DamagedModelError.
    """
    import numpy as np
    from safetensors.numpy import load_file

    file = path / "model.safetensors"
    with report_damage("ragfm", path):
        try:
            tensors: Mapping[str, Any] = load_file(file)
        except TypeError:  # numpy has no bfloat16
            from safetensors.torch import load_file as load_in_torch

            tensors = {name: tensor.float().numpy() for name, tensor in load_in_torch(file).items()}
        (first,) = (name for name in tensors if name.endswith("embeddings.word_embeddings.weight"))
        prefix = first.removesuffix("embeddings.word_embeddings.weight")

        def tensor(name: str) -> NDArray[np.float32]:
            return np.ascontiguousarray(tensors[prefix + name], dtype=np.float32)

        def linear(name: str) -> Linear:
            return Linear(tensor(f"{name}.weight"), tensor(f"{name}.bias"))

        mpnet = f"{prefix}encoder.relative_attention_bias.weight" in tensors
        positions = tensor("embeddings.position_embeddings.weight")
        # Of MPNet, the first token has position 2.
        positions = positions[2:] if mpnet else positions + tensor("embeddings.token_type_embeddings.weight")[0]
        parts = MPNET_PARTS if mpnet else BERT_PARTS
        count = sum(name.endswith(f"{parts[0]}.weight") for name in tensors)
        return Bert(
            words=tensor("embeddings.word_embeddings.weight"),
            positions=positions,
            norm=linear("embeddings.LayerNorm"),
            layers=tuple(Layer.of(linear(f"encoder.layer.{n}.{part}") for part in parts) for n in range(count)),
            distances=_distances(tensor("encoder.relative_attention_bias.weight"), len(positions)) if mpnet else None,
            dense=_read_dense(dense) if dense else None,
        )


def _read_dense(path: Path) -> Linear:
    import numpy as np
    from safetensors.numpy import load_file

    tensors = {name: tensor.astype(np.float32) for name, tensor in load_file(path / "model.safetensors").items()}
    weight = tensors["linear.weight"]
    return Linear(weight, tensors.get("linear.bias", np.zeros(len(weight), dtype=np.float32)))


def _distances(biases: NDArray[np.float32], tokens: int) -> NDArray[np.float32]:
    """The bias for each pair of tokens: exact for near ones, then by logarithmic buckets (Raffel et al. 2020).

    *Shape:* (heads, tokens, tokens) for biases (buckets, heads).
    """
    import numpy as np

    half = _BUCKETS // 2
    exact = half // 2
    ahead = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
    distance = np.abs(ahead)
    near = np.maximum(distance, 1).astype(np.float32) / exact  # in single precision, as the model was trained
    far = np.log(near) / np.float32(math.log(_FARTHEST / exact)) * (half - exact)
    bucket = np.where(distance < exact, distance, np.minimum(exact + far.astype(np.int64), half - 1))
    return np.ascontiguousarray(biases[bucket + half * (ahead > 0)].transpose(2, 0, 1))
