"""Calibration: fit the confidence of a reader's answers to labelled questions.

    questions → answers with signals, each right or not → logistic regression → confidence → threshold

The reported figures are cross-validated: the confidence of an answer comes from a model that was not fitted to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ragfm.answering.confidence import SIGNALS, adapter_hash
from ragfm.answering.policy import LARGE, SMALL
from ragfm.core.calibration import Calibration
from ragfm.core.errors import DataError
from ragfm.core.progress import ProgressCallback
from ragfm.evaluation.answer_evaluation import AnsweredQuestion, evaluate_answers
from ragfm.evaluation.metrics import Estimate, bootstrap
from ragfm.evaluation.question_sets import Question
from ragfm.rag import Rag

Floats: TypeAlias = NDArray[np.float64]

MIN_ANSWERS = 20
"""Minimum number of right answers, and of other answers, for a fit."""
FOLDS = 5
_L2_PENALTY = 5.0
_BINS = 10


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """A fitted calibration and how well it separates right answers from others.

    - `auc`: probability that a right answer has a higher confidence than another one; 0.5 is chance.
    - `error`: expected calibration error, the mean difference of confidence and share of right answers over ten bins.
    - `adopted`: the calibration is better than chance.
    - `given`: shares of answers at or above the threshold: of right ones, of wrong ones, and of answers to
      unanswerable questions.
    """

    about: Mapping[str, Any]
    calibration: Calibration
    auc: Estimate
    error: float
    given: Mapping[str, float]
    adopted: bool
    why: str


def calibrate(
    rag: Rag,
    questions: Sequence[Question],
    *,
    keep: float = 0.9,
    corrects: bool | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> CalibrationReport:
    """Answer all questions and fit the confidence. The threshold keeps the share `keep` of right answers.

    With `corrects` (default: as in the current calibration), the judge's answer replaces a different one of the
    reader, and the calibration is fitted to that. Nothing is stored, see `store_calibration`. With `out`, an
    interrupted run is resumed from that file. Raises DataError if fewer than 20 answers are right, or fewer than 20
    are not.
    """
    if len(questions) < 2 * MIN_ANSWERS:
        raise DataError(
            f"{len(questions)} questions are too few to calibrate the confidence.",
            f"{MIN_ANSWERS} right and {MIN_ANSWERS} wrong answers are needed.",
        )
    previous = rag.calibration, rag.policy
    if corrects is None:
        corrects = rag.policy.corrects
    rag.calibration, rag.policy = accept_all_calibration(), SMALL if corrects else LARGE
    try:
        report = evaluate_answers(
            rag, questions, contexts=("retrieved",), out=out, about={"corrects": corrects}, progress=progress
        )
        return fit_calibration(rag, report.results, report.about, keep=keep, seed=seed)
    finally:
        rag.calibration, rag.policy = previous


def fit_calibration(
    rag: Rag,
    results: Sequence[AnsweredQuestion],
    about: Mapping[str, Any],
    *,
    keep: float = 0.9,
    seed: int = 0,
) -> CalibrationReport:
    """Fit a calibration to evaluated answers. Parameters and errors as for `calibrate`."""
    answered = [result for result in results if result.outcomes["retrieved"].signals]
    right = np.array([result.kind == "right" for result in answered], dtype=np.float64)
    if min(right.sum(), len(right) - right.sum()) < MIN_ANSWERS:
        raise DataError(
            f"The confidence cannot be calibrated: {int(right.sum())} of {len(answered)} answers are right.",
            f"Provide more questions: {MIN_ANSWERS} right and {MIN_ANSWERS} wrong answers are needed.",
        )

    # Centred columns of the signals that half or more of the answers have; a missing value becomes 0, the mean.
    rows = [result.outcomes["retrieved"].signals for result in answered]
    names = [name for name in SIGNALS if 2 * sum(name in row for row in rows) >= len(rows)]
    table = np.array([[row.get(name, np.nan) for name in names] for row in rows], dtype=np.float64)
    means = np.nanmean(table, axis=0)
    x = np.nan_to_num(table - means)

    confidence = np.zeros(len(right))
    folds = np.random.default_rng(seed).permutation(len(right)) % FOLDS
    for fold in range(FOLDS):
        test = folds == fold
        bias, weights = fit_logistic_regression(x[~test], right[~test])
        confidence[test] = 1 / (1 + np.exp(-np.clip(bias + x[test] @ weights, -50, 50)))
    auc_estimate = estimate_auc(confidence, right, seed)
    threshold = math.floor(10_000 * float(np.quantile(confidence[right == 1], 1 - keep))) / 10_000

    labels = np.array(
        ["unanswerable" if one.unanswerable else "right" if one.kind == "right" else "wrong" for one in answered]
    )
    given = {
        label: round(float((confidence >= threshold)[labels == label].mean()), 4)
        for label in ("right", "wrong", "unanswerable")
        if (labels == label).any()
    }

    bias, weights = fit_logistic_regression(x, right)
    embedder = rag.collection.contract.get("weights")
    adopted = auc_estimate.low > 0.5
    verb = "separates" if adopted else "does not separate"
    return CalibrationReport(
        about={**about, "answers": len(answered), "right": int(right.sum()), "keep": keep},
        calibration=Calibration(
            reader=rag.reader_name,
            adapter=adapter_hash(rag.sampling.adapter),
            strategy=rag.strategy.label,
            embedder=None if embedder is None else str(embedder),
            bias=round(bias, 4),
            weights={name: round(float(weight), 4) for name, weight in zip(names, weights, strict=True)},
            means={name: round(float(mean), 4) for name, mean in zip(names, means, strict=True)},
            threshold=threshold,
            corrects=rag.policy.corrects,
        ),
        auc=auc_estimate,
        error=round(expected_calibration_error(confidence, right), 4),
        given=given,
        adopted=adopted,
        why=(
            f"The confidence {verb} right answers from others{'' if adopted else ' beyond noise'}: "
            f"AUC {auc_estimate.value:.3f} [{auc_estimate.low:.3f}, {auc_estimate.high:.3f}]."
        ),
    )


def fit_logistic_regression(x: Floats, y: Floats, importance: Floats | None = None) -> tuple[float, Floats]:
    """Bias and weights of a logistic regression with an L2 penalty of 5 on the weights of standardised columns.

    *Shape:* x (n, n_signals), each column of mean 0; y (n,) of 0 and 1; importance (n,), of mean 1; default: all 1.
    """
    from sklearn.linear_model import LogisticRegression

    scale = x.std(axis=0)
    scale[scale < 1e-9] = 1.0
    model = LogisticRegression(C=1 / _L2_PENALTY, solver="newton-cholesky", tol=1e-10).fit(x / scale, y, importance)
    return float(model.intercept_[0]), model.coef_[0] / scale


def accept_all_calibration() -> Calibration:
    """A calibration that withholds no answer, and with which all signals are computed."""
    zeros = dict.fromkeys(SIGNALS, 0.0)
    return Calibration("", 50.0, zeros, zeros, 0.0)


def estimate_auc(scores: Floats, right: Floats, seed: int) -> Estimate:
    """The area under the ROC curve with its 95 % bootstrap interval. *Shape:* scores and right (n,)."""
    return bootstrap(
        np.column_stack([scores, right]), lambda sample: auc(sample[..., 0], sample[..., 1])[..., None], seed
    )[0]


def auc(scores: Floats, right: Floats) -> Floats:
    """The area under the ROC curve along the last axis, from ranks (Mann and Whitney 1947); NaN for a single class.

    *Shape:* scores (…, n); right (…, n) of 0 and 1 → (…).
    """
    # sklearn.metrics.roc_auc_score takes one sample at a time, which makes a bootstrap 24 times as slow.
    from scipy.stats import rankdata

    positives = right.sum(axis=-1)
    pairs = positives * (right.shape[-1] - positives)
    wins = (rankdata(scores, axis=-1) * right).sum(axis=-1) - positives * (positives + 1) / 2
    areas: Floats = np.divide(wins, pairs, out=np.full_like(wins, np.nan), where=pairs > 0)
    return areas


def expected_calibration_error(confidence: Floats, right: Floats) -> float:
    """The expected calibration error over ten bins of equally many answers, in [0, 1] (Naeini et al. 2015)."""
    bins = np.array_split(np.argsort(confidence, kind="stable"), _BINS)
    return float(sum(abs(confidence[members].sum() - right[members].sum()) for members in bins) / len(right))
