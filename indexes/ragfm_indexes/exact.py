"""Exact search with numpy: the reference for all other vector indexes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from ragfm.core.types import Ids, Vectors
from ragfm_indexes.selection import Selection, SelectionCache
from ragfm_indexes.vector_arrays import (
    check_ids,
    check_queries,
    exact_search,
    ids_of_rows,
    read_array,
    rows_of_ids,
    sorted_by_id,
)


class ExactIndex:
    """Compares a query with every vector. Among equal scores the lower id comes first.

    A score depends only on the query and the vector, not on the batch or the filter. Saved as `ids.npy` and
    `vectors.npy`, which are memory-mapped when loaded. Immutable and thread-safe.
    """

    recall: ClassVar[float] = 1.0

    def __init__(self, ids: Ids, vectors: Vectors) -> None:
        """For `build` and `load`: ids in ascending order, and unit vectors in the same order."""
        self._ids = ids
        self._vectors = vectors
        self._selections = SelectionCache(lambda allowed: Selection(rows_of_ids(ids, allowed), len(ids)))

    @classmethod
    def build(cls, ids: Ids, vectors: Vectors) -> ExactIndex:
        """Build an index over copies of the arrays. *Shape:* (n,) and (n, dim).

        Raises ValueError for negative or repeated ids, wrong shapes, and vectors that do not have unit length.
        """
        return cls(*sorted_by_id(ids, vectors))

    def search(self, queries: Vectors, k: int, *, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Cosines and ids of the `k` best vectors, best first; -inf and -1 if there are fewer. *Shape:* (n_queries, k).

        Raises ValueError for k < 1 and for queries of a wrong shape or with NaN.
        """
        queries = check_queries(queries, k, self._vectors.shape[1])
        selection = None if allowed is None else self._selections.get(allowed)
        scores, rows = exact_search(self._vectors, queries, k, selection)
        return scores, ids_of_rows(self._ids, rows)

    def save(self, folder: Path) -> None:
        """Write `ids.npy` and `vectors.npy` into an empty folder."""
        np.save(folder / "ids.npy", self._ids, allow_pickle=False)
        np.save(folder / "vectors.npy", self._vectors, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> ExactIndex:
        """Memory-map a saved index. Raises ValueError if the files are incomplete or inconsistent."""
        ids = read_array(folder / "ids.npy", np.int64, 1)
        vectors = read_array(folder / "vectors.npy", np.float32, 2)
        check_ids(ids)
        if len(ids) != len(vectors):
            raise ValueError(f"{len(ids)} ids but {len(vectors)} vectors in {folder}")
        return cls(ids, vectors)

    def __len__(self) -> int:
        return len(self._ids)
