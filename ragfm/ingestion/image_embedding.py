"""Embedding of figures that have no vector yet, after a sync; each batch is stored in the catalog at once.

The images are in the catalog, so a new image embedder needs no sources: the next sync embeds all figures with it, while
searches use the old one, and then switches in one commit.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import sqlalchemy as sa

from ragfm.core.errors import EmbeddingError
from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.store.catalog import read_image_contract
from ragfm.store.document_rows import insert_encoded
from ragfm.store.embedding_contract import make_contract, same_contract
from ragfm.store.image_vectors import OF_IMAGES, encode_vectors, figures_at, use_contract
from ragfm.store.tables import contracts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragfm.core.types import ImageEmbedder
    from ragfm.store.catalog_writer import CatalogWriter
    from ragfm.store.collection_store import Store

BATCH_IMAGES = 16
"""Images per batch: what a killed process loses."""
_log = logging.getLogger(__name__)


def embed_figures(store: Store, catalog: CatalogWriter, progress: ProgressCallback | None = None) -> int:
    """Embed the live figures' images that have no vector, and make the embedder of the settings that of searches.

    The caller holds the collection's lock. Returns the number of images. Reports `Progress("figures", done, images)`.
    An image that cannot be embedded is logged, and tried again by the next sync.
    """
    with catalog.read() as connection:
        current = read_image_contract(connection)
    embedder = store.configured_image_embedder()
    if embedder is None:
        if current is not None:
            with catalog.new_generation() as commit:
                use_contract(commit.connection, None)
                commit.record("image embedder", None)
        return 0
    contract = {**make_contract(embedder, store.settings.image_embedder or ""), OF_IMAGES: True}
    with catalog.write() as connection:
        known = connection.execute(sa.select(contracts)).all()
        row = next((row for row in known if same_contract(row.fingerprint, contract)), None)
        if row is None:
            inserted = connection.execute(contracts.insert().values(fingerprint=contract)).inserted_primary_key
            assert inserted is not None
            contract_id = int(inserted[0])
        else:
            contract_id = int(row.id)
            if row.fingerprint != contract:  # the model has moved
                connection.execute(contracts.update().where(contracts.c.id == row.id).values(fingerprint=contract))
    store.adopt_images(contract_id, embedder)
    newest = catalog.at().id
    with catalog.read() as connection:
        keys = set(map(bytes.fromhex, figures_at(connection, newest).values()))
    missing = sorted(keys - catalog.known_hashes(contract_id, keys))
    embedded, progress = 0, progress or ignore_progress
    for start in range(0, len(missing), BATCH_IMAGES):
        embedded += _embed_batch(catalog, contract_id, embedder, missing[start : start + BATCH_IMAGES])
        progress(Progress("figures", min(start + BATCH_IMAGES, len(missing)), len(missing)))
    if embedded or current is None or current[0] != contract_id:
        with catalog.new_generation() as commit:  # searches read the vectors of a generation once
            use_contract(commit.connection, contract_id)
            commit.record("image embedder", contract, embedded)
    return embedded


def _embed_batch(catalog: CatalogWriter, contract_id: int, embedder: ImageEmbedder, keys: Sequence[bytes]) -> int:
    """Embed and store images by their hashes. Returns the number of those that could be embedded."""
    generation = catalog.at().id
    found = {key: catalog.image(key.hex(), generation) for key in keys}
    images = {key: image.data for key, image in found.items() if image is not None}
    try:
        matrices = embedder.embed_images(list(images.values()))
    except EmbeddingError as error:
        if len(images) > 1:
            return sum(_embed_batch(catalog, contract_id, embedder, [key]) for key in images)
        _log.warning("The image %s is not embedded: %s", keys[0].hex(), error)
        return 0
    rows = np.concatenate([np.atleast_2d(matrix) for matrix in matrices])
    valid = rows.shape[1:] == (embedder.dim,) and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)
    if len(matrices) != len(images) or not valid:  # NaN is not valid either
        raise EmbeddingError(
            f"The image embedder returned invalid vectors: {len(matrices)} results for {len(images)} images, and rows "
            f"of shape {rows.shape}; expected are {embedder.dim} dimensions and length 1.",
            "The batch was not stored. Check the model, or its precision on this device.",
        )
    with catalog.write() as connection:
        insert_encoded(connection, contract_id, encode_vectors(list(images), matrices))
    return len(images)
