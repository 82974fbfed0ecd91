"""Token sampling."""

from __future__ import annotations

import numpy as np
import pytest

from ragfm.core.errors import ConfigError
from ragfm.core.types import Sampling
from ragfm.generation.readers.sampling import LogitsSampler

FOUR = np.log(np.array([0.15, 0.55, 0.05, 0.25], np.float32))


@pytest.mark.parametrize(
    ("how", "possible"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_p": 0.99}, {0, 1, 2, 3}),
        ({"top_p": 0.6}, {1, 3}),
        ({"top_p": 0.5}, {1}),
        ({"top_p": 0.0}, {1}),
        ({"min_p": 0.3}, {1, 3}),
        ({"min_p": 1.0}, {1}),
        ({"top_p": 0.9, "min_p": 0.3}, {1, 3}),
        ({"top_p": 0.6, "min_p": 0.1}, {1, 3}),
        ({"temperature": 0.0}, {1}),
        ({"temperature": 0.01}, {1}),
        ({"temperature": 1e-50}, {1}),
    ],
)
def test_candidates_of_top_p_min_p_and_temperature(how: dict[str, float], possible: set[int]) -> None:
    sampler = LogitsSampler(Sampling(**{"temperature": 1.0, **how}))  # type: ignore[arg-type]
    assert {sampler.pick(FOUR) for _ in range(500)} == possible


def test_tokens_are_drawn_with_their_probability() -> None:
    sampler, counts = LogitsSampler(Sampling(temperature=2.0, top_p=0.95)), np.zeros(4)
    for _ in range(20_000):
        counts[sampler.pick(FOUR)] += 1
    expected = np.exp(FOUR / 2)
    np.testing.assert_allclose(counts / counts.sum(), expected / expected.sum(), atol=0.02)


def test_top_p_keeps_the_smallest_sufficient_set() -> None:
    """The result is that of sorting the whole vocabulary."""
    random = np.random.default_rng(0)
    for top_p in (0.3, 0.8, 0.95, 0.999):
        logits = random.standard_normal(5000).astype(np.float32) * 4
        weights = np.exp(logits - logits.max())
        order = weights.argsort()[::-1]
        sums = weights[order].cumsum(dtype=np.float64) / weights.sum(dtype=np.float64)
        kept = LogitsSampler(Sampling(temperature=1.0, top_p=top_p))._candidates(weights)
        assert kept.tolist() == order[: int((sums < top_p).sum()) + 1].tolist()


def test_sampling_is_seeded() -> None:
    def draw(seed: int) -> list[int]:
        sampler = LogitsSampler(Sampling(temperature=1.0, seed=seed))
        return [sampler.pick(FOUR) for _ in range(30)]

    assert draw(3) == draw(3)
    assert len({tuple(draw(seed)) for seed in (0, 1, -1, 2**63)}) == 4


def test_tokens_of_zero_probability_are_never_drawn() -> None:
    logits = np.array([-np.inf, 0, -np.inf, -1], np.float32)
    for how in ({}, {"top_p": 0.9}, {"min_p": 0.1}):
        sampler = LogitsSampler(Sampling(temperature=1.0, **how))  # type: ignore[arg-type]
        assert {sampler.pick(logits) for _ in range(200)} == {1, 3}


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_parameters_are_errors(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match="finite"):
        LogitsSampler(Sampling(**{name: value}))  # type: ignore[arg-type]
