"""Base class of the FAISS indexes (Douze et al. 2024, https://arxiv.org/abs/2401.08281).

Files have paths in any encoding, a full disk raises OSError, and damaged files do not crash FAISS.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import faiss
import numpy as np

from ragfm.core.types import Ids, Vectors
from ragfm_indexes.vector_arrays import (
    Rows,
    SelectionCache,
    check_ids,
    check_queries,
    empty_results,
    ids_of_rows,
    read_array,
    rows_of_ids,
    sorted_by_id,
)


class FaissSelection:
    """Selected rows of an index of `count` rows, in ascending order."""

    def __init__(self, rows: Rows, count: int) -> None:
        self.rows = rows
        self.count = count

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def share(self) -> float:
        """Fraction of the rows that is selected, in [0, 1]."""
        return len(self) / self.count if self.count else 0.0

    @cached_property
    def selector(self) -> Any:
        """An IDSelectorBitmap, 1 bit per row. Any number of searches may use it at the same time."""
        mask = np.zeros(self.count, dtype=np.bool_)
        mask[self.rows] = True
        return faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))  # it keeps the bitmap alive


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


READ_FLAGS = faiss.IO_FLAG_MMAP_IFC
"""Maps vectors, links and codes; IO_FLAG_MMAP would read them into memory."""
HEADER_BYTES = 4 + 33
"""Header of an index in a file: type, dimensions, number of vectors, two unused numbers, trained flag, metric."""


class FaissIndex:
    """Sorted ids and a FAISS index of rows; FAISS's own IndexIDMap would accept repeated ids without an error.

    Saved as `ids.npy` and `index.faiss`, which are memory-mapped when loaded as far as FAISS supports it. Immutable and
    thread-safe. A search with one query runs in the calling thread; FAISS's threads are used for batches and builds.

    A subclass defines `recall`, the file format (`magic`, `layout`; see `read_faiss`), `_new_index`, `_search`
    and `_is_valid`.
    """

    recall: ClassVar[float]
    magic: ClassVar[bytes]
    layout: ClassVar[tuple[int, ...]]

    def __init__(self, ids: Ids, index: Any) -> None:
        """For `build` and `load`: ids in ascending order, and a FAISS index of their vectors in the same order."""
        self._ids = ids
        self._index = index
        self._selections = SelectionCache(lambda allowed: FaissSelection(rows_of_ids(ids, allowed), len(ids)))

    @classmethod
    def build(cls, ids: Ids, vectors: Vectors) -> Self:
        """Build an index over copies of the arrays. *Shape:* (n,) and (n, dim).

        Raises ValueError for negative or repeated ids, wrong shapes, and vectors that do not have unit length.
        """
        ids, vectors = sorted_by_id(ids, vectors)
        dim = vectors.shape[1]
        index = cls._new_index(dim)
        index.train(vectors if len(vectors) else np.eye(1, dim, dtype=np.float32))
        index.add(vectors)
        return cls(ids, index)

    @classmethod
    def _new_index(cls, dim: int) -> Any:
        """An untrained FAISS index."""
        raise NotImplementedError

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
        # FAISS's own file handling rejects paths that are not UTF-8, and reports a full disk as a RuntimeError.
        with (folder / "index.faiss").open("wb") as file:
            faiss.write_index(self._index, faiss.PyCallbackIOWriter(file.write))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Memory-map a saved index. Raises ValueError if the files are incomplete or inconsistent."""
        ids = read_array(folder / "ids.npy", np.int64, 1)
        check_ids(ids)
        index = read_faiss(folder / "index.faiss", cls.magic, cls.layout)
        if index.metric_type != faiss.METRIC_INNER_PRODUCT or index.ntotal != len(ids) or not cls._is_valid(index):
            raise ValueError(f"index.faiss: expected a {cls.__name__} of {len(ids)} vectors in {folder}")
        return cls(ids, index)

    @classmethod
    def _is_valid(cls, index: Any) -> bool:
        """Whether an index that FAISS has read can be searched without a crash; FAISS itself checks too little."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._ids)


# --- Files ---------------------------------------------------------------------------------------------------------

_limits_lock = threading.Lock()  # FAISS's limits are process-wide, so only one file is read at a time


def read_faiss(path: Path, magic: bytes, layout: Sequence[int]) -> Any:
    """Read an index from a file that begins with `magic`. Raises ValueError if FAISS cannot read it, and OSError.

    `layout` describes the sections of the file, since FAISS crashes if a mapped file ends early or contains an absurd
    length: n > 0 is a section of n bytes, n < 0 is a 64-bit count followed by that many items of -n bytes.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(len(magic))
        if start != magic:
            raise ValueError(f"{path.name} begins with {start!r}, expected {magic!r}")
        end = 0
        for section in layout:
            if section < 0:
                file.seek(min(end, size))
                end += 8 - section * int.from_bytes(file.read(8), "little")
            else:
                end += section
        if size != end:
            raise ValueError(f"{path.name} has {size} bytes, expected {end}")
        # Limit the vectors that FAISS allocates and its loops to what a file of this size can describe.
        limits = {
            "vector_byte_limit": size + 1,
            "loop_limit": size // 8 + 1,
            "lattice_r2_limit": 1,  # no index here is a lattice
        }
        with _limits_lock:
            before = {name: getattr(faiss, f"get_deserialization_{name}")() for name in limits}
            try:
                for name, value in limits.items():
                    getattr(faiss, f"set_deserialization_{name}")(value)
                return faiss.read_index(f"/dev/fd/{file.fileno()}", READ_FLAGS)
            except (RuntimeError, MemoryError) as error:
                raise ValueError(f"{path.name} cannot be read: {error}") from error
            finally:
                for name, value in before.items():
                    getattr(faiss, f"set_deserialization_{name}")(value)
