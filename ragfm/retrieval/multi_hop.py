"""Search in two hops, without a reader: names in a hit lead to the passage with the rest of the answer.

"In which county is the city where Ann Lee was born?" finds the passage about Ann Lee. It names West Chicago, which the
question does not, so the second hop searches for that. docs/decisions/038-several-hops.md has the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

from ragfm.core.document_name import context_names
from ragfm.core.types import SearchStep, embedded_text
from ragfm.retrieval.search import Mode, RankedChunks, find, min_max, query_vectors

if TYPE_CHECKING:
    from ragfm.core.config import SearchSection
    from ragfm.core.types import Embedder, Ids, Vectors
    from ragfm.store.catalog import Catalog
    from ragfm.store.search_backend import Predicate, SearchBackend

__all__ = ["find_linked"]

_SEEDS = 5  # hits whose names are searched for
_NAMES = 8  # names per hit that are searched for, the rarest ones
_HITS_PER_NAME = 12
_MIN_RARITY = 0.25
_MAX_COUNTED = 1000  # texts with a word are counted up to here
_TEXT_STRENGTH = 0.6  # of a name that is in a text, but not in its title; fitted on HotpotQA and MuSiQue

_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
# Names where the script has capitals: capitalized words, joined by up to two short words, as in "Bank of the West".
_CAPITALIZED = r"[\p{Lu}\p{N}][\p{L}\p{M}\p{N}'’-]*"
_NAME = regex.compile(rf"{_CAPITALIZED}(?:\s+(?:\p{{Ll}}{{1,3}}\s+){{0,2}}{_CAPITALIZED})*")
_RUN = regex.compile(rf"{_CAPITALIZED}(?:\s+{_CAPITALIZED})*")
_CASED = regex.compile(r"\p{Lu}|\p{Ll}")
_MAX_NAME_WORDS = 8


def find_linked(
    query: str,
    k: int,
    *,
    mode: Mode,
    snapshot: SearchBackend,
    catalog: Catalog,
    embedder: Callable[[], Embedder],
    where: Predicate | None,
    settings: SearchSection,
    record: Callable[[SearchStep], None],
) -> RankedChunks:
    """The best `k` chunks, including those that the best hits lead to.

    The names of the best hits (rare, and not in the question) are searched for by keyword. A chunk that has such a name
    scores its own score plus that of the hit times the strength of the link, but less than the hit: so the first hit
    stays first. `record` is called for each search. Raises StaleReadError as `find` does.
    """
    count = max(k, settings.candidates)
    parts: dict[str, Any] = {"snapshot": snapshot, "embedder": embedder, "where": where}
    first = find(query, count, mode=mode, settings=settings, **parts)
    record(SearchStep(query, 1, len(first.ids)))
    own = {"hybrid": first.fused, "dense": first.dense, "keyword": first.keyword}[mode]
    scores = dict(zip(first.ids.tolist(), min_max(own).tolist(), strict=True))
    seeds = sorted(scores, key=lambda chunk: (-scores[chunk], chunk))[:_SEEDS]
    chunks = _LinkedChunks(query, snapshot, catalog, where)
    chunks.load(seeds)
    reached = dict(scores)
    for seed in seeds:
        linked, searched = chunks.links(seed)
        for name, hits in searched:
            record(SearchStep(name, 2, hits))
        for chunk, strength in linked.items():
            score = min(scores.get(chunk, 0.0) + scores[seed] * strength, scores[seed] * 0.999)
            reached[chunk] = max(reached.get(chunk, 0.0), score)
    ranked = sorted(reached, key=lambda chunk: (-reached[chunk], chunk))[:k]

    # The scores of linked chunks, which the search did not return, are computed.
    ids = np.array(ranked, dtype=np.int64)
    positions = {chunk: at for at, chunk in enumerate(first.ids.tolist())}
    at = np.array([positions.get(chunk, -1) for chunk in ranked], dtype=np.int64)
    new = at < 0

    def scores_of(values: Vectors, compute: Callable[[Ids], Vectors] | None) -> Vectors:
        result = np.full(len(ids), np.nan, dtype=np.float32)
        result[~new] = values[at[~new]]
        if compute and new.any():
            missing = np.sort(ids[new])
            result[new] = compute(missing)[np.searchsorted(missing, ids[new])]
        return result

    dense = None if mode == "keyword" else lambda some: snapshot.cosines(query_vectors(embedder(), [query]), some)
    keyword = None if mode == "dense" else lambda some: snapshot.bm25(query, some)
    return RankedChunks(
        ids, scores_of(first.dense, dense), scores_of(first.keyword, keyword), scores_of(first.fused, None)
    )


class _LinkedChunks:
    """The chunks that a search has seen, with what each has of the question's words."""

    def __init__(self, query: str, snapshot: SearchBackend, catalog: Catalog, where: Predicate | None) -> None:
        self._words = list(dict.fromkeys(_WORD.findall(query)))
        self._asked = {word.casefold() for word in self._words}
        self._snapshot, self._catalog, self._where = snapshot, catalog, where
        self._rows: dict[int, Any] = {}
        self._counts: dict[str, int] = {}
        self._has: dict[int, Vectors] = {}  # BM25 of each word of the question

    def load(self, ids: Iterable[int]) -> None:
        """Read the texts of chunks, and score them by each word of the question."""
        new = sorted({chunk for chunk in ids if chunk not in self._rows})
        if not new:
            return
        rows, array = self._catalog.chunk_rows(new), np.array(new, dtype=np.int64)
        if len(rows) < len(new):
            self._snapshot.report_missing_chunks(array)
        has = np.array([self._snapshot.bm25(word, array) for word in self._words]).reshape(-1, len(new))
        self._has |= dict(zip(new, has.T, strict=True))
        self._rows |= rows

    def links(self, seed: int) -> tuple[dict[int, float], list[tuple[str, int]]]:
        """The chunks that have a name of the seed, with the strength of the link; and the searches, with their hits."""
        searched: list[tuple[str, int]] = []
        found: dict[int, list[tuple[float, tuple[str, ...]]]] = {}
        for rarity, name in self._names(seed):
            _, ids = self._snapshot.search_keywords(" ".join(name), _HITS_PER_NAME, self._where)
            others = [chunk for chunk in ids.tolist() if chunk != seed]
            for chunk in others:
                found.setdefault(chunk, []).append((rarity, name))
            searched.append((" ".join(name), len(others)))
        self.load(found)
        best = np.max([self._has[chunk] for chunk in {seed, *found}], axis=0) if self._words else np.zeros(0)
        rest = np.where(self._has[seed] > 0, 0, 1)  # of the words, those that the seed lacks
        strengths = {}
        for chunk, names in found.items():
            row, text, _ = self._rows[chunk]
            words = _words(embedded_text(row.context, text))
            titles = [*row.headings, *context_names(row.context)]
            covered = float((self._has[chunk] * rest).sum() / max(best.sum(), 1e-9))
            strength = 0.0
            for rarity, name in names:
                if not _contains(words, name):
                    continue
                title = max((_share(name, title) for title in titles), default=0.0)
                strength = max(strength, rarity * (title * (1 + covered) + _TEXT_STRENGTH * covered))
            if strength:
                strengths[chunk] = strength
        return strengths, searched

    def _names(self, seed: int) -> list[tuple[float, tuple[str, ...]]]:
        """The rarest names of a chunk that are not in the question, with their rarity in [0, 1]."""
        _, text, _ = self._rows[seed]
        spans = [match[0] for match in _NAME.finditer(text)]
        spans += [match[0] for match in _RUN.finditer(text)]
        if not _CASED.search(text):  # in a script without capitals, any word may be a name
            spans = _WORD.findall(text)
        n, named = len(self._snapshot), []
        for name in dict.fromkeys(map(_words, spans)):
            if not 0 < len(name) <= _MAX_NAME_WORDS or self._asked.issuperset(word.casefold() for word in name):
                continue
            for word in set(name) - self._counts.keys():
                self._counts[word] = len(self._snapshot.search_keywords(word, _MAX_COUNTED, self._where)[1])
            counts = [self._counts[word] for word in name if self._counts[word]]  # stop words have none
            count = min(counts, default=0)  # of the rarest word
            if count > 1:  # another chunk has it, too
                rarity = math.log((n + 1) / (count + 0.5)) / math.log((n + 1) / 0.5)
                named.append((rarity, name))
        named.sort(key=lambda one: -one[0])
        return [one for one in named[:_NAMES] if one[0] > _MIN_RARITY]


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text))


def _contains(words: Sequence[str], name: Sequence[str]) -> bool:
    size, name = len(name), tuple(name)
    return any(words[at] == name[0] and tuple(words[at : at + size]) == name for at in range(len(words) - size + 1))


def _share(name: tuple[str, ...], title: str) -> float:
    """The share of a title that a name makes up; "Kassel" is all of "Kassel (Hesse)" and of "Kassel, Germany"."""
    shares = [0.0]
    for form in (title, title.partition(" (")[0], title.partition(", ")[0]):
        words = _words(form)
        if words and _contains(words, name):
            shares.append(len(name) / len(words))
    return max(shares)
