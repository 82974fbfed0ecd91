"""Exact search with FAISS."""

from __future__ import annotations

from typing import Any, ClassVar

import faiss
import numpy as np

from ragfm.core.types import Vectors
from ragfm_indexes.faiss_base import HEADER_BYTES, FaissIndex, FaissSelection
from ragfm_indexes.vector_arrays import Rows

_MAX_NUMPY_ROWS = 1_000  # up to this many selected rows, numpy is faster than FAISS with a selector


class FaissFlatIndex(FaissIndex):
    """FAISS's IndexFlatIP: compares a query with every vector. FAISS determines the order of equal scores."""

    recall: ClassVar[float] = 1.0
    magic: ClassVar[bytes] = b"IxFI"
    layout: ClassVar[tuple[int, ...]] = (HEADER_BYTES, -4)

    @classmethod
    def _new_index(cls, dim: int) -> Any:
        return faiss.IndexFlatIP(dim)

    def _search(self, queries: Vectors, k: int, selection: FaissSelection | None) -> tuple[Vectors, Rows]:
        if selection is None:
            scores, rows = self._index.search(queries, k)
        elif len(selection) <= _MAX_NUMPY_ROWS:
            vectors = self._index.reconstruct_batch(selection.rows)
            # Not a matrix product, whose rounding depends on the other vectors and queries.
            exact = np.stack([(vectors * query).sum(axis=1) for query in queries.astype(np.float64)])
            order = np.argsort(-exact, axis=1, kind="stable")[:, :k]
            scores = np.take_along_axis(exact, order, axis=1).astype(np.float32)
            rows = selection.rows[order]
        else:
            params = faiss.SearchParameters(sel=selection.selector)
            scores, rows = self._index.search(queries, k, params=params)
        return scores, rows

    @classmethod
    def _is_valid(cls, index: Any) -> bool:
        return isinstance(index, faiss.IndexFlatIP) and index.codes.size() == index.ntotal * index.d * 4
