"""What every keyword index owes, as a test: `ragfm.testing.check_keyword_index`."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ragfm.core.types import KeywordIndex
from ragfm.testing.contract_checks import refused, require

if TYPE_CHECKING:
    from ragfm.core.types import Ids

_WORDS = "kalo beni turu ÉCOLE straße Жук zil quax morv fep dutan iwo xarn lobi vex нить".split()
_CODES = ("AB-1234/5", "v2.3.1", "E1101", "0x80070005", "R&D", "user_name", "10.0.0.7")


def check_keyword_index(index_class: type[KeywordIndex], *, k1: float = 1.2, b: float = 0.75) -> None:
    """Compare an index with a plain BM25, on awkward data. Raises AssertionError with what is wrong.

    `k1` and `b` are the index's parameters. Scores may be off by a ten-thousandth.
    """
    texts = _Texts.make(k1, b)
    given = texts.ids.copy()
    index = index_class.build(given, iter(texts.texts), language="simple")
    given[:] = 0  # an index that has not copied them is wrong from here on
    _check_searches(index, texts)
    _check_refusals(index_class, index, texts)
    _check_threads(index, texts)
    _check_saving(index_class, index, texts)
    _check_updates(index_class, texts)
    nothing = texts.part(0, 0)
    empty = index_class.build(nothing.ids, iter(()))
    _check_searches(empty, nothing)
    _check_saving(index_class, empty, nothing)
    _check_languages(index_class)


@dataclass(frozen=True)
class _Texts:
    """What an index was built from, and the reference that it is measured against."""

    ids: Ids
    texts: Sequence[str]
    k1: float
    b: float
    known: dict[str, dict[int, float]] = field(default_factory=dict)

    @classmethod
    def make(cls, k1: float, b: float) -> _Texts:
        """Frequent and rare words, repeated and empty texts, ids far apart and unsorted."""
        import numpy as np

        random = np.random.default_rng(5)
        shares = 1 / np.arange(1, len(_WORDS) + 1) ** 1.5
        lengths = [0, 0, *random.integers(1, 30, 380), 4000]
        texts = [", ".join(random.choice(_WORDS, size, p=shares / shares.sum())) for size in lengths]
        texts += [texts[9]] * 40
        ids = random.permutation(np.concatenate([[0, 2**63 - 1], 2**40 + np.arange(0, 3 * len(texts) - 6, 3)]))
        return cls(ids.astype(np.int64), texts, k1, b)

    def part(self, start: int, end: int) -> _Texts:
        return _Texts(self.ids[start:end], self.texts[start:end], self.k1, self.b)

    def scores(self, query: str) -> dict[int, float]:
        """Of every text that has a word of the query, by id."""
        if query not in self.known:
            self.known[query] = self._scores(query)
        return self.known[query]

    def _scores(self, query: str) -> dict[int, float]:
        bags = [Counter(text.casefold().split(", ")) if text else Counter[str]() for text in self.texts]
        mean = sum(bag.total() for bag in bags) / max(len(bags), 1)
        found: dict[int, float] = {}
        for word in query.casefold().split():
            df = sum(word in bag for bag in bags)
            weight = math.log(1 + (len(bags) - df + 0.5) / (df + 0.5))
            for chunk_id, bag in zip(self.ids.tolist(), bags, strict=True):
                if tf := bag[word]:
                    length = 1 - self.b + self.b * bag.total() / mean
                    found[chunk_id] = found.get(chunk_id, 0.0) + weight * tf / (tf + self.k1 * length)
        return found


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


def _check_searches(index: KeywordIndex, texts: _Texts) -> None:
    """All kinds of `k`, batch and `allowed`."""
    import numpy as np

    require(len(index) == len(texts.ids), f"len is {len(index)}, but {len(texts.ids)} texts went in")
    for k in (1, 10, len(texts.ids) + 5):
        _check_hits(index, texts, k)
    for allowed in _selections(texts.ids):
        _check_hits(index, texts, 10, allowed)
        _check_hits(index, texts, len(texts.ids) + 5, allowed)
    scores, ids = index.search([], 4)
    require(scores.shape == ids.shape == (0, 4), f"no queries give shapes {scores.shape} and {ids.shape}")
    hostile = ["kalo " * 20_000, "x" * 100_000, "-/." * 33_000, "".join(f" q{number}a" for number in range(15_000))]
    scores, ids = index.search(hostile, 3)
    require(bool((ids[1:] == -1).all()), "a query of 100,000 signs finds what it has no word of")
    require(bool((ids[0] >= 0).all()) == (len(texts.ids) > 0), "a word that comes 20,000 times in a query is not found")
    require(bool(np.isfinite(scores[ids >= 0]).all()), "a long query gives scores that are not finite")


def _selections(ids: Ids) -> Sequence[Ids]:
    import numpy as np

    random = np.random.default_rng(1)
    shares = [random.permutation(ids)[: round(len(ids) * share)] for share in (0.01, 0.5, 0.9, 1)]
    unknown = np.array([5 * 10**9, 2**62, 1], dtype=np.int64)
    mixed = [np.concatenate([share, unknown, share[:3]]) for share in shares]
    return [ids[:0], ids[:1], np.sort(ids)[-1:], unknown[:2], np.sort(shares[1]), *shares, *mixed]


def _check_hits(index: KeywordIndex, texts: _Texts, k: int, allowed: Ids | None = None) -> None:
    """One search, all queries at once and one by one, against the exact scores of all that is allowed."""
    import numpy as np

    case = f"{len(texts.ids)} texts, k={k}" + ("" if allowed is None else f", {len(allowed)} ids allowed")
    scores, ids = index.search(_QUERIES, k, allowed=allowed)
    require(scores.shape == ids.shape == (len(_QUERIES), k), f"{case}: shapes {scores.shape} and {ids.shape}")
    require(scores.dtype == np.float32 and ids.dtype == np.int64, f"{case}: types {scores.dtype} and {ids.dtype}")
    for query, row_scores, row_ids in zip(_QUERIES, scores, ids, strict=True):
        alone = index.search([query], k, allowed=allowed)
        same = np.array_equal(alone[0][0], row_scores) and np.array_equal(alone[1][0], row_ids)
        require(same, f"{case}: {query!r} gives other hits among other queries than alone")
        exact = texts.scores(query)
        if allowed is not None:
            exact = {chunk_id: exact[chunk_id] for chunk_id in set(allowed.tolist()) & exact.keys()}
        found = list(zip(row_ids.tolist(), row_scores.tolist(), strict=True))
        hits = found[: min(k, len(exact))]
        rest = found[len(hits) :]
        require(all(hit == (-1, -math.inf) for hit in rest), f"{case}: {query!r}: more hits than {len(hits)}")
        _check_ranking(hits, exact, texts, f"{case}: {query!r}")


def _check_ranking(hits: list[tuple[int, float]], exact: dict[int, float], texts: _Texts, case: str) -> None:
    """All that can be found, up to `k`, in the right order; equal texts by id."""
    text_of = dict(zip(texts.ids.tolist(), texts.texts, strict=True))
    ids, scores = [chunk_id for chunk_id, _ in hits], [score for _, score in hits]
    require(-1 not in ids, f"{case}: {ids.index(-1) if -1 in ids else 0} hits, where there are {len(ids)}")
    foreign = [chunk_id for chunk_id in ids if chunk_id not in exact]
    require(not foreign, f"{case}: ids {foreign[:3]}, which don't match, are not there or are not allowed")
    require(len(set(ids)) == len(ids), f"{case}: an id comes twice")
    right = [exact[chunk_id] for chunk_id in ids]
    best = sorted(exact.values(), reverse=True)[: len(ids)]
    require(all(map(_about, scores, right)), f"{case}: scores {scores[:3]}, where BM25 gives {right[:3]}")
    require(all(map(_about, right, best)), f"{case}: hits of {right[:3]}, where the best have {best[:3]}")
    require(all(after <= before for before, after in pairwise(scores)), f"{case}: scores are not in descending order")
    for before, after in pairwise(ids):
        equal = text_of[before] == text_of[after]
        require(not equal or before < after, f"{case}: id {before} comes before {after}, whose text is the same")
    left = [other for other in exact.keys() - set(ids) if ids and text_of[other] == text_of[ids[-1]]]
    require(not left or min(left) > ids[-1], f"{case}: an id is taken before a lower one, whose text is the same")


def _about(score: float, other: float) -> bool:
    return math.isclose(score, other, rel_tol=1e-4)


def _check_refusals(index_class: type[KeywordIndex], index: KeywordIndex, texts: _Texts) -> None:
    import numpy as np

    ids, some = texts.ids[2:6], texts.texts[2:6]
    wrong: dict[str, Callable[[], object]] = {
        "an id given twice": lambda: index_class.build(ids[[0, 1, 2, 0]], some),
        "a negative id": lambda: index_class.build(np.where(ids == ids[1], -1, ids), some),
        "fewer ids than texts": lambda: index_class.build(ids[:3], iter(some)),
        "fewer texts than ids": lambda: index_class.build(ids, iter(some[:3])),
        "an unknown language": lambda: index_class.build(ids, some, language="klingon"),
        "k = 0": lambda: index.search(["kalo"], 0),
        "k = -1": lambda: index.search(["kalo"], -1),
        "a query without its list": lambda: index.search("kalo", 3),
        "an id that is there already": lambda: index.updated(ids[:1], some[:1]),
    }
    refused(wrong)


def _check_threads(index: KeywordIndex, texts: _Texts) -> None:
    selections = [None, *_selections(texts.ids)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(_check_hits, index, texts, 10, selections[n % len(selections)]) for n in range(12)]
    for job in jobs:
        job.result()


def _check_saving(index_class: type[KeywordIndex], index: KeywordIndex, texts: _Texts) -> None:
    loaded = _saved(index_class, index)
    # Its folder is gone by now: a newer view replaces an older one that others may still read.
    _check_searches(loaded, texts)
    _check_same(loaded, index, "after loading")


def _saved(index_class: type[KeywordIndex], index: KeywordIndex) -> KeywordIndex:
    with tempfile.TemporaryDirectory() as name:
        index.save(Path(name))
        require(all(path.is_file() for path in Path(name).iterdir()), "save makes other things than files")
        return index_class.load(Path(name))


def _check_same(index: KeywordIndex, other: KeywordIndex, when: str) -> None:
    import numpy as np

    found, expected = index.search(_QUERIES, 20), other.search(_QUERIES, 20)
    same = np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])
    require(same, f"{when} the same search gives something else")
    require(index.language == other.language, f"{when} the language is {index.language}, not {other.language}")


def _check_updates(index_class: type[KeywordIndex], texts: _Texts) -> None:
    """Text added to an index is as if it had been there from the start; what was removed is never found."""
    import numpy as np

    first, n = texts.part(0, 300), len(texts.ids)
    base = index_class.build(first.ids, first.texts, language="simple")
    index = base
    for start, end in [(300, 301), (301, 310), (310, 310), (310, 330), (330, n)]:
        added = texts.part(start, end)
        index = index.updated(added.ids, iter(added.texts))
        require(len(index) == end, f"len is {len(index)}, but {end} texts are in it")
    _check_searches(index, texts)
    _check_saving(index_class, index, texts)
    _check_searches(base, first)
    nothing = index_class.build(texts.ids[:0], (), language="simple")
    _check_searches(nothing.updated(first.ids, iter(first.texts)), first)

    removed = np.concatenate([texts.ids[:200], texts.ids[-20:], [77]])
    kept = texts.part(200, n - 20)
    fewer = index.updated(removed[:0], (), removed=removed[:50]).updated(removed[:0], (), removed=removed)
    for which in (fewer, _saved(index_class, fewer)):
        require(len(which) == len(kept.ids), f"len is {len(which)}, but {len(kept.ids)} texts are left")
        for allowed in (None, texts.ids):
            _, ids = which.search(_QUERIES, n, allowed=allowed)
            for query, row in zip(_QUERIES, ids, strict=True):
                right = kept.scores(query).keys()
                require(set(row[row >= 0].tolist()) == right, f"after removing, {query!r} finds other texts")
    _check_searches(index, texts)


def _check_languages(index_class: type[KeywordIndex]) -> None:
    """Stems, stop words and codes; the language that is given, and the one that is detected."""
    import numpy as np

    texts = {
        "en": ["The dogs were running through the woods.", "A house by the sea, and it was old."],
        "de": ["Die Hunde liefen durch den Wald und über die Straße.", "Ein Haus an der See, das war alt."],
        "zh": ["这只狗在树林里跑步。", "海边的一座老房子。"],
    }
    queries = {"en": ("dog", "the and was"), "de": ("Hund", "der und die"), "zh": ("树林", "")}
    for language, some in texts.items():
        for index in (index_class.build(np.arange(2), some), index_class.build(np.arange(2), some, language=language)):
            require(index.language == language, f"{index.language!r} is the language of texts in {language!r}")
            _, ids = index.search(queries[language], 2)
            require(ids.tolist() == [[0, -1], [-1, -1]], f"{language}: {queries[language]} find {ids.tolist()}")
    texts_with_codes = [f"Part {code}." for code in _CODES]
    index = index_class.build(np.arange(len(_CODES)), texts_with_codes, language="en")
    _, ids = index.search(_CODES, 1)
    require(ids[:, 0].tolist() == list(range(len(_CODES))), f"codes are not found whole: {ids[:, 0].tolist()}")
    parts = {"1234": 0, "ab": 0, "2.3.1": 1, "user": 5, "name": 5}
    _, ids = index.search(list(parts), 1)
    require(ids[:, 0].tolist() == list(parts.values()), f"codes are not found by {list(parts)}: {ids[:, 0].tolist()}")
