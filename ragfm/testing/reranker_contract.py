"""Contract test of rerankers: `ragfm.testing.check_reranker`."""

from __future__ import annotations

import numpy as np

from ragfm.core.types import Reranker
from ragfm.testing.contract_checks import require

_QUERY = "Where do the dogs sleep?"
_TEXTS = [
    "The dogs sleep in the barn.",
    "Naïve café, 日本語 and 😀.",
    "x",
    "",
    "One more, which is so much longer than the others that these are padded: " + "word " * 40,
]


def check_reranker(reranker: Reranker) -> None:
    """Check a reranker's scores. Raises AssertionError with the violation."""
    require(isinstance(reranker, Reranker), f"{reranker!r} does not implement the Reranker protocol")
    scores = reranker.rerank(_QUERY, _TEXTS)
    require(scores.shape == (len(_TEXTS),), f"scores have shape {scores.shape}, expected {(len(_TEXTS),)}")
    require(scores.dtype == np.float32, f"scores are {scores.dtype}, not float32")
    require(np.isfinite(scores).all(), f"every text must have a score, got {scores}")
    require(reranker.rerank(_QUERY, []).shape == (0,), "an empty list of texts must give no scores")
    # Padding may change the last digits.
    alone = np.concatenate([reranker.rerank(_QUERY, [text]) for text in _TEXTS])
    same = np.allclose(scores, alone, atol=1e-3, rtol=1e-3)
    require(same, "a text's score depends on the other texts of the batch")
    reversed_scores = reranker.rerank(_QUERY, _TEXTS[::-1])[::-1]
    same = np.allclose(scores, reversed_scores, atol=1e-3, rtol=1e-3)
    require(same, "scores are not in the order of the texts")
    require(len(set(scores.tolist())) > 1, "all texts have the same score")
