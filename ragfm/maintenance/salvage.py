"""Salvage: a new collection of every document of a damaged one that is whole.

Whole is a document whose row, text, chunks, vectors and access can be read and are as they were committed. Nothing is
embedded. What is left behind comes back with the next ingest of its source.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np
import sqlalchemy as sa

from ragfm.core.durable_files import beside, sync_folder
from ragfm.core.errors import CollectionError, CollectionNotFound, DamagedCollectionError
from ragfm.core.types import Chunk, Document, Mark
from ragfm.maintenance.integrity import UNREADABLE, LivingDocuments, WholeDocument, Wrong
from ragfm.maintenance.upload_files import copy_uploads, settle_uploads
from ragfm.store.catalog import Source
from ragfm.store.catalog_writer import CatalogWriter, Failure
from ragfm.store.collection_store import Store
from ragfm.store.database import FILE, open_engine
from ragfm.store.document_rows import NewDocument
from ragfm.store.tables import failures

__all__ = ["Left", "SalvageReport", "salvage"]

_BATCH, _CHARACTERS = 200, 4_000_000  # documents, and characters of them, that are committed at once


@dataclass(frozen=True, slots=True)
class Left:
    """A document that was left behind, and why. `uri` is None where it can't be read."""

    uri: str | None
    why: str


@dataclass(frozen=True, slots=True)
class SalvageReport:
    """What was saved to where, and what was left behind."""

    path: str
    documents: int
    chunks: int
    left: tuple[Left, ...]
    seconds: float


def salvage(store: Store, out: Path, progress: Callable[[int, int], None] | None = None) -> SalvageReport:
    """Save what is whole into a new collection `out`.

    Raises CollectionError where `out` is there already, DamagedCollectionError where nothing can be saved.
    """
    start = time.monotonic()
    if not (store.folder / FILE).exists():
        raise CollectionNotFound(f"There is no {store.folder / FILE} to save anything from.", "Restore a backup.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CollectionError(f"{out} is there already.", "Name a folder that isn't.")
    temporary = beside(out)
    engine = open_engine(store.folder, writable=False)
    try:
        with engine.connect() as connection:
            living = LivingDocuments(connection)
            temporary.mkdir(parents=True)
            saved = _Salvage(living, temporary, store.folder.parent, out.parent)
            saved.run(connection, progress)
        copy_uploads(store.folder, temporary)
        temporary.rename(out)
        sync_folder(out.parent)
    except UNREADABLE as error:
        raise DamagedCollectionError(
            f"Nothing of {store.folder / FILE} can be saved: {getattr(error, 'orig', error)}.",
            "Restore it from a backup, or ingest its sources anew.",
        ) from error
    except OSError as error:
        raise CollectionError(f"{out} can't be made: {error.strerror}.", "Mend the cause and run it again.") from error
    finally:
        engine.dispose()
        shutil.rmtree(temporary, ignore_errors=True)
    new = Store(out, store.settings, None)
    with new.writing() as catalog:
        settle_uploads(catalog, out)
        new.save_view(catalog)
    new.close()
    return SalvageReport(str(out), saved.documents, saved.chunks, tuple(saved.left), round(time.monotonic() - start, 3))


class _Salvage:
    def __init__(self, living: LivingDocuments, folder: Path, old_parent: Path, new_parent: Path) -> None:
        self._living = living
        self._folder = folder
        self._parents = old_parent, new_parent
        self._waiting: list[NewDocument] = []
        self._vectors: dict[bytes, bytes] = {}
        self.documents = self.chunks = 0
        self.left: list[Left] = []

    def run(self, connection: sa.Connection, progress: Callable[[int, int], None] | None) -> None:
        """Read all documents and write those that are whole."""
        CatalogWriter.create(self._folder, self._living.generation.contract)
        writer = CatalogWriter(self._folder)
        try:
            sources = {
                at: writer.save_source(self._rebased(source)) for at, source in sorted(self._living.sources.items())
            }
            total, source = self._living.count(), Source("", "", "", "")
            for number, (document_id, uri) in enumerate(self._living, 1):
                found = self._living.read(document_id)
                if isinstance(found, Wrong) or found.wrong or found.stray:
                    self.left.append(Left(uri, _why(found)))
                else:
                    if sources[found.row.source_id] is not source or self._full:
                        self._flush(writer, source)
                    source = sources[found.row.source_id]
                    self._waiting.append(_new(found))
                    self._vectors |= found.vectors
                if progress is not None:
                    progress(number, max(total, number))
            self._flush(writer, source)
            for source_id, failed in _failures(connection):
                if source_id in sources:
                    writer.note(sources[source_id].id, failed=[failed])
        finally:
            writer.close()

    @property
    def _full(self) -> bool:
        characters = sum(len(new.document.text) for new in self._waiting)
        return len(self._waiting) >= _BATCH or characters >= _CHARACTERS

    def _flush(self, writer: CatalogWriter, source: Source) -> None:
        missing = sorted(self._vectors.keys() - writer.known_hashes(1, self._vectors))
        if missing:
            rows = [np.frombuffer(self._vectors[key], dtype="<f4") for key in missing]
            writer.add_vectors(1, missing, np.stack(rows))
        if self._waiting:
            writer.commit(source, self._waiting, [])
        self.documents += len(self._waiting)
        self.chunks += sum(len(new.chunks) for new in self._waiting)
        self._waiting, self._vectors = [], {}

    def _rebased(self, source: Source) -> Source:
        """A source whose place is relative to where the new collection lies."""
        return replace(source, location=self._moved(source.location), root=self._moved(source.root))

    def _moved(self, location: str) -> str:
        if "://" in location:
            return location
        old, new = self._parents
        path = PurePath(os.path.normpath(old / location))
        return path.relative_to(new).as_posix() if path.is_relative_to(new) else str(path)


def _new(found: WholeDocument) -> NewDocument:
    row = found.row
    marks = tuple(Mark(*mark) for mark in row.marks or ())
    chunks = [
        Chunk(
            text=row.text[span.start : span.end],
            start=span.start,
            end=span.end,
            context=span.context,
            page=span.page,
            place=span.place,
            headings=tuple(span.headings),
        )
        for span in found.chunks
    ]
    return NewDocument(
        path=row.path,
        revision=row.revision,
        digest=row.digest,
        recipe=row.recipe,
        document=Document(row.uri, row.text, row.media_type, row.metadata, marks),
        chunks=chunks,
        hashes=[span.text_hash for span in found.chunks],
        allow=None if row.allow is None else tuple(row.allow),
    )


def _why(found: WholeDocument | Wrong) -> str:
    wrong: Sequence[Wrong] = [found] if isinstance(found, Wrong) else [*found.wrong, *found.stray]
    return f"{wrong[0].what}: expected {wrong[0].expected}, found {wrong[0].found}"


def _failures(connection: sa.Connection) -> Iterator[tuple[int, Failure]]:
    """What could not be brought in, as far as it can be read."""
    try:
        for row in connection.execute(sa.select(failures)):
            failed = Failure(row.path, row.stage, row.error, row.revision, row.recipe, row.attempts)
            yield row.source_id, failed
    except UNREADABLE:
        return
