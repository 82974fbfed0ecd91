"""BERT in numpy: exact fp32 without importing torch, for questions and small jobs."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragfm.embedders.bert import MASK_BIAS, Bert, Linear, forward
from ragfm.embedders.model_folder import BertFolder
from ragfm.embedders.sorted_batches import Batch, BertBackend
from ragfm.models.hardware import compute_threads


class NumpyBackend(BertBackend):
    """fp32 with one batch per core.

    Each matrix product uses one BLAS thread, and batches run in parallel. With several BLAS threads per product, the
    threads busy-wait for each other: on a machine with other load, one second of work took minutes.
    """

    batch_tokens = 1024  # larger batches do not fit into the processor cache

    def __init__(self, folder: BertFolder, bert: Bert) -> None:
        self._forward = partial(forward, NumpyOperations(folder), bert)

    def run(self, batches: Iterable[Batch]) -> Iterable[NDArray[np.float32]]:
        """See `BertBackend`."""
        every = list(batches)
        with _one_blas_thread():
            if len(every) == 1:
                return [self._forward(*every[0])]
            with ThreadPoolExecutor(compute_threads(), "ragfm-embed") as pool:
                return list(pool.map(lambda batch: self._forward(*batch), every))


class NumpyOperations:
    """The operations of `bert.forward`; sums are written as `+` there."""

    def __init__(self, folder: BertFolder) -> None:
        self._heads, self._epsilon, self._cls = folder.heads, np.float32(folder.epsilon), folder.cls

    def lookup(self, table: Any, ids: Any) -> Any:
        """Rows of an embedding table. *Shape:* (B, L, H) for ids (B, L)."""
        return table[ids]

    def first_rows(self, table: Any, ids: Any) -> Any:
        """The first L rows of a table, for ids (B, L). *Shape:* (L, H)."""
        return table[: ids.shape[1]]

    def linear(self, x: Any, layer: Linear) -> Any:
        """The product x Wᵀ + b."""
        y = x.reshape(-1, x.shape[-1]) @ layer.weight.T
        y += layer.bias
        return y.reshape(*x.shape[:-1], -1)

    def norm(self, x: Any, layer: Linear) -> Any:
        """Layer normalization (Ba et al. 2016)."""
        x = x - x.mean(-1, keepdims=True)
        x *= layer.weight / np.sqrt(np.square(x).mean(-1, keepdims=True) + self._epsilon)
        x += layer.bias
        return x

    def gelu(self, x: Any) -> Any:
        """The product x Φ(x) (Hendrycks and Gimpel 2016), computed with erf, not tanh."""
        from scipy.special import erf

        y = erf(x * np.float32(0.5**0.5))
        y += 1
        y *= x
        y *= np.float32(0.5)
        return y

    def attention(self, qkv: Any, mask: Any, distances: Any) -> Any:
        """Multi-head softmax attention. *Shape:* (B, L, H) for qkv (B, L, 3 H)."""
        texts, tokens, width = qkv.shape
        q, k, v = qkv.reshape(texts, tokens, 3, self._heads, -1).transpose(2, 0, 3, 1, 4)
        scores = (q * np.float32(q.shape[-1] ** -0.5)) @ k.swapaxes(-1, -2)
        if distances is not None:
            scores += distances[:, :tokens, :tokens]
        if not mask.all():
            scores += (1 - mask[:, None, None]) * np.float32(MASK_BIAS)
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(-1, keepdims=True)
        return (scores @ v).transpose(0, 2, 1, 3).reshape(texts, tokens, width // 3)

    def pool(self, x: Any, mask: Any) -> Any:
        """One vector per text, of any length. *Shape:* (B, H)."""
        return x[:, 0] if self._cls else np.einsum("blh,bl->bh", x, mask)


@cache
def _blas_libraries() -> Any:
    """The controller of the loaded BLAS libraries, numpy's included. Looking for them takes two milliseconds."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


_limits_lock = threading.Lock()
_limits: list[Any] = []  # one entry for each call in progress; the first is the limit that is in force


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread. The limit is process-wide: the first caller sets it, the last one lifts it."""
    with _limits_lock:
        _limits.append(None if _limits else _blas_libraries().limit(limits=1))
        first = _limits[0]
    try:
        yield
    finally:
        with _limits_lock:
            _limits.pop()
            if not _limits:
                first.restore_original_limits()
