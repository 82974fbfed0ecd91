"""Selective risk control: what labels allow to promise about the errors among accepted items.

`choose_threshold` tests thresholds from strict to lax, each with a one-sided bound of Clopper and Pearson (1934), and
stops at the first that fails (fixed-sequence testing, Bauer 1991; Angelopoulos et al. 2021, "Learn then Test"). The
error among the items at or above the threshold is below the promised one with the stated confidence, whatever the
scores are, if labelled and future items are drawn alike. `evidence_against` tests a promise by later labels, as often
as one likes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from ragfm.core.promise import Promise

_STEP = 1.05  # growth of the number of accepted items from one test to the next
_ALTERNATIVES = 40  # error rates above the promised one that `evidence_against` weighs alike


def error_bound(wrong: int, labels: int, confidence: float) -> float:
    """The error rate that is not exceeded with a confidence, if `wrong` of the labelled items are wrong."""
    return 1.0 if wrong >= labels else float(betaincinv(wrong + 1, labels - wrong, confidence))


def labels_needed(error: float, confidence: float, rate: float = 0.0) -> int:
    """The number of labels from which a promise is possible if the share `rate` of the items is wrong.

    Raises ValueError if `rate` is not below `error`.
    """
    if not 0 <= rate < error < 1:
        raise ValueError(f"the rate must be in [0, error): {rate}, {error}")
    labels = math.ceil(math.log(1 - confidence) / math.log(1 - error))
    while error_bound(math.floor(rate * labels), labels, confidence) > error:
        labels += 1
    return labels


def choose_threshold(
    scores: Sequence[float], wrong: Sequence[bool], *, error: float, confidence: float = 0.95
) -> Promise | None:
    """The laxest threshold with a promise, or None if the labels do not allow any.

    There are several sequences of tests, which share the risk that the promise does not hold: one starts with all
    items, others with the best half, quarter, …, as long as these have enough labels for half of the promised error.
    """
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    ranked = np.asarray(scores, dtype=np.float64)[order]
    errors = np.cumsum(np.asarray(wrong, dtype=np.int64)[order])
    starts = [len(ranked)]
    while starts[-1] // 2 >= labels_needed(error, confidence, error / 2):
        starts.append(starts[-1] // 2)
    of_each = 1 - (1 - confidence) / len(starts)
    found: Promise | None = None
    for count in starts:
        while count:
            threshold = float(ranked[count - 1])
            accepted = int(np.searchsorted(-ranked, -threshold, side="right"))  # all with this score
            bound = error_bound(int(errors[accepted - 1]), accepted, of_each)
            if bound > error:
                break
            if found is None or accepted > found.labels:
                found = Promise(threshold, error, confidence, accepted, int(errors[accepted - 1]), bound)
            count = 0 if accepted == len(ranked) else min(max(accepted + 1, int(_STEP * accepted)), len(ranked))
    return found


def evidence_against(wrong: Sequence[bool], error: float) -> NDArray[np.float64]:
    """After each later label, the evidence that more than the share `error` is wrong (an e-process, Ville 1939).

    If the promise holds, the probability that it ever reaches 1 / alpha is at most alpha. It is the mean likelihood
    ratio of higher error rates. *Shape:* (len(wrong),).
    """
    rates = error + (1 - error) * (np.arange(_ALTERNATIVES) + 0.5) / _ALTERNATIVES
    seen = np.asarray(wrong, dtype=np.float64)[:, None]
    steps = seen * np.log(rates / error) + (1 - seen) * np.log((1 - rates) / (1 - error))
    evidence: NDArray[np.float64] = np.logaddexp.reduce(np.cumsum(steps, axis=0), axis=1) - math.log(_ALTERNATIVES)
    return np.exp(evidence)
