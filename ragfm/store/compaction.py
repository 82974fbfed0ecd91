"""Compaction: deletes dead rows and returns their space to the file system.

    save a view of the newest generation G → raise the floor to G → delete the rows that died by G, in batches →
    shrink the file

Readers continue meanwhile. A reader of a generation before G notices the raised floor after reading, and reads again.
After a crash, the next compaction deletes the remaining dead rows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa

from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.store.catalog import Catalog, batches, set_property
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.collection_store import Store
from ragfm.store.tables import (
    chunks,
    contracts,
    documents,
    generations,
    groups,
    images,
    sources,
    tags,
    vectors,
)

_BATCH_ROWS = 5_000  # deleted per transaction, so that the write-ahead log stays small
_MIN_DEAD_CHUNKS, _MIN_DEAD_SHARE = 1_000, 0.3  # from which a sync compacts


@dataclass(frozen=True, slots=True)
class CompactReport:
    """Deleted chunks, document versions, vectors and images, and the size of the catalog on disk, in bytes."""

    chunks: int
    documents: int
    vectors: int
    bytes_before: int
    bytes_after: int
    seconds: float
    images: int = 0


def should_compact(catalog: CatalogWriter) -> bool:
    """Whether enough chunks are dead for a sync to compact."""
    dead = count_dead_chunks(catalog)
    return dead >= _MIN_DEAD_CHUNKS and dead > _MIN_DEAD_SHARE * (dead + catalog.at().chunks)


def count_dead_chunks(catalog: Catalog) -> int:
    """The number of dead chunks that still take space."""
    with catalog.read() as connection:
        query = sa.select(sa.func.count()).select_from(chunks).where(chunks.c.died.is_not(None))
        return int(connection.execute(query).scalar_one())


def compact(store: Store, catalog: CatalogWriter, progress: ProgressCallback | None = None) -> CompactReport:
    """Delete everything that is not visible at the newest generation. The caller holds the collection's lock.

    Reports `Progress("compact", chunks_deleted, dead_chunks)`.
    """
    progress = progress or ignore_progress
    start, bytes_before = time.monotonic(), catalog.size()
    # Readers that open the collection later must find a view that is not older than the floor.
    store.save_view(catalog, always=True)
    newest = catalog.at()
    with catalog.write() as connection:
        set_property(connection, "floor", str(newest.id))
    dead, deleted, count = count_dead_chunks(catalog), 0, -1
    while count:
        with catalog.write() as connection:
            batch = sa.select(chunks.c.id).where(chunks.c.died <= newest.id).limit(_BATCH_ROWS)
            count = connection.execute(chunks.delete().where(chunks.c.id.in_(batch))).rowcount
        if count:
            deleted += count
            progress(Progress("compact", deleted, dead))
    # There is no index on `died` of documents: the ids are read in a single scan, rather than once per batch.
    with catalog.read() as connection:
        dead_documents = sa.select(documents.c.id).where(documents.c.died <= newest.id)
        document_ids = list(connection.execute(dead_documents).scalars())
    for ids in batches(document_ids):
        with catalog.write() as connection:
            for table in (tags, groups):
                connection.execute(table.delete().where(table.c.document_id.in_(ids)))
            connection.execute(documents.delete().where(documents.c.id.in_(ids)))
    deleted_vectors = _delete_vectors(catalog, newest.contract_id)
    with catalog.write() as connection:
        without_chunk = ~sa.exists().where(chunks.c.image == images.c.hash)
        deleted_images = connection.execute(images.delete().where(without_chunk)).rowcount
        connection.execute(generations.delete().where(generations.c.id < newest.id))
        empty = ~sa.exists().where(documents.c.source_id == sources.c.id)
        connection.execute(sources.delete().where(sources.c.removed.is_(True), empty))
    catalog.shrink()
    seconds = round(time.monotonic() - start, 3)
    sizes = (bytes_before, catalog.size())
    return CompactReport(deleted, len(document_ids), deleted_vectors, *sizes, seconds, deleted_images)


def _delete_vectors(catalog: CatalogWriter, contract_id: int) -> int:
    """Delete the vectors of earlier contracts and those without a chunk.

    Vectors of a later contract belong to an interrupted re-embedding, and stay.
    """
    with catalog.read() as connection:
        known = connection.execute(sa.select(contracts)).all()
    deleted = 0
    # Those of images were made by 0.2.0.
    for contract in (row.id for row in known if row.id <= contract_id or "images" in row.fingerprint):
        unused: sa.ColumnElement[bool] = sa.true()
        if contract == contract_id:
            unused = ~sa.exists().where(chunks.c.text_hash == vectors.c.text_hash)
        after = b""
        while True:
            remaining = sa.and_(vectors.c.contract_id == contract, vectors.c.text_hash > after)
            with catalog.write() as connection:
                batch = sa.select(vectors.c.text_hash).where(remaining).order_by(vectors.c.text_hash).limit(_BATCH_ROWS)
                keys = list(connection.execute(batch).scalars())
                if not keys:
                    break
                after = keys[-1]
                in_batch = sa.and_(remaining, vectors.c.text_hash <= after)
                deleted += connection.execute(vectors.delete().where(in_batch, unused)).rowcount
    return deleted
