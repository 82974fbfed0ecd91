"""Approximate search in a graph of neighbors: HNSW (Malkov and Yashunin 2018)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import faiss
import numpy as np

from ragfm.core.types import Ids, Vectors
from ragfm_indexes.faiss_base import HEADER_BYTES, FaissIndex, FaissSelection
from ragfm_indexes.vector_arrays import Rows

_LINKS = 32  # neighbors of a vector (M); twice as many on the bottom level
_EF_CONSTRUCTION = 128
MIN_EF_SEARCH = 192
EF_SEARCH_GROWTH = 0.75  # efSearch grows with the square root of the number of vectors, times this
GRAPH_STEP_COST = 80  # rows that a scan scores in the time the graph needs for one candidate of efSearch
FILTER_CHECK_COST = 1 / 16  # time to test whether a row is selected, relative to scoring it


class FaissHnswIndex(FaissIndex):
    """FAISS's IndexHNSWSQ over 8-bit codes: about 0.7 KB per vector of 384 dimensions, scores within 0.01.

    A search scans the codes of all allowed vectors instead if that is faster, or if the graph does not lead to enough
    of them. Links are built by several threads, so two builds of the same vectors differ in a few links.
    """

    recall: ClassVar[float] = 0.99
    magic: ClassVar[bytes] = b"IHNs"
    # Level probabilities, links per level, levels, offsets and links; entry point and settings; codes and their ranges.
    layout: ClassVar[tuple[int, ...]] = (HEADER_BYTES, -8, -4, -4, -8, -4, 20, HEADER_BYTES, 28, -4, -1)

    def __init__(self, ids: Ids, index: Any) -> None:
        """For `build` and `load`: ids in ascending order, and an IndexHNSWSQ of their vectors in the same order."""
        super().__init__(ids, index)
        self._codes = faiss.downcast_index(index.storage)

    @classmethod
    def _new_index(cls, dim: int) -> Any:
        index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, _LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _EF_CONSTRUCTION
        return index

    def _search(self, queries: Vectors, k: int, selection: FaissSelection | None) -> tuple[Vectors, Rows]:
        share = 1.0 if selection is None else selection.share
        # Only a share of the candidates is selected, so the same recall needs more of them.
        ef_search = math.ceil(max(MIN_EF_SEARCH, EF_SEARCH_GROWTH * math.sqrt(len(self))) / math.sqrt(share))
        ef_search = max(ef_search, math.ceil(2 * k / share))
        # The cost of a scan, in rows that a scan without a selection scores in the same time.
        scan_cost = len(self) * (1 if share == 1 else FILTER_CHECK_COST + 2 * share)
        if ef_search * GRAPH_STEP_COST >= scan_cost:
            return self._scan(queries, k, selection)

        # The allowed vectors may be far from the query. The graph visits about ten times efSearch vectors; if fewer
        # hits turn up than four times the selected share of efSearch, the graph has searched in the wrong region.
        wanted = k if selection is None else max(k, int(ef_search * min(1, 4 * share)))
        params = faiss.SearchParametersHNSW(efSearch=ef_search, sel=selection and selection.selector)
        scores, rows = self._index.search(queries, wanted, params=params)
        incomplete = np.flatnonzero(rows[:, -1] < 0)
        scores, rows = scores[:, :k], rows[:, :k]
        if len(incomplete):
            scores[incomplete], rows[incomplete] = self._scan(queries[incomplete], k, selection)
        return scores, rows

    def _scan(self, queries: Vectors, k: int, selection: FaissSelection | None) -> tuple[Vectors, Rows]:
        params = faiss.SearchParameters(sel=selection.selector) if selection else None
        scores, rows = self._codes.search(queries, k, params=params)
        return scores, rows

    @classmethod
    def _is_valid(cls, index: Any) -> bool:
        codes = faiss.downcast_index(index.storage)
        return (
            isinstance(index, faiss.IndexHNSWSQ)
            and isinstance(codes, faiss.IndexScalarQuantizer)
            and codes.metric_type == faiss.METRIC_INNER_PRODUCT
            and codes.sq.qtype == faiss.ScalarQuantizer.QT_8bit
            and codes.codes.size() == index.ntotal * index.d
        )
