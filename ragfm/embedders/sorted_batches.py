"""Texts of like length go through a network together, so that little of it is spent on padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ragfm.core.types import Vectors

__all__ = ["Batch", "embed_sorted"]

Batch: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.float32]]"
"""Token ids and a mask that is 1 for tokens and 0 for padding. *Shape:* (texts, tokens), both."""


def embed_sorted(
    ids: Sequence[Sequence[int]],
    run: Callable[[Iterable[Batch]], Iterable[Vectors]],
    dim: int,
    *,
    budget: int,
    multiple: int = 1,
) -> Vectors:
    """Unit vectors of tokenised texts, in their order. *Shape:* (len(ids), dim).

    `run` is given the batches, longest texts first, and gives their vectors, of any length, in the same order. A batch
    has at most `budget` tokens, padding included, or is a single text; texts are padded to a multiple of `multiple`.
    """
    lengths = np.array([len(row) for row in ids])
    order = np.argsort(-lengths, kind="stable")
    vectors = np.empty((len(ids), dim), dtype=np.float32)
    groups = []
    start = 0
    while start < len(order):
        width = -(-int(lengths[order[start]]) // multiple) * multiple
        groups.append(order[start : start + max(1, budget // width)])
        start += len(groups[-1])
    for rows, found in zip(groups, run(_padded(ids, rows, multiple) for rows in groups), strict=True):
        vectors[rows] = found
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _padded(ids: Sequence[Sequence[int]], rows: NDArray[np.int64], multiple: int) -> Batch:
    width = -(-max(len(ids[row]) for row in rows) // multiple) * multiple
    tokens = np.zeros((len(rows), width), dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.float32)
    for place, row in enumerate(rows):
        tokens[place, : len(ids[row])] = ids[row]
        mask[place, : len(ids[row])] = 1
    return tokens, mask
