"""Exact search with FAISS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import faiss

from ragfm_indexes.faiss_base import HEADER, FaissIndex, FaissSelection
from ragfm_indexes.vector_arrays import by_id, ids_at, search_exactly

if TYPE_CHECKING:
    from ragfm.core.types import Ids, Vectors
    from ragfm_indexes.vector_arrays import Rows

_FEW = 1_000  # rows that numpy searches sooner than FAISS goes through its selector


class FaissFlatIndex(FaissIndex):
    """FAISS's IndexFlatIP: compares a query with every vector. Which of equal scores come first is FAISS's choice."""

    recall: ClassVar[float] = 1.0
    magic: ClassVar[bytes] = b"IxFI"
    flags: ClassVar[int] = faiss.IO_FLAG_MMAP_IFC  # IO_FLAG_MMAP reads a flat index into memory
    layout: ClassVar[tuple[int, ...]] = (HEADER, -4)

    @classmethod
    def build(cls, ids: Ids, vectors: Vectors) -> FaissFlatIndex:
        """An index over copies of `vectors`. *Shape:* (n,) and (n, dim).

        Raises ValueError for negative or repeated ids, other shapes, and rows that are not of unit length.
        """
        ids, vectors = by_id(ids, vectors, copy=False)
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return cls(ids, index)

    def _search(self, queries: Vectors, k: int, selection: FaissSelection | None) -> tuple[Vectors, Rows]:
        if selection is None:
            scores, rows = self._index.search(queries, k)
        elif len(selection) <= _FEW:
            scores, places = search_exactly(self._index.reconstruct_batch(selection.rows), queries, k)
            rows = ids_at(selection.rows, places)
        else:
            parameters = faiss.SearchParameters(sel=selection.selector)
            scores, rows = self._index.search(queries, k, params=parameters)
        return scores, rows

    @classmethod
    def _is_whole(cls, index: Any) -> bool:
        return isinstance(index, faiss.IndexFlatIP) and index.codes.size() == index.ntotal * index.d * 4
