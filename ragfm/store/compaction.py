"""Compaction: the rows of what has gone are deleted, and their space is given back.

    a view of the newest generation G is saved ─→ the floor rises to G ─→ rows that had died by G are deleted, in
    batches ─→ the file shrinks

Readers go on meanwhile. One that still looks at a generation before G sees the risen floor after its reads, and looks
again. A crash leaves some dead rows for the next compaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pysqlite3
import sqlalchemy as sa

from ragfm.core.durable_files import sync_folder
from ragfm.core.errors import CollectionError
from ragfm.store.database import FILE, batches
from ragfm.store.tables import chunks, documents, generations, groups, properties, sources, tags, vectors

if TYPE_CHECKING:
    from ragfm.store.catalog_writer import CatalogWriter
    from ragfm.store.collection_store import Store

_BATCH = 5_000  # rows that are deleted at once, so that the write-ahead log stays small
_PAGES = 2_000  # pages that are given back at once
_LEAST, _SHARE = 1_000, 0.3  # dead chunks, and their share of all, from which a sync compacts by itself

Progress = Callable[[int, int], None]
"""Is told how many rows of how many are done with."""


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What a compaction deleted: chunks, document versions, vectors; and the catalog's size on disk, in bytes."""

    chunks: int
    documents: int
    vectors: int
    bytes_before: int
    bytes_after: int
    seconds: float


def compaction_pays(catalog: CatalogWriter) -> bool:
    """Whether so many of the chunks are dead that a sync should compact."""
    dead = dead_chunks(catalog)
    return dead >= _LEAST and dead > _SHARE * (dead + catalog.at().chunks)


def dead_chunks(catalog: Any) -> int:
    """How many chunks have gone and still take space."""
    with catalog.read() as connection:
        query = sa.select(sa.func.count()).select_from(chunks).where(chunks.c.died.is_not(None))
        return int(connection.execute(query).scalar_one())


def compact(store: Store, catalog: CatalogWriter, progress: Progress | None = None) -> CompactReport:
    """Delete what no generation from the newest on can see. The caller holds the collection's lock."""
    start, before = time.monotonic(), _size(catalog)
    # Readers that open the collection anew must find a view that is not older than the floor.
    store.save_view(catalog, always=True)
    newest = catalog.at()
    with catalog.write() as connection:
        connection.execute(properties.update().where(properties.c.key == "floor").values(value=str(newest.id)))
    total, done = dead_chunks(catalog), 0
    while deleted := _delete_chunks(catalog, newest.id):
        done += deleted
        if progress is not None:
            progress(done, total)
    ended = _delete_documents(catalog, newest.id)
    forgotten = _delete_vectors(catalog, newest.contract_id)
    with catalog.write() as connection:
        connection.execute(generations.delete().where(generations.c.id < newest.id))
        empty = ~sa.exists().where(documents.c.source_id == sources.c.id)
        connection.execute(sources.delete().where(sources.c.removed.is_(True), empty))
    shrink(catalog)
    seconds = round(time.monotonic() - start, 3)
    return CompactReport(done, ended, forgotten, before, _size(catalog), seconds)


def _size(catalog: CatalogWriter) -> int:
    files = (catalog.folder / FILE, catalog.folder / f"{FILE}-wal")
    return sum(file.stat().st_size for file in files if file.exists())


def _delete_chunks(catalog: CatalogWriter, floor: int) -> int:
    with catalog.write() as connection:
        dead = sa.select(chunks.c.id).where(chunks.c.died <= floor).limit(_BATCH)
        return connection.execute(chunks.delete().where(chunks.c.id.in_(dead))).rowcount


def _delete_documents(catalog: CatalogWriter, floor: int) -> int:
    with catalog.read() as connection:  # once: there is no index, and the living would be gone through again and again
        dead = list(connection.execute(sa.select(documents.c.id).where(documents.c.died <= floor)).scalars())
    for part in batches(dead):
        with catalog.write() as connection:
            for table in (tags, groups):
                connection.execute(table.delete().where(table.c.document_id.in_(part)))
            connection.execute(documents.delete().where(documents.c.id.in_(part)))
    return len(dead)


def _delete_vectors(catalog: CatalogWriter, contract_id: int) -> int:
    """Those of earlier contracts, and those of no chunk. A later contract's are a re-embedding that was interrupted."""
    deleted, at, after = 0, 0, b""
    unused = sa.or_(vectors.c.contract_id < contract_id, ~sa.exists().where(chunks.c.text_hash == vectors.c.text_hash))
    while at <= contract_id:  # one contract after the other, since the key begins with it
        these = sa.and_(vectors.c.contract_id == at, vectors.c.text_hash > after)
        with catalog.write() as connection:
            part = sa.select(vectors.c.text_hash).where(these).order_by(vectors.c.text_hash).limit(_BATCH)
            keys = list(connection.execute(part).scalars())
            if keys:
                looked_at = sa.and_(these, vectors.c.text_hash <= keys[-1])
                deleted += connection.execute(vectors.delete().where(looked_at, unused)).rowcount
        at, after = (at, keys[-1]) if keys else (at + 1, b"")
    return deleted


def shrink(catalog: CatalogWriter) -> None:
    """Give free pages back to the file system, and fold the write-ahead log into the file.

    Raises CollectionError where that fails; nothing is lost.
    """
    try:
        with catalog.driver() as connection, closing(connection.cursor()) as cursor:
            while cursor.execute("PRAGMA freelist_count").fetchone()[0]:
                cursor.execute(f"PRAGMA incremental_vacuum({_PAGES})").fetchall()
            cursor.execute("PRAGMA busy_timeout=1000")  # readers may hold it back; then it shrinks later
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        sync_folder(catalog.folder)  # SQLite goes on where that fails
    except (pysqlite3.Error, OSError) as error:
        raise CollectionError(
            f"All is committed, but free space in {catalog.folder / FILE} can't be given back: {error}.",
            "Mend the cause and run `ragfm compact`.",
        ) from error
