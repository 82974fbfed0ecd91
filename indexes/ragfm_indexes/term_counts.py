"""How often each text has each term, as a sparse matrix: from a stream of texts, none of which is kept."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy import sparse

from ragfm_indexes.text_analysis import Analyzer, detect_language, term_key, words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Keys: TypeAlias = NDArray[np.uint64]
    """Keys of terms; see `term_key`."""

MOST = np.iinfo(np.uint16).max
_HELD = 1 << 21  # words before they are counted


def count_terms(texts: Iterable[str], n: int, language: str | None) -> tuple[Any, Keys, str | None]:
    """Counts of `n` texts by terms (CSR, uint16, at most 65,535), the terms' keys in ascending order, the language.

    The language is the one given, else the one detected, else None where there is no text. Words are counted as they
    stand; only then is the language chosen, and every word of the vocabulary turned into terms once. Raises ValueError
    for another number of texts, and for an unknown language.
    """
    analyzer = None if language is None else Analyzer(language)
    vocabulary = _Numbering()
    batches = list(_counted(texts, vocabulary, n))
    for batch in batches:  # the earlier ones lack the words that came later
        batch.resize((batch.shape[0], len(vocabulary)))
    if analyzer is None and batches:
        totals = sum(batch.sum(axis=0, dtype=np.int64) for batch in batches)
        language = detect_language(dict(zip(vocabulary, totals.tolist(), strict=True)))
    meaning, keys = _meaning(vocabulary, analyzer or Analyzer(language or "simple"))
    for at, batch in enumerate(batches):  # in place: both forms of all would take twice the memory
        counts = batch @ meaning
        counts.data = np.minimum(counts.data, MOST).astype(np.uint16)
        batches[at] = counts
    none = sparse.csr_array((0, len(keys)), dtype=np.uint16)
    return sparse.vstack([none, *batches], format="csr", dtype=np.uint16), keys, language


class _Numbering(dict[str, int]):
    """A number for each word, in the order in which they come."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


def _counted(texts: Iterable[str], vocabulary: _Numbering, n: int) -> Iterator[Any]:
    """Counts of texts by words (CSR, int32), some thousands of texts at a time; `vocabulary` grows meanwhile."""
    seen, held, ends = 0, array("i"), [0]
    for text in texts:
        seen += 1
        if seen > n:
            raise ValueError(f"expected {n} texts, as many as ids, got more")
        held.extend([vocabulary[word] for word in words(text)])
        ends.append(len(held))
        if len(held) >= _HELD:
            yield _csr(held, ends, len(vocabulary))
            held, ends = array("i"), [0]
    if seen < n:
        raise ValueError(f"expected {n} texts, as many as ids, got {seen}")
    if len(ends) > 1:
        yield _csr(held, ends, len(vocabulary))


def _csr(held: array[int], ends: list[int], n_columns: int) -> Any:
    columns = np.array(held, dtype=np.int32)
    ones = np.ones(len(columns), dtype=np.int32)
    counts = sparse.csr_array((ones, columns, np.array(ends, dtype=np.int32)), shape=(len(ends) - 1, n_columns))
    counts.sum_duplicates()  # there is less to hold
    return counts


def _meaning(vocabulary: Mapping[str, int], analyzer: Analyzer) -> tuple[Any, Keys]:
    """Words by terms (CSR), 1 where a word counts as a term; and the terms' keys in ascending order."""
    key_of: dict[str, int] = {}
    found, ends = array("Q"), [0]
    for word in vocabulary:
        for term in analyzer.terms(word):
            if term not in key_of:
                key_of[term] = term_key(term)
            found.append(key_of[term])
        ends.append(len(found))
    keys = np.unique(np.array(found, dtype=np.uint64))
    columns = np.searchsorted(keys, np.array(found, dtype=np.uint64)).astype(np.int32)
    ones = np.ones(len(columns), dtype=np.int32)
    meaning = sparse.csr_array((ones, columns, np.array(ends, dtype=np.int32)), shape=(len(ends) - 1, len(keys)))
    return meaning, keys
