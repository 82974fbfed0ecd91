"""Contract tests of embedders: `ragfm.testing.check_embedder` and `check_image_embedder`."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragfm.core.errors import EmbeddingError, TooLongError
from ragfm.core.types import Embedder, ImageEmbedder, Scalar
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
    _check_fingerprint(embedder.fingerprint, embedder.fingerprint, {"model", "dim", "max_tokens"})

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


def check_image_embedder(embedder: ImageEmbedder) -> None:
    """Check the vectors of images and queries, and the fingerprint. Raises AssertionError with the violation."""
    require(isinstance(embedder, ImageEmbedder), f"{embedder!r} does not implement the ImageEmbedder protocol")
    noise = np.random.default_rng(1).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)
    images = [_png(pixels) for pixels in (*noise, noise[0, :, :25])]
    late = isinstance(embedder.embed_images(images[:1]), list)
    queries = ["a red chart", "a photograph of two boats"]
    cases: list[tuple[str, Any, Sequence[Any]]] = [("images", embedder.embed_images, images)]
    cases.append(("queries", embedder.embed_queries, queries))
    for what, embed, inputs in cases:
        together = embed(inputs)
        require(len(together) == len(inputs), f"{len(inputs)} {what} give {len(together)} results")
        require(isinstance(together, list) == late, "images and queries must both give rows, or both give matrices")
        matrices = [np.atleast_2d(one) for one in together]
        for matrix in matrices:
            require(matrix.dtype == np.float32, f"vectors of {what} are {matrix.dtype}, not float32")
            valid = matrix.ndim == 2 and len(matrix) > 0 and matrix.shape[1] == embedder.dim
            require(valid, f"vectors of {what} have shape {matrix.shape}, expected dimension {embedder.dim}")
            lengths = np.linalg.norm(matrix, axis=1)
            require(np.allclose(lengths, 1, atol=1e-3), f"vectors of {what} have the lengths {lengths}, not 1")
        for one, matrix in zip(inputs, matrices, strict=True):
            alone = np.atleast_2d(embed([one])[0])
            same = alone.shape == matrix.shape and np.allclose(alone, matrix, atol=1e-2)
            require(same, f"the vectors of {what} depend on the others of the batch")
        first, second = matrices[0], matrices[1]
        differ = first.shape != second.shape or not np.allclose(first, second, atol=1e-6)
        require(differ, f"different {what} have the same vectors")
        require(len(embed([])) == 0, f"an empty list of {what} must give no vectors")
    try:
        embedder.embed_images([images[0], images[0][:60]])
        raise AssertionError("a damaged image is embedded; EmbeddingError is expected")
    except EmbeddingError:
        pass
    try:
        embedder.embed_queries(["word " * 20_000])
        raise AssertionError("a query of 20,000 words is embedded, so it was cut; TooLongError is expected")
    except TooLongError:
        pass
    _check_fingerprint(embedder.fingerprint, embedder.fingerprint, {"model", "dim"})


def _check_fingerprint(first: Mapping[str, Scalar], second: Mapping[str, Scalar], keys: set[str]) -> None:
    fingerprint = dict(first)
    missing = keys - fingerprint.keys()
    require(not missing, f"the fingerprint {fingerprint} lacks {', '.join(sorted(missing))}")
    require(json.loads(json.dumps(fingerprint)) == fingerprint, "the fingerprint changes when it is stored as JSON")
    require(fingerprint == dict(second), "the fingerprint changes")


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file. *Shape:* (height, width, 3)."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
