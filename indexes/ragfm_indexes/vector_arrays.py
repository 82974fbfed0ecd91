"""What vector indexes share: checks of what they are given, exact search, and reading saved arrays."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from ragfm.core.types import Ids, Vectors
    from ragfm_indexes.selection import Selection

Rows: TypeAlias = NDArray[np.int64]
"""Positions in an index's own order, which is by id; -1 is none."""

_BLOCK = 1 << 23  # scores that are held at a time: 32 MiB
_GATHER = 8192  # rows that are scored again at a time
_ROUNDING = 1e-5  # of a float32 cosine; ten times what was seen at 4,096 dimensions


def by_id(ids: ArrayLike, vectors: ArrayLike, *, copy: bool = True) -> tuple[Ids, Vectors]:
    """Ids and vectors in order of id, as native int64 and float32; ids are always a copy, vectors where `copy` says so.

    *Shape:* (n,) and (n, dim). An index that makes its own codes needs no copy, which is as large as what it was
    given. Raises ValueError for ids that are negative or not distinct, and for rows whose length
    is not 1 within 0.001, NaN included.
    """
    known, given = _integers(ids, "ids"), np.asarray(vectors)
    if known.ndim != 1 or given.ndim != 2 or len(known) != len(given):
        raise ValueError(f"expected ids (n,) and vectors (n, dim), got shapes {known.shape} and {given.shape}")
    if given.dtype.kind not in "fiu":
        raise ValueError(f"expected vectors of real numbers, got {given.dtype}")
    if copy or not bool((known[1:] > known[:-1]).all()):
        order = np.argsort(known, kind="stable")
        known, given = known[order], given[order]
    check_ids(known)
    rows = np.ascontiguousarray(given, dtype=np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= 1e-3))  # so written, NaN is wrong too
    if len(wrong):
        raise ValueError(f"expected vectors of length 1, that of id {known[wrong[0]]} has {lengths[wrong[0]]:g}")
    return known, rows


def check_ids(ids: Ids) -> None:
    """Raise ValueError unless sorted ids are distinct and not negative."""
    if len(ids) and ids[0] < 0:
        raise ValueError(f"expected ids >= 0, got {ids[0]}")
    repeated = np.flatnonzero(ids[1:] <= ids[:-1])
    if len(repeated):
        raise ValueError(f"expected distinct ids, got {ids[repeated[0] + 1]} twice")


def check_queries(queries: ArrayLike, k: int, dim: int) -> Vectors:
    """Queries as contiguous float32. *Shape:* (n_queries, dim). Raises ValueError for another shape, NaN or k < 1."""
    if k < 1:
        raise ValueError(f"expected k >= 1, got {k}")
    checked = np.ascontiguousarray(queries, dtype=np.float32)
    if checked.ndim != 2 or checked.shape[1] != dim:
        raise ValueError(f"expected queries (n, {dim}), got shape {checked.shape}")
    if not np.isfinite(checked).all():
        raise ValueError("expected finite queries")
    return checked


def rows_of(ids: Ids, allowed: ArrayLike) -> Rows:
    """Where the allowed ids stand in the sorted `ids`, in order; those that are not there are left out."""
    wanted = _integers(allowed, "allowed ids", copy=False)
    if wanted.ndim != 1 or not bool((wanted[1:] > wanted[:-1]).all()):
        wanted = np.unique(wanted)
    rows = np.searchsorted(ids, wanted)
    inside = rows < len(ids)
    rows, wanted = rows[inside], wanted[inside]
    known: Rows = rows[ids[rows] == wanted]
    return known


def ids_at(ids: Ids, rows: Rows) -> Ids:
    """The ids at these rows, -1 where there is none."""
    found = np.full(rows.shape, -1, dtype=np.int64)
    known = (rows >= 0) & (rows < len(ids))  # an index that is damaged on disk may name others
    found[known] = ids[rows[known]]
    return found


def nothing(n_queries: int, k: int) -> tuple[Vectors, Rows]:
    """Scores and rows of a search that has found nothing yet: -inf and -1. *Shape:* both (n_queries, k)."""
    return np.full((n_queries, k), -np.inf, dtype=np.float32), np.full((n_queries, k), -1, dtype=np.int64)


def search_exactly(vectors: Vectors, queries: Vectors, k: int, within: Selection | None = None) -> tuple[Vectors, Rows]:
    """Cosines and rows of the best `k`, best first; of equal cosines the lower row comes first.

    *Shape:* both (n_queries, k). Only the rows `within` are looked at where it is given.
    """
    if within is not None and len(within) * 8 < len(vectors):  # copying so few costs less than scoring all
        scores, places = search_exactly(vectors[within.rows], queries, k)
        return scores, ids_at(within.rows, places)
    scores, rows = nothing(len(queries), k)
    filled = min(k, len(vectors) if within is None else len(within))
    if not filled:
        return scores, rows
    step = max(1, _BLOCK // len(vectors))
    for start in range(0, len(queries), step):
        block = queries[start : start + step] @ vectors.T
        if within is not None:
            block[:, ~within.mask] = -np.inf
        for at, rough in enumerate(block, start):
            scores[at, :filled], rows[at, :filled] = _best(vectors, queries[at], rough, filled)
    return scores, rows


def _best(vectors: Vectors, query: Vectors, rough: Vectors, k: int) -> tuple[Vectors, Rows]:
    # BLAS adds up in an order that depends on where a row stands and on how many queries come at once: equal vectors
    # get unequal scores. All that may be among the best is scored again, each row in the same way.
    last = np.partition(rough, -k)[-k] - _ROUNDING * np.linalg.norm(query)
    rows = np.flatnonzero(rough >= last)
    exact = query.astype(np.float64)
    scores = np.concatenate(
        [(vectors[rows[at : at + _GATHER]] * exact).sum(axis=1) for at in range(0, len(rows), _GATHER)]
    ).astype(np.float32)
    order = np.argsort(-scores, kind="stable")[:k]
    return scores[order], rows[order]


def read_array(path: Path, dtype: type[np.generic], ndim: int) -> NDArray[Any]:
    """A saved array, mapped. Raises ValueError where it is not of this type and number of dimensions, or not whole."""
    try:
        array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (EOFError, TokenError) as error:
        raise ValueError(f"{path.name} is not an array: {error}") from error
    if array.dtype != dtype or array.ndim != ndim:
        raise ValueError(
            f"{path.name}: expected {np.dtype(dtype)} of {ndim} dimensions, got {array.dtype} of {array.ndim}"
        )
    return array


def _integers(values: ArrayLike, what: str, *, copy: bool = True) -> Ids:
    given = np.asarray(values)
    if given.size == 0:  # an empty list is one of floats to numpy
        return np.empty(given.shape, dtype=np.int64)
    if given.dtype.kind not in "iu" or (given.dtype == np.uint64 and given.max() > np.iinfo(np.int64).max):
        raise ValueError(f"expected {what} as int64, got {given.dtype}")
    return given.astype(np.int64, copy=copy)
