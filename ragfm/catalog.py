"""The catalog: the log of a collection and its only truth, in one SQL database.

Every commit is a generation. Document and chunk rows say in which generation they came (`born`) and went (`died`,
NULL while they live), so a reader sees the collection as of any generation G: born <= G and not died <= G.

    HEAD            (generation, digest) that the last acknowledged commit reached, written and fsynced after the
                    database's own commit. SQLite drops a damaged tail of its write-ahead log in silence; a HEAD that
                    is ahead of the database gives that away.
    catalog.sqlite  sources, documents with their text, chunks as spans of it, vectors keyed by (contract, hash of
                    the embedded text), failures, contracts, generations.

`generations.digest` is a chain over all changes, so equal digests mean equal histories.
"""

from __future__ import annotations

import json
import os
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import sqlalchemy as sa

from ragfm.durable import checksummed, read_checksummed, write_durably
from ragfm.errors import CollectionError, CollectionReadOnlyError, DamagedCollectionError
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
    from ragfm.types import Chunk, Document, Ids, Scalar, Vectors

FILE = "catalog.sqlite"
HEAD = "HEAD"
_ROWS = 500  # per IN (...) list; SQLite's oldest limit is 999 variables


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


@dataclass(frozen=True, slots=True)
class Source:
    """Where documents come from.

    `location` is what the connector is made from, `root` what it covers (a glob's fixed part); both are relative to
    the collection's parent folder where possible. `options` go to the connector.
    """

    name: str
    connector: str
    location: str
    root: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, Scalar] = field(default_factory=dict)
    allow: tuple[str, ...] = ()
    id: int = 0


def text_hash(embedded_text: str) -> bytes:
    """The key under which a text's vector is kept. 16 bytes."""
    return blake2b(embedded_text.encode(), digest_size=16).digest()


class Catalog:
    """One open database. Any number may read; who writes holds the collection's lock."""

    def __init__(self, folder: Path, *, writable: bool = False) -> None:
        self.folder = folder
        self._engine = _engine(folder, writable=writable)
        try:
            self._check()
        except sa.exc.DatabaseError as error:
            self.close()
            raise DamagedCollectionError(
                f"The catalog {folder / FILE} can't be read: {error.orig}.", "Restore it from a backup."
            ) from error
        except DamagedCollectionError:
            self.close()
            raise

    @classmethod
    def create(cls, folder: Path, contract: Mapping[str, Scalar]) -> None:
        """Make an empty catalog, at generation 0, in an existing folder."""
        engine = _engine(folder, writable=True, create=True)
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
        _write_head(folder, 0, digest)

    def close(self) -> None:
        """Close all connections; the last writer's close folds the write-ahead log into the database."""
        self._engine.dispose()

    # --- Reading -------------------------------------------------------------------------------------------------

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A read transaction: all statements in it see one state of the database."""
        with self._engine.begin() as connection:
            yield connection

    def generation(self) -> int:
        """The newest generation."""
        with self.read() as connection:
            return int(connection.execute(sa.select(sa.func.max(generations.c.id))).scalar_one())

    def generation_digest(self, generation: int) -> str | None:
        """The digest of the history up to a generation, None where there is no such generation."""
        with self.read() as connection:
            query = sa.select(generations.c.digest).where(generations.c.id == generation)
            return connection.execute(query).scalar_one_or_none()

    def contract(self) -> tuple[int, dict[str, Scalar]]:
        """Id and fingerprint of the embedding contract of the newest generation."""
        query = (
            sa.select(contracts.c.id, contracts.c.fingerprint)
            .join(generations, generations.c.contract_id == contracts.c.id)
            .order_by(generations.c.id.desc())
            .limit(1)
        )
        with self.read() as connection:
            row = connection.execute(query).one()
        return int(row.id), dict(row.fingerprint)

    def sources(self) -> list[Source]:
        """All sources, in the order of their first ingest."""
        with self.read() as connection:
            rows = connection.execute(sa.select(sources).order_by(sources.c.id)).all()
        return [
            Source(row.name, row.connector, row.location, row.root, row.options, row.tags, tuple(row.allow), row.id)
            for row in rows
        ]

    def failures(self, source_id: int | None = None) -> list[Any]:
        """What could not be brought in, with the source's name and whether an older version still serves."""
        stale = sa.exists().where(
            documents.c.source_id == failures.c.source_id,
            documents.c.path == failures.c.path,
            documents.c.died.is_(None),
        )
        query = (
            sa.select(failures, sources.c.name.label("source"), stale.label("stale"))
            .join(sources, sources.c.id == failures.c.source_id)
            .order_by(failures.c.source_id, failures.c.path)
        )
        if source_id is not None:
            query = query.where(failures.c.source_id == source_id)
        with self.read() as connection:
            return list(connection.execute(query).all())

    def current(self, source_id: int) -> dict[str, Any]:
        """The living documents of a source by path, with uri, revision, digest and recipe."""
        columns = (documents.c.path, documents.c.uri, documents.c.revision, documents.c.digest, documents.c.recipe)
        query = sa.select(*columns).where(documents.c.source_id == source_id, documents.c.died.is_(None))
        with self.read() as connection:
            return {row.path: row for row in connection.execute(query)}

    def known_hashes(self, contract_id: int, hashes: Iterable[bytes]) -> set[bytes]:
        """Those of the hashes that have a vector under the contract."""
        known: set[bytes] = set()
        with self.read() as connection:
            for part in _batches(list(hashes)):
                query = sa.select(vectors.c.text_hash).where(
                    vectors.c.contract_id == contract_id, vectors.c.text_hash.in_(part)
                )
                known.update(connection.execute(query).scalars())
        return known

    def chunk_vectors(self, contract_id: int, dim: int, generation: int, born_after: int = -1) -> tuple[Ids, Vectors]:
        """Ids and vectors of the chunks that live at a generation and came after another.

        *Shape:* (n,), and (n, dim). Raises DamagedCollectionError where a chunk's vector is missing.
        """
        joined = chunks.outerjoin(
            vectors, sa.and_(vectors.c.text_hash == chunks.c.text_hash, vectors.c.contract_id == contract_id)
        )
        query = (
            sa.select(chunks.c.id, vectors.c.vector)
            .select_from(joined)
            .where(alive(chunks, generation), chunks.c.born > born_after)
            .order_by(chunks.c.id)
        )
        with self.read() as connection:
            rows = connection.execute(query).all()
        bad = next((row.id for row in rows if row.vector is None or len(row.vector) != 4 * dim), None)
        if bad is not None:
            raise DamagedCollectionError(
                f"Chunk {bad} in {self.folder / FILE} has no vector of {dim} numbers.", "Restore it from a backup."
            )
        ids = np.array([row.id for row in rows], dtype=np.int64)
        matrix = np.frombuffer(b"".join(row.vector for row in rows), dtype="<f4").reshape(len(rows), dim)
        return ids, matrix.astype(np.float32, copy=False)

    def chunk_ids(self, generation: int, *conditions: sa.ColumnElement[bool], born_up_to: int | None = None) -> Ids:
        """Ids of the chunks that live at a generation and whose documents meet the conditions, ascending."""
        query = sa.select(chunks.c.id).where(alive(chunks, generation)).order_by(chunks.c.id)
        if conditions:
            query = query.join(documents, documents.c.id == chunks.c.document_id).where(*conditions)
        if born_up_to is not None:
            query = query.where(chunks.c.born <= born_up_to)
        with self.read() as connection:
            return np.fromiter(connection.execute(query).scalars(), dtype=np.int64)

    def has_deaths(self, after: int, up_to: int) -> bool:
        """Whether a chunk born up to generation `after` died in (after, up_to]."""
        query = sa.select(sa.exists().where(chunks.c.born <= after, chunks.c.died > after, chunks.c.died <= up_to))
        with self.read() as connection:
            return bool(connection.execute(query).scalar_one())

    def chunk_rows(self, ids: Sequence[int]) -> dict[int, Any]:
        """Chunks by id, with the uri of their documents and their text."""
        text = sa.func.substr(documents.c.text, chunks.c.start + 1, chunks.c.end - chunks.c.start).label("text")
        columns = (
            chunks.c.id,
            chunks.c.start,
            chunks.c.end,
            chunks.c.page,
            chunks.c.place,
            chunks.c.headings,
            chunks.c.context,
            documents.c.uri,
            text,
        )
        rows: dict[int, Any] = {}
        with self.read() as connection:
            for part in _batches(list(ids)):
                query = sa.select(*columns).join(documents, documents.c.id == chunks.c.document_id)
                rows |= {row.id: row for row in connection.execute(query.where(chunks.c.id.in_(part)))}
        return rows

    def documents(self, generation: int, *conditions: sa.ColumnElement[bool]) -> list[Any]:
        """The documents that live at a generation and meet the conditions, in order of uri."""
        columns = [column for column in documents.c if column.name != "text"]
        query = (
            sa.select(*columns, sources.c.name.label("source"), sa.func.length(documents.c.text).label("characters"))
            .join(sources, sources.c.id == documents.c.source_id)
            .where(alive(documents, generation), *conditions)
            .order_by(documents.c.uri)
        )
        with self.read() as connection:
            return list(connection.execute(query).all())

    def document_text(self, document_id: int) -> str:
        """The text of a document version."""
        with self.read() as connection:
            query = sa.select(documents.c.text).where(documents.c.id == document_id)
            return str(connection.execute(query).scalar_one())

    # --- Writing -------------------------------------------------------------------------------------------------

    def save_source(self, source: Source) -> Source:
        """Insert or update a source by its name; gives it back with its id."""
        values = {
            "connector": source.connector,
            "location": source.location,
            "root": source.root,
            "options": dict(source.options),
            "tags": dict(source.tags),
            "allow": list(source.allow),
        }
        with self._write() as connection:
            known = sa.select(sources.c.id).where(sources.c.name == source.name)
            source_id = connection.execute(known).scalar_one_or_none()
            if source_id is None:
                inserted = connection.execute(sources.insert().values(name=source.name, **values)).inserted_primary_key
                assert inserted is not None
                source_id = inserted[0]
            else:
                connection.execute(sources.update().where(sources.c.id == source_id).values(**values))
        return replace(source, id=int(source_id))

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
            for path in [*removed, *(new.path for new in added)]:
                _end_document(connection, source.id, path, generation)
                chain.update(json.dumps(["-", source.name, path]).encode())
            for new in added:
                _insert_document(connection, source, new, generation)
                chain.update(json.dumps(["+", new.document.uri, new.digest, new.recipe, len(new.chunks)]).encode())
            self._clear_failures(connection, source.id, [*removed, *(new.path for new in added)])
            connection.execute(
                generations.insert().values(
                    id=generation, digest=chain.hexdigest(), contract_id=last.contract_id, created=_now()
                )
            )
        _write_head(self.folder, generation, chain.hexdigest())
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

    # --- Inside --------------------------------------------------------------------------------------------------

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
        for part in _batches(list(paths)):
            connection.execute(failures.delete().where(failures.c.source_id == source_id, failures.c.path.in_(part)))

    def _check(self) -> None:
        # HEAD is read first: a commit that lands in between only makes the catalog newer.
        head = _read_head(self.folder)
        with self.read() as connection:
            stored = connection.execute(sa.select(properties.c.key, properties.c.value)).all()
            schema = {row.key: row.value for row in stored}.get("schema")
            newest = connection.execute(sa.select(sa.func.max(generations.c.id))).scalar_one()
            query = sa.select(generations.c.digest).where(generations.c.id == head["generation"])
            digest = connection.execute(query).scalar_one_or_none()
        if schema != str(SCHEMA_VERSION):
            raise DamagedCollectionError(
                f"{self.folder} has schema {schema}, this ragfm reads {SCHEMA_VERSION}.", "Use the ragfm that wrote it."
            )
        if digest != head["digest"]:
            raise DamagedCollectionError(
                f"The catalog {self.folder / FILE} is at generation {newest}, but generation {head['generation']} "
                f"(digest {head['digest']}) was acknowledged: commits were lost.",
                "Restore it from a backup, or remove the folder and ingest again.",
            )


def alive(table: sa.Table, generation: int) -> sa.ColumnElement[bool]:
    """Rows of documents or chunks that live at a generation."""
    return sa.and_(table.c.born <= generation, sa.or_(table.c.died.is_(None), table.c.died > generation))


def _end_document(connection: sa.Connection, source_id: int, path: str, generation: int) -> None:
    this = (documents.c.source_id == source_id, documents.c.path == path, documents.c.died.is_(None))
    ids = list(connection.execute(sa.select(documents.c.id).where(*this)).scalars())
    connection.execute(documents.update().where(documents.c.id.in_(ids)).values(died=generation))
    connection.execute(chunks.update().where(chunks.c.document_id.in_(ids)).values(died=generation))


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
            chunk_count=len(new.chunks),
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


def _engine(folder: Path, *, writable: bool, create: bool = False) -> sa.Engine:
    name = quote(str((folder / FILE).absolute()))
    if create:
        mode = "rwc"
    elif writable or os.access(folder, os.W_OK):
        mode = "rw"  # readers too: SQLite needs its shared-memory file beside the database; see query_only below
    elif (folder / f"{FILE}-shm").exists():
        mode = "ro"
    else:
        mode = "ro&immutable=1"  # nobody can write there, and no log is left to read

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(f"file:{name}?mode={mode}", uri=True, check_same_thread=False, timeout=30)
        connection.isolation_level = None  # SQLAlchemy begins and commits, see below
        if create:
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        if not writable:
            connection.execute("PRAGMA query_only=ON")
        return connection

    engine = sa.create_engine("sqlite+pysqlite://", creator=connect, poolclass=sa.pool.QueuePool)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # Python's sqlite3 would begin only at the first write, so that two reads could see two states.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writable else "BEGIN")

    return engine


def _write_head(folder: Path, generation: int, digest: str) -> None:
    write_durably(folder / HEAD, checksummed({"generation": generation, "digest": digest}))


def _read_head(folder: Path) -> dict[str, Any]:
    try:
        return read_checksummed(folder / HEAD)
    except (OSError, ValueError) as error:
        raise DamagedCollectionError(
            f"{folder / HEAD}, which says what was acknowledged, can't be read: {error}.", "Restore it from a backup."
        ) from error


def _batches(values: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), _ROWS):
        yield values[start : start + _ROWS]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
