"""Approximate search in inverted lists: IVF over 8-bit codes (Jégou et al. 2011)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import faiss

from ragfm.core.types import Ids, Vectors
from ragfm_indexes.faiss_base import FaissIndex, FaissSelection
from ragfm_indexes.selection import Rows

_TRAINING_VECTORS = 48  # vectors per list that the centroids are trained on
PROBED_LISTS = 160  # lists that a search without a filter scores


class FaissIvfIndex(FaissIndex):
    """FAISS's IndexIVFScalarQuantizer over 8-bit codes: about 0.4 KB per vector of 384 dimensions, scores within 0.01.

    A search goes through the lists, nearest first, until it has scored enough allowed vectors. So it also finds allowed
    vectors that are far from the query. The same vectors always give the same index.
    """

    recall: ClassVar[float] = 0.95
    magic: ClassVar[bytes] = b"IwSq"
    read_flags: ClassVar[int] = faiss.IO_FLAG_MMAP  # maps the lists; IO_FLAG_MMAP_IFC allocates memory for them first

    def __init__(self, ids: Ids, index: Any) -> None:
        """For `build` and `load`: ids in ascending order, and the index of their vectors in the same order."""
        super().__init__(ids, index)
        lists = faiss.downcast_InvertedLists(index.invlists)
        if isinstance(lists, faiss.OnDiskInvertedLists):
            lists.prefetch_nthread = 0  # otherwise every search starts 32 threads
        self._longest = max(map(lists.list_size, range(lists.nlist)))

    @classmethod
    def _new_index(cls, count: int, dim: int) -> Any:
        lists = max(1, min(round(4 * math.sqrt(count)), count // _TRAINING_VECTORS))
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dim), dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, True
        )
        index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, _TRAINING_VECTORS
        return index

    def _search(self, queries: Vectors, k: int, selection: FaissSelection | None) -> tuple[Vectors, Rows]:
        # The best selected vectors are farther away than the best of all, so a larger part of them must be scored.
        share = 1.0 if selection is None else selection.share
        max_codes = max(k, round(PROBED_LISTS * len(self) / self._index.nlist * math.sqrt(share)))
        if selection is not None:
            # FAISS counts the selected vectors, but reads no more of a list, selected or not, than is left to count.
            max_codes += self._longest
        params = faiss.SearchParametersIVF(
            nprobe=self._index.nlist, max_codes=max_codes, sel=selection and selection.selector
        )
        scores, rows = self._index.search(queries, k, params=params)
        return scores, rows

    def _writable_index(self) -> Any:
        mapped = self._index
        lists = faiss.downcast_InvertedLists(mapped.invlists)
        if not isinstance(lists, faiss.OnDiskInvertedLists):
            return mapped
        # FAISS would write the name of the mapped file instead of the lists, so they are copied into memory.
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
    def _is_valid(cls, index: Any) -> bool:
        if not isinstance(index, faiss.IndexIVFScalarQuantizer):
            return False
        centroids, lists = faiss.downcast_index(index.quantizer), index.invlists
        sizes = [lists.list_size(number) for number in range(index.nlist)]
        return (
            index.sq.qtype == faiss.ScalarQuantizer.QT_8bit
            and index.code_size == lists.code_size == index.sq.code_size == index.d
            and isinstance(centroids, faiss.IndexFlatIP)
            and (centroids.d, centroids.ntotal) == (index.d, index.nlist)
            and max(sizes, default=0) <= index.ntotal == sum(sizes)
        )
