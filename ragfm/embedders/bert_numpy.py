"""BERT in numpy: exact, and there before torch is imported; for questions and small jobs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ragfm.embedders.bert import MASKED, Bert, Linear, forward, token_vectors
from ragfm.embedders.sorted_batches import Batch, embed_sorted
from ragfm.models.hardware import openmp_threads

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ragfm.core.types import Vectors
    from ragfm.embedders.model_folder import BertFolder

__all__ = ["NumpyForm"]

BUDGET = 1024
"""Tokens of a batch: more no longer fit into the cache."""


class NumpyForm:
    """fp32, one batch on each core.

    The threads of a matrix product wait for each other spinning: where another program wants a core, one second of work
    took minutes. So each product has one thread, and the batches share the cores.
    """

    def __init__(self, folder: BertFolder, bert: Bert) -> None:
        self._folder, operations = folder, _Numpy(folder)
        self._forward, self._tokens = partial(forward, operations, bert), partial(token_vectors, operations, bert)

    def __call__(self, ids: Sequence[Sequence[int]]) -> Vectors:
        """*Shape:* (len(ids), dim)."""
        with _one_blas_thread():
            if len(ids) == 1:
                return embed_sorted(ids, partial(map, self._one), self._folder.dim, budget=BUDGET)
            return embed_sorted(ids, partial(self._streams.map, self._one), self._folder.dim, budget=BUDGET)

    def token_vectors(self, ids: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """What the network makes of each token, before pooling. *Shape:* (tokens of the text, H), for each text."""
        with _one_blas_thread():
            return list(self._streams.map(self._tokens_of, ids))

    def _tokens_of(self, ids: Sequence[int]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self._tokens(np.array([ids]), np.ones((1, len(ids)), dtype=np.float32))[0]
        return vectors

    def _one(self, batch: Batch) -> Vectors:
        vectors: Vectors = self._forward(*batch)
        return vectors

    @cached_property
    def _streams(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(openmp_threads(), "ragfm-embed")


class _Numpy:
    def __init__(self, folder: BertFolder) -> None:
        self._heads, self._epsilon, self._cls = folder.heads, np.float32(folder.epsilon), folder.cls

    def rows(self, table: Any, ids: Any) -> Any:
        return table[ids]

    def first(self, table: Any, ids: Any) -> Any:
        return table[: ids.shape[1]]

    def linear(self, x: Any, by: Linear) -> Any:
        y = x.reshape(-1, x.shape[-1]) @ by.weight.T
        y += by.bias
        return y.reshape(*x.shape[:-1], -1)

    def norm(self, x: Any, by: Linear) -> Any:
        x = x - x.mean(-1, keepdims=True)
        x *= by.weight / np.sqrt(np.square(x).mean(-1, keepdims=True) + self._epsilon)
        x += by.bias
        return x

    def gelu(self, x: Any) -> Any:
        from scipy.special import erf

        y = erf(x * np.float32(0.5**0.5))
        y += 1
        y *= x
        y *= np.float32(0.5)
        return y

    def attend(self, qkv: Any, mask: Any) -> Any:
        texts, tokens, width = qkv.shape
        q, k, v = qkv.reshape(texts, tokens, 3, self._heads, -1).transpose(2, 0, 3, 1, 4)
        scores = (q * np.float32(q.shape[-1] ** -0.5)) @ k.swapaxes(-1, -2)
        if not mask.all():
            scores += (1 - mask[:, None, None]) * np.float32(MASKED)
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(-1, keepdims=True)
        return (scores @ v).transpose(0, 2, 1, 3).reshape(texts, tokens, width // 3)

    def pool(self, x: Any, mask: Any) -> Any:
        return x[:, 0] if self._cls else np.einsum("blh,bl->bh", x, mask)


_limiting = threading.Lock()
_limits: list[Any] = []


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """The limit is the whole process's; the first who comes sets it, the last who goes lifts it."""
    from threadpoolctl import threadpool_limits

    with _limiting:
        _limits.append(None if _limits else threadpool_limits(1, "blas"))
        first = _limits[0]
    try:
        yield
    finally:
        with _limiting:
            _limits.pop()
            if not _limits:
                first.restore_original_limits()
