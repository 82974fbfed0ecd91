"""What the keyword index promises, compared with a simple BM25."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from ragfm_indexes.bm25 import BM25Index

from ragfm.core.types import Ids
from ragfm.testing.contract_checks import allowed_ids, check_in_threads, require, require_value_errors

_WORDS = "kalo beni turu ÉCOLE straße Жук zil quax morv fep dutan iwo xarn lobi vex нить".split()
_CODES = ("AB-1234/5", "v2.3.1", "E1101", "0x80070005", "R&D", "user_name", "10.0.0.7")


def check_keyword_index(index_class: type[BM25Index], *, k1: float = 1.2, b: float = 0.75) -> None:
    """Compare an index with a simple BM25 on difficult data. Raises AssertionError with the violation.

    `k1` and `b` are the index's parameters. Scores may differ by a relative error of 0.0001.
    """
    texts = _TestData.make(k1, b)
    ids = texts.ids.copy()
    index = index_class.build(ids, iter(texts.texts), language="simple")
    ids[:] = 0  # an index that has not copied them fails the checks below
    _check_searches(index, texts)
    _check_long_queries(index, texts)
    some, values = texts.ids[2:6], texts.texts[2:6]
    invalid: dict[str, Callable[[], object]] = {
        "a repeated id": lambda: index_class.build(some[[0, 1, 2, 0]], values),
        "a negative id": lambda: index_class.build(np.where(some == some[1], -1, some), values),
        "fewer ids than texts": lambda: index_class.build(some[:3], iter(values)),
        "fewer texts than ids": lambda: index_class.build(some, iter(values[:3])),
        "an unknown language": lambda: index_class.build(some, values, language="klingon"),
        "k = 0": lambda: index.search(["kalo"], 0),
        "k = -1": lambda: index.search(["kalo"], -1),
        "a single string as queries": lambda: index.search("kalo", 3),
        "an id that the index already has": lambda: index.updated(some[:1], values[:1]),
    }
    require_value_errors(invalid)
    check_in_threads(lambda allowed: _check_hits(index, texts, 10, allowed), texts.ids)
    _check_saving(index_class, index, texts)
    _check_updates(index_class, texts)
    no_texts = texts.part(0, 0)
    empty = index_class.build(no_texts.ids, iter(()))
    _check_searches(empty, no_texts)
    _check_long_queries(empty, no_texts)
    _check_saving(index_class, empty, no_texts)
    _check_languages(index_class)


@dataclass(frozen=True)
class _TestData:
    ids: Ids
    texts: Sequence[str]
    k1: float
    b: float
    score_cache: dict[str, dict[int, float]] = field(default_factory=dict)

    @classmethod
    def make(cls, k1: float, b: float) -> _TestData:
        """Frequent and rare words, repeated and empty texts, unsorted ids with large gaps."""
        random = np.random.default_rng(5)
        shares = 1 / np.arange(1, len(_WORDS) + 1) ** 1.5
        lengths = [0, 0, *random.integers(1, 30, 380), 4000]
        texts = [", ".join(random.choice(_WORDS, size, p=shares / shares.sum())) for size in lengths]
        texts += [texts[9]] * 40
        ids = random.permutation(np.concatenate([[0, 2**63 - 1], 2**40 + np.arange(0, 3 * len(texts) - 6, 3)]))
        return cls(ids.astype(np.int64), texts, k1, b)

    def part(self, start: int, end: int) -> _TestData:
        return _TestData(self.ids[start:end], self.texts[start:end], self.k1, self.b)

    def scores(self, query: str) -> dict[int, float]:
        """BM25 scores of every text that shares a word with the query, by id."""
        if query in self.score_cache:
            return self.score_cache[query]
        bags = [Counter(text.casefold().split(", ")) if text else Counter[str]() for text in self.texts]
        mean = sum(bag.total() for bag in bags) / max(len(bags), 1)
        scores: dict[int, float] = {}
        for word in query.casefold().split():
            df = sum(word in bag for bag in bags)
            weight = math.log(1 + (len(bags) - df + 0.5) / (df + 0.5))
            for chunk_id, bag in zip(self.ids.tolist(), bags, strict=True):
                if tf := bag[word]:
                    length = 1 - self.b + self.b * bag.total() / mean
                    scores[chunk_id] = scores.get(chunk_id, 0.0) + weight * tf / (tf + self.k1 * length)
        self.score_cache[query] = scores
        return scores


_QUERIES = [
    "kalo",
    "BENI turu",
    "école Straße жук",
    "нить quax quax",
    "unknown",
    "",
    " ?! ",
    "vex fep unknown lobi kalo",
]


def _check_searches(index: BM25Index, texts: _TestData) -> None:
    """Searches with many values of `k`, of the batch size and of `allowed`."""
    require(len(index) == len(texts.ids), f"len is {len(index)}, but the index was built from {len(texts.ids)} texts")
    for k in (1, 10, len(texts.ids) + 5):
        _check_hits(index, texts, k)
    for allowed in allowed_ids(texts.ids):
        _check_hits(index, texts, 10, allowed)
        _check_hits(index, texts, len(texts.ids) + 5, allowed)
    scores, ids = index.search([], 4)
    require(scores.shape == ids.shape == (0, 4), f"no queries give shapes {scores.shape} and {ids.shape}")


def _check_long_queries(index: BM25Index, texts: _TestData) -> None:
    """Queries of 100,000 characters."""
    long_queries = [
        "kalo " * 20_000,
        "x" * 100_000,
        "-/." * 33_000,
        "".join(f" q{number}a" for number in range(15_000)),
    ]
    scores, ids = index.search(long_queries, 3)
    require((ids[1:] == -1).all(), "a query of 100,000 characters has hits that share no word with it")
    found = (ids[0] >= 0).all()
    require(found == (len(texts.ids) > 0), "a word that a query repeats 20,000 times is not found")
    require(np.isfinite(scores[ids >= 0]).all(), "a long query gives scores that are not finite")


def _check_hits(index: BM25Index, texts: _TestData, k: int, allowed: Ids | None = None) -> None:
    """Compare a search, all queries at once and one by one, with the exact scores of the allowed texts."""
    case = f"{len(texts.ids)} texts, k={k}" + ("" if allowed is None else f", {len(allowed)} ids allowed")
    scores, ids = index.search(_QUERIES, k, allowed=allowed)
    require(scores.shape == ids.shape == (len(_QUERIES), k), f"{case}: shapes {scores.shape} and {ids.shape}")
    require(scores.dtype == np.float32 and ids.dtype == np.int64, f"{case}: types {scores.dtype} and {ids.dtype}")
    for query, row_scores, row_ids in zip(_QUERIES, scores, ids, strict=True):
        alone = index.search([query], k, allowed=allowed)
        same = np.array_equal(alone[0][0], row_scores) and np.array_equal(alone[1][0], row_ids)
        require(same, f"{case}: the hits of {query!r} depend on the other queries of the batch")
        exact = texts.scores(query)
        if allowed is not None:
            exact = {chunk_id: exact[chunk_id] for chunk_id in set(allowed.tolist()) & exact.keys()}
        returned = list(zip(row_ids.tolist(), row_scores.tolist(), strict=True))
        expected = min(k, len(exact))
        padding = returned[expected:]
        require(all(hit == (-1, -math.inf) for hit in padding), f"{case}: {query!r}: more hits than {expected}")
        _check_ranking(returned[:expected], exact, texts, f"{case}: {query!r}")


def _check_ranking(hits: list[tuple[int, float]], exact: dict[int, float], texts: _TestData, case: str) -> None:
    """The hits are the best texts in order of their score; equal texts are in order of id."""
    text_of = dict(zip(texts.ids.tolist(), texts.texts, strict=True))
    ids, scores = [chunk_id for chunk_id, _ in hits], [score for _, score in hits]
    require(-1 not in ids, f"{case}: {ids.index(-1) if -1 in ids else 0} hits, expected {len(ids)}")
    invalid = [chunk_id for chunk_id in ids if chunk_id not in exact]
    require(not invalid, f"{case}: returned ids {invalid[:3]} do not match, are not in the index or not allowed")
    require(len(set(ids)) == len(ids), f"{case}: an id is returned twice")
    exact_scores = [exact[chunk_id] for chunk_id in ids]
    best = sorted(exact.values(), reverse=True)[: len(ids)]
    require(
        all(map(_is_close, scores, exact_scores)), f"{case}: scores {scores[:3]}, but BM25 gives {exact_scores[:3]}"
    )
    require(all(map(_is_close, exact_scores, best)), f"{case}: hits score {exact_scores[:3]}, but the best {best[:3]}")
    require(all(after <= before for before, after in pairwise(scores)), f"{case}: scores are not in descending order")
    for before, after in pairwise(ids):
        equal = text_of[before] == text_of[after]
        require(not equal or before < after, f"{case}: id {before} comes before {after}, which has the same text")
    if ids:
        missing = [other for other in exact.keys() - set(ids) if text_of[other] == text_of[ids[-1]]]
        lowest_first = not missing or min(missing) > ids[-1]
        require(lowest_first, f"{case}: a lower id is missing, which has the same text as the last hit")


def _is_close(score: float, expected: float) -> bool:
    return math.isclose(score, expected, rel_tol=1e-4)


def _save_and_load(index_class: type[BM25Index], index: BM25Index) -> BM25Index:
    """A saved and loaded copy. Its folder is deleted, as when a newer view replaces one that is still in use."""
    with TemporaryDirectory() as name:
        index.save(Path(name))
        return index_class.load(Path(name))


def _check_saving(index_class: type[BM25Index], index: BM25Index, texts: _TestData) -> None:
    loaded = _save_and_load(index_class, index)
    _check_searches(loaded, texts)
    scores, ids = index.search(_QUERIES, 20)
    loaded_scores, loaded_ids = loaded.search(_QUERIES, 20)
    same = np.array_equal(loaded_scores, scores) and np.array_equal(loaded_ids, ids)
    require(same, "after loading the same search has different hits")
    require(loaded.language == index.language, f"after loading the language is {loaded.language}, not {index.language}")


def _check_updates(index_class: type[BM25Index], texts: _TestData) -> None:
    """An updated index scores as one built at once, and never returns removed texts."""
    first, n = texts.part(0, 300), len(texts.ids)
    base = index_class.build(first.ids, first.texts, language="simple")
    index = base
    for start, end in [(300, 301), (301, 310), (310, 310), (310, 330), (330, n)]:
        added = texts.part(start, end)
        index = index.updated(added.ids, iter(added.texts))
        require(len(index) == end, f"len is {len(index)}, but the index has {end} texts")
    _check_searches(index, texts)
    _check_saving(index_class, index, texts)
    _check_searches(base, first)
    empty = index_class.build(texts.ids[:0], (), language="simple")
    _check_searches(empty.updated(first.ids, iter(first.texts)), first)

    removed = np.concatenate([texts.ids[:200], texts.ids[-20:], [77]])
    kept = texts.part(200, n - 20)
    smaller = index.updated(removed[:0], (), removed=removed[:50]).updated(removed[:0], (), removed=removed)
    for changed in (smaller, _save_and_load(index_class, smaller)):
        require(len(changed) == len(kept.ids), f"len is {len(changed)}, but {len(kept.ids)} texts are left")
        for allowed in (None, texts.ids):
            _, ids = changed.search(_QUERIES, n, allowed=allowed)
            for query, row in zip(_QUERIES, ids, strict=True):
                expected = kept.scores(query).keys()
                require(set(row[row >= 0].tolist()) == expected, f"after a removal the hits of {query!r} are wrong")
    _check_searches(index, texts)


def _check_languages(index_class: type[BM25Index]) -> None:
    """Stems, stop words and codes, with a given and with a detected language."""
    texts = {
        "en": ["The dogs were running through the woods.", "A house by the sea, and it was old."],
        "de": ["Die Hunde liefen durch den Wald und über die Straße.", "Ein Haus an der See, das war alt."],
        "zh": ["这只狗在树林里跑步。", "海边的一座老房子。"],
    }
    queries = {"en": ("dog", "the and was"), "de": ("Hund", "der und die"), "zh": ("树林", "")}
    for language, language_texts in texts.items():
        detected = index_class.build(np.arange(2), language_texts)
        for index in (detected, index_class.build(np.arange(2), language_texts, language=language)):
            require(index.language == language, f"the language of texts in {language!r} is {index.language!r}")
            _, ids = index.search(queries[language], 2)
            expected = [[0, -1], [-1, -1]]
            description = f"the hits of {queries[language]} are {ids.tolist()}, expected {expected}"
            require(ids.tolist() == expected, f"{language}: {description}")
    texts_with_codes = [f"Part {code}." for code in _CODES]
    index = index_class.build(np.arange(len(_CODES)), texts_with_codes, language="en")
    _, ids = index.search(_CODES, 1)
    require(ids[:, 0].tolist() == list(range(len(_CODES))), f"whole codes are not found: {ids[:, 0].tolist()}")
    parts = {"1234": 0, "ab": 0, "2.3.1": 1, "user": 5, "name": 5}
    _, ids = index.search(list(parts), 1)
    found = ids[:, 0].tolist()
    require(found == list(parts.values()), f"codes are not found by their parts {list(parts)}: {found}")
