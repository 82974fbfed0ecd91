"""Salvage: a new collection with every intact document of a damaged one.

A document is intact if its row, text, chunks, vectors, images and access groups can be read and match what was
committed. Nothing is embedded. The next ingest of their sources adds the other documents again.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from ragfm.core.durable_files import new_folder, storage_failure
from ragfm.core.errors import CollectionError, CollectionNotFound, DamagedCollectionError, UnsupportedError
from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.core.types import Chunk, Document, Mark
from ragfm.maintenance.copy import relocate
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
    try:
        with new_folder(out) as folder:
            with open_connection(store.folder) as connection:
                CatalogWriter.create(SqliteDatabase(folder), LiveDocuments(connection).generation.contract)
                writer = CatalogWriter(SqliteDatabase(folder))
                try:
                    saved = _save_documents(
                        connection, writer, (store.folder.parent, out.parent), progress or ignore_progress
                    )
                finally:
                    writer.close()
            copy_uploads(store.folder, folder)
            # Nobody may see an upload whose record is damaged.
            UploadFolder(folder).copy_records(UploadFolder(store.folder))
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
    new = Store(SqliteDatabase(out), store.settings, None)
    with new.writing() as catalog:
        relocate_uploads(catalog, out)
        new.save_view(catalog)
    new.close()
    return SalvageReport(str(out), *saved, round(time.monotonic() - start, 3))


def _save_documents(
    connection: sa.Connection, writer: CatalogWriter, parents: tuple[Path, Path], progress: ProgressCallback
) -> tuple[int, int, tuple[LostDocument, ...]]:
    """Write the intact documents. Returns the number of documents and of chunks, and the documents that are lost.

    `parents` are the parent folders of the damaged collection and of the new one.
    """
    live = LiveDocuments(connection)
    sources = {}
    for source_id, source in sorted(live.sources.items()):
        location, root = relocate(source.location, *parents), relocate(source.root, *parents)
        sources[source_id] = writer.save_source(replace(source, location=location, root=root))
    batch, batch_source, vectors = list[NewDocument](), Source("", "", "", ""), dict[bytes, bytes]()
    lost, documents, chunks, total = list[LostDocument](), 0, 0, live.count()

    def flush() -> None:
        nonlocal documents, chunks
        if missing := sorted(vectors.keys() - writer.known_hashes(1, vectors)):
            rows = [np.frombuffer(vectors[key], dtype="<f4") for key in missing]
            writer.add_vectors(1, missing, np.stack(rows))
        if batch:
            writer.commit(batch_source, batch, [])
        documents += len(batch)
        chunks += sum(len(new.chunks) for new in batch)
        batch.clear()
        vectors.clear()

    for number, (document_id, uri) in enumerate(live, 1):
        document = live.read(document_id)
        if isinstance(document, Discrepancy):
            lost.append(LostDocument(uri, str(document)))
        elif damage := [*document.damage, *document.groups]:  # tags follow from the metadata
            lost.append(LostDocument(uri, str(damage[0])))
        else:
            source = sources[document.row.source_id]
            full = len(batch) >= _MAX_BATCH_DOCUMENTS or sum(new.size for new in batch) >= _MAX_BATCH_SIZE
            if source is not batch_source or full:
                flush()
            batch_source = source
            batch.append(_new_document(document))
            vectors |= document.vectors
        progress(Progress("salvage", number, max(total, number)))
    flush()
    with suppress(*READ_ERRORS):  # the failures that can be read
        for row in connection.execute(sa.select(failures)):
            if row.source_id in sources:
                failure = Failure(row.path, row.stage, row.error, row.revision, row.recipe, row.attempts)
                writer.note(sources[row.source_id].id, failed=[failure])
    return documents, chunks, tuple(lost)


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
