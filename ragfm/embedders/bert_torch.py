"""BERT in torch: fp32 or bf16 on the CPU, fp16 on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from ragfm.core.fork import reset_in_children
from ragfm.core.types import Vectors
from ragfm.embedders.bert import MASK_BIAS, Bert, Linear, forward
from ragfm.embedders.model_folder import BertFolder
from ragfm.embedders.sorted_batches import Batch, embed_sorted, states_sorted
from ragfm.models.hardware import cpu_count

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
"""Maximum tokens of a batch, padding included."""


class TorchBackend:
    """On the CPU each core runs one batch, so that cores do not wait for each other in every layer."""

    def __init__(self, folder: BertFolder, bert: Bert, dtype: torch.dtype, device: str = "cpu") -> None:
        self._dim = folder.dim
        self._device = device
        self._forward = partial(forward, _TorchOperations(folder), _as_tensors(bert, dtype, device))
        reset_in_children(self)

    def __call__(self, ids: Sequence[Sequence[int]]) -> Vectors:
        """*Shape:* (len(ids), dim)."""
        return embed_sorted(ids, self._run, self._dim, max_tokens=BATCH_TOKENS[self._device])

    def token_states(self, ids: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """*Shape:* (tokens, dim) for each text, if the model is not pooled."""
        return states_sorted(ids, self._run, max_tokens=BATCH_TOKENS[self._device])

    def reset_after_fork(self) -> None:
        """Forget the threads: they do not exist in a forked process."""
        self.__dict__.pop("_pool", None)

    def _run(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.float32]]:
        run = self._pool.map if self._device == "cpu" else map
        return run(self._run_batch, batches)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        """One thread for each core that torch may use; in each of them torch runs single-threaded."""
        for_torch = torch.get_num_threads()
        count = min(for_torch, cpu_count())
        barrier = threading.Barrier(count + 1)

        def start() -> None:
            torch.set_num_threads(1)  # applies to this thread, and to threads that use torch before the next call
            barrier.wait()

        pool = ThreadPoolExecutor(count, "ragfm-embed")
        for _ in range(count):
            pool.submit(start)
        barrier.wait()
        torch.set_num_threads(for_torch)
        return pool

    @torch.inference_mode()
    def _run_batch(self, batch: Batch) -> NDArray[np.float32]:
        ids, mask = (torch.from_numpy(part).to(self._device) for part in batch)
        output: NDArray[np.float32] = self._forward(ids, mask).float().cpu().numpy()
        return output


class _TorchOperations:
    def __init__(self, folder: BertFolder) -> None:
        self._heads, self._epsilon, self._cls = folder.heads, folder.epsilon, folder.cls

    def lookup(self, table: Any, ids: Any) -> Any:
        return functional.embedding(ids, table)

    def first_rows(self, table: Any, ids: Any) -> Any:
        return table[: ids.shape[1]]

    def linear(self, x: Any, layer: Linear) -> Any:
        return functional.linear(x, layer.weight, layer.bias)

    def norm(self, x: Any, layer: Linear) -> Any:
        return functional.layer_norm(x, layer.bias.shape, layer.weight, layer.bias, self._epsilon)

    def gelu(self, x: Any) -> Any:
        return functional.gelu(x)

    def attention(self, qkv: Any, mask: Any, distances: Any) -> Any:
        texts, tokens, width = qkv.shape
        q, k, v = qkv.view(texts, tokens, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        bias = None if bool(mask.all()) else ((1 - mask[:, None, None]) * MASK_BIAS).to(qkv.dtype)
        if distances is not None:
            near = distances[:, :tokens, :tokens]
            bias = near if bias is None else bias + near
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return out.transpose(1, 2).reshape(texts, tokens, width // 3)

    def pool(self, x: Any, mask: Any) -> Any:
        return x[:, 0] if self._cls else torch.einsum("blh,bl->bh", x.float(), mask)


def _as_tensors(value: Any, dtype: torch.dtype, device: str) -> Any:
    """Weights as torch tensors, in the same (nested) dataclasses."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, tuple):
        return tuple(_as_tensors(item, dtype, device) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        return replace(value, **{name: _as_tensors(getattr(value, name), dtype, device) for name in names})
    return torch.from_numpy(value).to(device, dtype)
