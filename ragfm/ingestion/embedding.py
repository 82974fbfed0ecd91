"""Embedding of texts that have no vector yet; each batch is stored in the catalog at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ragfm.core.errors import EmbeddingError
from ragfm.core.progress import Progress
from ragfm.core.tracing import span
from ragfm.store.catalog import Catalog
from ragfm.store.document_rows import insert_vectors

if TYPE_CHECKING:
    from ragfm.core.progress import ProgressCallback
    from ragfm.core.types import Embedder, Vectors
    from ragfm.store.catalog_writer import CatalogWriter
    from ragfm.store.postgres import PostgresDatabase

MAX_COMMIT_TEXTS = 512
"""Number of texts to collect before embedding; sorting them by length saves padding."""
FIRST_BATCH = 64
"""Size of the first batch, and the smallest size of the others: what a killed process loses."""
BATCH_SECONDS = 2.0
"""Target duration of the further batches: larger batches leave the cores idle less often."""


class VectorCatalog(Catalog):
    """A catalog that adds vectors, and nothing else, without the collection's lock."""

    database: PostgresDatabase

    def add_vectors(self, contract_id: int, hashes: Sequence[bytes], matrix: Vectors) -> None:
        """Save the vectors of embedded texts, durably, unless another process has saved them."""
        with self.database.committing() as connection:
            insert_vectors(connection, contract_id, hashes, matrix)


def embed_missing(
    catalog: CatalogWriter | VectorCatalog,
    contract_id: int,
    embedder: Callable[[], Embedder],
    texts: Mapping[bytes, str],
    progress: ProgressCallback | None = None,
) -> int:
    """Embed the texts, keyed by hash, that have no vector under the contract. Returns their number.

    `embedder` is called only if there is something to embed. `progress` is called after each batch. Raises
    EmbeddingError for vectors of the wrong shape or length; nothing of that batch is stored.
    """
    missing = texts.keys() - catalog.known_hashes(contract_id, texts)
    ordered = sorted(((key, texts[key]) for key in missing), key=lambda item: len(item[1]))
    start, size = 0, FIRST_BATCH
    while start < len(ordered):
        keys, passages = zip(*ordered[start : start + size], strict=True)
        began = time.monotonic()
        with span("embed", model=lambda: str(embedder().fingerprint["model"]), texts=len(keys)) as active:
            active.set(dimensions=lambda: embedder().dim)
            active.set(input_tokens=lambda texts=passages: sum(map(len, embedder().tokenize(texts))))
            vectors = embedder().embed_passages(passages)
        size = max(FIRST_BATCH, int(len(keys) * BATCH_SECONDS / max(time.monotonic() - began, 1e-3)))

        # A vector is kept for good under its text's hash. NaN fails this test too.
        shape = (len(keys), embedder().dim)
        if vectors.shape != shape or not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
            raise EmbeddingError(
                f"The embedder returned invalid vectors: expected shape {shape} and length 1, got shape "
                f"{vectors.shape}.",
                "The batch was not stored. Check the model, or its precision on this device.",
            )
        catalog.add_vectors(contract_id, keys, vectors)
        start += len(keys)
        if progress is not None:
            progress(Progress("embed", start, len(ordered)))
    return len(ordered)
