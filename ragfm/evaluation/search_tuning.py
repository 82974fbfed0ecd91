"""Tune hybrid search: find the settings that rank best for labelled questions, and test the gain against noise.

    questions ─┬─ one half ───→ evaluate all settings, choose the best
               └─ other half ─→ test the best against the current settings → adopt it, or not

Each question is searched for once per chunk size: all weights and fusion methods are computed from the candidates of
both indexes.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragfm import __version__
from ragfm.collection import Collection
from ragfm.core.config import Fusion, SearchSection
from ragfm.core.errors import DataError, TooLongError
from ragfm.core.progress import Progress, ProgressCallback, with_stage
from ragfm.core.types import Hit
from ragfm.evaluation.metrics import CUTOFF, Ranked, rank_hits, ranking_measures
from ragfm.evaluation.question_sets import Question, fingerprint
from ragfm.evaluation.retrieval_evaluation import missing_gold
from ragfm.evaluation.run_comparison import Difference, paired_differences
from ragfm.retrieval.fusion_weight import DEFAULT_WEIGHT, default_weight, weight_for
from ragfm.retrieval.search import fuse

MEASURE = "nDCG@10"
WEIGHTS = tuple(round(0.05 * n, 2) for n in range(21))
CANDIDATES = (25, 50, 100, 200)
MIN_QUESTIONS = 20
"""Minimum number of questions: with fewer, neither half is informative."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Settings of hybrid search, as in `ragfm.toml`.

    `weight` has no effect on `rrf`; None is the default for the model and the language.
    """

    fusion: Fusion
    weight: float | None
    candidates: int
    chunk_size: int | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """A choice, and its mean nDCG@10 over the half of the questions that the best choice was selected by."""

    choice: Choice
    value: float


@dataclass(frozen=True, slots=True)
class TuneReport:
    """The result of tuning, with all trials, best first.

    - `held_out`: the best choice against the current one, on the other half of the questions.
    - `adopted`: the gain there is more than noise; `why` explains the decision.
    """

    about: Mapping[str, Any]
    current: Choice
    best: Choice
    held_out: Difference
    adopted: bool
    why: str
    trials: tuple[Trial, ...]


class CandidatePool:
    """The candidates of both indexes for a question, which can be ranked under any choice."""

    def __init__(
        self,
        question: Question,
        hits: Sequence[Hit],
        settings: SearchSection,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """`defaults`: `model` and `language`, which determine a weight of None."""
        self._question, self._hits, self._settings, self._defaults = question, hits, settings, defaults or {}
        self._cosines = np.array([hit.scores["dense"] for hit in hits], dtype=np.float32)
        self._bm25 = np.array([hit.scores["keyword"] for hit in hits], dtype=np.float32)
        self._documents = np.unique([hit.uri for hit in hits], return_inverse=True)[1]
        self._by_cosine = np.argsort(-self._cosines, kind="stable")
        self._by_bm25 = np.argsort(-self._bm25, kind="stable")[: np.count_nonzero(self._bm25)]

    def value(self, choice: Choice) -> float:
        """The nDCG@10 of the question under a choice."""
        candidates = np.union1d(self._by_cosine[: choice.candidates], self._by_bm25[: choice.candidates])
        settings = self._settings.model_copy(update={"weight": choice.weight})
        weight = weight_for(self._question.text, settings, **self._defaults)
        scores = self._cosines[candidates], self._bm25[candidates], self._documents[candidates]
        fused = fuse(*scores, fusion=choice.fusion, weight=weight)
        order = candidates[np.argsort(-fused, kind="stable")].tolist()
        places, grades = rank_hits(self._question, [self._hits[index] for index in order], CUTOFF)
        return _ndcg(tuple(place.gold for place in places), tuple(grades.items()))


def tune(
    collection: Collection,
    questions: Sequence[Question],
    *,
    sizes: Sequence[int] = (),
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> TuneReport:
    """Find the settings of hybrid search with the highest nDCG@10, and test them on held-out questions.

    Nothing is stored, see `store_choice`. For each of `sizes`, the sources are ingested into a temporary collection
    with chunks of that many tokens. Raises DataError for fewer than 20 questions, or if no gold document is in the
    collection.
    """
    if len(questions) < MIN_QUESTIONS:
        raise DataError(
            f"{len(questions)} questions are too few to detect a gain.",
            f"Provide at least {MIN_QUESTIONS}, preferably a few hundred.",
        )
    missing_gold(collection, {document.uri for document in collection.documents()}, questions)
    shuffled = random.Random(seed).sample(list(questions), len(questions))  # noqa: S311
    half = len(shuffled) // 2
    search, current_size = collection.settings.search, collection.settings.chunk.size
    weight, defaults = search.weight, _weight_defaults(collection)
    if weight is None and all(
        default_weight(**defaults, query=question.text) == DEFAULT_WEIGHT for question in questions
    ):
        weight = DEFAULT_WEIGHT
    current = Choice(search.fusion, weight, search.candidates, current_size)

    values: dict[Choice, NDArray[np.float64]] = {}
    for size in dict.fromkeys((current_size, *sizes)):
        with _rechunked(collection, size, progress) as rechunked:
            values |= _evaluate_choices(rechunked, shuffled, current, size, progress)
    means = {choice: float(scores[:half].mean()) for choice, scores in values.items()}

    def distance(choice: Choice) -> float:
        weights = [DEFAULT_WEIGHT if one.weight is None else one.weight for one in (choice, current)]
        return float(
            10 * (choice.chunk_size != current.chunk_size)
            + 5 * (choice.fusion != current.fusion)
            + abs(weights[0] - weights[1])
            + 0.01 * abs(np.log2(choice.candidates / current.candidates))
        )

    # Of equally good choices, the current one wins, then the nearest to it.
    best = max(means, key=lambda choice: (round(means[choice], 9), choice == current, -distance(choice)))
    (held_out,) = paired_differences([MEASURE], values[current][half:, None], values[best][half:, None], seed)
    adopted = best != current and not held_out.noise and held_out.difference > 0

    gain = (
        f"{held_out.difference:+.4f} {MEASURE} [{held_out.low:+.4f}, {held_out.high:+.4f}], p = {held_out.p:.4f}, "
        f"on {len(shuffled) - half} held-out questions"
    )
    if best == current:
        why = "No other settings are better than the current ones, which are kept."
    elif adopted:
        why = f"The best settings are better than the current ones: {gain}."
    else:
        why = (
            f"The best settings on one half are not better than the current ones beyond noise: {gain}. Nothing changes."
        )
    status = collection.status()
    return TuneReport(
        about={
            "ragfm": __version__,
            "measure": MEASURE,
            "questions": {
                "count": len(questions),
                "digest": fingerprint(questions),
                "chosen_by": half,
                "held_out": len(questions) - half,
                "seed": seed,
            },
            "collection": {"documents": status.documents, "chunks": status.chunks, "generation": status.generation},
            "embedder": dict(status.embedder),
            "chunk_sizes": list(sizes),
        },
        current=current,
        best=best,
        held_out=held_out,
        adopted=adopted,
        why=why,
        trials=tuple(sorted((Trial(*pair) for pair in means.items()), key=lambda trial: -trial.value)),
    )


def _weight_defaults(collection: Collection) -> dict[str, Any]:
    """Model and language of a collection, which determine the default weight."""
    status = collection.status()
    return {"model": status.embedder.get("weights"), "language": status.indexes[1]["language"]}


def _evaluate_choices(
    collection: Collection,
    questions: Sequence[Question],
    current: Choice,
    size: int | None,
    progress: ProgressCallback | None,
) -> dict[Choice, NDArray[np.float64]]:
    """The nDCG@10 of each question by choice with chunks of `size`. *Shape:* (n_questions,)."""
    choices: list[Choice] = []
    for candidates in CANDIDATES:
        choices.append(Choice("rrf", 0.6, candidates, size))
        choices += [Choice("convex", weight, candidates, size) for weight in WEIGHTS]
    if size == current.chunk_size:  # the current choice need not be on the grid; it is the last one
        choices = [choice for choice in choices if choice != current] + [current]
    depth = max(choice.candidates for choice in choices)
    values = np.zeros((len(choices), len(questions)))
    search, defaults = collection.settings.search, _weight_defaults(collection)
    for index, question in enumerate(questions):
        try:
            pool = CandidatePool(question, collection.candidates(question.text, depth), search, defaults)
        except TooLongError:
            continue  # it has no hits under any choice
        values[:, index] = [pool.value(choice) for choice in choices]
        if progress:
            progress(Progress("asking", index + 1, len(questions)))
    return dict(zip(choices, values, strict=True))


@lru_cache(maxsize=100_000)
def _ndcg(gold_by_place: tuple[int | None, ...], grades: tuple[tuple[int, int], ...]) -> float:
    """Cached, because most choices rank the gold in the same way."""
    places = [Ranked("", 0, 0, None, gold) for gold in gold_by_place]
    return ranking_measures(places, dict(grades), CUTOFF)[MEASURE]


@contextmanager
def _rechunked(collection: Collection, size: int | None, progress: ProgressCallback | None) -> Iterator[Collection]:
    """The collection itself, or for another chunk size a temporary collection of its sources."""
    settings = collection.settings
    if size == settings.chunk.size:
        yield collection
        return

    chunk = settings.chunk.model_copy(update={"size": size})
    status = collection.status()
    embedder = str(status.embedder["embedder"])
    changed = settings.model_copy(update={"chunk": chunk, "embedder": embedder, "sources": []})
    with (
        tempfile.TemporaryDirectory(prefix="ragfm-tune-") as folder,
        Collection.open(Path(folder) / "collection", settings=changed, embedder=embedder) as rechunked,
    ):
        for source in status.sources:
            location = str(source["location"])
            if "://" not in location:
                location = str(collection.settings_file.parent / location)
            rechunked.sync(
                location,
                name=source["name"],
                connector=source["connector"],
                include=source["include"],
                exclude=source["exclude"],
                options=source["options"],
                tags=source["tags"],
                progress=progress and with_stage(progress, f"ingesting, {size} tokens"),
            )
        yield rechunked
