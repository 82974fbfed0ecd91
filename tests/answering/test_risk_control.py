"""Promises about errors among accepted items."""

from __future__ import annotations

import numpy as np
import pytest

from ragfm.answering.risk_control import choose_threshold, error_bound, evidence_against, labels_needed


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    # Values of R: binom.test(12, 73, alternative = "less")$conf.int and 1 - 0.05^(1/29)
    assert error_bound(12, 73, 0.95) == pytest.approx(0.2526, abs=5e-4)
    assert error_bound(0, 29, 0.95) == pytest.approx(1 - 0.05 ** (1 / 29))
    assert error_bound(3, 3, 0.95) == 1.0


def test_labels_needed_for_ten_percent() -> None:
    assert labels_needed(0.1, 0.95) == 29
    assert labels_needed(0.1, 0.95, 0.05) == 76
    with pytest.raises(ValueError, match="the rate must be"):
        labels_needed(0.1, 0.95, 0.1)


def test_the_laxest_threshold_that_the_labels_prove_is_chosen() -> None:
    scores = np.linspace(1, 0, 400)
    promise = choose_threshold(scores, scores < 0.5, error=0.1)
    assert promise is not None
    assert 200 <= promise.labels <= 222
    assert promise.wrong == sum(scores[: promise.labels] < 0.5)
    assert promise.bound <= 0.1
    assert np.sum(scores >= promise.threshold) == promise.labels


def test_items_with_the_same_score_are_accepted_together() -> None:
    promise = choose_threshold([0.9] * 200 + [0.1] * 10, [False] * 210, error=0.1)
    assert promise is not None
    assert (promise.threshold, promise.labels) == (0.1, 210)
    assert choose_threshold([0.9] * 200, [False] * 150 + [True] * 50, error=0.1) is None


def test_too_few_labels_allow_no_promise() -> None:
    assert choose_threshold([0.9] * 28, [False] * 28, error=0.1) is None
    assert choose_threshold([0.9] * 29, [False] * 29, error=0.1) is not None
    assert choose_threshold([], [], error=0.1) is None


def test_errors_contradict_a_promise_and_their_absence_does_not() -> None:
    broken = evidence_against([True, False] * 20, 0.1)
    assert broken[-1] > 20
    assert evidence_against([False] * 100, 0.1)[-1] < 1


def test_the_promise_is_kept_in_as_many_runs_as_stated() -> None:
    rng = np.random.default_rng(0)
    broken = given = 0
    for _ in range(400):
        scores = rng.random(300)
        chance = 0.24 * (1 - scores)  # of being wrong: 0.12 of all, 0.1 of the best five sixths
        promise = choose_threshold(scores, rng.random(300) < chance, error=0.1)
        if promise is not None:
            given += 1
            broken += 0.12 * (1 - promise.threshold) > 0.1  # the mean above the threshold
    assert given > 100
    assert broken / 400 <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5
