"""What the kinds of FAISS index share (Douze et al. 2024, https://arxiv.org/abs/2401.08281)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import faiss
import numpy as np

from ragfm_indexes.faiss_files import read_faiss, write_faiss
from ragfm_indexes.selection import Selection, Selections
from ragfm_indexes.vector_arrays import check_ids, check_queries, ids_at, nothing, read_array, rows_of

if TYPE_CHECKING:
    from ragfm.core.types import Ids, Vectors
    from ragfm_indexes.vector_arrays import Rows


class FaissSelection(Selection):
    """A selection that FAISS can look at while it searches."""

    @property
    def selector(self) -> Any:
        """An IDSelectorBitmap, 1 bit a row. Any number of searches may use it at once."""
        return self._selector[1]

    @cached_property
    def _selector(self) -> tuple[Any, Any]:
        bitmap = np.packbits(self.mask, bitorder="little")
        return bitmap, faiss.IDSelectorBitmap(bitmap)  # FAISS holds a bare pointer to the bitmap


@contextmanager
def one_thread() -> Iterator[None]:
    """While it lasts, FAISS starts no threads for what this thread asks for; others are not touched.

    Some searches wake all of FAISS's threads even for one query: on a busy machine that costs ten times the search.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # of the calling thread, says OpenMP
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


HEADER = 4 + 33
"""Bytes that an index begins with in a file: what it is, dimensions, vectors, two spare numbers, trained, metric."""


class FaissIndex:
    """Ids in order, and a FAISS index that knows rows only: FAISS's IndexIDMap takes repeated ids without a word.

    Saved as `ids.npy` and `index.faiss`, which are mapped when loaded, as far as FAISS can. Thread-safe, as nothing
    changes. A search by one query runs in the thread that asks; FAISS's own threads share a batch and the building.
    """

    recall: ClassVar[float]
    magic: ClassVar[bytes]
    flags: ClassVar[int]
    layout: ClassVar[tuple[int, ...]] = ()

    def __init__(self, ids: Ids, index: Any) -> None:
        """For `build` and `load`: ids in ascending order, and an index with their vectors in the same order."""
        self._ids = ids
        self._index = index
        self._selections = Selections(lambda allowed: FaissSelection(rows_of(ids, allowed), len(ids)))

    def search(self, queries: Vectors, k: int, *, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Scores and ids of the best `k`, best first; -inf and -1 where there are fewer. *Shape:* (n_queries, k).

        Raises ValueError for k < 1 and for queries of another shape or with NaN.
        """
        queries = check_queries(queries, k, self._index.d)
        selection = None if allowed is None else self._selections.of(allowed)
        if selection is not None and len(selection) == len(self):
            selection = None
        found = min(k, len(self) if selection is None else len(selection))
        if not found or not len(queries):
            scores, rows = nothing(len(queries), k)
        else:
            with one_thread() if len(queries) == 1 else nullcontext():
                scores, rows = self._search(queries, found, selection)
            if found < k:
                missing = nothing(len(queries), k - found)
                scores, rows = np.hstack([scores, missing[0]]), np.hstack([rows, missing[1]])
        return scores, ids_at(self._ids, rows)

    def _search(self, queries: Vectors, k: int, selection: FaissSelection | None) -> tuple[Vectors, Rows]:
        """Scores and rows of the best `k`; so many there are. *Shape:* both (n_queries, k)."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write `ids.npy` and `index.faiss` into an empty folder."""
        np.save(folder / "ids.npy", self._ids, allow_pickle=False)
        write_faiss(self._to_write(), folder / "index.faiss")

    def _to_write(self) -> Any:
        """The index in a form that FAISS can write."""
        return self._index

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Map what `save` wrote. Raises ValueError where the files are not whole or don't belong together."""
        ids = read_array(folder / "ids.npy", np.int64, 1)
        check_ids(ids)
        index = read_faiss(folder / "index.faiss", cls.magic, cls.flags, cls.layout)
        if index.metric_type != faiss.METRIC_INNER_PRODUCT or index.ntotal != len(ids) or not cls._is_whole(index):
            raise ValueError(f"index.faiss: expected a {cls.__name__} of {len(ids)} vectors in {folder}")
        return cls(ids, index)

    @classmethod
    def _is_whole(cls, index: Any) -> bool:
        """Whether FAISS has read what it needs to search; it checks less than it should."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._ids)
