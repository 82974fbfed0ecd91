"""Postings: the texts that contain each term and how often, as arrays that can be mapped and merged.

`count_terms` counts the terms of a stream of texts, which are not kept in memory.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ragfm.core.types import Ids
from ragfm_indexes.text_analysis import Analyzer, detect_language, term_key, words
from ragfm_indexes.vector_arrays import Rows, check_ids, read_array

TermKeys: TypeAlias = NDArray[np.uint64]
"""Keys of terms; see `term_key`."""
MAX_COUNT = np.iinfo(np.uint16).max
_BATCH_WORDS = 1 << 21  # words that are collected before they are counted


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


def count_terms(texts: Iterable[str], n: int, language: str | None) -> tuple[Any, TermKeys, str | None]:
    """Count the terms of `n` texts. Returns the counts, the terms' keys in ascending order, and the language.

    The counts are a CSR matrix of texts by terms, uint16, capped at 65,535. Without a language, it is detected; it
    stays None if there are no texts. Words are counted first, so that the language can be detected from them and each
    word of the vocabulary is stemmed once. Raises ValueError for a different number of texts and an unknown language.
    """
    analyzer = None if language is None else Analyzer(language)
    vocabulary: defaultdict[str, int] = defaultdict()  # numbers words in order of their first occurrence
    vocabulary.default_factory = vocabulary.__len__
    batches: list[Any] = []  # counts of some thousand texts by words, CSR
    seen, numbers, ends = 0, array("i"), array("i", [0])
    for text in texts:
        seen += 1
        if seen > n:
            raise ValueError(f"expected {n} texts, as many as ids, got more")
        numbers.extend([vocabulary[word] for word in words(text)])
        ends.append(len(numbers))
        if len(numbers) >= _BATCH_WORDS:
            batches.append(_word_counts(numbers, ends, len(vocabulary)))
            numbers, ends = array("i"), array("i", [0])
    if seen < n:
        raise ValueError(f"expected {n} texts, as many as ids, got {seen}")
    if len(ends) > 1:
        batches.append(_word_counts(numbers, ends, len(vocabulary)))
    for batch in batches:  # earlier batches lack the columns of words that came later
        batch.resize((batch.shape[0], len(vocabulary)))
    if analyzer is None and batches:
        totals = sum(batch.sum(axis=0, dtype=np.int64) for batch in batches)
        language = detect_language(dict(zip(vocabulary, totals.tolist(), strict=True)))
    if analyzer is None:
        analyzer = Analyzer(language or "simple")

    # A matrix of words by terms, 1 if a word counts as a term: its product with word counts gives term counts.
    key_of: dict[str, int] = {}
    word_keys, ends = array("Q"), array("i", [0])
    for word in vocabulary:
        for term in analyzer.terms(word):
            if term not in key_of:
                key_of[term] = term_key(term)
            word_keys.append(key_of[term])
        ends.append(len(word_keys))
    keys = np.unique(np.array(word_keys, dtype=np.uint64))
    columns = np.searchsorted(keys, np.array(word_keys, dtype=np.uint64)).astype(np.int32)
    terms_of_words = _ones_matrix(columns, ends, len(keys))

    for number, batch in enumerate(batches):  # in place: both forms of all batches would take twice the memory
        counts = batch @ terms_of_words
        counts.data = np.minimum(counts.data, MAX_COUNT).astype(np.uint16)
        batches[number] = counts
    no_texts = sparse.csr_array((0, len(keys)), dtype=np.uint16)
    return sparse.vstack([no_texts, *batches], format="csr", dtype=np.uint16), keys, language


def _word_counts(numbers: array[int], ends: array[int], n_words: int) -> Any:
    counts = _ones_matrix(np.array(numbers, dtype=np.int32), ends, n_words)
    counts.sum_duplicates()
    return counts


def _ones_matrix(columns: NDArray[np.int32], ends: array[int], n_columns: int) -> Any:
    """A CSR matrix of ones; the columns of row `i` are `columns[ends[i]:ends[i + 1]]`."""
    ones = np.ones(len(columns), dtype=np.int32)
    return sparse.csr_array((ones, columns, np.array(ends, dtype=np.int32)), shape=(len(ends) - 1, n_columns))
