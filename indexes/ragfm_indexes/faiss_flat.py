"""Exact search with FAISS (Douze et al. 2024, https://arxiv.org/abs/2401.08281)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from ragfm_indexes.arrays import (
    by_id,
    check_ids,
    check_queries,
    ids_at,
    nothing,
    read_array,
    rows_of,
    search_exactly,
)

if TYPE_CHECKING:
    from ragfm.types import Ids, Vectors
    from ragfm_indexes.arrays import Rows

_FEW = 1_000  # rows that numpy searches sooner than FAISS goes through its selector


class FaissFlatIndex:
    """FAISS's IndexFlatIP: compares a query with every vector. Which of equal scores come first is FAISS's choice.

    Ids are kept here, in order, and FAISS knows rows only: its own IndexIDMap takes a repeated id without a word.
    Saved as `ids.npy` and `index.faiss`, which are mapped when loaded. Thread-safe, as nothing changes.
    """

    def __init__(self, ids: Ids, index: Any) -> None:
        """For `build` and `load`: ids in ascending order, and an IndexFlatIP with their vectors in the same order."""
        self._ids = ids
        self._index = index

    @classmethod
    def build(cls, ids: Ids, vectors: Vectors) -> FaissFlatIndex:
        """An index over copies of `vectors`. *Shape:* (n,) and (n, dim).

        Raises ValueError for negative or repeated ids, other shapes, and rows that are not of unit length.
        """
        ids, vectors = by_id(ids, vectors)
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return cls(ids, index)

    def search(self, queries: Vectors, k: int, *, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Cosines and ids of the best `k`, best first; -inf and -1 where there are fewer. *Shape:* (n_queries, k).

        Raises ValueError for k < 1 and for queries of another shape or with NaN.
        """
        queries = check_queries(queries, k, self._index.d)
        if allowed is None or len(within := rows_of(self._ids, allowed)) == len(self):
            scores, rows = self._search(queries, k)
        elif len(within) <= _FEW:
            scores, places = search_exactly(self._index.reconstruct_batch(within), queries, k)
            rows = ids_at(within, places)
        else:
            scores, rows = self._search(queries, k, within)
        return scores, ids_at(self._ids, rows)

    def _search(self, queries: Vectors, k: int, within: Rows | None = None) -> tuple[Vectors, Rows]:
        scores, rows = nothing(len(queries), k)
        filled = min(k, len(self) if within is None else len(within))
        if not filled or not len(queries):
            return scores, rows
        parameters = None
        if within is not None:
            mask = np.zeros(len(self), dtype=bool)
            mask[within] = True
            bitmap = np.packbits(mask, bitorder="little")
            selector = faiss.IDSelectorBitmap(bitmap)  # FAISS holds bare pointers: both names must live until the end
            parameters = faiss.SearchParameters(sel=selector)
        scores[:, :filled], rows[:, :filled] = self._index.search(queries, filled, params=parameters)
        return scores, rows

    def save(self, folder: Path) -> None:
        """Write `ids.npy` and `index.faiss` into an empty folder."""
        np.save(folder / "ids.npy", self._ids, allow_pickle=False)
        # FAISS takes no path that is not UTF-8, and would report a full disk as a RuntimeError.
        with (folder / "index.faiss").open("wb") as file:
            faiss.write_index(self._index, faiss.PyCallbackIOWriter(file.write))

    @classmethod
    def load(cls, folder: Path) -> FaissFlatIndex:
        """Map what `save` wrote. Raises ValueError where the files are not whole or don't belong together."""
        ids = read_array(folder / "ids.npy", np.int64, 1)
        check_ids(ids)
        with (folder / "index.faiss").open("rb") as file:
            try:
                # IO_FLAG_MMAP_IFC is the one that maps a flat index; IO_FLAG_MMAP reads it into memory.
                index = faiss.read_index(f"/dev/fd/{file.fileno()}", faiss.IO_FLAG_MMAP_IFC)
            except RuntimeError as error:
                raise ValueError(f"index.faiss can't be read: {error}") from error
        if not isinstance(index, faiss.IndexFlatIP) or index.ntotal != len(ids):
            raise ValueError(f"expected an IndexFlatIP of {len(ids)} vectors in {folder}")
        return cls(ids, index)

    def __len__(self) -> int:
        return len(self._ids)
