"""Measures of rankings (nDCG, recall, MRR, MAP by ir-measures) and bootstrap intervals of all measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragfm.core.errors import needs_extra
from ragfm.core.types import Hit
from ragfm.evaluation.question_sets import Gold, Question

CUTOFF = 10
"""Hits that a user looks at: the cut-off of nDCG and MRR, and the k of a timed search."""
RESAMPLES = 2000
_BLOCK_SIZE = 2_000_000  # numbers resampled at once


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value measured on a sample of questions, and its 95 % bootstrap interval from `low` to `high`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class StatusCount:
    """The number of answers of a status, and their precision: the share that is right as users see them.

    An answer is right if what users see contains a right answer, a withheld one if the question has none.
    """

    count: int
    precision: Estimate | None


@dataclass(frozen=True, slots=True)
class Ranked:
    """One place of a ranking: a passage, or a document by its best passage.

    `gold` is the index of the gold that it matches, None if it matches none.
    """

    uri: str
    start: int
    end: int
    score: float | None
    gold: int | None = None


def rank_hits(question: Question, hits: Sequence[Hit], k: int) -> tuple[list[Ranked], dict[int, int]]:
    """The first `k` places of a ranking, and the grade of each gold by index.

    If the gold are documents, so are the places, each at the rank of its best passage. If a gold is a span, the places
    are passages. A passage matches a span if the overlap is half or more of the shorter of the two, and no better
    passage has matched it. Spans that one passage matches together are merged into one of the best grade.
    """
    grades = {number: gold.grade for number, gold in enumerate(question.gold)}
    places: list[Ranked] = []
    seen_uris: set[str] = set()
    matched: set[int] = set()
    for hit in hits:
        if len(places) == k:
            break
        if not question.by_passage and hit.uri in seen_uris:
            continue
        seen_uris.add(hit.uri)
        new = [n for n, gold in enumerate(question.gold) if n not in matched and matches_gold(hit, gold)]
        matched.update(new)
        for merged in new[1:]:
            grades[new[0]] = max(grades[new[0]], grades.pop(merged))
        scores = (hit.scores.get("rerank"), hit.scores.get("fused"), hit.score, hit.scores.get("keyword"))
        score = next((score for score in scores if score is not None), None)
        places.append(Ranked(hit.uri, hit.start, hit.end, score, new[0] if new else None))
    return places, grades


def matches_gold(hit: Hit, gold: Gold) -> bool:
    """Whether a hit is of the gold document and, if the gold is a span, has half of the shorter of the two."""
    if hit.uri != gold.uri:
        return False
    if gold.start is None or gold.end is None:
        return True
    overlap = min(hit.end, gold.end) - max(hit.start, gold.start)
    return overlap > 0 and 2 * overlap >= min(hit.end - hit.start, gold.end - gold.start)


def ranking_measures(places: Sequence[Ranked], grades: Mapping[int, int], k: int) -> dict[str, float]:
    """The measures of one ranking of depth `k`, in [0, 1], higher is better.

    `nDCG@10` (Järvelin and Kekäläinen 2002, gain is the grade), `MRR@10`, `MAP@k`, and `recall@n` for n of 1, 3, 5, 10
    and, if `k` is 100 or more, 100. Raises MissingExtraError if ir-measures is not installed.
    """
    with needs_extra("Evaluation", "eval"):
        import ir_measures
    measures: dict[str, Any] = {
        f"nDCG@{CUTOFF}": ir_measures.nDCG @ CUTOFF,
        f"MRR@{CUTOFF}": ir_measures.RR @ CUTOFF,
        f"MAP@{k}": ir_measures.AP @ k,
        **{f"recall@{n}": ir_measures.R @ n for n in (1, 3, 5, CUTOFF, 100) if n <= k},
    }
    if not any(place.gold is not None for place in places):
        return dict.fromkeys(measures, 0.0)
    # Scores are negative ranks: trec_eval sorts by score and would reorder ties.
    run = {str(r if p.gold is None else f"gold {p.gold}"): float(-r) for r, p in enumerate(places)}
    gold = {f"gold {number}": grade for number, grade in grades.items()}
    values = {m.measure: m.value for m in ir_measures.iter_calc(list(measures.values()), {"q": gold}, {"q": run})}
    return {name: float(values[measure]) for name, measure in measures.items()}


# --- Intervals ---------------------------------------------------------------------------------------------------


def estimate_means(values: NDArray[np.float64], seed: int = 0) -> list[Estimate]:
    """The mean of each column. *Shape:* values (n_questions, n_measures)."""
    return bootstrap(values, lambda sample: sample.mean(axis=-2), seed)


def estimate_percentiles(values: Sequence[float]) -> dict[str, Estimate]:
    """The 50th, 95th and 99th percentile, as `p50`, `p95` and `p99`; empty without values."""
    if not len(values):
        return {}

    def percentiles(sample: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.moveaxis(np.percentile(sample[..., 0], [50, 95, 99], axis=-1), 0, -1)

    estimates = bootstrap(np.asarray(values, dtype=np.float64)[:, None], percentiles)
    return dict(zip(("p50", "p95", "p99"), estimates, strict=True))


def estimate_ratios(pairs: Sequence[tuple[float, float]]) -> Estimate | None:
    """The ratio of sums over questions, from (numerator, denominator) pairs; None if the denominators sum to 0.

    Resamples whose denominators sum to 0 are left out of the interval.
    """
    values = np.asarray(pairs, dtype=np.float64)
    if not values[:, 1].sum():
        return None

    def ratio(sample: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = sample.sum(axis=-2)
        ratios: NDArray[np.float64] = np.full_like(sums[..., :1], np.nan)
        np.divide(sums[..., :1], sums[..., 1:], out=ratios, where=sums[..., 1:] > 0)
        return ratios

    return bootstrap(values, ratio)[0]


def bootstrap(
    values: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], seed: int = 0
) -> list[Estimate]:
    """Estimates by the percentile bootstrap over the rows of `values` (Efron 1979).

    `statistic` maps samples (..., n_rows, n_columns) to values (..., n_estimates); NaN is left out. All estimates use
    the same resamples.
    """
    # scipy.stats.bootstrap draws the same resamples, but refuses a single row and lets NaN spoil the interval.
    random, n = np.random.default_rng(seed), len(values)
    block = max(1, _BLOCK_SIZE // max(values.size, 1))
    resampled = [
        statistic(values[random.integers(0, n, (min(block, RESAMPLES - start), n))])
        for start in range(0, RESAMPLES, block)
    ]
    lows, highs = np.nanpercentile(np.concatenate(resampled), [2.5, 97.5], axis=0)
    return [
        Estimate(float(value), float(low), float(high))
        for value, low, high in zip(statistic(values), lows, highs, strict=True)
    ]
