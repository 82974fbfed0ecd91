"""Approximate search through a graph of neighbours: HNSW (Malkov and Yashunin 2018)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import faiss
import numpy as np

from ragfm_indexes.faiss_base import HEADER, FaissIndex, FaissSelection
from ragfm_indexes.vector_arrays import by_id

if TYPE_CHECKING:
    from ragfm.core.types import Ids, Vectors
    from ragfm_indexes.vector_arrays import Rows

_LINKS = 32  # of a vector to its neighbours; twice as many on the ground floor
_BUILD_BREADTH = 128  # candidates for these links
BREADTH = 192  # vectors that a search keeps in view at the least ("efSearch")
GROWTH = 0.75  # times the square root of the number of vectors is what it keeps in view of many
STEP = 80  # rows that a scan scores in the time that the graph takes for one of these
LOOK = 1 / 16  # of the time to score a row: to see that it is not selected


class FaissHnswIndex(FaissIndex):
    """FAISS's IndexHNSWSQ over 8-bit codes: about 0.7 KB a vector of 384 dimensions, scores within 0.01.

    Where going through the codes of all that is allowed is faster than the graph, or the graph does not lead to
    enough of it, a search does that. Links are found by several threads at once: two builds of the same vectors differ
    in a few links.
    """

    recall: ClassVar[float] = 0.99
    magic: ClassVar[bytes] = b"IHNs"
    flags: ClassVar[int] = faiss.IO_FLAG_MMAP_IFC  # maps links and codes; IO_FLAG_MMAP would map neither
    # Probabilities, links of each level, levels, places and the links; the entry and settings; codes and their ranges.
    layout: ClassVar[tuple[int, ...]] = (HEADER, -8, -4, -4, -8, -4, 20, HEADER, 28, -4, -1)

    def __init__(self, ids: Ids, index: Any) -> None:
        """For `build` and `load`: ids in ascending order, and an IndexHNSWSQ with their vectors in the same order."""
        super().__init__(ids, index)
        self._codes = faiss.downcast_index(index.storage)

    @classmethod
    def build(cls, ids: Ids, vectors: Vectors) -> FaissHnswIndex:
        """An index of `vectors`. *Shape:* (n,) and (n, dim).

        Raises ValueError for negative or repeated ids, other shapes, and rows that are not of unit length.
        """
        ids, vectors = by_id(ids, vectors, copy=False)
        dim = vectors.shape[1]
        index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, _LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _BUILD_BREADTH
        index.train(vectors if len(vectors) else np.eye(1, dim, dtype=np.float32))
        index.add(vectors)
        return cls(ids, index)

    def _search(self, queries: Vectors, k: int, selection: FaissSelection | None) -> tuple[Vectors, Rows]:
        share = 1.0 if selection is None else selection.share
        # Of the vectors in view only a share is selected, so more must be in view for the same recall.
        breadth = math.ceil(max(BREADTH, GROWTH * math.sqrt(len(self))) / math.sqrt(share))
        breadth = max(breadth, math.ceil(2 * k / share))
        if breadth * STEP >= self._cost_of_scan(share):
            return self._scan(queries, k, selection)
        # A filter may keep away from the query. The graph sees some ten times what it keeps in view: where fewer
        # than four times the share of that turn up, it has looked in the wrong place.
        wanted = k if selection is None else max(k, int(breadth * min(1, 4 * share)))
        parameters = faiss.SearchParametersHNSW(efSearch=breadth, sel=selection and selection.selector)
        scores, rows = self._index.search(queries, wanted, params=parameters)
        lost = np.flatnonzero(rows[:, -1] < 0)
        scores, rows = scores[:, :k], rows[:, :k]
        if len(lost):
            scores[lost], rows[lost] = self._scan(queries[lost], k, selection)
        return scores, rows

    def _cost_of_scan(self, share: float) -> float:
        """In rows that a scan without a selection scores in the same time."""
        return len(self) * (1 if share == 1 else LOOK + 2 * share)

    def _scan(self, queries: Vectors, k: int, selection: FaissSelection | None) -> tuple[Vectors, Rows]:
        parameters = faiss.SearchParameters(sel=selection.selector) if selection else None
        scores, rows = self._codes.search(queries, k, params=parameters)
        return scores, rows

    @classmethod
    def _is_whole(cls, index: Any) -> bool:
        codes = faiss.downcast_index(index.storage)
        return (
            isinstance(index, faiss.IndexHNSWSQ)
            and isinstance(codes, faiss.IndexScalarQuantizer)
            and codes.metric_type == faiss.METRIC_INNER_PRODUCT
            and codes.sq.qtype == faiss.ScalarQuantizer.QT_8bit
            and codes.codes.size() == index.ntotal * index.d
        )
