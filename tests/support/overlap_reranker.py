"""A reranker without a model."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ragfm.core.types import Vectors

_WORD = re.compile(r"\w+|[^\w\s]")


class OverlapReranker:
    """A text's score is the share of the query's words that it contains."""

    model = "overlap"

    def rerank(self, query: str, texts: Sequence[str]) -> Vectors:
        """Scores in [0, 1]. *Shape:* (len(texts),)."""
        query_words = set(_WORD.findall(query.lower()))
        found = [len(query_words & set(_WORD.findall(text.lower()))) for text in texts]
        return np.array(found, dtype=np.float32) / max(1, len(query_words))
