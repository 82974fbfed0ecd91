"""Contract tests of embedders: `ragfm.testing.check_embedder`."""

from __future__ import annotations

import json

import numpy as np

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
    """Check an embedder's vectors, tokens, window and fingerprint. Raises AssertionError with the violation."""
    require(isinstance(embedder, Embedder), f"{embedder!r} does not implement the Embedder protocol")
    for embed in (embedder.embed_passages, embedder.embed_queries):
        together = embed(_TEXTS)
        expected_shape = (len(_TEXTS), embedder.dim)
        require(together.shape == expected_shape, f"vectors have shape {together.shape}, expected {expected_shape}")
        require(together.dtype == np.float32, f"vectors are {together.dtype}, not float32")
        lengths = np.linalg.norm(together, axis=1)
        require(np.allclose(lengths, 1, atol=1e-4), f"vectors have the lengths {lengths}, not 1")
        alone = np.concatenate([embed([text]) for text in _TEXTS])
        same = np.allclose(together, alone, atol=1e-3)  # padding may change the last digits
        require(same, "a text's vector depends on the other texts of the batch")
        require(embed([]).shape == (0, embedder.dim), "an empty list of texts must give no vectors")
    for text, offsets in zip(_TEXTS, embedder.tokenize(_TEXTS), strict=True):
        valid_shape = offsets.ndim == 2 and offsets.shape[1] == 2
        require(valid_shape, f"offsets have shape {offsets.shape}, expected (tokens, 2)")
        inside = all(0 <= start <= end <= len(text) for start, end in offsets.tolist())
        require(inside and len(offsets) > 0, f"the token offsets of {text!r} are invalid: {offsets.tolist()}")
    long = "word " * (2 * embedder.max_tokens)
    require(len(embedder.tokenize([long])[0]) >= 2 * embedder.max_tokens, "tokenize truncates long texts")
    fingerprint = dict(embedder.fingerprint)
    missing = {"model", "dim", "max_tokens"} - fingerprint.keys()
    require(not missing, f"the fingerprint {fingerprint} lacks {', '.join(sorted(missing))}")
    require(json.loads(json.dumps(fingerprint)) == fingerprint, "the fingerprint changes when it is stored as JSON")
    require(fingerprint == dict(embedder.fingerprint), "the fingerprint changes")

    # A text of `max_tokens` is embedded up to its last token; a longer one is refused.
    words = "word " * (embedder.max_tokens - 1)
    count = len(embedder.tokenize([words + "boat"])[0])
    require(count == embedder.max_tokens, "`word` and `boat` are not one token each, so the window cannot be tested")
    boat, bread = embedder.embed_passages([words + "boat", words + "bread"])
    require(float(boat @ bread) < 1 - 1e-7, "the last token of a text of max_tokens has no effect")
    try:
        embedder.embed_passages([words + "word boat"])
    except TooLongError:
        return
    raise AssertionError("a text over max_tokens is embedded, so it was cut; TooLongError is expected")
