"""Count the terms of texts into a sparse matrix, from a stream of texts that are not kept in memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy import sparse

from ragfm_indexes.text_analysis import Analyzer, detect_language, term_key, words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    TermKeys: TypeAlias = NDArray[np.uint64]
    """Keys of terms; see `term_key`."""

MAX_COUNT = np.iinfo(np.uint16).max
_BATCH_WORDS = 1 << 21  # words that are collected before they are counted


def count_terms(texts: Iterable[str], n: int, language: str | None) -> tuple[Any, TermKeys, str | None]:
    """Count the terms of `n` texts. Returns the counts, the terms' keys in ascending order, and the language.

    The counts are a CSR matrix of texts by terms, uint16, capped at 65,535. Without a language, it is detected; it
    stays None if there are no texts. Words are counted first, so that the language can be detected from them and each
    word of the vocabulary is stemmed once. Raises ValueError for a different number of texts and an unknown language.
    """
    analyzer = None if language is None else Analyzer(language)
    vocabulary = _Vocabulary()
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


class _Vocabulary(dict[str, int]):
    """Numbers words in order of their first occurrence."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


def _word_counts(numbers: array[int], ends: array[int], n_words: int) -> Any:
    counts = _ones_matrix(np.array(numbers, dtype=np.int32), ends, n_words)
    counts.sum_duplicates()
    return counts


def _ones_matrix(columns: NDArray[np.int32], ends: array[int], n_columns: int) -> Any:
    """A CSR matrix of ones; the columns of row `i` are `columns[ends[i]:ends[i + 1]]`."""
    ones = np.ones(len(columns), dtype=np.int32)
    return sparse.csr_array((ones, columns, np.array(ends, dtype=np.int32)), shape=(len(ends) - 1, n_columns))
