"""Salvage: a new collection with every intact document of a damaged one.

A document is intact if its row, text, chunks, vectors, images and access groups can be read and match what was
committed. Nothing is embedded. The next ingest of their sources adds the other documents again.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np
import sqlalchemy as sa

from ragfm.core.durable_files import storage_failure, sync_folder, temporary_path
from ragfm.core.errors import CollectionError, CollectionNotFound, DamagedCollectionError, UnsupportedError
from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.core.types import Chunk, Document, Mark
from ragfm.maintenance.integrity import READ_ERRORS, Discrepancy, LiveDocuments, StoredDocument
from ragfm.maintenance.upload_files import copy_uploads, relocate_uploads
from ragfm.store.catalog import Source
from ragfm.store.catalog_writer import CatalogWriter, Failure
from ragfm.store.collection_store import Store
from ragfm.store.document_rows import NewDocument
from ragfm.store.sqlite_database import SqliteDatabase
from ragfm.store.sqlite_file import CATALOG_FILE, open_connection, read_error
from ragfm.store.tables import failures
from ragfm.store.uploads import UploadFolder

_MAX_BATCH_DOCUMENTS, _MAX_BATCH_SIZE = 200, 4_000_000  # per commit


@dataclass(frozen=True, slots=True)
class LostDocument:
    """A document that was not saved, and the reason. `uri` is None if it cannot be read."""

    uri: str | None
    why: str


@dataclass(frozen=True, slots=True)
class SalvageReport:
    """Path of the new collection, number of saved documents and chunks, and the documents that were not saved."""

    path: str
    documents: int
    chunks: int
    left: tuple[LostDocument, ...]
    seconds: float


def salvage(store: Store, out: Path, progress: ProgressCallback | None = None) -> SalvageReport:
    """Save the intact documents into a new collection in the folder `out`.

    Reports `Progress("salvage", documents_read, documents)`. Raises CollectionError if `out` exists,
    DamagedCollectionError if nothing can be saved.
    """
    if store.database.shared:
        raise UnsupportedError(
            f"'{store.database.location}' is on a server: documents cannot be saved from a damaged one.",
            "Restore a backup of the database.",
        )
    start, file = time.monotonic(), store.folder / CATALOG_FILE
    if not file.exists():
        raise CollectionNotFound(f"There is nothing to salvage: '{file}' does not exist.", "Restore a backup.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CollectionError(f"'{out}' already exists.", "Choose a folder that does not exist.")
    temporary = temporary_path(out)
    try:
        with open_connection(store.folder) as connection:
            live = LiveDocuments(connection)
            temporary.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir(0o700)
            run = _Salvage(live, temporary, store.folder.parent, out.parent)
            run.run(connection, progress or ignore_progress)
        copy_uploads(store.folder, temporary)
        with suppress(CollectionError):  # damaged records: nobody may see these uploads
            UploadFolder(temporary).copy_records(UploadFolder(store.folder))
        temporary.rename(out)
        sync_folder(out.parent)
    except READ_ERRORS as error:
        if isinstance(error, sa.exc.DatabaseError):
            failure = read_error(store.folder, error)
            if not isinstance(failure, DamagedCollectionError):  # a full disk, for example
                raise failure from error
        raise DamagedCollectionError(
            f"Nothing can be saved from '{file}': {getattr(error, 'orig', error)}.",
            "Restore it from a backup, or ingest its sources into a new collection.",
        ) from error
    except OSError as error:
        error_type, why = storage_failure(out.parent, error)
        raise error_type(f"'{out}' cannot be created: {why}.", "Fix the cause and run the command again.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    new = Store(SqliteDatabase(out), store.settings, None)
    with new.writing() as catalog:
        relocate_uploads(catalog, out)
        new.save_view(catalog)
    new.close()
    return SalvageReport(str(out), run.documents, run.chunks, tuple(run.lost), round(time.monotonic() - start, 3))


class _Salvage:
    def __init__(self, live: LiveDocuments, folder: Path, old_parent: Path, new_parent: Path) -> None:
        self._live = live
        self._folder = folder
        self._old_parent, self._new_parent = old_parent, new_parent
        self._batch: list[NewDocument] = []
        self._vectors: dict[bytes, bytes] = {}  # of the batch, by hash
        self.documents = self.chunks = 0
        self.lost: list[LostDocument] = []

    def run(self, connection: sa.Connection, progress: ProgressCallback) -> None:
        """Read all documents, and write the intact ones."""
        CatalogWriter.create(SqliteDatabase(self._folder), self._live.generation.contract)
        writer = CatalogWriter(SqliteDatabase(self._folder))
        try:
            sources = {}
            for source_id, source in sorted(self._live.sources.items()):
                location, root = self._relocate(source.location), self._relocate(source.root)
                sources[source_id] = writer.save_source(replace(source, location=location, root=root))
            total, batch_source = self._live.count(), Source("", "", "", "")
            for number, (document_id, uri) in enumerate(self._live, 1):
                document = self._live.read(document_id)
                if isinstance(document, Discrepancy):
                    self.lost.append(LostDocument(uri, str(document)))
                elif damage := [*document.damage, *document.groups]:  # tags follow from the metadata
                    self.lost.append(LostDocument(uri, str(damage[0])))
                else:
                    source = sources[document.row.source_id]
                    size = sum(new.size for new in self._batch)
                    full = len(self._batch) >= _MAX_BATCH_DOCUMENTS or size >= _MAX_BATCH_SIZE
                    if source is not batch_source or full:
                        self._flush(writer, batch_source)
                    batch_source = source
                    self._batch.append(_new_document(document))
                    self._vectors |= document.vectors
                progress(Progress("salvage", number, max(total, number)))
            self._flush(writer, batch_source)
            for source_id, failure in _read_failures(connection):
                if source_id in sources:
                    writer.note(sources[source_id].id, failed=[failure])
        finally:
            writer.close()

    def _flush(self, writer: CatalogWriter, source: Source) -> None:
        missing = sorted(self._vectors.keys() - writer.known_hashes(1, self._vectors))
        if missing:
            rows = [np.frombuffer(self._vectors[key], dtype="<f4") for key in missing]
            writer.add_vectors(1, missing, np.stack(rows))
        if self._batch:
            writer.commit(source, self._batch, [])
        self.documents += len(self._batch)
        self.chunks += sum(len(new.chunks) for new in self._batch)
        self._batch, self._vectors = [], {}

    def _relocate(self, location: str) -> str:
        """A location relative to the new collection's parent folder, absolute if it is outside of it."""
        if "://" in location:
            return location
        path = PurePath(os.path.normpath(self._old_parent / location))
        return path.relative_to(self._new_parent).as_posix() if path.is_relative_to(self._new_parent) else str(path)


def _new_document(document: StoredDocument) -> NewDocument:
    row = document.row
    chunks = [
        Chunk(
            text=row.text[chunk.start : chunk.end],
            start=chunk.start,
            end=chunk.end,
            context=chunk.context,
            page=chunk.page,
            place=chunk.place,
            headings=tuple(chunk.headings),
            image=chunk.image,
            box=chunk.box and tuple(chunk.box),
        )
        for chunk in document.chunks
    ]
    marks = tuple(map(Mark.from_list, row.marks))
    return NewDocument(
        path=row.path,
        revision=row.revision,
        digest=row.digest,
        recipe=row.recipe,
        document=Document(row.uri, row.text, row.media_type, row.metadata, marks, document.images),
        chunks=chunks,
        hashes=[chunk.text_hash for chunk in document.chunks],
        allow=None if row.allow is None else tuple(row.allow),
    )


def _read_failures(connection: sa.Connection) -> Iterator[tuple[int, Failure]]:
    """The readable rows of `failures`, with the id of their source."""
    try:
        for row in connection.execute(sa.select(failures)):
            yield row.source_id, Failure(row.path, row.stage, row.error, row.revision, row.recipe, row.attempts)
    except READ_ERRORS:
        return
