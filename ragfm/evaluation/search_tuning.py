"""Tuning: which settings of search find best what your questions should find, and whether that is more than noise.

    questions ─┬─ one half ──→ all settings are tried, the best is chosen
               └─ the other ─→ the best against the settings of now, by a paired test ─→ adopted, or not

Each question is asked once: every weight and way of fusion is worked out from the candidates of both indexes.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ragfm.core.errors import DataError, TooLongError
from ragfm.evaluation.metrics import TOP, Ranked, measures_of, rank_hits
from ragfm.evaluation.question_sets import fingerprint
from ragfm.evaluation.run_comparison import Difference, paired_differences
from ragfm.retrieval.fusion_weight import DEFAULT_WEIGHT, default_weight, weight_for
from ragfm.retrieval.search import fuse

if TYPE_CHECKING:
    from ragfm.collection import Collection
    from ragfm.core.config import Fusion, SearchSection
    from ragfm.core.types import Hit
    from ragfm.evaluation.question_sets import Question

MEASURE = "nDCG@10"
WEIGHTS = tuple(round(0.05 * n, 2) for n in range(21))
CANDIDATES = (25, 50, 100, 200)
LEAST = 20
"""Questions without which no half says anything."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Settings of hybrid search. `chunk_size` is that of `ragfm.toml`.

    `weight` plays no part in `rrf`; None is the one that model and language suggest.
    """

    fusion: Fusion
    weight: float | None
    candidates: int
    chunk_size: int | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """A choice, and its mean nDCG@10 over the half of the questions that the best was chosen by."""

    choice: Choice
    value: float


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What was tried and what came of it. `held_out`: the best choice against the current, on the other half.

    `adopted`: the gain there is more than noise. `why` says so in words.
    """

    about: Mapping[str, Any]
    current: Choice
    best: Choice
    held_out: Difference
    adopted: bool
    why: str
    trials: tuple[Trial, ...]


class _Pool:
    """What both indexes gave for a question, to be ranked in many ways."""

    def __init__(
        self, question: Question, hits: Sequence[Hit], settings: SearchSection, usual: Mapping[str, Any] | None = None
    ) -> None:
        """`usual` is what the weight depends on where it is None: `model` and `language`."""
        self._question, self._hits, self._settings, self._usual = question, hits, settings, usual or {}
        self._cosines, self._bm25 = (
            np.array([hit.scores[name] for hit in hits], dtype=np.float32) for name in ("dense", "keyword")
        )
        self._by_cosine = np.argsort(-self._cosines, kind="stable")
        self._by_bm25 = np.argsort(-self._bm25, kind="stable")[: np.count_nonzero(self._bm25)]

    def value(self, choice: Choice) -> float:
        """The nDCG@10 of the question."""
        chosen = np.union1d(self._by_cosine[: choice.candidates], self._by_bm25[: choice.candidates])
        settings = self._settings.model_copy(update={"weight": choice.weight})
        weight = weight_for(self._question.text, settings, **self._usual)
        fused = fuse(self._cosines[chosen], self._bm25[chosen], fusion=choice.fusion, weight=weight)
        order = chosen[np.argsort(-fused, kind="stable")].tolist()
        places, grades = rank_hits(self._question, [self._hits[at] for at in order], TOP)
        return _ndcg(tuple(place.gold for place in places), tuple(grades.items()))


def tune(
    collection: Collection,
    questions: Sequence[Question],
    *,
    sizes: Sequence[int] = (),
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> TuneReport:
    """Find the settings of hybrid search that find most, and test them on questions that they weren't chosen by.

    Nothing is stored, see `store_choice`. For each of `sizes` the sources are ingested anew, into a temporary
    collection with chunks of so many tokens. `progress` is told what is done, how many of how many. Raises DataError
    for fewer than 20 questions, or where the collection has nothing that they should find.
    """
    if len(questions) < LEAST:
        raise DataError(
            f"{len(questions)} questions can't tell a gain from noise.", f"Give {LEAST} or more, better some hundreds."
        )
    _check_gold(collection, questions)
    shuffled = random.Random(seed).sample(list(questions), len(questions))  # noqa: S311
    half = len(shuffled) // 2
    search, now = collection.settings.search, collection.settings.chunk.size
    current = Choice(search.fusion, _weight_now(collection, questions), search.candidates, now)
    values: dict[Choice, NDArray[np.float64]] = {}
    for size in dict.fromkeys((now, *sizes)):
        choices = [c for c in _choices(size) if c != current] + ([current] if size == now else [])
        with _resized(collection, size, progress) as handle:
            values |= _values(handle, shuffled, choices, progress)
    means = {choice: float(of[:half].mean()) for choice, of in values.items()}
    best = max(means, key=lambda choice: (round(means[choice], 9), choice == current, -_distance(choice, current)))
    (held_out,) = paired_differences([MEASURE], values[current][half:, None], values[best][half:, None], seed)
    adopted = best != current and not held_out.noise and held_out.difference > 0
    return TuneReport(
        about=_about(collection, questions, half, seed, sizes),
        current=current,
        best=best,
        held_out=held_out,
        adopted=adopted,
        why=_why(current, best, held_out, adopted, len(shuffled) - half),
        trials=tuple(sorted((Trial(*pair) for pair in means.items()), key=lambda trial: -trial.value)),
    )


# --- Inside ------------------------------------------------------------------------------------------------------


def _choices(size: int | None) -> Iterator[Choice]:
    for candidates in CANDIDATES:
        yield Choice("rrf", 0.6, candidates, size)
        yield from (Choice("convex", weight, candidates, size) for weight in WEIGHTS)


def _distance(choice: Choice, current: Choice) -> float:
    """Of equally good choices the nearest to what is set, which changes least."""
    return float(
        10 * (choice.chunk_size != current.chunk_size)
        + 5 * (choice.fusion != current.fusion)
        + abs(_number(choice.weight) - _number(current.weight))
        + 0.01 * abs(np.log2(choice.candidates / current.candidates))
    )


def _usual(collection: Collection) -> dict[str, Any]:
    """What the weight depends on where none is set."""
    status = collection.status()
    return {"model": status.embedder.get("weights"), "language": status.indexes[1]["language"]}


def _weight_now(collection: Collection, questions: Sequence[Question]) -> float | None:
    """The weight that is set, else the usual one, where it is that for all questions."""
    weight, usual = collection.settings.search.weight, _usual(collection)
    if weight is None and all(default_weight(**usual, query=question.text) == DEFAULT_WEIGHT for question in questions):
        return DEFAULT_WEIGHT
    return weight


def _number(weight: float | None) -> float:
    return DEFAULT_WEIGHT if weight is None else weight


def _values(
    collection: Collection,
    questions: Sequence[Question],
    choices: Sequence[Choice],
    progress: Callable[[str, int, int], None] | None,
) -> dict[Choice, NDArray[np.float64]]:
    """Each choice's nDCG@10 of each question. *Shape:* (n_questions,)."""
    depth = max(choice.candidates for choice in choices)
    values = np.zeros((len(choices), len(questions)))
    search, usual = collection.settings.search, _usual(collection)
    for number, question in enumerate(questions):
        try:
            pool = _Pool(question, collection.candidates(question.text, depth), search, usual)
        except TooLongError:
            continue  # it finds nothing, whatever is set
        values[:, number] = [pool.value(choice) for choice in choices]
        if progress:
            progress("asking", number + 1, len(questions))
    return dict(zip(choices, values, strict=True))


@lru_cache(maxsize=100_000)
def _ndcg(found: tuple[int | None, ...], grades: tuple[tuple[int, int], ...]) -> float:
    """By the library, once for each way in which the gold may lie among the first ten."""
    places = [Ranked("", 0, 0, None, gold) for gold in found]
    return measures_of(places, dict(grades), TOP)[MEASURE]


def _check_gold(collection: Collection, questions: Sequence[Question]) -> None:
    known = {document.uri for document in collection.documents()}
    wanted = {gold.uri for question in questions for gold in question.gold}
    if not known & wanted:
        raise DataError(
            f"None of the {len(wanted)} documents that should be found is in {collection.path}: {min(wanted)!r}, …",
            "`ragfm documents` lists the addresses there; name the collection with -c.",
        )


@contextmanager
def _resized(
    collection: Collection, size: int | None, progress: Callable[[str, int, int], None] | None
) -> Iterator[Collection]:
    """The collection itself, or a temporary one of its sources with chunks of another size."""
    settings = collection.settings
    if size == settings.chunk.size:
        yield collection
        return
    from ragfm.collection import Collection as Handle

    chunk = settings.chunk.model_copy(update={"size": size, "overlap": min(settings.chunk.overlap, (size or 256) // 4)})
    status = collection.status()
    with tempfile.TemporaryDirectory(prefix="ragfm-tune-") as place:
        named = str(status.embedder["embedder"])
        resized = settings.model_copy(update={"chunk": chunk, "embedder": named, "sources": []})
        with Handle.open(Path(place) / "collection", settings=resized, embedder=named) as handle:
            for source in status.sources:
                location = str(source["location"])
                if "://" not in location:
                    location = str(collection.path.parent / location)
                handle.sync(
                    location, name=source["name"], connector=source["connector"],
                    include=source["include"], exclude=source["exclude"], options=source["options"],
                    tags=source["tags"],
                    progress=progress and (lambda now: progress(f"ingesting, {size} tokens", now.documents, now.total)),
                )  # fmt: skip
            yield handle


def _about(
    collection: Collection, questions: Sequence[Question], half: int, seed: int, sizes: Sequence[int]
) -> dict[str, Any]:
    from ragfm import __version__

    status = collection.status()
    return {
        "ragfm": __version__,
        "measure": MEASURE,
        "questions": {
            "count": len(questions), "digest": fingerprint(questions),
            "chosen_by": half, "held_out": len(questions) - half, "seed": seed,
        },
        "collection": {"documents": status.documents, "chunks": status.chunks, "generation": status.generation},
        "embedder": dict(status.embedder),
        "chunk_sizes": list(sizes),
    }  # fmt: skip


def _why(current: Choice, best: Choice, held_out: Difference, adopted: bool, count: int) -> str:
    if best == current:
        return "Nothing that was tried does better than the settings of now; they stay."
    gain = (
        f"{held_out.difference:+.4f} {MEASURE} [{held_out.low:+.4f}, {held_out.high:+.4f}], p = {held_out.p:.4f}, "
        f"on {count} held-out questions"
    )
    if adopted:
        return f"The best is better than the settings of now: {gain}."
    return f"The best on one half is no better than the settings of now, beyond noise: {gain}. They stay."
