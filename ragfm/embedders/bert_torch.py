"""BERT in torch: fp32 or bf16 on the processor, half precision on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from ragfm.embedders.bert import MASKED, Bert, Linear, forward
from ragfm.embedders.sorted_batches import Batch, embed_sorted

if TYPE_CHECKING:
    from ragfm.core.types import Vectors
    from ragfm.embedders.model_folder import BertFolder

__all__ = ["TorchForm"]

BUDGET = {"cpu": 2048, "cuda": 65536}
"""Tokens of a batch, padding included."""


class TorchForm:
    """On the processor one batch runs on each core, which spares them from waiting for each other in every layer."""

    def __init__(self, folder: BertFolder, bert: Bert, dtype: torch.dtype, device: str = "cpu") -> None:
        self._folder, self._device, self._budget = folder, device, BUDGET[device]
        self._forward = partial(forward, _Torch(folder), _converted(bert, dtype, device))
        self._streams = _streams() if device == "cpu" else None

    def __call__(self, ids: Sequence[Sequence[int]]) -> Vectors:
        """*Shape:* (len(ids), dim)."""
        return embed_sorted(ids, self._run, self._folder.dim, budget=self._budget)

    def _run(self, batches: Iterable[Batch]) -> Iterator[Vectors]:
        run = map if self._streams is None else self._streams.map
        return run(self._one, batches)

    @torch.inference_mode()
    def _one(self, batch: Batch) -> Vectors:
        ids, mask = (torch.from_numpy(part).to(self._device) for part in batch)
        vectors: Vectors = self._forward(ids, mask).float().cpu().numpy()
        return vectors


class _Torch:
    def __init__(self, folder: BertFolder) -> None:
        self._heads, self._epsilon, self._cls = folder.heads, folder.epsilon, folder.cls

    def rows(self, table: Any, ids: Any) -> Any:
        return functional.embedding(ids, table)

    def first(self, table: Any, ids: Any) -> Any:
        return table[: ids.shape[1]]

    def linear(self, x: Any, by: Linear) -> Any:
        return functional.linear(x, by.weight, by.bias)

    def norm(self, x: Any, by: Linear) -> Any:
        return functional.layer_norm(x, by.bias.shape, by.weight, by.bias, self._epsilon)

    def gelu(self, x: Any) -> Any:
        return functional.gelu(x)

    def attend(self, qkv: Any, mask: Any) -> Any:
        texts, tokens, width = qkv.shape
        q, k, v = qkv.view(texts, tokens, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        bias = None if bool(mask.all()) else ((1 - mask[:, None, None]) * MASKED).to(qkv.dtype)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return out.transpose(1, 2).reshape(texts, tokens, width // 3)

    def pool(self, x: Any, mask: Any) -> Any:
        return x[:, 0] if self._cls else torch.einsum("blh,bl->bh", x.float(), mask)


def _converted(value: Any, dtype: torch.dtype, device: str) -> Any:
    """The same weights as tensors."""
    if isinstance(value, tuple):
        return tuple(_converted(one, dtype, device) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _converted(getattr(value, f.name), dtype, device) for f in fields(value)})
    return torch.from_numpy(value).to(device, dtype)


def _streams() -> ThreadPoolExecutor:
    """A thread for each core that torch may use, on each of which torch works alone."""
    count = torch.get_num_threads()
    barrier = threading.Barrier(count + 1)

    def start() -> None:
        torch.set_num_threads(1)  # holds in this thread, and in threads that torch first meets before the next call
        barrier.wait()

    pool = ThreadPoolExecutor(count, "ragfm-embed")
    for _ in range(count):
        pool.submit(start)
    barrier.wait()
    torch.set_num_threads(count)
    return pool
