"""Exact search with numpy: the reference that all other indexes are measured against."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ragfm_indexes.selection import Selection, Selections
from ragfm_indexes.vector_arrays import by_id, check_ids, check_queries, ids_at, read_array, rows_of, search_exactly

if TYPE_CHECKING:
    from ragfm.core.types import Ids, Vectors


class ExactIndex:
    """Compares a query with every vector. Of equal scores the lower id comes first; scores depend on nothing else.

    Saved as `ids.npy` and `vectors.npy`, which are mapped when loaded. Thread-safe, as nothing changes.
    """

    recall: ClassVar[float] = 1.0

    def __init__(self, ids: Ids, vectors: Vectors) -> None:
        """For `build` and `load`: ids in ascending order, vectors of unit length in the same order."""
        self._ids = ids
        self._vectors = vectors
        self._selections = Selections(lambda allowed: Selection(rows_of(ids, allowed), len(ids)))

    @classmethod
    def build(cls, ids: Ids, vectors: Vectors) -> ExactIndex:
        """An index over copies of `vectors`. *Shape:* (n,) and (n, dim).

        Raises ValueError for negative or repeated ids, other shapes, and rows that are not of unit length.
        """
        return cls(*by_id(ids, vectors))

    def search(self, queries: Vectors, k: int, *, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Cosines and ids of the best `k`, best first; -inf and -1 where there are fewer. *Shape:* (n_queries, k).

        Raises ValueError for k < 1 and for queries of another shape or with NaN.
        """
        queries = check_queries(queries, k, self._vectors.shape[1])
        within = None if allowed is None else self._selections.of(allowed)
        scores, rows = search_exactly(self._vectors, queries, k, within)
        return scores, ids_at(self._ids, rows)

    def save(self, folder: Path) -> None:
        """Write `ids.npy` and `vectors.npy` into an empty folder."""
        np.save(folder / "ids.npy", self._ids, allow_pickle=False)
        np.save(folder / "vectors.npy", self._vectors, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> ExactIndex:
        """Map what `save` wrote. Raises ValueError where the files are not whole or don't belong together."""
        ids = read_array(folder / "ids.npy", np.int64, 1)
        vectors = read_array(folder / "vectors.npy", np.float32, 2)
        check_ids(ids)
        if len(ids) != len(vectors):
            raise ValueError(f"{len(ids)} ids but {len(vectors)} vectors in {folder}")
        return cls(ids, vectors)

    def __len__(self) -> int:
        return len(self._ids)
