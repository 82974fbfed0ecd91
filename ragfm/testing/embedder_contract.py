"""What every embedder owes, as a test: `ragfm.testing.check_embedder`."""

from __future__ import annotations

import json
from collections.abc import Callable

from ragfm.core.errors import TooLongError
from ragfm.core.types import Embedder
from ragfm.testing.contract_checks import require

_TEXTS = [
    "A short text.",
    "Naïve café, 日本語 and 😀.",
    "  spaces  around  ",
    "x",
    "One more, which is somewhat longer.",
]


def check_embedder(embedder: Embedder) -> None:
    """Check an embedder's vectors, window, tokens and fingerprint. Raises AssertionError with what is wrong."""
    import numpy as np

    require(isinstance(embedder, Embedder), f"{embedder!r} lacks a part of the Embedder protocol")
    for embed in (embedder.embed_passages, embedder.embed_queries):
        together = embed(_TEXTS)
        require(together.shape == (len(_TEXTS), embedder.dim), f"the shape is {together.shape}")
        require(together.dtype == np.float32, f"vectors are {together.dtype}, not float32")
        lengths = np.linalg.norm(together, axis=1)
        require(bool(np.allclose(lengths, 1, atol=1e-4)), f"vectors have the lengths {lengths}, not 1")
        # A batch's padding may move the last digits, and nothing else.
        alone = np.concatenate([embed([text]) for text in _TEXTS])
        require(bool(np.allclose(together, alone, atol=1e-3)), "a text's vector depends on its company")
        require(embed([]).shape == (0, embedder.dim), "no texts must give no vectors")
    _check_tokens(embedder)
    _check_window(embedder)
    fingerprint = dict(embedder.fingerprint)
    require({"model", "dim", "max_tokens"} <= fingerprint.keys(), f"the fingerprint {fingerprint} lacks a part")
    require(json.loads(json.dumps(fingerprint)) == fingerprint, "the fingerprint does not survive JSON")
    require(fingerprint == dict(embedder.fingerprint), "the fingerprint changes")


def _check_tokens(embedder: Embedder) -> None:
    for text, offsets in zip(_TEXTS, embedder.tokenize(_TEXTS), strict=True):
        require(offsets.ndim == 2 and offsets.shape[1] == 2, f"offsets have the shape {offsets.shape}")
        inside = all(0 <= start <= end <= len(text) for start, end in offsets.tolist())
        require(inside and len(offsets) > 0, f"the tokens of {text!r} stand at {offsets.tolist()}")
    long = "word " * (2 * embedder.max_tokens)
    require(len(embedder.tokenize([long])[0]) >= 2 * embedder.max_tokens, "tokenize cuts long texts")


def _check_window(embedder: Embedder) -> None:
    """The longest text that fits is embedded whole, to its last word; the next longer one is refused."""
    fits = "word " * (embedder.max_tokens - 1)
    require(len(embedder.tokenize([fits + "boat"])[0]) == embedder.max_tokens, "`word` is not one token; sorry")
    boat, bread = embedder.embed_passages([fits + "boat", fits + "bread"])
    require(float(boat @ bread) < 1 - 1e-7, "the last token of the window does not count")
    _must_refuse(lambda: embedder.embed_passages([fits + "word boat"]))


def _must_refuse(embed: Callable[[], object]) -> None:
    try:
        embed()
    except TooLongError:
        return
    require(False, "a text over max_tokens is embedded, so it was cut")
