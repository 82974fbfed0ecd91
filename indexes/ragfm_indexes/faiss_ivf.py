"""Approximate search in the nearest of many lists: an inverted file over small codes (Jégou et al. 2011)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import faiss
import numpy as np

from ragfm_indexes.faiss_base import FaissIndex, FaissSelection
from ragfm_indexes.vector_arrays import by_id

if TYPE_CHECKING:
    from ragfm.core.types import Ids, Vectors
    from ragfm_indexes.vector_arrays import Rows

_TRAINING = 48  # vectors a list that its centre is found from
PROBED = 160  # lists, in a search without a filter


class FaissIvfIndex(FaissIndex):
    """FAISS's IndexIVFScalarQuantizer over 8-bit codes: about 0.4 KB a vector of 384 dimensions, scores within 0.01.

    Lists are gone through from the nearest on until enough of what is allowed was scored, so that a filter that keeps
    away from the query does no harm.
    """

    recall: ClassVar[float] = 0.95
    magic: ClassVar[bytes] = b"IwSq"
    flags: ClassVar[int] = faiss.IO_FLAG_MMAP  # maps the lists; IO_FLAG_MMAP_IFC first makes room for them in memory

    def __init__(self, ids: Ids, index: Any) -> None:
        """For `build` and `load`: ids in ascending order, and the index with their vectors in the same order."""
        super().__init__(ids, index)
        lists = faiss.downcast_InvertedLists(index.invlists)
        if isinstance(lists, faiss.OnDiskInvertedLists):
            lists.prefetch_nthread = 0  # else every search starts 32 threads

    @classmethod
    def build(cls, ids: Ids, vectors: Vectors) -> FaissIvfIndex:
        """An index of `vectors`. *Shape:* (n,) and (n, dim). The same vectors always give the same index.

        Raises ValueError for negative or repeated ids, other shapes, and rows that are not of unit length.
        """
        ids, vectors = by_id(ids, vectors, copy=False)
        dim = vectors.shape[1]
        lists = max(1, min(round(4 * math.sqrt(len(vectors))), len(vectors) // _TRAINING))
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dim), dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, True
        )
        index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, _TRAINING
        index.train(vectors if len(vectors) else np.eye(1, dim, dtype=np.float32))
        index.add(vectors)
        return cls(ids, index)

    def _search(self, queries: Vectors, k: int, selection: FaissSelection | None) -> tuple[Vectors, Rows]:
        # The best of a selection are farther away than the best of all, so that more of it must be scored.
        share = 1.0 if selection is None else selection.share
        scored = max(k, round(PROBED * len(self) / self._index.nlist * math.sqrt(share)))
        parameters = faiss.SearchParametersIVF(
            nprobe=self._index.nlist, max_codes=scored, sel=selection and selection.selector
        )
        scores, rows = self._index.search(queries, k, params=parameters)
        return scores, rows

    def _to_write(self) -> Any:
        mapped = self._index
        lists = faiss.downcast_InvertedLists(mapped.invlists)
        if not isinstance(lists, faiss.OnDiskInvertedLists):
            return mapped
        # FAISS would write the name of the file that it has mapped.
        index = faiss.IndexIVFScalarQuantizer(
            mapped.quantizer, mapped.d, mapped.nlist, mapped.sq.qtype, mapped.metric_type, mapped.by_residual
        )
        index.sq, index.is_trained, index.ntotal = mapped.sq, True, mapped.ntotal
        copy = faiss.ArrayInvertedLists(lists.nlist, lists.code_size)
        lists.copy_subset_to(copy, faiss.InvertedLists.SUBSET_TYPE_ID_RANGE, 0, mapped.ntotal)
        index.replace_invlists(copy, True)
        copy.this.disown()
        return index

    @classmethod
    def _is_whole(cls, index: Any) -> bool:
        if not isinstance(index, faiss.IndexIVFScalarQuantizer):
            return False
        centres, lists = faiss.downcast_index(index.quantizer), index.invlists
        sizes = [lists.list_size(number) for number in range(index.nlist)]
        return (
            index.sq.qtype == faiss.ScalarQuantizer.QT_8bit
            and index.code_size == lists.code_size == index.sq.code_size == index.d
            and isinstance(centres, faiss.IndexFlatIP)
            and (centres.d, centres.ntotal) == (index.d, index.nlist)
            and max(sizes, default=0) <= index.ntotal == sum(sizes)
        )
