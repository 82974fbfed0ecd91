"""Postings: the texts that contain each term and how often, as arrays that can be mapped and merged."""

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
    from ragfm_indexes.selection import Rows
    from ragfm_indexes.term_counts import TermKeys


@dataclass(frozen=True, slots=True)
class Postings:
    """Texts in order of id, terms in order of key, and for each term the rows of the texts that contain it.

    ids        (n,) int64, ascending; a text's row is its position here
    lengths    (n,) int32, number of terms of each text
    keys       (v,) uint64, ascending
    offsets    (v + 1,) int64: the postings of term `t` are `offsets[t]:offsets[t + 1]`
    rows       (p,) int32, ascending within a term
    counts     (p,) uint16, occurrences of the term in the text, capped at 65,535
    """

    ids: Ids
    lengths: NDArray[np.int32]
    keys: TermKeys
    offsets: NDArray[np.int64]
    rows: NDArray[np.int32]
    counts: NDArray[np.uint16]

    @classmethod
    def from_counts(cls, ids: Ids, counts: Any, keys: TermKeys) -> Postings:
        """Postings of a sparse matrix of texts by terms, both in order. Terms without a text are dropped."""
        lengths = np.asarray(counts.sum(axis=1, dtype=np.int64)).astype(np.int32)
        by_term = counts.tocsc()
        by_term.sort_indices()
        used = np.diff(by_term.indptr) > 0
        offsets = np.append(by_term.indptr[:-1][used], by_term.indptr[-1]).astype(np.int64)
        return cls(ids, lengths, keys[used], offsets, by_term.indices.astype(np.int32, copy=False), by_term.data)

    @classmethod
    def merge(cls, parts: Sequence[Postings], removed: Sequence[Rows]) -> Postings:
        """Merge parts that share no id, without the `removed` rows of each."""
        ids = np.concatenate([np.delete(part.ids, gone) for part, gone in zip(parts, removed, strict=True)])
        ids = ids[np.argsort(ids, kind="stable")]
        keys = np.unique(np.concatenate([part.keys for part in parts]))
        rows, columns, counts = [], [], []
        for part, gone in zip(parts, removed, strict=True):
            new_row = np.searchsorted(ids, part.ids).astype(np.int32)
            new_row[gone] = -1
            new_column = np.searchsorted(keys, part.keys).astype(np.int32)
            part_rows = new_row[part.rows]
            kept = slice(None) if not len(gone) else part_rows >= 0
            rows.append(part_rows[kept])
            columns.append(np.repeat(new_column, np.diff(part.offsets))[kept])
            counts.append(part.counts[kept])
        coordinates = (np.concatenate(rows), np.concatenate(columns))
        matrix = sparse.coo_array((np.concatenate(counts), coordinates), shape=(len(ids), len(keys)))
        return cls.from_counts(ids, matrix, keys)

    def lookup(self, keys: TermKeys) -> list[tuple[NDArray[np.int32], NDArray[np.uint16]]]:
        """Rows and counts of each term, empty if no text contains it."""
        postings = []
        for key, position in zip(keys, np.searchsorted(self.keys, keys).tolist(), strict=True):
            known = position < len(self.keys) and self.keys[position] == key
            span = slice(int(self.offsets[position]), int(self.offsets[position + 1])) if known else slice(0)
            postings.append((self.rows[span], self.counts[span]))
        return postings

    def save(self, folder: Path) -> None:
        """Write each array to a file of its name."""
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> Postings:
        """Memory-map saved postings. Raises ValueError if the files are incomplete or inconsistent."""
        types: Sequence[type[np.generic]] = (np.int64, np.int32, np.uint64, np.int64, np.int32, np.uint16)
        names = [field.name for field in fields(cls)]
        arrays = [read_array(folder / f"{name}.npy", dtype, 1) for name, dtype in zip(names, types, strict=True)]
        loaded = cls(*arrays)
        check_ids(loaded.ids)
        if (
            len(loaded.ids) != len(loaded.lengths)
            or len(loaded.rows) != len(loaded.counts)
            or len(loaded.offsets) != len(loaded.keys) + 1
            or loaded.offsets[-1] != len(loaded.rows)
        ):
            raise ValueError(f"the arrays in {folder} are inconsistent: their lengths do not match")
        return loaded
