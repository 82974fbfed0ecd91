"""Arrays of indexes: checks of ids, vectors and queries, the rows that a search may return, reading of saved arrays."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragfm.core.types import Ids, Vectors

Rows: TypeAlias = NDArray[np.int64]
"""Row numbers of an index, whose rows are in ascending order of id; -1 stands for no row."""
S = TypeVar("S")


def sorted_by_id(ids: ArrayLike, vectors: ArrayLike) -> tuple[Ids, Vectors]:
    """Ids and vectors in ascending order of id, as native int64 and float32. *Shape:* (n,) and (n, dim).

    The ids are copied, the vectors only where necessary, since an index encodes them. Raises ValueError for negative or
    repeated ids, and for vectors whose length is not 1 within 0.001, NaN included.
    """
    id_array, rows = _as_int64(ids, "ids"), np.asarray(vectors)
    if id_array.ndim != 1 or rows.ndim != 2 or len(id_array) != len(rows):
        raise ValueError(f"expected ids (n,) and vectors (n, dim), got shapes {id_array.shape} and {rows.shape}")
    if rows.dtype.kind not in "fiu":
        raise ValueError(f"expected vectors of real numbers, got {rows.dtype}")
    if not bool((id_array[1:] > id_array[:-1]).all()):
        order = np.argsort(id_array, kind="stable")
        id_array, rows = id_array[order], rows[order]
    check_ids(id_array)
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    invalid = np.flatnonzero(~(np.abs(lengths - 1) <= 1e-3))  # the negation makes NaN invalid
    if len(invalid):
        raise ValueError(f"expected vectors of length 1, that of id {id_array[invalid[0]]} has {lengths[invalid[0]]:g}")
    return id_array, rows


def check_ids(ids: Ids) -> None:
    """Raise ValueError unless the ids are in ascending order, distinct and not negative."""
    if len(ids) and ids[0] < 0:
        raise ValueError(f"expected ids >= 0, got {ids[0]}")
    repeated = np.flatnonzero(ids[1:] <= ids[:-1])
    if len(repeated):
        raise ValueError(f"expected distinct ids, got {ids[repeated[0] + 1]} twice")


def check_queries(queries: ArrayLike, k: int, dim: int) -> Vectors:
    """Queries as contiguous float32. *Shape:* (n_queries, dim). Raises ValueError for a wrong shape, NaN or k < 1."""
    if k < 1:
        raise ValueError(f"expected k >= 1, got {k}")
    checked = np.ascontiguousarray(queries, dtype=np.float32)
    if checked.ndim != 2 or checked.shape[1] != dim:
        raise ValueError(f"expected queries (n, {dim}), got shape {checked.shape}")
    if not np.isfinite(checked).all():
        raise ValueError("expected finite queries")
    return checked


def rows_of_ids(ids: Ids, allowed: ArrayLike) -> Rows:
    """Row numbers of the allowed ids in the sorted `ids`, in ascending order. Unknown ids are skipped."""
    wanted = _as_int64(allowed, "allowed ids", copy=False)
    if wanted.ndim != 1 or not bool((wanted[1:] > wanted[:-1]).all()):
        wanted = np.unique(wanted)
    rows = np.searchsorted(ids, wanted)
    inside = rows < len(ids)
    rows, wanted = rows[inside], wanted[inside]
    known: Rows = rows[ids[rows] == wanted]
    return known


def ids_of_rows(ids: Ids, rows: Rows) -> Ids:
    """Ids at row numbers; -1 for row numbers outside the index, such as -1 or those from a damaged file."""
    result = np.full(rows.shape, -1, dtype=np.int64)
    valid = (rows >= 0) & (rows < len(ids))
    result[valid] = ids[rows[valid]]
    return result


def empty_results(n_queries: int, k: int) -> tuple[Vectors, Rows]:
    """Scores and rows of a search without hits: -inf and -1. *Shape:* both (n_queries, k)."""
    return np.full((n_queries, k), -np.inf, dtype=np.float32), np.full((n_queries, k), -1, dtype=np.int64)


class SelectionCache(Generic[S]):
    """Caches the selections that `make` gives for the last few arrays of ids, as long as these live. Thread-safe.

    A filter is used many times with the same array, and converting half a million ids takes ten times as long as the
    search. Only read-only arrays are cached: marking an array read-only promises that its content does not change.
    """

    def __init__(self, make: Callable[[ArrayLike], S], *, size: int = 8) -> None:
        self._make = make
        self._size = size
        self._cache: OrderedDict[int, tuple[weakref.ref[Any], S]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, allowed: ArrayLike) -> S:
        """The selection of these ids."""
        if not isinstance(allowed, np.ndarray) or allowed.flags.writeable:
            return self._make(allowed)
        cache, key = self._cache, id(allowed)
        with self._lock:
            if key in cache:
                cache.move_to_end(key)  # the most recently used
                return cache[key][1]
        selection = self._make(allowed)
        with self._lock:
            # The callback runs before another array can have the address, maybe in this thread: it takes no lock.
            cache[key] = (weakref.ref(allowed, lambda _: cache.pop(key, None)), selection)
            while len(cache) > self._size:
                with contextlib.suppress(KeyError):  # the callback has just removed the last entry
                    cache.popitem(last=False)
        return selection


def read_array(path: Path, dtype: type[np.generic], ndim: int) -> NDArray[Any]:
    """Memory-map a saved array. Raises ValueError if its type or dimensions differ, or the file is incomplete."""
    try:
        array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (EOFError, TokenError) as error:
        raise ValueError(f"{path.name} is not an array: {error}") from error
    if array.dtype != dtype or array.ndim != ndim:
        raise ValueError(
            f"{path.name}: expected {np.dtype(dtype)} of {ndim} dimensions, got {array.dtype} of {array.ndim}"
        )
    return array


def _as_int64(values: ArrayLike, name: str, *, copy: bool = True) -> Ids:
    array = np.asarray(values)
    if array.size == 0:  # numpy makes floats of an empty list
        return np.empty(array.shape, dtype=np.int64)
    if array.dtype.kind not in "iu" or (array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max):
        raise ValueError(f"expected {name} as int64, got {array.dtype}")
    return array.astype(np.int64, copy=copy)
