"""Token sampling from logits: greedy, or with temperature, top_p and min_p."""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np

from ragfm.core.errors import ConfigError
from ragfm.core.types import Sampling
from ragfm.generation.readers.engine import Logits

_MIN_TEMPERATURE = 1e-6
"""Lower temperatures count as 0: dividing by them may overflow."""


class LogitsSampler:
    """Picks the tokens of one request. The same seed and logits give the same tokens.

    `top_p` keeps the most likely tokens that together reach this probability (Holtzman et al. 2020). `min_p` keeps the
    tokens that have at least this share of the best token's probability (Nguyen et al. 2025). Raises ConfigError.
    """

    def __init__(self, sampling: Sampling) -> None:
        if not all(map(isfinite, (sampling.temperature, sampling.top_p, sampling.min_p))):
            raise ConfigError(
                f"Cannot sample with {sampling}: a value is not finite.",
                "Use finite numbers for temperature, top_p and min_p.",
            )
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed % 2**64)

    def pick(self, logits: Logits) -> int:
        """The next token. *Shape* of the logits: (vocabulary,)."""
        if self._sampling.temperature < _MIN_TEMPERATURE:
            return int(logits.argmax())
        weights = np.exp((logits - logits.max()) / self._sampling.temperature)
        tokens = self._candidates(weights)
        ends = weights[tokens].cumsum(dtype=np.float64)
        index = int(ends.searchsorted(self._random.random() * ends[-1], side="right"))
        return int(tokens[min(index, len(tokens) - 1)])

    def _candidates(self, weights: Any) -> Any:
        """The tokens that top_p and min_p leave. `weights` are relative to the best token's."""
        min_p, top_p = min(self._sampling.min_p, 1.0), max(self._sampling.top_p, 0.0)
        if top_p >= 1:
            return np.flatnonzero(weights >= min_p)
        total = weights.sum(dtype=np.float64)
        # All tokens below this weight together are less than 1 - top_p. Only the others are sorted.
        tokens = np.flatnonzero(weights >= max(min_p, (1 - top_p) * total / len(weights)))
        tokens = tokens[weights[tokens].argsort(kind="stable")[::-1]]
        before = weights[tokens].cumsum(dtype=np.float64) - weights[tokens]
        return tokens[before < max(top_p * total, np.finfo(np.float32).tiny)]
