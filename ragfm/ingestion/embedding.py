"""Vectors for texts that have none yet, kept in the catalog as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ragfm.core.errors import EmbeddingError

if TYPE_CHECKING:
    from ragfm.core.types import Embedder, Vectors
    from ragfm.store.catalog_writer import CatalogWriter

WINDOW = 512
"""Texts that are embedded together; sorting them by length saves padding."""
SLICE = 64
"""Texts that are embedded at once, to begin with: what is lost when the process is killed."""
SECONDS = 2.0
"""About how long further slices take: larger ones leave a fast embedder's cores idle more rarely."""


def embed_missing(
    catalog: CatalogWriter,
    contract_id: int,
    embedder: Callable[[], Embedder],
    texts: Mapping[bytes, str],
    told: Callable[[int, int], None] | None = None,
) -> int:
    """Embed the texts, by their hashes, that have no vector under a contract; gives how many.

    `embedder` is asked for only if there is one. `told` is called after each slice, with how many were embedded in it
    and how many are left. Raises EmbeddingError for vectors that can't be used.
    """
    missing = texts.keys() - catalog.known_hashes(contract_id, texts)
    ordered = sorted(((key, texts[key]) for key in missing), key=lambda item: len(item[1]))
    start, size = 0, SLICE
    while start < len(ordered):
        keys, passages = zip(*ordered[start : start + size], strict=True)
        began = time.monotonic()
        vectors = embedder().embed_passages(passages)
        size = max(SLICE, int(len(keys) * SECONDS / max(time.monotonic() - began, 1e-3)))
        _check(vectors, len(keys), embedder().dim)
        catalog.add_vectors(contract_id, keys, vectors)
        start += len(keys)
        if told is not None:
            told(len(keys), len(ordered) - start)
    return len(ordered)


def _check(vectors: Vectors, count: int, dim: int) -> None:
    """A vector is kept for good under its text's hash, so a bad one must never get in."""
    good = vectors.shape == (count, dim) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    if not good:  # a NaN is close to nothing
        raise EmbeddingError(
            f"The embedder gave vectors of shape {vectors.shape} that are not all of length 1, for {count} texts of "
            f"{dim} dimensions.",
            "Nothing of them was kept. Check the model, or its precision on this device.",
        )
