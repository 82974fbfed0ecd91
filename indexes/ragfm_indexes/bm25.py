"""Keyword search with BM25 (Robertson & Zaragoza 2009, https://doi.org/10.1561/1500000019).

Why it is not a library's: docs/decisions/004-keyword-index.md.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ragfm_indexes.postings import Postings
from ragfm_indexes.selection import Selection, Selections
from ragfm_indexes.term_counts import count_terms
from ragfm_indexes.text_analysis import FINGERPRINT, Analyzer, term_key, words
from ragfm_indexes.vector_arrays import check_ids, nothing, rows_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from ragfm.core.types import Ids, Vectors
    from ragfm_indexes.vector_arrays import Rows

K1, B = 1.2, 0.75  # better than Anserini's 0.9 and 0.4 on cranfield, cisi and cacm; as good on SciFact's train claims
_FILE = "bm25.json"
_BLOCKS = 64  # that scores are looked at in, see `_top`


class BM25Index:
    """Scores every text that shares a term with a query. Of equal scores the lower id comes first.

    A text's score is the sum over the query's terms, as often as they come in the query, of

        ln(1 + (n - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * length / mean length))

    with k1 = 1.2 and b = 0.75: Lucene's form, with exact lengths (Kamphuis et al. 2020). Saved as `bm25.json` and
    arrays, which are mapped when loaded. Thread-safe, as nothing changes.
    """

    def __init__(self, parts: Sequence[Postings], language: str | None, removed: Ids) -> None:
        """For `build`, `updated` and `load`: `parts` share no id, `removed` are ids of theirs that are not found."""
        self._parts = parts
        self._language = language
        self._removed = removed
        self._dead: list[Rows] = [rows_of(part.ids, removed) for part in parts]
        self._selections = [Selections(partial(_selection, part.ids)) for part in parts]
        self._n = sum(len(part.ids) for part in parts)
        self._mean_length = max(sum(int(part.lengths.sum()) for part in parts), 1) / max(self._n, 1)

    @property
    def language(self) -> str | None:
        """The language whose stop words and stems it uses (ISO 639-1 or `simple`); None while none is known."""
        return self._language

    @classmethod
    def build(cls, ids: Ids, texts: Iterable[str], *, language: str | None = None) -> BM25Index:
        """An index of texts, which are gone through once. No language means that whose stop words come most often.

        Raises ValueError for negative or repeated ids, another number of texts than of ids, and an unknown language.
        """
        return cls([], language, np.empty(0, dtype=np.int64)).updated(ids, texts)

    def updated(self, ids: Ids, texts: Iterable[str], *, removed: Ids | None = None) -> BM25Index:
        """An index with these texts too, and without the ids `removed`; this one stays as it is.

        Scores are those of an index built of all texts at once. What is removed stays in the statistics until it is
        saved. The language is kept, once there was a text. Takes time for the new texts; the parts that this makes are
        merged so that there are few. Raises ValueError as `build` does, and for an id that it has or had.
        """
        new, language = _postings(ids, texts, self._language)
        for part in self._parts:
            known = rows_of(part.ids, new.ids)
            if len(known):
                raise ValueError(f"expected new ids, got {part.ids[known[0]]}, which the index has or had")
        parts = [*self._parts, new]
        # Each part is then more than twice as large as the next: few parts, and no text is merged often.
        while len(parts) > 1 and len(parts[-2].ids) <= 2 * len(parts[-1].ids):
            parts[-2:] = [Postings.merged(parts[-2:], [new.ids[:0]] * 2)]
        gone = [self._removed]
        if removed is not None:
            gone += [part.ids[rows_of(part.ids, removed)] for part in parts]
        return type(self)(parts, language, np.unique(np.concatenate(gone)))

    def search(self, queries: Sequence[str], k: int, *, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Scores and ids of the best `k`, best first; -inf and -1 where fewer match. *Shape:* both (n_queries, k).

        A text matches if it has a term of the query, so a query of stop words finds nothing. Raises ValueError for
        k < 1, and for a string in place of a list of them.
        """
        if k < 1:
            raise ValueError(f"expected k >= 1, got {k}")
        if isinstance(queries, str):
            raise ValueError("expected a list of queries, got a string")
        within = [None if allowed is None else selections.of(allowed).rows for selections in self._selections]
        analyzer = Analyzer(self._language or "simple")
        scores, ids = nothing(len(queries), k)
        for at, query in enumerate(queries):
            asked = Counter(term_key(term) for word in words(query) for term in analyzer.terms(word))
            best_scores, best_ids = self._best(asked, k, within)
            scores[at, : len(best_ids)], ids[at, : len(best_ids)] = best_scores, best_ids
        return scores, ids

    def _best(self, asked: Counter[int], k: int, within: Sequence[Rows | None]) -> tuple[Vectors, Ids]:
        keys = np.array(sorted(asked), dtype=np.uint64)
        found = [part.of_terms(keys) for part in self._parts]
        df = np.array([[len(rows) for rows, _ in terms] for terms in found]).reshape(len(found), len(keys)).sum(axis=0)
        weights = np.log1p((self._n - df + 0.5) / (df + 0.5)) * [asked[key] for key in sorted(asked)]
        scores, ids = [np.empty(0, dtype=np.float32)], [np.empty(0, dtype=np.int64)]
        for part, terms, dead, inside in zip(self._parts, found, self._dead, within, strict=True):
            part_scores = self._scores(part.lengths, terms, weights.astype(np.float32))
            part_scores[dead] = 0
            rows = _top(part_scores, k, inside)
            scores.append(part_scores[rows])
            ids.append(part.ids[rows])
        all_scores, all_ids = np.concatenate(scores), np.concatenate(ids)
        order = np.lexsort((all_ids, -all_scores))[:k]
        return all_scores[order], all_ids[order]

    def _scores(
        self,
        lengths: NDArray[np.int32],
        terms: Sequence[tuple[NDArray[np.int32], NDArray[np.uint16]]],
        weights: Vectors,
    ) -> Vectors:
        """Of all texts of a part. The terms' order is the same for all parts, and so is what rounding does."""
        flat, steep = np.float32(K1 * (1 - B)), np.float32(K1 * B / self._mean_length)
        scores = np.zeros(len(lengths), dtype=np.float32)
        for (rows, counts), weight in zip(terms, weights, strict=True):
            tf = counts.astype(np.float32)
            scores[rows] += weight * tf / (tf + flat + steep * lengths[rows].astype(np.float32))
        return scores

    def save(self, folder: Path) -> None:
        """Write `bm25.json` and the arrays of one part into an empty folder; what was removed is forgotten."""
        part = self._parts[0]
        if len(self._parts) > 1 or len(self._removed):
            part = Postings.merged(self._parts, self._dead)
        part.save(folder)
        about = {"analysis": FINGERPRINT, "language": self._language}
        (folder / _FILE).write_text(json.dumps(about) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> BM25Index:
        """Map what `save` wrote.

        Raises ValueError where the files are not whole or don't belong together, and where this version of ragfm or
        of Snowball makes other terms of a text than the one that wrote them: the index must be built again.
        """
        about = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        if about.get("analysis") != FINGERPRINT:
            raise ValueError(f"{_FILE}: expected the analysis {FINGERPRINT}, got {about.get('analysis')}")
        part = Postings.load(folder)
        return cls([part], about["language"], part.ids[:0])

    def __len__(self) -> int:
        return self._n - sum(len(rows) for rows in self._dead)


def _selection(ids: Ids, allowed: ArrayLike) -> Selection:
    return Selection(rows_of(ids, allowed), len(ids))


def _postings(ids: Ids, texts: Iterable[str], language: str | None) -> tuple[Postings, str | None]:
    known = np.asarray(ids)
    if known.ndim != 1 or (known.size and known.dtype.kind not in "iu"):
        raise ValueError(f"expected ids (n,) as int64, got shape {known.shape} of {known.dtype}")
    known = known.astype(np.int64)
    order = np.argsort(known, kind="stable")
    ids = known[order]
    check_ids(ids)
    counts, keys, language = count_terms(texts, len(ids), language)
    if not np.array_equal(ids, known):  # as a rule they are sorted, and the copy is large
        counts = counts[order]
    return Postings.of(ids, counts, keys), language


def _top(scores: Vectors, k: int, within: Rows | None) -> Rows:
    """Rows of the best `k` scores above 0, best first; of equal ones the lower row comes first."""
    looked_at = scores if within is None else scores[within]
    width, least = len(looked_at) // _BLOCKS, np.float32(0)
    if width >= k:
        # At least k scores reach the k-th best of these maxima, so no lower one is among the best k. To partition all
        # scores takes ten times as long, as most are 0.
        maxima = looked_at[: width * _BLOCKS].reshape(_BLOCKS, width).max(axis=0)
        least = np.partition(maxima, -k)[-k]
    found = np.flatnonzero(looked_at >= least if least > 0 else looked_at)
    if len(found) > k:
        least = np.partition(looked_at[found], -k)[-k]
        above, equal = found[looked_at[found] > least], found[looked_at[found] == least]
        found = np.concatenate([above, equal[: k - len(above)]])
    found = found[np.lexsort((found, -looked_at[found]))]
    return found if within is None else within[found]
