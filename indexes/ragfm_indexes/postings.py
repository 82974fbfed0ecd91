"""Postings: which texts have which term how often, as arrays that can be mapped and merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from ragfm_indexes.vector_arrays import check_ids, read_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ragfm.core.types import Ids
    from ragfm_indexes.term_counts import Keys
    from ragfm_indexes.vector_arrays import Rows


@dataclass(frozen=True, slots=True)
class Postings:
    """Texts in order of id, terms in order of key, and for each term the rows of the texts that have it.

    ids        (n,) int64, ascending; a text's row is its position here
    lengths    (n,) int32, terms of each text
    keys       (v,) uint64, ascending
    offsets    (v + 1,) int64: the postings of term `t` are `offsets[t]:offsets[t + 1]`
    rows       (p,) int32, ascending within a term
    counts     (p,) uint16, how often the text has the term, at most 65,535
    """

    ids: Ids
    lengths: NDArray[np.int32]
    keys: Keys
    offsets: NDArray[np.int64]
    rows: NDArray[np.int32]
    counts: NDArray[np.uint16]

    @classmethod
    def of(cls, ids: Ids, counts: Any, keys: Keys) -> Postings:
        """Out of a sparse matrix of texts by terms, both in order; terms that no text has are left out."""
        lengths = np.asarray(counts.sum(axis=1, dtype=np.int64)).astype(np.int32)
        by_term = counts.tocsc()
        by_term.sort_indices()
        had = np.diff(by_term.indptr) > 0
        offsets = np.append(by_term.indptr[:-1][had], by_term.indptr[-1]).astype(np.int64)
        return cls(ids, lengths, keys[had], offsets, by_term.indices.astype(np.int32, copy=False), by_term.data)

    @classmethod
    def merged(cls, parts: Sequence[Postings], dead: Sequence[Rows]) -> Postings:
        """One out of several that share no id, without their `dead` rows."""
        ids = np.concatenate([np.delete(part.ids, rows) for part, rows in zip(parts, dead, strict=True)])
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        keys = np.unique(np.concatenate([part.keys for part in parts]))
        rows, columns, counts = [], [], []
        for part, gone in zip(parts, dead, strict=True):
            row_of = np.searchsorted(ids, part.ids).astype(np.int32)
            row_of[gone] = -1
            new = row_of[part.rows]
            living = slice(None) if not len(gone) else new >= 0
            column_of = np.searchsorted(keys, part.keys).astype(np.int32)
            rows.append(new[living])
            columns.append(np.repeat(column_of, np.diff(part.offsets))[living])
            counts.append(part.counts[living])
        places = (np.concatenate(rows), np.concatenate(columns))
        return cls.of(ids, sparse.coo_array((np.concatenate(counts), places), shape=(len(ids), len(keys))), keys)

    def of_terms(self, keys: Keys) -> list[tuple[NDArray[np.int32], NDArray[np.uint16]]]:
        """Rows and counts for each of these terms, empty where no text has it."""
        found = []
        for key, place in zip(keys, np.searchsorted(self.keys, keys).tolist(), strict=True):
            known = place < len(self.keys) and self.keys[place] == key
            span = slice(int(self.offsets[place]), int(self.offsets[place + 1])) if known else slice(0)
            found.append((self.rows[span], self.counts[span]))
        return found

    def save(self, folder: Path) -> None:
        """Write each array as a file of its name."""
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> Postings:
        """Map what `save` wrote. Raises ValueError where the files are not whole or don't belong together."""
        types: Sequence[type[np.generic]] = (np.int64, np.int32, np.uint64, np.int64, np.int32, np.uint16)
        names = [field.name for field in fields(cls)]
        arrays = [read_array(folder / f"{name}.npy", dtype, 1) for name, dtype in zip(names, types, strict=True)]
        loaded = cls(*arrays)
        check_ids(loaded.ids)
        paired = len(loaded.ids) == len(loaded.lengths) and len(loaded.rows) == len(loaded.counts)
        if not paired or len(loaded.offsets) != len(loaded.keys) + 1 or loaded.offsets[-1] != len(loaded.rows):
            raise ValueError(f"the arrays in {folder} don't belong together")
        return loaded
