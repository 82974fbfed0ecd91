"""Compare two runs over the same questions: which one is better, and whether the difference is noise."""

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

PERMUTATIONS = 10_000
_COMPARABLE = ("retrieval", "answers")  # kinds of runs whose questions have measures
_SIGNIFICANCE = 0.05
_BLOCK_SIZE = 2_000_000  # signs drawn at once
_TOLERANCE = 1e-12
_MAX_CHANGED = 10


@dataclass(frozen=True, slots=True)
class Difference:
    """One measure in both runs. `difference` is the mean of b - a, `low` to `high` its 95 % interval.

    `p` is the p-value of the paired randomisation test. `noise`: p is 0.05 or more, or the interval contains 0.
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
class ChangedQuestion:
    """A question, and its value of the first measure in both runs."""

    id: str
    question: str
    a: float
    b: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Run b against run a, over the `questions` that both have.

    `changed`: the questions with the largest change of the first measure, largest first.
    """

    a: Mapping[str, Any]
    b: Mapping[str, Any]
    questions: int
    only_a: int
    only_b: int
    differences: tuple[Difference, ...]
    changed: tuple[ChangedQuestion, ...]

    @property
    def settings(self) -> dict[str, tuple[Any, Any]]:
        """The settings in which the runs differ, as (a, b)."""
        keys = [key for key in {**self.a, **self.b} if self.a.get(key) != self.b.get(key)]
        return {key: (self.a.get(key), self.b.get(key)) for key in keys}


def compare_runs(a: str | Path, b: str | Path) -> Comparison:
    """Compare two run files question by question, and return up to ten of the changed questions.

    Raises DataError unless both are runs of retrieval or both of answers, if they have no question in common, or if a
    question's text or gold differs between the runs.
    """
    about_a, records_a = read_run(a)
    about_b, records_b = read_run(b)
    kind_a, kind_b = about_a.get("run", "no evaluation"), about_b.get("run", "no evaluation")
    if kind_a != kind_b or kind_a not in _COMPARABLE:
        raise DataError(
            f"{a} is a run of {kind_a}, {b} a run of {kind_b}: they cannot be compared.",
            "Compare two of `ragfm eval retrieval`, or two of `ragfm eval answers`.",
        )
    by_id_a = {record["id"]: record for record in records_a}
    by_id_b = {record["id"]: record for record in records_b}
    common = [key for key in by_id_a if key in by_id_b]
    if not common:
        raise DataError(f"{a} and {b} have no question in common.", "Compare runs over the same data.")
    for key in common:
        if any(by_id_a[key][field] != by_id_b[key][field] for field in ("question", "gold")):
            raise DataError(
                f"The question {key!r}, or its gold, is not the same in {a} and {b}.",
                "Compare runs over the same data.",
            )
    # The runs may differ in their depth or contexts.
    records = [by_id[key] for by_id in (by_id_a, by_id_b) for key in common]
    names = [name for name in records[0]["measures"] if all(name in record["measures"] for record in records)]
    values_a, values_b = (
        np.array([[by_id[key]["measures"][name] for name in names] for key in common], dtype=np.float64)
        for by_id in (by_id_a, by_id_b)
    )
    delta = np.abs(values_b[:, 0] - values_a[:, 0])
    changed = [index for index in np.argsort(-delta, kind="stable").tolist() if delta[index] > _TOLERANCE]
    return Comparison(
        a=about_a,
        b=about_b,
        questions=len(common),
        only_a=len(by_id_a) - len(common),
        only_b=len(by_id_b) - len(common),
        differences=tuple(paired_differences(names, values_a, values_b)),
        changed=tuple(
            ChangedQuestion(
                id=common[index],
                question=by_id_a[common[index]]["question"],
                a=float(values_a[index, 0]),
                b=float(values_b[index, 0]),
            )
            for index in changed[:_MAX_CHANGED]
        ),
    )


def paired_differences(
    names: Sequence[str], a: NDArray[np.float64], b: NDArray[np.float64], seed: int = 0
) -> list[Difference]:
    """Each measure of b against a. *Shape:* a and b (n_questions, n_measures), with the same question in each row.

    P-values are those of the two-sided paired randomisation test (Smucker, Allan and Carterette 2007).
    """
    delta = b - a
    delta[np.abs(delta) < _TOLERANCE] = 0.0

    # Swapping a and b of a question flips the sign of its difference, so a permutation is a vector of signs, and many
    # of them are one matrix product: 13 times as fast as scipy.stats.permutation_test.
    random, n = np.random.default_rng(seed), len(delta)
    observed = np.abs(delta.sum(axis=0)) - n * _TOLERANCE
    extreme = np.zeros(delta.shape[1], dtype=np.int64)
    block = max(1, _BLOCK_SIZE // n)
    for start in range(0, PERMUTATIONS, block):
        signs = random.integers(0, 2, (min(block, PERMUTATIONS - start), n), dtype=np.int8) * 2.0 - 1.0
        extreme += (np.abs(signs @ delta) >= observed).sum(axis=0)

    differences = []
    for column, estimate in enumerate(estimate_means(delta, seed)):
        p = float((extreme[column] + 1) / (PERMUTATIONS + 1))
        wins, losses = int((delta[:, column] > 0).sum()), int((delta[:, column] < 0).sum())
        differences.append(
            Difference(
                measure=names[column],
                a=float(a[:, column].mean()),
                b=float(b[:, column].mean()),
                difference=estimate.value,
                low=estimate.low,
                high=estimate.high,
                p=p,
                wins=wins,
                losses=losses,
                ties=n - wins - losses,
                noise=p >= _SIGNIFICANCE or estimate.low <= 0 <= estimate.high,
            )
        )
    return differences
