"""Calibration: how far a reader's answers can be trusted, fitted to labelled questions.

    questions ─asked→ answers, each right or not, and its signals ─logistic regression→ confidence ─→ threshold

What is said of the result is cross-fitted: an answer's confidence comes from a model that has not seen it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ragfm.citations.confidence import SIGNALS, adapter_hash
from ragfm.core.calibration import Calibration
from ragfm.core.errors import DataError
from ragfm.evaluation.answer_evaluation import evaluate_answers
from ragfm.evaluation.metrics import Estimate

if TYPE_CHECKING:
    from ragfm.evaluation.answer_evaluation import AnsweredQuestion
    from ragfm.evaluation.question_sets import Question
    from ragfm.rag import Rag

    Floats = NDArray[np.float64]

LEAST = 20
"""Right answers, and others, without which nothing can be fitted."""
FOLDS = 5
_RIDGE = 5.0
_STEPS = 50
_BINS = 10
_POINTS = 100  # of a curve
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """What was fitted, and how well it tells right answers from others.

    `auc`: how often a right answer has more confidence than one that isn't; 0.5 is chance. `error`: by how much the
    confidence of an answer is off the share of right ones, on average over ten bins. `adopted`: it is better than
    chance. `given` are the shares of answers that would still be given at the threshold: of right ones, of wrong ones,
    and of those to unanswerable questions. `risk`: (coverage, risk) as ever less confident answers are given, in a
    hundred points at most: the share of the questions that is answered, and of the answers the share not right.
    """

    about: Mapping[str, Any]
    calibration: Calibration
    auc: Estimate
    error: float
    given: Mapping[str, float]
    adopted: bool
    why: str
    risk: tuple[tuple[float, float], ...] = ()


def calibrate(
    rag: Rag,
    questions: Sequence[Question],
    *,
    keep: float = 0.9,
    corrects: bool | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CalibrationReport:
    """Ask all questions, and fit the confidence; the threshold is where the share `keep` of right answers is given.

    With `corrects`, by default as now, the verifier's words stand in for the reader's where these are others, and that
    is what is fitted.
    Nothing is stored, see `store_calibration`. With `out`, an interrupted run goes on there. Raises DataError where the
    reader has fewer than 20 answers that are right, or fewer that aren't.
    """
    before = rag.calibration
    corrects = bool(before and before.corrects) if corrects is None else corrects
    rag.calibration = blank(corrects=corrects)
    try:
        report = evaluate_answers(rag, questions, contexts=("retrieved",), out=out, about={"corrects": corrects},
                                  progress=progress)  # fmt: skip
        return fit_report(rag, report.results, report.about, keep=keep, seed=seed)
    finally:
        rag.calibration = before


def fit_report(
    rag: Rag, results: Sequence[AnsweredQuestion], about: Mapping[str, Any], *, keep: float = 0.9, seed: int = 0,
    signals: Sequence[str] = SIGNALS,
) -> CalibrationReport:  # fmt: skip
    """The same for questions that have been asked, from some of the signals."""
    answered = [result for result in results if result.outcomes["retrieved"].signals]
    right = np.array([result.kind == "right" for result in answered], dtype=np.float64)
    if min(right.sum(), len(right) - right.sum()) < LEAST:
        raise DataError(
            f"Of {len(answered)} answers {int(right.sum())} are right: too few, or too few are not.",
            f"Give more questions: {LEAST} of each kind are needed.",
        )
    names, x, means = _columns([result.outcomes["retrieved"].signals for result in answered], signals)
    crossed = _crossed(x, right, seed)
    auc = _auc(crossed, right, seed)
    threshold = math.floor(10_000 * float(np.quantile(crossed[right == 1], 1 - keep))) / 10_000
    bias, weights = logistic(x, right)
    calibration = Calibration(
        reader=rag.reader_name,
        adapter=adapter_hash(rag.sampling.adapter),
        strategy=rag.strategy.label,
        embedder=_text(rag.collection.contract.get("weights")),
        bias=round(bias, 4),
        weights={name: round(float(weight), 4) for name, weight in zip(names, weights, strict=True)},
        means={name: round(float(mean), 4) for name, mean in zip(names, means, strict=True)},
        threshold=threshold,
        corrects=rag.calibration is not None and rag.calibration.corrects,
    )
    adopted = auc.low > 0.5
    verdict = "tells right answers from others" if adopted else "does not tell right answers from others, beyond noise"
    return CalibrationReport(
        about={**about, "answers": len(answered), "right": int(right.sum()), "keep": keep},
        calibration=calibration,
        auc=auc,
        error=round(_error(crossed, right), 4),
        given=_given(answered, crossed >= threshold),
        adopted=adopted,
        why=f"The confidence {verdict}: AUC {auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}].",
        risk=_risk(crossed, right, len(results)),
    )


def logistic(x: Floats, y: Floats) -> tuple[float, Floats]:
    """Bias and weights of a logistic regression with a ridge of 5 on standardised columns, by Newton's method.

    *Shape:* x (n, signals), each column of mean 0; y (n,) of 0 and 1.
    """
    scale = x.std(axis=0)
    scale[scale < 1e-9] = 1.0
    design = np.column_stack([np.ones(len(x)), x / scale])
    penalty = np.diag([0.0, *[_RIDGE] * x.shape[1]])
    w = np.zeros(design.shape[1])
    for _ in range(_STEPS):
        p = _sigmoid(design @ w)
        gradient = design.T @ (y - p) - penalty @ w
        step = np.linalg.solve(design.T @ (design * (p * (1 - p))[:, None]) + penalty, gradient)
        w += step
        if np.abs(step).max() < 1e-9:
            break
    return float(w[0]), w[1:] / scale


# --- Inside ------------------------------------------------------------------------------------------------------


def blank(*, corrects: bool = False) -> Calibration:
    """All signals, and nothing withheld."""
    nothing = dict.fromkeys(SIGNALS, 0.0)
    return Calibration("", 50.0, nothing, nothing, 0.0, corrects=corrects)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _columns(signals: Sequence[Mapping[str, float]], wanted: Sequence[str]) -> tuple[list[str], Floats, Floats]:
    """The signals that half of the answers or more have, less their means; one that is missing is 0."""
    names = [name for name in wanted if 2 * sum(name in one for one in signals) >= len(signals)]
    table = np.array([[one.get(name, np.nan) for name in names] for one in signals], dtype=np.float64)
    means = np.nanmean(table, axis=0)
    return names, np.nan_to_num(table - means), means


def _crossed(x: Floats, y: Floats, seed: int) -> Floats:
    """Each answer's confidence by a model that was fitted to the other folds."""
    folds = np.random.default_rng(seed).permutation(len(y)) % FOLDS
    crossed = np.zeros(len(y))
    for fold in range(FOLDS):
        held = folds == fold
        bias, weights = logistic(x[~held], y[~held])
        crossed[held] = _sigmoid(bias + x[held] @ weights)
    return crossed


def _risk(scores: Floats, right: Floats, questions: int) -> tuple[tuple[float, float], ...]:
    wrong = np.cumsum(1 - right[np.argsort(-scores, kind="stable")])
    shown = np.unique(np.linspace(0, len(wrong) - 1, _POINTS).astype(int)).tolist()
    return tuple((round((at + 1) / questions, 4), round(float(wrong[at]) / (at + 1), 4)) for at in shown)


def _sigmoid(z: Floats) -> Floats:
    result: Floats = 1 / (1 + np.exp(-np.clip(z, -50, 50)))
    return result


def _auc(scores: Floats, right: Floats, seed: int) -> Estimate:
    """With its 95 % bootstrap interval."""
    random, n = np.random.default_rng(seed), len(right)
    drawn = [_area(scores[at], right[at]) for at in (random.integers(0, n, n) for _ in range(_RESAMPLES))]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Estimate(_area(scores, right), float(low), float(high))


def _area(scores: Floats, right: Floats) -> float:
    """By ranks (Mann and Whitney 1947); ties count half."""
    positive = int(right.sum())
    if not 0 < positive < len(right):
        return math.nan
    _, where, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[where]
    return float((ranks[right == 1].sum() - positive * (positive + 1) / 2) / (positive * (len(right) - positive)))


def _error(confidence: Floats, right: Floats) -> float:
    """The expected calibration error (Naeini et al. 2015), over bins of equally many answers."""
    parts = np.array_split(np.argsort(confidence, kind="stable"), _BINS)
    return float(sum(abs(confidence[part].sum() - right[part].sum()) for part in parts) / len(right))


def _given(answered: Sequence[AnsweredQuestion], given: NDArray[np.bool_]) -> dict[str, float]:
    kinds = np.array(["unanswerable" if one.unanswerable else "right" if one.kind == "right" else "wrong"
                      for one in answered])  # fmt: skip
    return {
        kind: round(float(given[kinds == kind].mean()), 4)
        for kind in ("right", "wrong", "unanswerable")
        if (kinds == kind).any()
    }
