"""Base class of the FAISS indexes (Douze et al. 2024, https://arxiv.org/abs/2401.08281)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import faiss
import numpy as np

from ragfm_indexes.faiss_files import read_faiss, write_faiss
from ragfm_indexes.selection import Selection, SelectionCache
from ragfm_indexes.vector_arrays import check_ids, check_queries, empty_results, ids_of_rows, read_array, rows_of_ids

if TYPE_CHECKING:
    from ragfm.core.types import Ids, Vectors
    from ragfm_indexes.selection import Rows


class FaissSelection(Selection):
    """A selection that FAISS can test rows against during a search."""

    @property
    def selector(self) -> Any:
        """An IDSelectorBitmap, 1 bit per row. Any number of searches may use it at the same time."""
        return self._bitmap_and_selector[1]

    @cached_property
    def _bitmap_and_selector(self) -> tuple[Any, Any]:
        bitmap = np.packbits(self.mask, bitorder="little")
        return bitmap, faiss.IDSelectorBitmap(bitmap)  # FAISS keeps only a raw pointer, so the bitmap must stay alive


@contextmanager
def single_threaded() -> Iterator[None]:
    """FAISS starts no threads for calls of this thread; other threads are not affected.

    Some searches wake all of FAISS's threads even for one query, which takes ten times as long on a busy machine.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # OpenMP sets it for the calling thread
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


HEADER_BYTES = 4 + 33
"""Header of an index in a file: type, dimensions, number of vectors, two unused numbers, trained flag, metric."""


class FaissIndex:
    """Sorted ids and a FAISS index of rows; FAISS's own IndexIDMap would accept repeated ids without an error.

    Saved as `ids.npy` and `index.faiss`, which are memory-mapped when loaded as far as FAISS supports it. Immutable and
    thread-safe. A search with one query runs in the calling thread; FAISS's threads are used for batches and builds.

    A subclass defines `recall`, the file format (`magic`, `read_flags`, `layout`; see `read_faiss`), `build`, `_search`
    and `_is_valid`.
    """

    recall: ClassVar[float]
    magic: ClassVar[bytes]
    read_flags: ClassVar[int]
    layout: ClassVar[tuple[int, ...]] = ()

    def __init__(self, ids: Ids, index: Any) -> None:
        """For `build` and `load`: ids in ascending order, and a FAISS index of their vectors in the same order."""
        self._ids = ids
        self._index = index
        self._selections = SelectionCache(lambda allowed: FaissSelection(rows_of_ids(ids, allowed), len(ids)))

    def search(self, queries: Vectors, k: int, *, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Scores and ids of the `k` best vectors, best first; -inf and -1 if there are fewer. *Shape:* (n_queries, k).

        Raises ValueError for k < 1 and for queries of a wrong shape or with NaN.
        """
        queries = check_queries(queries, k, self._index.d)
        selection = None if allowed is None else self._selections.get(allowed)
        if selection is not None and len(selection) == len(self):
            selection = None
        hits = min(k, len(self) if selection is None else len(selection))
        if not hits or not len(queries):
            scores, rows = empty_results(len(queries), k)
        else:
            with single_threaded() if len(queries) == 1 else nullcontext():
                scores, rows = self._search(queries, hits, selection)
            if hits < k:
                missing_scores, missing_rows = empty_results(len(queries), k - hits)
                scores, rows = np.hstack([scores, missing_scores]), np.hstack([rows, missing_rows])
        return scores, ids_of_rows(self._ids, rows)

    def _search(self, queries: Vectors, k: int, selection: FaissSelection | None) -> tuple[Vectors, Rows]:
        """Scores and rows of the `k` best vectors; there are at least `k`. *Shape:* both (n_queries, k)."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write `ids.npy` and `index.faiss` into an empty folder."""
        np.save(folder / "ids.npy", self._ids, allow_pickle=False)
        write_faiss(self._writable_index(), folder / "index.faiss")

    def _writable_index(self) -> Any:
        """The index in a form that FAISS can write."""
        return self._index

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Memory-map a saved index. Raises ValueError if the files are incomplete or inconsistent."""
        ids = read_array(folder / "ids.npy", np.int64, 1)
        check_ids(ids)
        index = read_faiss(folder / "index.faiss", cls.magic, cls.read_flags, cls.layout)
        if index.metric_type != faiss.METRIC_INNER_PRODUCT or index.ntotal != len(ids) or not cls._is_valid(index):
            raise ValueError(f"index.faiss: expected a {cls.__name__} of {len(ids)} vectors in {folder}")
        return cls(ids, index)

    @classmethod
    def _is_valid(cls, index: Any) -> bool:
        """Whether an index that FAISS has read can be searched without a crash; FAISS itself checks too little."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._ids)
