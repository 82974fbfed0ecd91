"""Simulate promises about verified citations with known error rates.

    python benchmarks/bench_guarantee.py [--runs 2000]

The probabilities of the judge are uniform in [0, 1], and a citation is wrong with a chance that falls with them: not at
all, linearly or steeply. For each number of labels and each shape: the share of runs with a promise, the share in which
the true error is at most the promised one (a run without a promise counts, too), and the mean coverage, the share of
citations that stay verified. Then a year of later labels, one a day, looked at each day: the share of true promises
that lapse, and where citations are wrong three times as often, the share that lapses and the median day. No model is
loaded. The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import rendering
from measure import about, save
from numpy.typing import NDArray

from ragfm.answering.risk_control import choose_threshold, evidence_against
from ragfm.generation.citation_labels import EVIDENCE

ERROR, CONFIDENCE = 0.1, 0.95
LABELS = (50, 100, 200, 400, 800)
DAYS = 365
DRIFT = 3.0
Floats = NDArray[np.float64]
# The chance of being wrong at a probability, and its mean over all probabilities from a threshold on.
SHAPES: dict[str, tuple[Callable[[Floats], Floats], Callable[[float], float]]] = {
    "flat, 5 %": (lambda scores: np.full_like(scores, 0.05), lambda _: 0.05),
    "flat, 11 %": (lambda scores: np.full_like(scores, 0.11), lambda _: 0.11),
    "linear": (lambda scores: 0.3 * (1 - scores), lambda threshold: 0.15 * (1 - threshold)),
    "steep": (lambda scores: (1 - scores) ** 4, lambda threshold: (1 - threshold) ** 4 / 5),
}


def simulate(shape: str, labels: int, runs: int, rng: np.random.Generator) -> dict[str, float]:
    """The shares of one shape and number of labels."""
    chance, mean = SHAPES[shape]
    given = kept = lapsed = 0
    coverage = 0.0
    days: list[float] = []
    for _ in range(runs):
        scores = rng.random(labels)
        wrong = rng.random(labels) < chance(scores)
        promise = choose_threshold(scores.tolist(), wrong.tolist(), error=ERROR, confidence=CONFIDENCE)
        if promise is None:
            kept += 1
            continue
        given += 1
        coverage += 1 - promise.threshold
        later = promise.threshold + (1 - promise.threshold) * rng.random(DAYS)
        drawn = rng.random(DAYS)
        if mean(promise.threshold) <= ERROR:
            kept += 1
            lapsed += lapse_day(drawn < chance(later)) <= DAYS
        days.append(lapse_day(drawn < np.minimum(1, DRIFT * chance(later))))
    return {
        "promise": given / runs,
        "holds": kept / runs,
        "coverage": coverage / runs,
        "true ones that lapse": lapsed / max(1, kept - (runs - given)),
        "drift: lapsed": float(np.mean(np.array(days) <= DAYS)) if days else 0.0,
        "drift: median day": float(np.median(days)) if days else 0.0,
    }


def lapse_day(wrong: NDArray[np.bool_]) -> float:
    """The day from 1 on which the evidence ends the promise; after the last day if none does."""
    reached = np.flatnonzero(evidence_against(wrong.tolist(), ERROR) >= EVIDENCE)
    return float(reached[0] + 1) if len(reached) else DAYS + 1.0


def table(results: rendering.Results) -> str:
    """The table of docs/benchmarks.md."""
    shapes = results["guarantee"]["shapes"]
    return rendering.table(
        ["promised; of all citations, verified with it", *(f"{labels} labels" for labels in LABELS)],
        [
            [
                shape,
                *(f"{row['promise']:.0%}; {row['coverage'] / max(row['promise'], 1e-9):.0%}" for row in rows.values()),
            ]
            for shape, rows in shapes.items()
        ],
    )


def main() -> None:
    """Simulate all shapes and numbers of labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    shapes: dict[str, Any] = {}
    for shape in SHAPES:
        shapes[shape] = {}
        for labels in LABELS:
            shapes[shape][str(labels)] = row = simulate(shape, labels, options.runs, rng)
            print(f"{shape:<11}{labels:>5} labels  " + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    worst = min(row["holds"] for rows in shapes.values() for row in rows.values())
    result = {
        **about("guarantee"),
        "runs": options.runs,
        "error": ERROR,
        "confidence": CONFIDENCE,
        "worst": worst,
        "shapes": shapes,
    }
    save(result, "guarantee")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
