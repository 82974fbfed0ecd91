"""Calibrations: logistic models from the signals of an answer to the probability that it is right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_BY_EMBEDDER = "closest"


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted model: the confidence is the logistic function of `bias` plus the sum of weight · (signal - mean).

    It holds for one `reader`, `adapter` (the hash of its file), prompt `strategy` and `embedder` (the hash of its
    weights). Below `threshold` it is better not to answer. If it `corrects`, the judge's answer replaces the
    reader's where they differ; the reader's output, an abstention included, is then only a signal.
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
    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012

    def confidence(self, signals: Mapping[str, float], embedder: object = None) -> float | None:
        """The probability that an answer with these signals is right, in [0, 1]; None if no signal has a weight.

        A missing signal counts as its mean. The closeness by a different embedder is ignored.
        """
        weighted = {
            name: value
            for name, value in signals.items()
            if name in self.weights and (name != _BY_EMBEDDER or self.embedder in (None, embedder))
        }
        if not weighted:
            return None
        total = self.bias + sum(self.weights[name] * (value - self.means[name]) for name, value in weighted.items())
        return round(1 / (1 + math.exp(-max(-50.0, min(50.0, total)))), 4)
