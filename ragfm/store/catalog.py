"""The catalog: the log of a collection and its only truth, in one SQL database.

Every commit is a generation. Document and chunk rows say in which generation they came (`born`) and went (`died`,
NULL while they live), so a reader sees the collection as of any generation G: born <= G and not died <= G.

    HEAD            (generation, digest) that the last acknowledged commit reached, written and fsynced after the
                    database's own commit. SQLite drops a damaged tail of its write-ahead log in silence; a HEAD that
                    is ahead of the database gives that away.
    catalog.db      sources, documents with their text, chunks as spans of it, vectors keyed by (contract, hash of
                    the embedded text), failures, contracts, generations.

`generations.digest` is a chain over all changes, so equal digests mean equal histories.

Rows that went stay until compaction, which raises the `floor` to a generation G and then deletes what had died by then.
Whoever has read at an older generation checks the floor afterwards: if it has passed him, what he read may lack rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import sqlalchemy as sa

from ragfm.core.errors import CollectionError, DamagedCollectionError
from ragfm.core.types import Mark, embedded_text
from ragfm.store.database import FILE, batches, open_engine, read_head, unreadable
from ragfm.store.tables import (
    SCHEMA_VERSION,
    chunks,
    contracts,
    documents,
    failures,
    generations,
    properties,
    sources,
    vectors,
)

if TYPE_CHECKING:
    from ragfm.core.types import Ids, Scalar, Vectors


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

    @classmethod
    def of(cls, row: Any) -> Source:
        """That of a row of the table `sources`."""
        return cls(row.name, row.connector, row.location, row.root, row.options, row.tags, tuple(row.allow), row.id)


class OvertakenError(Exception):
    """Another process has replaced or compacted what was being read; looking again finds the newer."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One state of the collection: the digest of its history, its embedding contract, and how many chunks it has."""

    id: int
    digest: str
    contract_id: int
    contract: Mapping[str, Any]
    chunks: int


def text_hash(text: str) -> bytes:
    """What a text is known by: the key of its vector, and the proof that it is whole. 16 bytes."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Catalog:
    """One open database, for reading; see `commit.CatalogWriter` for writing. Thread-safe."""

    def __init__(self, folder: Path, *, writable: bool = False) -> None:
        self.folder = folder
        self._engine = open_engine(folder, writable=writable)
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def driver(self) -> Iterator[Any]:
        """A connection of the database's own driver, outside of any transaction."""
        connection = self._engine.raw_connection()
        try:
            yield connection
        finally:
            connection.close()

    def close(self) -> None:
        """Close all connections; the last writer's close folds the write-ahead log into the database."""
        self._engine.dispose()

    # --- Reading -------------------------------------------------------------------------------------------------

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A read transaction: all statements in it see one state of the database.

        Raises DamagedCollectionError or CollectionError where it can't be read.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.DatabaseError as error:
            raise unreadable(self.folder, error) from error
        except json.JSONDecodeError as error:  # a zeroed page where the end of a long row was
            raise self.damaged(f"what should be JSON isn't ({error})") from error

    def generation(self) -> int:
        """The newest generation."""
        with self.read() as connection:
            return int(connection.execute(sa.select(sa.func.max(generations.c.id))).scalar_one())

    def at(self, generation: int | None = None) -> Generation:
        """A generation, else the newest. Raises OvertakenError where compaction has removed it."""
        query = sa.select(generations, contracts.c.fingerprint).join(contracts)
        if generation is not None:
            query = query.where(generations.c.id == generation)
        with self.read() as connection:
            row = connection.execute(query.order_by(generations.c.id.desc()).limit(1)).one_or_none()
        if row is None:
            raise OvertakenError
        return Generation(row.id, row.digest, row.contract_id, row.fingerprint, row.chunks)

    def newest(self, known: Generation) -> Generation:
        """The newest generation, which mostly is the one that is known."""
        return known if self.generation() == known.id else self.at()

    def floor(self) -> int:
        """The oldest generation that can be read whole."""
        with self.read() as connection:
            query = sa.select(properties.c.value).where(properties.c.key == "floor")
            return int(connection.execute(query).scalar_one())

    def sources(self) -> list[Source]:
        """All sources, in the order of their first ingest."""
        with self.read() as connection:
            query = sa.select(sources).where(sources.c.removed.is_(False)).order_by(sources.c.id)
            rows = connection.execute(query).all()
        return [Source.of(row) for row in rows]

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
        """The living documents of a source by path, with uri, revision, digest, recipe and allow."""
        columns = [documents.c[name] for name in ("path", "uri", "revision", "digest", "recipe", "allow")]
        query = sa.select(*columns).where(documents.c.source_id == source_id, documents.c.died.is_(None))
        with self.read() as connection:
            return {row.path: row for row in connection.execute(query)}

    def known_hashes(self, contract_id: int, hashes: Iterable[bytes]) -> set[bytes]:
        """Those of the hashes that have a vector under the contract."""
        known: set[bytes] = set()
        with self.read() as connection:
            for part in batches(list(hashes)):
                query = sa.select(vectors.c.text_hash).where(
                    vectors.c.contract_id == contract_id, vectors.c.text_hash.in_(part)
                )
                known.update(connection.execute(query).scalars())
        return known

    def chunk_vectors(self, generation: Generation, *, born_after: int = -1) -> tuple[Ids, Vectors]:
        """Ids and vectors of the chunks that live at a generation and came after another.

        *Shape:* (n,), and (n, dim). Raises DamagedCollectionError where a chunk's vector is missing or not whole.
        """
        wanted = [alive(chunks, generation.id)]
        if born_after >= 0:  # else all of them, which SQLite would look up by `born` and sort, vectors and all
            wanted.append(chunks.c.born > born_after)
        with self.read() as connection:
            count = connection.execute(sa.select(sa.func.count()).select_from(chunks).where(*wanted)).scalar_one()
            streaming = connection.execution_options(yield_per=1000)  # never all of them as Python objects
            return self._fill(
                generation,
                count,
                streaming.execute(_vectors(generation.contract_id).where(*wanted).order_by(chunks.c.id)),
            )

    def vectors_of(self, generation: Generation, ids: Sequence[int]) -> tuple[Ids, Vectors]:
        """Ids and vectors of these chunks, in order of id; ids that are not there are left out."""
        rows: list[Any] = []
        with self.read() as connection:
            for part in batches(list(ids)):
                rows += connection.execute(_VECTORS_OF, {"contract_id": generation.contract_id, "ids": part}).all()
        return self._fill(generation, len(rows), sorted(rows))

    def _fill(self, generation: Generation, count: int, rows: Iterable[Any]) -> tuple[Ids, Vectors]:
        dim = int(generation.contract["dim"])
        ids, matrix = np.empty(count, dtype=np.int64), np.empty((count, dim), dtype=np.float32)
        for place, (chunk_id, vector, checksum) in enumerate(rows):
            if vector is None or len(vector) != 4 * dim or crc32(vector) != checksum:
                raise self.damaged(f"chunk {chunk_id} has no vector of {dim} numbers with the checksum {checksum}")
            ids[place] = chunk_id
            matrix[place] = np.frombuffer(vector, dtype="<f4")
        return ids, matrix

    def chunk_ids(self, generation: int, *conditions: sa.ColumnElement[bool]) -> Ids:
        """Ids of the chunks that live at a generation and whose documents meet the conditions, ascending."""
        query = sa.select(chunks.c.id).where(alive(chunks, generation)).order_by(chunks.c.id)
        if conditions:
            query = query.join(documents, documents.c.id == chunks.c.document_id).where(*conditions)
        with self.read() as connection:
            return np.fromiter(connection.execute(query).scalars(), dtype=np.int64)

    def dead_ids(self, after: int, up_to: int, *, born_up_to: int | None = None) -> Ids:
        """Ids of the chunks that died in the generations (after, up_to]."""
        query = sa.select(chunks.c.id).where(chunks.c.died > after, chunks.c.died <= up_to)
        if born_up_to is not None:
            query = query.where(chunks.c.born <= born_up_to)
        with self.read() as connection:
            return np.fromiter(connection.execute(query).scalars(), dtype=np.int64)

    def chunk_rows(self, ids: Sequence[int]) -> dict[int, tuple[Any, str]]:
        """Chunks by id, each with its text, checked against its hash; the uri is that of its document.

        Raises DamagedCollectionError where the text is another than was committed. Ids that are not there are left out.
        """
        rows: list[Any] = []
        texts: dict[int, str] = {}
        with self.read() as connection:
            for part in batches(list(ids)):
                rows += connection.execute(_CHUNK_ROWS, {"ids": part})
            # A document's text is read once, however many of its chunks were found: it may have millions of characters.
            for part in batches(list({row.document_id for row in rows})):
                texts.update((row.id, row.text) for row in connection.execute(_TEXTS, {"ids": part}))
        found_rows = {}
        for row in rows:
            text = texts[row.document_id][row.start : row.end]
            if text_hash(embedded_text(row.context, text)) != row.text_hash:
                raise self.damaged(f"the text of chunk {row.id} of {row.uri!r} is not the one that was committed")
            found_rows[row.id] = (row, text)
        return found_rows

    def chunk_texts(self, ids: Ids) -> Iterator[str]:
        """What is indexed of these chunks, context and text, in their order; some are read ahead.

        Raises OvertakenError where compaction has removed one of them.
        """
        for part in batches(ids.tolist()):
            rows = self.chunk_rows(part)
            if len(rows) < len(part):
                raise OvertakenError
            for row, text in map(rows.__getitem__, part):
                yield embedded_text(row.context, text)

    def documents(
        self, generation: int | None, *conditions: sa.ColumnElement[bool], limit: int | None = None
    ) -> list[Any]:
        """The documents that live at a generation and meet the conditions, in order of uri; not their text and marks.

        None is the newest generation. It alone has an index by uri: one document is found without looking at all.

        Raises OvertakenError where compaction has passed the generation.
        """
        columns = [column for column in documents.c if column.name not in ("text", "marks")]
        query = (
            sa.select(*columns, sources.c.name.label("source"))
            .join(sources, sources.c.id == documents.c.source_id)
            .where(documents.c.died.is_(None) if generation is None else alive(documents, generation), *conditions)
            .order_by(documents.c.uri)
            .limit(limit)
        )
        with self.read() as connection:
            rows = list(connection.execute(query).all())
        if generation is not None and self.floor() > generation:
            raise OvertakenError
        return rows

    def counts(self, generation: int, *conditions: sa.ColumnElement[bool]) -> dict[str, tuple[int, int]]:
        """How many documents and chunks of each source live at a generation and meet the conditions, by its name.

        Raises OvertakenError where compaction has passed the generation.
        """
        query = (
            sa.select(sources.c.name, sa.func.count(), sa.func.sum(documents.c.chunk_count))
            .join_from(documents, sources, sources.c.id == documents.c.source_id)
            .where(alive(documents, generation), *conditions)
            .group_by(sources.c.name)
        )
        with self.read() as connection:
            rows = connection.execute(query).all()
        if self.floor() > generation:
            raise OvertakenError
        return {name: (count, int(total)) for name, count, total in rows}

    def document(self, document_id: int) -> tuple[str, tuple[Mark, ...] | None]:
        """Text and marks of a document version; no marks where an older ragfm wrote it.

        Raises DamagedCollectionError where the text is another than was committed, OvertakenError where it is gone.
        """
        query = sa.select(documents.c.uri, documents.c.text, documents.c.text_hash, documents.c.marks)
        with self.read() as connection:
            row = connection.execute(query.where(documents.c.id == document_id)).one_or_none()
        if row is None:
            raise OvertakenError
        if text_hash(row.text) != row.text_hash:
            raise self.damaged(f"the text of {row.uri!r} is not the one that was committed")
        return row.text, None if row.marks is None else tuple(Mark(*mark) for mark in row.marks)

    def damaged(self, what: str) -> DamagedCollectionError:
        """The error that says what in the catalog is not as it was committed."""
        return DamagedCollectionError(
            f"The catalog {self.folder / FILE} is damaged: {what}.",
            "Restore it from a backup, or save what can be read with `ragfm verify --salvage OUT`.",
        )

    # --- Inside --------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        # HEAD is read first: a commit that lands in between only makes the catalog newer.
        head = read_head(self.folder)
        with self.read() as connection:
            query = sa.select(properties.c.value).where(properties.c.key == "schema")
            schema = connection.execute(query).scalar_one_or_none()
            newest = connection.execute(sa.select(sa.func.max(generations.c.id))).scalar_one()
            query = sa.select(generations.c.digest).where(generations.c.id == head["generation"])
            digest = connection.execute(query).scalar_one_or_none()
            floor = connection.execute(sa.select(properties.c.value).where(properties.c.key == "floor")).scalar()
        if schema != str(SCHEMA_VERSION):
            raise CollectionError(
                f"{self.folder} has schema {schema}, this ragfm reads {SCHEMA_VERSION}.", "Use a newer ragfm."
            )
        # Compaction forgets generations; only one that was read before it began can be so old.
        if digest != head["digest"] and not (digest is None and head["generation"] < int(floor or 0)):
            raise DamagedCollectionError(
                f"The catalog {self.folder / FILE} is at generation {newest}, but generation {head['generation']} "
                f"(digest {head['digest']}) was acknowledged: commits were lost.",
                "Restore it from a backup, or remove the folder and ingest again.",
            )


def _vectors(contract_id: int | sa.BindParameter[int]) -> sa.Select[Any]:
    this = sa.and_(vectors.c.text_hash == chunks.c.text_hash, vectors.c.contract_id == contract_id)
    return sa.select(chunks.c.id, vectors.c.vector, vectors.c.checksum).select_from(chunks.outerjoin(vectors, this))


# Every search has these; made once, since making one takes as long as running it.
_IDS: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
_VECTORS_OF = _vectors(sa.bindparam("contract_id")).where(chunks.c.id.in_(_IDS))
_CHUNK_ROWS = (
    sa.select(chunks, documents.c.uri)
    .join(documents, documents.c.id == chunks.c.document_id)
    .where(chunks.c.id.in_(_IDS))
)
_TEXTS = sa.select(documents.c.id, documents.c.text).where(documents.c.id.in_(_IDS))


def alive(table: sa.Table, generation: int) -> sa.ColumnElement[bool]:
    """Rows of documents or chunks that live at a generation."""
    return sa.and_(table.c.born <= generation, sa.or_(table.c.died.is_(None), table.c.died > generation))
