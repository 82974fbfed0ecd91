"""Calibrations: logistic models from the signals of an answer to the probability that it is right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Calibration"]

_BY_EMBEDDER = frozenset({"cosine", "gap"})


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted model: the confidence is the logistic function of `bias` and the sum of weight times (signal - mean).

    `reader`, `adapter` (the hash of its file), `strategy` (as it is `known_as`) and `embedder` (the hash of its
    weights) say for what it holds. With a confidence below `threshold`, it is better not to answer. Where it
    `corrects`, the verifier's words are the answer when the reader's are others; what the reader said, "I don't know."
    too, is a signal then.
    """

    reader: str
    bias: float
    weights: Mapping[str, float]
    means: Mapping[str, float]
    threshold: float
    embedder: str | None = None
    adapter: str | None = None
    corrects: bool = False
    strategy: str = "zero-shot"

    # Unknown keys in ragfm.toml are errors, here too.
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def confidence(self, signals: Mapping[str, float], embedder: object = None) -> float | None:
        """In [0, 1]: of answers with as much, so many are right. Another embedder's cosines don't count.

        None where no signal is known that has a weight: the bias alone says nothing of this answer.
        """
        known = {
            name: value
            for name, value in signals.items()
            if name in self.weights and (name not in _BY_EMBEDDER or self.embedder in (None, embedder))
        }
        if not known:
            return None
        total = self.bias + sum(self.weights[name] * (value - self.means[name]) for name, value in known.items())
        return round(1 / (1 + math.exp(-max(-50.0, min(50.0, total)))), 4)

    def withholds(self, confidence: float | None, least: float | None = None) -> bool:
        """Whether it is better not to answer: below the threshold, or below `least`. Never where nothing is known."""
        return confidence is not None and confidence < (self.threshold if least is None else least)
