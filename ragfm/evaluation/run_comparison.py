"""Two runs over the same questions: whether one is better, or that is noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragfm.core.errors import DataError
from ragfm.evaluation.metrics import estimate_means
from ragfm.evaluation.run_file import read_run

ROUNDS = 10_000
_COMPARABLE = ("retrieval", "answers")  # runs whose questions have measures
_LEVEL = 0.05
_BLOCK = 2_000_000  # signs that are drawn at once
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Difference:
    """One measure in both runs. `difference` is the mean of b − a, `low` to `high` its 95 % interval.

    `p` is that of the paired randomisation test. `noise`: p is 0.05 or more, or the interval holds 0.
    """

    measure: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    wins: int
    losses: int
    ties: int
    noise: bool


@dataclass(frozen=True, slots=True)
class Changed:
    """A question, and its value of the first measure in both runs."""

    id: str
    question: str
    a: float
    b: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Run b against run a, over the `questions` that both have. `changed`: most changed first, of the first measure."""

    a: Mapping[str, Any]
    b: Mapping[str, Any]
    questions: int
    only_a: int
    only_b: int
    differences: tuple[Difference, ...]
    changed: tuple[Changed, ...]

    @property
    def settings(self) -> dict[str, tuple[Any, Any]]:
        """In what the runs differ, as (a, b)."""
        keys = [key for key in {**self.a, **self.b} if self.a.get(key) != self.b.get(key)]
        return {key: (self.a.get(key), self.b.get(key)) for key in keys}


def compare_runs(a: str | Path, b: str | Path, *, most: int = 10, seed: int = 0) -> Comparison:
    """Compare the files of two runs, question by question; of the changed ones the `most`.

    Raises DataError where they are not two of retrieval or two of answers, where they have no question in common, or
    one that has other words or gold in the other.
    """
    about_a, records_a = read_run(a)
    about_b, records_b = read_run(b)
    what_a, what_b = (about.get("run", "no evaluation") for about in (about_a, about_b))
    if what_a != what_b or what_a not in _COMPARABLE:
        raise DataError(
            f"{a} is a run of {what_a}, {b} one of {what_b}: these can't be compared.",
            "Compare two of `ragfm eval retrieval`, or two of `ragfm eval answers`.",
        )
    by_id_a, by_id_b = ({record["id"]: record for record in records} for records in (records_a, records_b))
    common = [key for key in by_id_a if key in by_id_b]
    if not common:
        raise DataError(f"{a} and {b} have no question in common.", "Compare runs over the same data.")
    for key in common:
        if any(by_id_a[key][what] != by_id_b[key][what] for what in ("question", "gold")):
            raise DataError(
                f"The question {key!r} is not the same in {a} and {b}, or its gold isn't.",
                "Compare runs over the same data.",
            )
    names = [name for name in by_id_a[common[0]]["measures"] if name in by_id_b[common[0]]["measures"]]
    values_a, values_b = (
        np.array([[by_id[key]["measures"][name] for name in names] for key in common], dtype=np.float64)
        for by_id in (by_id_a, by_id_b)
    )
    delta = values_b[:, 0] - values_a[:, 0]
    order = [at for at in np.argsort(-np.abs(delta), kind="stable").tolist() if abs(delta[at]) > _ROUNDING][:most]
    return Comparison(
        a=about_a,
        b=about_b,
        questions=len(common),
        only_a=len(by_id_a) - len(common),
        only_b=len(by_id_b) - len(common),
        differences=tuple(paired_differences(names, values_a, values_b, seed)),
        changed=tuple(
            Changed(common[at], by_id_a[common[at]]["question"], float(values_a[at, 0]), float(values_b[at, 0]))
            for at in order
        ),
    )


def paired_differences(
    names: Sequence[str], a: NDArray[np.float64], b: NDArray[np.float64], seed: int = 0
) -> list[Difference]:
    """Each measure of b against a. *Shape:* a and b (n_questions, n_measures), row by row the same questions."""
    delta = b - a
    delta[np.abs(delta) < _ROUNDING] = 0.0
    found = []
    for at, (estimate, p) in enumerate(zip(estimate_means(delta, seed), _p_values(delta, seed), strict=True)):
        wins, losses = int((delta[:, at] > 0).sum()), int((delta[:, at] < 0).sum())
        found.append(
            Difference(
                measure=names[at],
                a=float(a[:, at].mean()),
                b=float(b[:, at].mean()),
                difference=estimate.value,
                low=estimate.low,
                high=estimate.high,
                p=p,
                wins=wins,
                losses=losses,
                ties=len(delta) - wins - losses,
                noise=p >= _LEVEL or estimate.low <= 0 <= estimate.high,
            )
        )
    return found


def _p_values(delta: NDArray[np.float64], seed: int) -> list[float]:
    """Of the two-sided paired randomisation test: how often a and b, swapped at random, would differ as much.

    Smucker, Allan and Carterette 2007. *Shape:* delta (n_questions, n_measures).
    """
    random, n = np.random.default_rng(seed), len(delta)
    observed = np.abs(delta.sum(axis=0)) - n * _ROUNDING
    as_much = np.zeros(delta.shape[1], dtype=np.int64)
    block = max(1, _BLOCK // n)
    for at in range(0, ROUNDS, block):
        signs = random.integers(0, 2, (min(block, ROUNDS - at), n), dtype=np.int8) * 2.0 - 1.0
        as_much += (np.abs(signs @ delta) >= observed).sum(axis=0)
    return [float(p) for p in (as_much + 1) / (ROUNDS + 1)]
