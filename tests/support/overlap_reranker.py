"""A reranker without a model."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import numpy as np

from ragfm.core.types import Vectors

_WORD = re.compile(r"\w+|[^\w\s]")


class OverlapReranker:
    """A text's score is the share of the query's words that it contains.

    `seconds` is the time to sleep for each text.
    """

    model = "overlap"

    def __init__(self, *, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def rerank(self, query: str, texts: Sequence[str], *, budget_ms: float | None = None) -> Vectors:
        """Scores in [0, 1], NaN for texts beyond the time budget. *Shape:* (len(texts),)."""
        start = time.monotonic()
        query_words = set(_WORD.findall(query.lower()))
        scores = np.full(len(texts), np.nan, dtype=np.float32)
        for n, text in enumerate(texts):
            if budget_ms is not None and time.monotonic() - start + self.seconds >= budget_ms / 1000:
                break
            time.sleep(self.seconds)
            text_words = set(_WORD.findall(text.lower()))
            scores[n] = len(query_words & text_words) / max(1, len(query_words))
        return scores
