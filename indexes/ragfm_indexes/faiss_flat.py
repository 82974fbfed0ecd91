"""Exact search with FAISS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import faiss

from ragfm_indexes.faiss_base import HEADER_BYTES, FaissIndex, FaissSelection
from ragfm_indexes.vector_arrays import exact_search, ids_of_rows, sorted_by_id

if TYPE_CHECKING:
    from ragfm.core.types import Ids, Vectors
    from ragfm_indexes.selection import Rows

_MAX_NUMPY_ROWS = 1_000  # up to this many selected rows, numpy is faster than FAISS with a selector


class FaissFlatIndex(FaissIndex):
    """FAISS's IndexFlatIP: compares a query with every vector. FAISS determines the order of equal scores."""

    recall: ClassVar[float] = 1.0
    magic: ClassVar[bytes] = b"IxFI"
    read_flags: ClassVar[int] = faiss.IO_FLAG_MMAP_IFC  # IO_FLAG_MMAP would read a flat index into memory
    layout: ClassVar[tuple[int, ...]] = (HEADER_BYTES, -4)

    @classmethod
    def build(cls, ids: Ids, vectors: Vectors) -> FaissFlatIndex:
        """Build an index over copies of the arrays. *Shape:* (n,) and (n, dim).

        Raises ValueError for negative or repeated ids, wrong shapes, and vectors that do not have unit length.
        """
        ids, vectors = sorted_by_id(ids, vectors, copy=False)
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return cls(ids, index)

    def _search(self, queries: Vectors, k: int, selection: FaissSelection | None) -> tuple[Vectors, Rows]:
        if selection is None:
            scores, rows = self._index.search(queries, k)
        elif len(selection) <= _MAX_NUMPY_ROWS:
            scores, positions = exact_search(self._index.reconstruct_batch(selection.rows), queries, k)
            rows = ids_of_rows(selection.rows, positions)
        else:
            params = faiss.SearchParameters(sel=selection.selector)
            scores, rows = self._index.search(queries, k, params=params)
        return scores, rows

    @classmethod
    def _is_valid(cls, index: Any) -> bool:
        return isinstance(index, faiss.IndexFlatIP) and index.codes.size() == index.ntotal * index.d * 4
