"""What every reranker owes, as a test: `ragfm.testing.check_reranker`."""

from __future__ import annotations

from ragfm.core.types import Reranker
from ragfm.testing.contract_checks import require

_QUERY = "Where do the dogs sleep?"
_TEXTS = [
    "The dogs sleep in the barn.",
    "Naïve café, 日本語 and 😀.",
    "x",
    "",
    "One more, which is somewhat longer than the others, so that those beside it are padded: " + "word " * 40,
]


def check_reranker(reranker: Reranker) -> None:
    """Check a reranker's scores, and what it leaves out under a budget. Raises AssertionError with what is wrong."""
    import numpy as np

    require(isinstance(reranker, Reranker), f"{reranker!r} lacks a part of the Reranker protocol")
    scores = reranker.rerank(_QUERY, _TEXTS)
    require(scores.shape == (len(_TEXTS),), f"the shape is {scores.shape}, expected {(len(_TEXTS),)}")
    require(scores.dtype == np.float32, f"scores are {scores.dtype}, not float32")
    require(bool(np.isfinite(scores).all()), f"without a budget, every text has a score; got {scores}")
    require(reranker.rerank(_QUERY, []).shape == (0,), "no texts must give no scores")
    # A batch's padding may move the last digits, and nothing else.
    alone = np.concatenate([reranker.rerank(_QUERY, [text]) for text in _TEXTS])
    require(bool(np.allclose(scores, alone, atol=1e-3, rtol=1e-3)), "a text's score depends on its company")
    turned = reranker.rerank(_QUERY, _TEXTS[::-1])[::-1]
    require(bool(np.allclose(scores, turned, atol=1e-3, rtol=1e-3)), "scores come in another order than the texts")
    require(len(set(scores.tolist())) > 1, "all texts have the same score")

    require(bool(np.isnan(reranker.rerank(_QUERY, _TEXTS, budget_ms=0)).all()), "a budget of 0 ms scores a text")
    ample = reranker.rerank(_QUERY, _TEXTS, budget_ms=600_000)
    require(bool(np.allclose(scores, ample, atol=1e-3, rtol=1e-3)), "an ample budget changes scores")
    for budget in (1, 3, 10, 30, 100):
        some = reranker.rerank(_QUERY, _TEXTS * 20, budget_ms=budget)
        missing = np.isnan(some)
        require(bool((missing[:-1] <= missing[1:]).all()), "under a budget the first texts are to be scored first")
        expected = np.tile(scores, 20)[~missing]
        require(bool(np.allclose(some[~missing], expected, atol=1e-3, rtol=1e-3)), "a budget changes scores")
