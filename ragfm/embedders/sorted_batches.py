"""Batches of texts of similar length, which need little padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ragfm.core.types import Vectors

Batch: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.float32]]"
"""Token ids, and a mask that is 1 for tokens and 0 for padding. *Shape:* both (texts, tokens)."""


def run_sorted(
    ids: Sequence[Sequence[int]],
    run: Callable[[Iterable[Batch]], Iterable[NDArray[np.float32]]],
    *,
    max_tokens: int,
    multiple: int = 1,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Run tokenized texts in batches, longest first; yields the positions of a batch's texts and its output.

    `run` receives the batches and yields their outputs in the same order. A batch has up to `max_tokens` tokens,
    padding included, or a single text. Texts are padded to a multiple of `multiple`.
    """
    lengths = np.array([len(row) for row in ids])
    order = np.argsort(-lengths, kind="stable")
    groups = []
    start = 0
    while start < len(order):
        width = -(-int(lengths[order[start]]) // multiple) * multiple
        groups.append(order[start : start + max(1, max_tokens // width)])
        start += len(groups[-1])
    yield from zip(groups, run(_padded(ids, rows, multiple) for rows in groups), strict=True)


def embed_sorted(
    ids: Sequence[Sequence[int]],
    run: Callable[[Iterable[Batch]], Iterable[Vectors]],
    dim: int,
    *,
    max_tokens: int,
    multiple: int = 1,
) -> Vectors:
    """Unit vectors of tokenized texts, in the order of the texts; see `run_sorted`. *Shape:* (len(ids), dim)."""
    vectors = np.empty((len(ids), dim), dtype=np.float32)
    for rows, batch_vectors in run_sorted(ids, run, max_tokens=max_tokens, multiple=multiple):
        vectors[rows] = batch_vectors
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def states_sorted(
    ids: Sequence[Sequence[int]],
    run: Callable[[Iterable[Batch]], Iterable[NDArray[np.float32]]],
    *,
    max_tokens: int,
    multiple: int = 1,
) -> list[NDArray[np.float32]]:
    """The states of each text's tokens, in the order of the texts; see `run_sorted`. *Shape:* (tokens, dim) each."""
    states: list[NDArray[np.float32]] = [np.empty(0, dtype=np.float32)] * len(ids)
    for rows, batch_states in run_sorted(ids, run, max_tokens=max_tokens, multiple=multiple):
        for row, of_text in zip(rows.tolist(), batch_states, strict=True):
            states[row] = of_text[: len(ids[row])]
    return states


def _padded(ids: Sequence[Sequence[int]], rows: NDArray[np.int64], multiple: int) -> Batch:
    width = -(-max(len(ids[row]) for row in rows) // multiple) * multiple
    tokens = np.zeros((len(rows), width), dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.float32)
    for n, row in enumerate(rows):
        tokens[n, : len(ids[row])] = ids[row]
        mask[n, : len(ids[row])] = 1
    return tokens, mask
