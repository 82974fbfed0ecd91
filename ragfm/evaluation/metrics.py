"""What a ranking is worth: nDCG, recall, MRR and MAP by ir-measures, each with an interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ragfm.core.errors import MissingExtraError

if TYPE_CHECKING:
    from ragfm.core.types import Hit
    from ragfm.evaluation.question_sets import Gold, Question

TOP = 10
"""Hits that a user looks at: the cut-off of nDCG and MRR, and what a timed search asks for."""
RESAMPLES = 2000
_BLOCK = 2_000_000  # numbers that are drawn at once


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value measured on a sample of questions, and the 95 % bootstrap interval `low` to `high`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ranked:
    """One place of a ranking: a passage, or a document by its best passage. `gold` is what it finds, by number."""

    uri: str
    start: int
    end: int
    score: float | None
    gold: int | None = None


def rank_hits(question: Question, hits: Sequence[Hit], k: int) -> tuple[list[Ranked], dict[int, int]]:
    """The first `k` places, and the grades of all gold, by number.

    Where the gold are documents, so are the places, each at the rank of its best passage. Where a gold is a stretch of
    text, the places are passages. One finds a gold that no better one has found if half of the shorter of the two lies
    in the other. Gold that one passage finds together count as one: there is nothing more to be found after it.
    """
    grades = {number: gold.grade for number, gold in enumerate(question.gold)}
    places: list[Ranked] = []
    seen: set[str] = set()
    found: set[int] = set()
    for hit in hits:
        if len(places) == k:
            break
        if not question.by_passage and hit.uri in seen:
            continue
        seen.add(hit.uri)
        new = [n for n, gold in enumerate(question.gold) if n not in found and _finds(hit, gold)]
        found.update(new)
        for merged in new[1:]:
            grades[new[0]] = max(grades[new[0]], grades.pop(merged))
        ranked_by = (*(hit.scores.get(name) for name in ("rerank", "fused")), hit.score, hit.scores.get("keyword"))
        score = next((score for score in ranked_by if score is not None), None)
        places.append(Ranked(hit.uri, hit.start, hit.end, score, new[0] if new else None))
    return places, grades


def _finds(hit: Hit, gold: Gold) -> bool:
    if hit.uri != gold.uri:
        return False
    if gold.start is None or gold.end is None:
        return True
    common = min(hit.end, gold.end) - max(hit.start, gold.start)
    return common > 0 and 2 * common >= min(hit.end - hit.start, gold.end - gold.start)


def measures_of(places: Sequence[Ranked], grades: Mapping[int, int], k: int) -> dict[str, float]:
    """Each measure of one ranking of depth `k`, in [0, 1], higher is better.

    `nDCG@10` (Järvelin and Kekäläinen 2002, gain is the grade), `MRR@10`, `MAP@k`, and `recall@n` for n of 1, 3, 5, 10
    and, where `k` allows it, 100.
    """
    measures = _measures(k)
    if not any(place.gold is not None for place in places):
        return dict.fromkeys(measures, 0.0)
    # Ranks as scores: trec_eval sorts by score and would put equal ones in another order.
    run = {str(r if p.gold is None else f"gold {p.gold}"): float(-r) for r, p in enumerate(places)}
    gold = {f"gold {number}": grade for number, grade in grades.items()}
    by_library = {m.measure: m.value for m in _library().iter_calc(list(measures.values()), {"q": gold}, {"q": run})}
    return {name: float(by_library[measure]) for name, measure in measures.items()}


def _measures(k: int) -> dict[str, Any]:
    library = _library()
    named = {"nDCG@10": library.nDCG @ TOP, "MRR@10": library.RR @ TOP, f"MAP@{k}": library.AP @ k}
    return {**named, **{f"recall@{n}": library.R @ n for n in (1, 3, 5, TOP, 100) if n <= k}}


def _library() -> Any:
    try:
        import ir_measures
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"Evaluation needs the module {error.name!r}, which is not installed.",
            "Install it with `pip install 'ragfm[eval]'`.",
        ) from error
    return ir_measures


# --- Intervals ---------------------------------------------------------------------------------------------------


def estimate_means(values: NDArray[np.float64], seed: int = 0) -> list[Estimate]:
    """The mean of each column. *Shape:* values (n_questions, n_measures)."""
    return _estimates(values, lambda sample: sample.mean(axis=-2), seed)


def estimate_percentiles(values: Sequence[float], seed: int = 0) -> dict[str, Estimate]:
    """The 50th, 95th and 99th percentile, as `p50`, `p95` and `p99`; nothing of nothing."""
    if not len(values):
        return {}

    def percentiles(sample: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.moveaxis(np.percentile(sample[..., 0], [50, 95, 99], axis=-1), 0, -1)

    estimates = _estimates(np.asarray(values, dtype=np.float64)[:, None], percentiles, seed)
    return dict(zip(("p50", "p95", "p99"), estimates, strict=True))


def estimate_ratios(pairs: Sequence[tuple[float, float]], seed: int = 0) -> Estimate | None:
    """The sum of the first by the sum of the second, over questions; None where the second is nothing.

    Samples in which it is nothing don't count for the interval.
    """
    values = np.asarray(pairs, dtype=np.float64)
    if not values[:, 1].sum():
        return None

    def ratio(sample: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = sample.sum(axis=-2)
        ratios: NDArray[np.float64] = np.full_like(sums[..., :1], np.nan)
        np.divide(sums[..., :1], sums[..., 1:], out=ratios, where=sums[..., 1:] > 0)
        return ratios

    return _estimates(values, ratio, seed)[0]


def _estimates(
    values: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], seed: int
) -> list[Estimate]:
    """By the percentile bootstrap over questions (Efron 1979): the same questions for all measures."""
    random, n = np.random.default_rng(seed), len(values)
    block = max(1, _BLOCK // max(values.size, 1))
    drawn = [
        statistic(values[random.integers(0, n, (min(block, RESAMPLES - at), n))]) for at in range(0, RESAMPLES, block)
    ]
    low, high = np.nanpercentile(np.concatenate(drawn), [2.5, 97.5], axis=0)
    return [Estimate(float(v), float(a), float(b)) for v, a, b in zip(statistic(values), low, high, strict=True)]
