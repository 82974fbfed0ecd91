"""Writing to the catalog: one commit, one generation, acknowledged when it is durable."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ragfm.catalog import Catalog, Source
from ragfm.database import FILE, HEAD, batches, open_engine, read_head, write_head
from ragfm.errors import CollectionError, CollectionReadOnlyError
from ragfm.schema import (
    SCHEMA,
    SCHEMA_VERSION,
    as_number,
    chunks,
    contracts,
    documents,
    failures,
    generations,
    groups,
    properties,
    sources,
    tags,
    vectors,
)

if TYPE_CHECKING:
    from ragfm.types import Chunk, Document, Scalar, Vectors


@dataclass(frozen=True, slots=True)
class NewDocument:
    """A document version to commit: where it came from, what it is, and its chunks with their hashes."""

    path: str
    revision: str
    digest: str
    recipe: str
    document: Document
    chunks: Sequence[Chunk]
    hashes: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Failure:
    """A document that could not be brought in, at which stage (list, fetch, parse, embed), and why."""

    path: str
    stage: str
    error: str
    revision: str = ""
    attempts: int = 1


def text_hash(embedded_text: str) -> bytes:
    """The key under which a text's vector is kept. 16 bytes."""
    return blake2b(embedded_text.encode(), digest_size=16).digest()


class CatalogWriter(Catalog):
    """The catalog as the one process that holds the collection's lock sees it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, writable=True)
        self._mend_head()

    @classmethod
    def create(cls, folder: Path, contract: Mapping[str, Scalar]) -> None:
        """Make an empty catalog, at generation 0, in an existing folder."""
        engine = open_engine(folder, writable=True, create=True)
        digest = blake2b(digest_size=16).hexdigest()
        try:
            SCHEMA.create_all(engine)
            with engine.begin() as connection:
                stored = [
                    {"key": "schema", "value": str(SCHEMA_VERSION)},
                    {"key": "collection", "value": uuid.uuid4().hex},
                ]
                connection.execute(properties.insert(), stored)
                connection.execute(contracts.insert().values(id=1, fingerprint=dict(contract)))
                connection.execute(generations.insert().values(id=0, digest=digest, contract_id=1, created=_now()))
        finally:
            engine.dispose()
        write_head(folder, 0, digest)

    def save_source(self, source: Source) -> Source:
        """Insert or update a source by its name; gives it back with its id.

        Another `allow` holds for its documents at once, older versions included, before any of them is looked at.
        """
        values = {
            "connector": source.connector,
            "location": source.location,
            "root": source.root,
            "options": dict(source.options),
            "tags": dict(source.tags),
            "allow": list(source.allow),
        }
        with self._write() as connection:
            known = connection.execute(sa.select(sources).where(sources.c.name == source.name)).one_or_none()
            if known is None:
                inserted = connection.execute(sources.insert().values(name=source.name, **values)).inserted_primary_key
                assert inserted is not None
                return replace(source, id=int(inserted[0]))
            connection.execute(sources.update().where(sources.c.id == known.id).values(**values))
            if set(known.allow) != set(source.allow):
                _allow(connection, known.id, source.allow)
        return replace(source, id=int(known.id))

    def add_vectors(self, contract_id: int, hashes: Sequence[bytes], matrix: Vectors) -> None:
        """Keep the vectors of embedded texts; durable at once, so that an interrupted sync embeds nothing twice."""
        rows = [
            {"contract_id": contract_id, "text_hash": key, "vector": row.tobytes()}
            for key, row in zip(hashes, matrix.astype("<f4", copy=False), strict=True)
        ]
        with self._write() as connection:
            connection.execute(vectors.insert(), rows)

    def commit(self, source: Source, added: Sequence[NewDocument], removed: Sequence[str]) -> int:
        """One generation: documents of a source that come, replacing older versions, and paths that go.

        When it returns, the commit is durable. Gives the new generation.
        """
        with self._write() as connection:
            last = connection.execute(sa.select(generations).order_by(generations.c.id.desc()).limit(1)).one()
            generation = last.id + 1
            chain = blake2b(last.digest.encode(), digest_size=16)
            ended = [*removed, *(new.path for new in added)]
            _end_documents(connection, source.id, ended, generation)
            chain.update(json.dumps(["-", source.name, ended]).encode())
            for new in added:
                _insert_document(connection, source, new, generation)
                chain.update(json.dumps(["+", new.document.uri, new.digest, new.recipe, len(new.chunks)]).encode())
            self._clear_failures(connection, source.id, ended)
            connection.execute(
                generations.insert().values(
                    id=generation, digest=chain.hexdigest(), contract_id=last.contract_id, created=_now()
                )
            )
        write_head(self.folder, generation, chain.hexdigest())
        return int(generation)

    def note(
        self,
        source_id: int,
        *,
        revisions: Mapping[str, str] | None = None,
        failed: Sequence[Failure] = (),
        cleared: Sequence[str] = (),
    ) -> None:
        """Keep what changes no content: revisions of documents found equal, failures, and failures that ended."""
        with self._write() as connection:
            for path, revision in (revisions or {}).items():
                this = (documents.c.source_id == source_id, documents.c.path == path, documents.c.died.is_(None))
                connection.execute(documents.update().where(*this).values(revision=revision))
            self._clear_failures(connection, source_id, [*cleared, *(failure.path for failure in failed)])
            for failure in failed:
                connection.execute(
                    failures.insert().values(
                        source_id=source_id,
                        path=failure.path,
                        stage=failure.stage,
                        error=failure.error,
                        revision=failure.revision,
                        attempts=failure.attempts,
                        at=_now(),
                    )
                )

    def _mend_head(self) -> None:
        """Acknowledge a commit whose writer was killed before it could: readers have seen it since."""
        newest, digest = self.generation(), self.generation_digest(self.generation())
        if digest is not None and newest > read_head(self.folder)["generation"]:
            write_head(self.folder, newest, digest)
        for left in self.folder.glob(f"{HEAD}.*.new"):
            left.unlink(missing_ok=True)

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.IntegrityError as error:
            raise CollectionError(
                f"Two sources have a document of the same address ({error.orig}).", "Give one of them another --name."
            ) from error
        except sa.exc.OperationalError as error:
            if "readonly" in str(error.orig):
                raise CollectionReadOnlyError(f"The collection {self.folder} is read-only.") from error
            raise CollectionError(
                f"Writing to {self.folder / FILE} failed: {error.orig}. What was committed before is intact.",
                "Mend the cause and run it again.",
            ) from error

    @staticmethod
    def _clear_failures(connection: sa.Connection, source_id: int, paths: Sequence[str]) -> None:
        for part in batches(list(paths)):
            connection.execute(failures.delete().where(failures.c.source_id == source_id, failures.c.path.in_(part)))


def _end_documents(connection: sa.Connection, source_id: int, paths: Sequence[str], generation: int) -> None:
    for part in batches(list(paths)):
        these = (documents.c.source_id == source_id, documents.c.path.in_(part))
        connection.execute(documents.update().where(*these, documents.c.died.is_(None)).values(died=generation))
        ended = sa.select(documents.c.id).where(*these, documents.c.died == generation)
        connection.execute(chunks.update().where(chunks.c.document_id.in_(ended)).values(died=generation))


def _allow(connection: sa.Connection, source_id: int, names: Sequence[str]) -> None:
    """Open the documents of a source to these groups alone, or to all where there are none."""
    these = sa.select(documents.c.id).where(documents.c.source_id == source_id)
    connection.execute(documents.update().where(documents.c.source_id == source_id).values(restricted=bool(names)))
    connection.execute(groups.delete().where(groups.c.document_id.in_(these)))
    for name in names:
        row = sa.select(documents.c.id, sa.literal(name)).where(documents.c.source_id == source_id)
        connection.execute(groups.insert().from_select(["document_id", "name"], row))


def _insert_document(connection: sa.Connection, source: Source, new: NewDocument, generation: int) -> None:
    document = new.document
    metadata = {**document.metadata, **source.tags}
    inserted = connection.execute(
        documents.insert().values(
            source_id=source.id,
            path=new.path,
            uri=document.uri,
            revision=new.revision,
            media_type=document.media_type,
            metadata=metadata,
            text=document.text,
            digest=new.digest,
            recipe=new.recipe,
            characters=len(document.text),
            chunk_count=len(new.chunks),
            restricted=bool(source.allow),
            born=generation,
        )
    ).inserted_primary_key
    assert inserted is not None
    document_id = inserted[0]
    if metadata:
        connection.execute(tags.insert(), [_tag(document_id, key, value) for key, value in metadata.items()])
    if source.allow:
        connection.execute(groups.insert(), [{"document_id": document_id, "name": name} for name in source.allow])
    rows = [
        {
            "document_id": document_id,
            "start": chunk.start,
            "end": chunk.end,
            "page": chunk.page,
            "place": chunk.place,
            "headings": list(chunk.headings),
            "context": chunk.context,
            "text_hash": key,
            "born": generation,
        }
        for chunk, key in zip(new.chunks, new.hashes, strict=True)
    ]
    if rows:
        connection.execute(chunks.insert(), rows)


def _tag(document_id: int, key: str, value: Scalar) -> dict[str, Any]:
    text = json.dumps(value) if isinstance(value, bool) else str(value)
    return {"document_id": document_id, "key": key, "text": text, "number": as_number(text)}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
