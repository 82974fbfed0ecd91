"""Copy: a collection from a folder to PostgreSQL, back, or to another database, without embedding anything.

The source is read in one transaction, so the copy is of one generation. It is written in one transaction, too, with the
history: its digests stay the same. Then the copy is verified. It is a collection of its own, with its own id.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path, PurePath

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import REGCLASS

from ragfm.core.errors import CollectionError, DamagedCollectionError, UnsupportedError
from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.maintenance.integrity import newest_generation
from ragfm.maintenance.upload_files import copy_to_database
from ragfm.maintenance.verification import verify
from ragfm.store.collection_store import Store
from ragfm.store.postgres.lease import NO_LEASE
from ragfm.store.postgres.postgres_database import HOME
from ragfm.store.postgres.schema import SEALED
from ragfm.store.tables import (
    chunks,
    contracts,
    documents,
    failures,
    generations,
    groups,
    images,
    properties,
    sources,
    tags,
    vectors,
)
from ragfm.store.uploads import UPLOADS, UPLOADS_ADDRESS, UPLOADS_SOURCE

_BATCH_ROWS, _BATCH_IMAGES = 1_000, 20
_OWN_PROPERTIES = ("collection", HOME, SEALED, *NO_LEASE)
_TABLES = (contracts, vectors, generations, sources, documents, chunks, tags, groups, failures, images)
_NUMBERED = (contracts, sources, documents, chunks)  # with ids that the database assigns


@dataclass(frozen=True, slots=True)
class CopyReport:
    """Location of the copy, its generation and digest, number of documents, chunks, vectors and uploads."""

    location: str
    generation: int
    digest: str
    documents: int
    chunks: int
    vectors: int
    uploads: int
    seconds: float


def copy(source: Store, target: Store, progress: ProgressCallback | None = None) -> CopyReport:
    """Copy a collection to a place that has none, and verify the copy. An interrupted copy leaves nothing there.

    Reports `Progress("copy", rows_copied, rows)`. Raises CollectionError if there is a collection already,
    UnsupportedError for two folders, DamagedCollectionError if the copy does not verify.
    """
    start, progress = time.monotonic(), progress or ignore_progress
    if not source.database.shared and not target.database.shared:
        raise UnsupportedError(
            "`ragfm copy` copies to or from PostgreSQL.", "Use `ragfm backup` and `ragfm restore` for folders."
        )
    if target.exists:
        raise CollectionError(
            f"There is already a collection at '{target.database.location}'.", "Choose a different destination."
        )
    # Locations of sources become absolute on a server, and relative to the parent of a folder.
    parents = (
        source.database.settings_file.parent,
        None if target.database.shared else target.database.settings_file.parent,
    )
    with source.catalog.read() as reading, target.database.creating() as database:
        newest = newest_generation(reading)
        counts = {table: reading.scalar(sa.select(sa.func.count()).select_from(table)) or 0 for table in _TABLES}
        total, uploads = sum(counts.values()), 0

        def fill(writing: sa.Connection) -> tuple[int, str]:
            nonlocal uploads
            done = 0
            kept = reading.execute(sa.select(properties).where(properties.c.key.not_in(_OWN_PROPERTIES))).mappings()
            new_id = {"key": "collection", "value": uuid.uuid4().hex}
            writing.execute(properties.insert(), [new_id, *map(dict, kept)])
            for table in _TABLES:
                size = _BATCH_IMAGES if table is images else _BATCH_ROWS
                query = sa.select(table).order_by(*table.primary_key).execution_options(yield_per=size)
                for batch in reading.execute(query).mappings().partitions():
                    rows = [dict(row) for row in batch]
                    for row in rows if table is sources else ():
                        if row["name"] == UPLOADS_SOURCE:
                            place = UPLOADS_ADDRESS if target.database.shared else f"{target.folder.name}/{UPLOADS}"
                            row |= {"location": place, "root": place}
                        else:
                            row |= {key: relocate(row[key], *parents) for key in ("location", "root")}
                    writing.execute(table.insert(), rows)
                    done += len(rows)
                    progress(Progress("copy", done, total))
            if database.shared:
                schema = writing.get_execution_options()["schema_translate_map"][None]
                for table in _NUMBERED:  # the ids of new rows follow those of the copied ones
                    sequence = sa.cast(sa.func.pg_get_serial_sequence(f'"{schema}"."{table.name}"', "id"), REGCLASS)
                    highest = sa.select(sa.func.max(table.c.id)).scalar_subquery()
                    used = sa.func.coalesce(highest, 1)
                    writing.execute(sa.select(sa.func.setval(sequence, used, highest.is_not(None))))
            uploads = copy_to_database(source, database, writing)
            return newest.id, newest.digest

        database.create(fill)
    report = verify(target)
    if report.damaged:
        raise DamagedCollectionError(
            f"The copy at '{target.database.location}' differs from its source: {report.findings[0]}.",
            "Remove it, verify the source, and copy again.",
        )
    with target.writing() as catalog:
        target.save_view(catalog)
        digest = catalog.at().digest
    if digest != newest.digest:
        raise DamagedCollectionError(f"The copy has the digest {digest}, its source {newest.digest}.", "Copy again.")
    seconds = round(time.monotonic() - start, 3)
    copied = (report.documents, report.chunks, counts[vectors], uploads)
    return CopyReport(target.database.location, newest.id, digest, *copied, seconds)


def relocate(location: str, old_parent: Path, new_parent: Path | None) -> str:
    """A location relative to the new collection's parent folder if possible, else absolute."""
    if "://" in location:
        return location
    path = PurePath(os.path.normpath(old_parent / location))
    if new_parent is not None and path.is_relative_to(new_parent):
        return path.relative_to(new_parent).as_posix()
    return str(path)
