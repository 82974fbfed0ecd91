"""Tune hybrid search: find the weight that ranks best for labelled questions, and test the gain against noise.

    questions ─┬─ one half ───→ evaluate all weights, choose the best
               └─ other half ─→ test the best against the current weight → adopt it, or not

Each question is searched for once: all weights are computed from the candidates of both indexes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ragfm import __version__
from ragfm.collection import Collection
from ragfm.core.config import SearchSection
from ragfm.core.errors import DataError, TooLongError
from ragfm.core.progress import Progress, ProgressCallback
from ragfm.core.types import Hit
from ragfm.evaluation.metrics import CUTOFF, Ranked, rank_hits, ranking_measures
from ragfm.evaluation.question_sets import Question, fingerprint
from ragfm.evaluation.retrieval_evaluation import missing_gold
from ragfm.evaluation.run_comparison import Difference, paired_differences
from ragfm.retrieval.fusion_weight import DEFAULT_WEIGHT, default_weight, weight_for
from ragfm.retrieval.search import candidate_hits, fuse, match_names

MEASURE = "nDCG@10"
WEIGHTS = tuple(round(0.05 * n, 2) for n in range(21))
MIN_QUESTIONS = 20
"""Minimum number of questions: with fewer, neither half is informative."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A weight of the cosine, and its mean nDCG@10 over the half of the questions that the best one was selected by.

    A weight of None is the default for the model and the language.
    """

    weight: float | None
    value: float


@dataclass(frozen=True, slots=True)
class TuneReport:
    """The result of tuning, with all trials, best first.

    - `held_out`: the best weight against the current one, on the other half of the questions.
    - `adopted`: the gain there is more than noise; `why` explains the decision.
    """

    about: Mapping[str, Any]
    current: Trial
    best: Trial
    held_out: Difference
    adopted: bool
    why: str
    trials: tuple[Trial, ...]


class CandidatePool:
    """The candidates of both indexes for a question, which can be ranked by any weight."""

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
        self._names = match_names(question.text, self._documents, [hit.context for hit in hits])
        self._by_cosine = np.argsort(-self._cosines, kind="stable")
        self._by_bm25 = np.argsort(-self._bm25, kind="stable")[: np.count_nonzero(self._bm25)]

    def value(self, weight: float | None, count: int | None = None) -> float:
        """The nDCG@10 of the question with a weight, and `count` candidates of each index (default: the settings)."""
        count = count or self._settings.candidates
        candidates = np.union1d(self._by_cosine[:count], self._by_bm25[:count])
        settings = self._settings.model_copy(update={"weight": weight})
        fused = fuse(
            self._cosines[candidates],
            self._bm25[candidates],
            self._documents[candidates],
            self._names[candidates],
            weight=weight_for(self._question.text, settings, **self._defaults),
        )
        order = candidates[np.argsort(-fused, kind="stable")].tolist()
        places, grades = rank_hits(self._question, [self._hits[index] for index in order], CUTOFF)
        return _ndcg(tuple(place.gold for place in places), tuple(grades.items()))


@lru_cache(maxsize=100_000)
def _ndcg(gold_by_place: tuple[int | None, ...], grades: tuple[tuple[int, int], ...]) -> float:
    """Cached, because most weights rank the gold in the same way."""
    places = [Ranked("", 0, 0, None, gold) for gold in gold_by_place]
    return ranking_measures(places, dict(grades), CUTOFF)[MEASURE]


def tune(
    collection: Collection,
    questions: Sequence[Question],
    *,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> TuneReport:
    """Find the weight of hybrid search with the highest nDCG@10, and test it on held-out questions.

    Nothing is stored, see `store_weight`. Raises DataError for fewer than 20 questions, or if no gold document is in
    the collection.
    """
    if len(questions) < MIN_QUESTIONS:
        raise DataError(
            f"{len(questions)} questions are too few to detect a gain.",
            f"Provide at least {MIN_QUESTIONS}, preferably a few hundred.",
        )
    missing_gold(collection, {document.uri for document in collection.documents()}, questions)
    shuffled = random.Random(seed).sample(list(questions), len(questions))  # noqa: S311
    half = len(shuffled) // 2
    search, status = collection.settings.search, collection.status()
    defaults = {"model": status.embedder.get("weights"), "language": status.indexes[1]["language"]}
    current = search.weight
    by_question = (default_weight(**defaults, query=question.text) for question in questions)
    if current is None and all(weight == DEFAULT_WEIGHT for weight in by_question):
        current = DEFAULT_WEIGHT

    weights: list[float | None] = [*(weight for weight in WEIGHTS if weight != current), current]
    values = np.zeros((len(weights), len(shuffled)))
    for number, question in enumerate(shuffled):
        try:
            pool = CandidatePool(
                question, candidate_hits(collection.store, question.text, search.candidates), search, defaults
            )
        except TooLongError:
            continue  # it has no hits with any weight
        values[:, number] = [pool.value(weight) for weight in weights]
        if progress:
            progress(Progress("asking", number + 1, len(shuffled)))
    trials = [Trial(weight, float(row[:half].mean())) for weight, row in zip(weights, values, strict=True)]

    def preference(at: int) -> tuple[float, bool, float]:
        """Of equally good weights, the current one wins, then the nearest to it."""
        tried, now = (DEFAULT_WEIGHT if weight is None else weight for weight in (weights[at], current))
        return round(trials[at].value, 9), weights[at] == current, -abs(tried - now)

    best = max(range(len(trials)), key=preference)
    (held_out,) = paired_differences([MEASURE], values[-1][half:, None], values[best][half:, None], seed)
    is_current = trials[best] is trials[-1]
    adopted = not is_current and not held_out.noise and held_out.difference > 0

    gain = (
        f"{held_out.difference:+.4f} {MEASURE} [{held_out.low:+.4f}, {held_out.high:+.4f}], p = {held_out.p:.4f}, "
        f"on {len(shuffled) - half} held-out questions"
    )
    if is_current:
        why = "No other weight is better than the current one, which is kept."
    elif adopted:
        why = f"The best weight is better than the current one: {gain}."
    else:
        why = f"The best weight on one half is not better than the current one beyond noise: {gain}. Nothing changes."
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
        },
        current=trials[-1],
        best=trials[best],
        held_out=held_out,
        adopted=adopted,
        why=why,
        trials=tuple(sorted(trials, key=lambda trial: -trial.value)),
    )
