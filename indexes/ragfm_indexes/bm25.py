"""Keyword search with BM25 (Robertson & Zaragoza 2009, https://doi.org/10.1561/1500000019).

docs/decisions/004-keyword-index.md explains why no library is used.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ragfm.core.types import Ids, Vectors
from ragfm_indexes.postings import Postings, count_terms
from ragfm_indexes.text_analysis import FINGERPRINT, Analyzer, language_of, term_key, words
from ragfm_indexes.vector_arrays import Rows, SelectionCache, check_ids, empty_results, rows_of_ids

K1, B = 1.2, 0.75  # better than Anserini's 0.9 and 0.4 on cranfield, cisi and cacm; as good on SciFact's train claims
_FILE = "bm25.json"
_BLOCKS = 64  # blocks of scores, see `_top_rows`


class BM25Index:
    """Scores every text that shares a term with a query. Among equal scores the lower id comes first.

    The score of a text is the sum, over the query's terms with repetitions, of

        ln(1 + (n - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * length / mean length))

    with k1 = 1.2 and b = 0.75: Lucene's variant, with exact lengths (Kamphuis et al. 2020). Saved as `bm25.json` and
    arrays, which are memory-mapped when loaded. Immutable and thread-safe.
    """

    def __init__(self, parts: Sequence[Postings], language: str | None, removed: Ids) -> None:
        """For `build`, `updated` and `load`: `parts` share no id, and a search skips the ids in `removed`."""
        self._parts = parts
        self.language = language
        """Language of the stop words and stems (ISO 639-1 or `simple`); None while the index has had no text."""
        self._removed = removed
        self._removed_rows: list[Rows] = [rows_of_ids(part.ids, removed) for part in parts]
        self._selections = [SelectionCache(partial(rows_of_ids, part.ids)) for part in parts]
        self._n = sum(len(part.ids) for part in parts)
        self._mean_length = max(sum(int(part.lengths.sum()) for part in parts), 1) / max(self._n, 1)
        self._last: tuple[str | None, Sequence[Vectors]] = None, ()

    @classmethod
    def build(cls, ids: Ids, texts: Iterable[str], *, language: str | None = None) -> BM25Index:
        """Build an index; `texts` is iterated once. Without a language, it is detected from the stop words.

        Raises ValueError for negative or repeated ids, different numbers of texts and ids, and an unknown language.
        """
        return cls([], language, np.empty(0, dtype=np.int64)).updated(ids, texts)

    language_of = staticmethod(language_of)

    def updated(self, ids: Ids, texts: Iterable[str], *, removed: Ids | None = None) -> BM25Index:
        """A new index with these texts added and the ids in `removed` deleted. This index does not change.

        The scores equal those of an index built from all texts at once. Deleted texts count in the statistics until
        the index is saved. The language stays the same once the index has had a text. The cost depends on the new texts
        only; small parts are merged from time to time. Raises ValueError as `build` does, and for an id that the index
        has or had.
        """
        id_array = np.asarray(ids)
        if id_array.ndim != 1 or (id_array.size and id_array.dtype.kind not in "iu"):
            raise ValueError(f"expected ids (n,) as int64, got shape {id_array.shape} of {id_array.dtype}")
        id_array = id_array.astype(np.int64)
        order = np.argsort(id_array, kind="stable")
        new_ids = id_array[order]
        check_ids(new_ids)
        counts, keys, language = count_terms(texts, len(new_ids), self.language)
        if not np.array_equal(new_ids, id_array):  # usually they are sorted, and copying the counts is expensive
            counts = counts[order]
        new_part = Postings.from_counts(new_ids, counts, keys)

        for part in self._parts:
            known = rows_of_ids(part.ids, new_part.ids)
            if len(known):
                raise ValueError(f"expected new ids, got {part.ids[known[0]]}, which the index has or had")
        parts = [*self._parts, new_part]
        # After merging, each part is more than twice as large as the next: few parts, and no text is merged often.
        while len(parts) > 1 and len(parts[-2].ids) <= 2 * len(parts[-1].ids):
            parts[-2:] = [Postings.merge(parts[-2:], [new_part.ids[:0]] * 2)]
        all_removed = [self._removed]
        if removed is not None:
            all_removed += [part.ids[rows_of_ids(part.ids, removed)] for part in parts]
        return type(self)(parts, language, np.unique(np.concatenate(all_removed)))

    def search(self, queries: Sequence[str], k: int, *, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Scores and ids of the `k` best texts, best first; -inf and -1 if fewer match. *Shape:* both (n_queries, k).

        A text matches if it contains a term of the query, so a query of stop words has no hits. Raises ValueError for
        k < 1, and for a single string instead of a list.
        """
        if k < 1:
            raise ValueError(f"expected k >= 1, got {k}")
        if isinstance(queries, str):
            raise ValueError("expected a list of queries, got a string")
        allowed_rows = [None if allowed is None else selections.get(allowed) for selections in self._selections]
        scores, ids = empty_results(len(queries), k)
        for n, query in enumerate(queries):
            found_scores, found_ids = [np.empty(0, dtype=np.float32)], [np.empty(0, dtype=np.int64)]
            for part, part_scores, part_allowed in zip(self._parts, self._scores(query), allowed_rows, strict=True):
                best = _top_rows(part_scores, k, part_allowed)
                found_scores.append(part_scores[best])
                found_ids.append(part.ids[best])
            all_scores, all_ids = np.concatenate(found_scores), np.concatenate(found_ids)
            order = np.lexsort((all_ids, -all_scores))[:k]
            scores[n, : len(order)], ids[n, : len(order)] = all_scores[order], all_ids[order]
        return scores, ids

    def _scores(self, query: str) -> Sequence[Vectors]:
        """The scores of all texts of each part; those of the last query are kept, since hybrid search asks twice."""
        last_query, last_scores = self._last
        if query == last_query:
            return last_scores
        analyzer = Analyzer(self.language or "simple")
        constant, slope = np.float32(K1 * (1 - B)), np.float32(K1 * B / self._mean_length)
        terms = Counter(term_key(term) for word in words(query) for term in analyzer.terms(word))
        keys = np.array(sorted(terms), dtype=np.uint64)
        postings = [part.lookup(keys) for part in self._parts]
        lengths = np.array([[len(rows) for rows, _ in part_postings] for part_postings in postings])
        df = lengths.reshape(len(postings), len(keys)).sum(axis=0)
        idf = np.log1p((self._n - df + 0.5) / (df + 0.5))
        weights = (idf * [terms[key] for key in sorted(terms)]).astype(np.float32)
        scores = []
        for part, part_postings, removed in zip(self._parts, postings, self._removed_rows, strict=True):
            # All parts add up the terms in the same order, so rounding is the same as in an index of one part.
            part_scores = np.zeros(len(part.lengths), dtype=np.float32)
            for (rows, counts), weight in zip(part_postings, weights, strict=True):
                tf = counts.astype(np.float32)
                part_scores[rows] += weight * tf / (tf + constant + slope * part.lengths[rows].astype(np.float32))
            part_scores[removed] = 0
            scores.append(part_scores)
        self._last = query, scores
        return scores

    def save(self, folder: Path) -> None:
        """Write `bm25.json` and the arrays of one merged part, without removed texts, into an empty folder."""
        part = self._parts[0]
        if len(self._parts) > 1 or len(self._removed):
            part = Postings.merge(self._parts, self._removed_rows)
        part.save(folder)
        metadata = {"analysis": FINGERPRINT, "language": self.language}
        (folder / _FILE).write_text(json.dumps(metadata) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> BM25Index:
        """Memory-map a saved index.

        Raises ValueError if the files are incomplete or inconsistent, and if the index was written with a different
        version of the text analysis or of Snowball: it must be rebuilt.
        """
        metadata = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        if metadata.get("analysis") != FINGERPRINT:
            raise ValueError(f"{_FILE}: expected the analysis {FINGERPRINT}, got {metadata.get('analysis')}")
        part = Postings.load(folder)
        return cls([part], metadata["language"], part.ids[:0])

    def __len__(self) -> int:
        return self._n - sum(len(rows) for rows in self._removed_rows)


def _top_rows(scores: Vectors, k: int, allowed: Rows | None) -> Rows:
    """Rows of the `k` best scores above 0, best first. Among equal scores the lower row comes first."""
    candidates = scores if allowed is None else scores[allowed]
    width, threshold = len(candidates) // _BLOCKS, np.float32(0)
    if width >= k:
        # At least k scores reach the k-th best of these maxima, so no lower score is among the k best. Partitioning
        # all scores takes ten times as long, since most are 0.
        maxima = candidates[: width * _BLOCKS].reshape(_BLOCKS, width).max(axis=0)
        threshold = np.partition(maxima, -k)[-k]
    best = np.flatnonzero(candidates >= threshold if threshold > 0 else candidates)
    if len(best) > k:
        threshold = np.partition(candidates[best], -k)[-k]
        above, equal = best[candidates[best] > threshold], best[candidates[best] == threshold]
        best = np.concatenate([above, equal[: k - len(above)]])
    best = best[np.lexsort((best, -candidates[best]))]
    return best if allowed is None else allowed[best]
