"""How tokens are picked."""

from __future__ import annotations

import numpy as np
import pytest

from ragfm.core.errors import ConfigError
from ragfm.core.types import Sampling
from ragfm.generation.readers.sampling import Chance

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
def test_which_tokens_are_possible(how: dict[str, float], possible: set[int]) -> None:
    chance = Chance(Sampling(**{"temperature": 1.0, **how}))  # type: ignore[arg-type]
    assert {chance.pick(FOUR) for _ in range(500)} == possible


def test_they_come_as_often_as_they_are_likely() -> None:
    chance, counts = Chance(Sampling(temperature=2.0, top_p=0.95)), np.zeros(4)
    for _ in range(20_000):
        counts[chance.pick(FOUR)] += 1
    expected = np.exp(FOUR / 2)
    np.testing.assert_allclose(counts / counts.sum(), expected / expected.sum(), atol=0.02)


def test_the_fewest_that_reach_top_p_are_kept() -> None:
    """Beside what sorting all of a large vocabulary gives."""
    random = np.random.default_rng(0)
    for top_p in (0.3, 0.8, 0.95, 0.999):
        logits = random.standard_normal(5000).astype(np.float32) * 4
        weights = np.exp(logits - logits.max())
        order = weights.argsort()[::-1]
        sums = weights[order].cumsum(dtype=np.float64) / weights.sum(dtype=np.float64)
        kept = Chance(Sampling(temperature=1.0, top_p=top_p))._possible(weights)
        assert kept.tolist() == order[: int((sums < top_p).sum()) + 1].tolist()


def test_chance_is_seeded() -> None:
    def said(seed: int) -> list[int]:
        chance = Chance(Sampling(temperature=1.0, seed=seed))
        return [chance.pick(FOUR) for _ in range(30)]

    assert said(3) == said(3)
    assert len({tuple(said(seed)) for seed in (0, 1, -1, 2**63)}) == 4


def test_what_is_not_allowed_never_comes() -> None:
    logits = np.array([-np.inf, 0, -np.inf, -1], np.float32)
    for how in ({}, {"top_p": 0.9}, {"min_p": 0.1}):
        chance = Chance(Sampling(temperature=1.0, **how))  # type: ignore[arg-type]
        assert {chance.pick(logits) for _ in range(200)} == {1, 3}


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match="finite"):
        Chance(Sampling(**{name: value}))  # type: ignore[arg-type]
