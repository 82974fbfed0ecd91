"""Copy: a collection from a folder to PostgreSQL, back, or to another database, without embedding anything.

The source is read in one transaction, so the copy is of one generation. Vectors are copied first, in batches that
an interrupted copy keeps. Everything else follows in one transaction, with the history: its digests stay the same. Then
the copy is verified. It is a collection of its own, with its own id.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import REGCLASS

from ragfm.core.errors import CollectionError, DamagedCollectionError, UnsupportedError
from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.maintenance.integrity import newest_generation
from ragfm.maintenance.upload_files import copy_to_database
from ragfm.maintenance.verification import verify
from ragfm.store.collection_store import Store
from ragfm.store.postgres_database import HOME, NO_LEASE, SEALED
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
_COPY_OF = "copy of"  # key of the source's id in `properties`
_OWN_PROPERTIES = ("collection", _COPY_OF, HOME, SEALED, *NO_LEASE)
_TABLES = (generations, sources, documents, chunks, tags, groups, failures, images)
_NUMBERED = (contracts, sources, documents, chunks)  # with ids that the database assigns


@dataclass(frozen=True, slots=True)
class CopyReport:
    """Location of the copy, its generation and digest, number of documents and chunks.

    `vectors` and `uploads` are those copied now, without those of an interrupted copy.
    """

    location: str
    generation: int
    digest: str
    documents: int
    chunks: int
    vectors: int
    uploads: int
    seconds: float


def copy(source: Store, target: Store, progress: ProgressCallback | None = None) -> CopyReport:
    """Copy a collection to a place that has none, and verify the copy. An interrupted copy is continued.

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
    with source.catalog.read() as reading, target.database.receiving() as engine:
        newest = newest_generation(reading)
        total = sum(reading.scalar(sa.select(sa.func.count()).select_from(table)) or 0 for table in (vectors, *_TABLES))
        done = _prepare(reading, engine, target.database.location)
        copied = 0
        for rows in _missing_vectors(reading, engine):
            with engine.begin() as writing:
                writing.execute(vectors.insert(), rows)
            copied += len(rows)
            progress(Progress("copy", done + copied, total))
        done += copied
        uploads = copy_to_database(source, target)
        with engine.begin() as writing:
            kept = sa.select(properties).where(properties.c.key.not_in(_OWN_PROPERTIES))
            values = {row.key: row.value for row in reading.execute(kept)}
            values["collection"] = uuid.uuid4().hex
            if writing.dialect.name == "postgresql":
                values |= NO_LEASE
            writing.execute(properties.delete())
            writing.execute(properties.insert(), [{"key": key, "value": value} for key, value in values.items()])
            for table in _TABLES:
                size = _BATCH_IMAGES if table is images else _BATCH_ROWS
                for rows in _rows(reading, sa.select(table).order_by(*table.primary_key), size):
                    if table is sources:
                        rows = [_relocated(row, source, target) for row in rows]
                    writing.execute(table.insert(), rows)
                    done += len(rows)
                    progress(Progress("copy", done, total))
            if writing.dialect.name == "postgresql":
                for table in _NUMBERED:
                    _set_sequence(writing, table)
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
    counts = (report.documents, report.chunks, copied, uploads)
    return CopyReport(target.database.location, newest.id, digest, *counts, seconds)


def _prepare(reading: sa.Connection, engine: sa.Engine, location: str) -> int:
    """Record the source's id, and copy the contracts. Returns the number of vectors that are there already."""
    key = sa.select(properties.c.value).where(properties.c.key == "collection")
    collection = reading.execute(key).scalar_one()
    fingerprints = {row.id: row.fingerprint for row in reading.execute(sa.select(contracts))}
    with engine.begin() as writing:
        copy_of = writing.execute(sa.select(properties.c.value).where(properties.c.key == _COPY_OF)).scalar()
        known = {row.id: row.fingerprint for row in writing.execute(sa.select(contracts))}
        if copy_of not in (None, collection) or any(fingerprints.get(at) != known[at] for at in known):
            raise CollectionError(
                f"There is an unfinished copy of a different collection at '{location}'.", "Remove it, then copy again."
            )
        if copy_of is None:
            writing.execute(properties.insert().values(key=_COPY_OF, value=collection))
        new = [{"id": at, "fingerprint": fingerprints[at]} for at in fingerprints if at not in known]
        if new:
            writing.execute(contracts.insert(), new)
        return writing.execute(sa.select(sa.func.count()).select_from(vectors)).scalar_one()


def _missing_vectors(reading: sa.Connection, engine: sa.Engine) -> Iterator[list[dict[str, Any]]]:
    """The vectors that an interrupted copy has not copied."""
    key = (vectors.c.contract_id, vectors.c.text_hash)
    for rows in _rows(reading, sa.select(vectors)):
        query = sa.select(*key).where(vectors.c.text_hash.in_([row["text_hash"] for row in rows]))
        with engine.begin() as writing:
            known = set(map(tuple, writing.execute(query)))
        if missing := [row for row in rows if (row["contract_id"], row["text_hash"]) not in known]:
            yield missing


def _rows(reading: sa.Connection, query: sa.Select[Any], size: int | None = None) -> Iterator[list[dict[str, Any]]]:
    result = reading.execute(query.execution_options(yield_per=size or _BATCH_ROWS)).mappings()
    for rows in result.partitions():
        yield [dict(row) for row in rows]


def _relocated(row: dict[str, Any], source: Store, target: Store) -> dict[str, Any]:
    """A row of `sources` with locations that hold for the copy: absolute ones, or relative to the folder's parent."""
    relocated = dict(row)
    if row["name"] == UPLOADS_SOURCE:
        place = UPLOADS_ADDRESS if target.database.shared else f"{target.folder.name}/{UPLOADS}"
        return relocated | {"location": place, "root": place}
    for key in ("location", "root"):
        if "://" not in row[key]:
            path = PurePath(os.path.normpath(Path(source.database.settings_file.parent, row[key])))
            parent = target.database.settings_file.parent
            relative = not target.database.shared and path.is_relative_to(parent)
            relocated[key] = path.relative_to(parent).as_posix() if relative else str(path)
    return relocated


def _set_sequence(writing: sa.Connection, table: sa.Table) -> None:
    """Let the ids of new rows follow those of the copied ones."""
    schema = writing.get_execution_options()["schema_translate_map"][None]
    sequence = sa.func.pg_get_serial_sequence(f'"{schema}"."{table.name}"', "id")
    highest = sa.select(sa.func.max(table.c.id)).scalar_subquery()
    used = sa.func.coalesce(highest, 1)
    writing.execute(sa.select(sa.func.setval(sa.cast(sequence, REGCLASS), used, highest.is_not(None))))
