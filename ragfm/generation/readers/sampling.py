"""How a token is picked from logits: the best one, or one by temperature, top_p, min_p and chance."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from ragfm.core.errors import ConfigError
from ragfm.core.types import Sampling

if TYPE_CHECKING:
    from ragfm.generation.readers.engine import Logits

__all__ = ["Chance"]

_LEAST = 1e-6
"""Temperatures below it are 0: what is divided by them may be no number any more."""


class Chance:
    """Picks the tokens of one request. The same seed and logits give the same tokens.

    Of the tokens, the likeliest first, `top_p` keeps as many as it takes to have that probability together (Holtzman et
    al. 2020), `min_p` those that have at least that share of the first one's (Nguyen et al. 2025). Raises ConfigError.
    """

    def __init__(self, sampling: Sampling) -> None:
        if not all(map(isfinite, (sampling.temperature, sampling.top_p, sampling.min_p))):
            raise ConfigError(
                f"Tokens can't be picked with {sampling}.", "Give temperature, top_p and min_p as finite numbers."
            )
        self._how = sampling
        self._random = np.random.default_rng(sampling.seed % 2**64)

    def pick(self, logits: Logits) -> int:
        """The next token. *Shape* of the logits: (vocabulary,)."""
        if self._how.temperature < _LEAST:
            return int(logits.argmax())
        weights = np.exp((logits - logits.max()) / self._how.temperature)
        tokens = self._possible(weights)
        ends = weights[tokens].cumsum(dtype=np.float64)
        at = int(ends.searchsorted(self._random.random() * ends[-1], side="right"))
        return int(tokens[min(at, len(tokens) - 1)])

    def _possible(self, weights: Any) -> Any:
        least, top_p = min(self._how.min_p, 1.0), max(self._how.top_p, 0.0)
        if top_p >= 1:
            return np.flatnonzero(weights >= least)
        total = weights.sum(dtype=np.float64)
        # All that have less than this are less than what top_p leaves out, so that only the others are sorted.
        tokens = np.flatnonzero(weights >= max(least, (1 - top_p) * total / len(weights)))
        tokens = tokens[weights[tokens].argsort(kind="stable")[::-1]]
        before = weights[tokens].cumsum(dtype=np.float64) - weights[tokens]
        return tokens[before < max(top_p * total, np.finfo(np.float32).tiny)]
