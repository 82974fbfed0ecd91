"""The catalog: the source of truth of a collection, in one SQL database.

Every commit is a generation. Rows of documents and chunks record the generation in which they were `born` and the one
in which they `died` (NULL while they live). A row is visible at generation G if born <= G, and died > G or is NULL.

    HEAD            generation and digest of the last acknowledged commit, written and fsynced after the database's own
                    commit. SQLite silently drops a damaged end of its write-ahead log; then HEAD is ahead of the
                    database, and the loss is noticed.
    catalog.db      sources, documents with their text, chunks as spans of that text, vectors by contract and hash of
                    the embedded text, failures, embedding contracts, generations

`generations.digest` is a hash chain over all changes: equal digests mean equal histories.

Dead rows stay until compaction, which raises the `floor` to a generation G and then deletes the rows that died by G.
A reader of an older generation compares it with the floor after reading; below the floor, rows may be missing.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from unicodedata import normalize
from zlib import crc32

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from ragfm.core.errors import CollectionError, DamagedCollectionError, LostCommitError
from ragfm.core.text import check_characters
from ragfm.core.types import Ids, ImagePart, Mark, Scalar, Vectors, embedded_text, image_key
from ragfm.store.display_names import DisplayNames
from ragfm.store.tables import (
    SCHEMA_VERSION,
    chunks,
    contracts,
    documents,
    failures,
    generations,
    images,
    properties,
    sources,
    text_hash,
    vectors,
)

if TYPE_CHECKING:
    from ragfm.store.database import Database

_MAX_IN_VALUES = 500  # per IN (...) list; the oldest limit of SQLite is 999 variables


@dataclass(frozen=True, slots=True)
class Source:
    """Where documents come from.

    The connector is built from `location` and `options`. `root` is the folder or address that the source covers (the
    fixed part of a glob). Both are relative to the collection's parent folder if possible.
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
    def from_row(cls, row: Any) -> Source:
        """The source in a row of the table `sources`."""
        return cls(row.name, row.connector, row.location, row.root, row.options, row.tags, tuple(row.allow), row.id)


class StaleReadError(Exception):
    """Another process replaced or compacted what was being read. Repeat the read on the newest generation."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One state of the collection: digest of its history, embedding contract, and number of live chunks."""

    id: int
    digest: str
    contract_id: int
    contract: Mapping[str, Any]
    chunks: int


class Catalog:
    """An open catalog, for reading; see `catalog_writer.CatalogWriter` for writing. Thread-safe."""

    def __init__(self, database: Database, *, writable: bool = False) -> None:
        """Open the catalog. Raises DamagedCollectionError, also if it is behind HEAD, or CollectionError."""
        self.database = database
        self._engine = database.open_engine(writable=writable)
        self._by_id = _IN_ARRAY if self._engine.dialect.name == "postgresql" else _IN_JSON
        self._groups: frozenset[str] | None = None  # to which `restricted_to` restricts the rows
        try:
            # HEAD is read first: a commit in between only makes the catalog newer.
            head = database.read_head()
            with self.read() as connection:
                schema = read_property(connection, "schema")
                newest = connection.execute(_NEWEST).one()
                is_lost = head is not None and _is_lost(connection, head["generation"], head["digest"])
            if schema != str(SCHEMA_VERSION):
                is_newer = schema is not None and schema.isdecimal() and int(schema) > SCHEMA_VERSION
                raise CollectionError(
                    f"The collection '{database.location}' has schema {schema}, but this ragfm reads schema "
                    f"{SCHEMA_VERSION}.",
                    "Use a newer ragfm." if is_newer else "Ingest its sources into a new collection.",
                )
            if head is not None and is_lost:
                raise self._loss(newest.id, head["generation"], head["digest"])
            database.saw(newest.id, newest.digest)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all connections. With SQLite, the last one merges the write-ahead log into the database."""
        self._engine.dispose()

    def restricted_to(self, groups: frozenset[str]) -> Catalog:
        """The catalog without the rows of documents that none of the groups may see, if the database can hide them.

        Queries still need the condition of `filters.visible_to`: SQLite hides nothing. Shares the connections.
        """
        restricted = copy.copy(self)
        restricted._groups = groups  # noqa: SLF001  its own class
        return restricted

    @contextmanager
    def driver(self) -> Iterator[Any]:
        """A connection of the database driver, outside of any transaction."""
        connection = self._engine.raw_connection()
        try:
            yield connection
        finally:
            connection.close()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A read transaction: all its statements see the same state. Raises DamagedCollectionError, CollectionError."""
        with self._read_errors(), self._engine.begin() as connection:
            if self._groups is not None:
                self.database.restrict(connection, self._groups)
            yield connection

    def _rows(self, query: sa.Select[Any], **parameters: Any) -> Sequence[Any]:
        """The rows of one query, which is built once. Raises what `read` raises."""
        with self._read_errors():
            return self.database.fetch(self._engine, query, parameters, self._groups)

    @contextmanager
    def _read_errors(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DatabaseError as error:
            raise self.database.read_error(error) from error
        except json.JSONDecodeError as error:  # a zeroed page at the end of a long row
            raise self.damage_error(f"a value is not valid JSON ({error})") from error
        except UnicodeEncodeError as error:
            check_characters("name", error.object)
            raise

    def damage_error(self, damage: str) -> DamagedCollectionError:
        """The error to raise for damage of the catalog."""
        return self.database.damage_error(damage)

    # --- Generations, sources, failures --------------------------------------------------------------------------

    def generation(self) -> int:
        """The number of the newest generation. Raises what `at` raises."""
        seen = self.database.seen
        (newest,) = self._rows(_NEWEST)
        if seen != (newest.id, newest.digest):
            with self.read() as connection:
                self._follow(connection, seen, newest.id, newest.digest)
        return int(newest.id)

    def at(self, generation: int | None = None) -> Generation:
        """A generation, by default the newest. Raises StaleReadError if compaction has deleted it.

        Raises DamagedCollectionError if the database no longer has a generation that this process has seen.
        """
        seen = self.database.seen  # before the read: what others see meanwhile may be newer
        with self.read() as connection:
            found = read_generation(connection, generation)
            if found is not None and generation is None:
                self._follow(connection, seen, found.id, found.digest)
        if found is None:
            raise StaleReadError
        return found

    def _follow(self, connection: sa.Connection, seen: tuple[int, str] | None, generation: int, digest: str) -> None:
        """Check that the newest generation continues the history that this process has seen, and remember it."""
        if seen == (generation, digest):
            return
        if seen is not None and _is_lost(connection, *seen):
            if self.database.replaced(connection):
                raise StaleReadError
            raise self._loss(generation, *seen)
        self.database.saw(generation, digest)

    def _loss(self, newest: int, acknowledged: int, digest: str) -> DamagedCollectionError:
        return DamagedCollectionError(
            f"The catalog '{self.database.name}' is at generation {newest}, but generation {acknowledged} "
            f"(digest {digest}) was acknowledged: commits were lost.",
            self.database.loss_hint,
        )

    def has(self, generation: int, digest: str) -> bool:
        """Whether the history has this generation; False if the database has not received it yet.

        Raises LostCommitError if another commit has its place, and what `at` raises.
        """
        newest = self.at()
        if newest.id < generation:
            return False
        with self.read() as connection:
            is_lost = _is_lost(connection, generation, digest)
        if is_lost:
            loss = self._loss(newest.id, generation, digest)
            raise LostCommitError(loss.message, loss.hint)
        return True

    def collection_id(self) -> str:
        """The id that the collection got when it was created."""
        with self.read() as connection:
            return str(read_property(connection, "collection"))

    def floor(self) -> int:
        """The oldest generation that is complete."""
        with self.read() as connection:
            return int(read_property(connection, "floor"))

    def sources(self) -> list[Source]:
        """All sources, in the order of their first ingest."""
        with self.read() as connection:
            query = sa.select(sources).where(sources.c.removed.is_(False)).order_by(sources.c.id)
            rows = connection.execute(query).all()
        return [Source.from_row(row) for row in rows]

    def display_names(self) -> DisplayNames:
        """The display names of the documents."""
        return _display_names(frozenset(row.name for row in self._rows(_SOURCE_NAMES)))

    def failures(self, source_id: int | None = None) -> list[Any]:
        """Rows of `failures`, with the name of the `source` and whether an older version still serves (`stale`)."""
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

    # --- Documents -----------------------------------------------------------------------------------------------

    def current(self, source_id: int) -> dict[str, Any]:
        """The live documents of a source by path, with uri, media type, revision, digest, recipe, allow."""
        columns = [documents.c[name] for name in ("path", "uri", "media_type", "revision", "digest", "recipe", "allow")]
        query = sa.select(*columns).where(documents.c.source_id == source_id, documents.c.died.is_(None))
        with self.read() as connection:
            return {row.path: row for row in connection.execute(query)}

    def documents(
        self, generation: int | None, *conditions: sa.ColumnElement[bool], limit: int | None = None
    ) -> list[Any]:
        """The documents at a generation that meet the conditions, ordered by uri, without text and marks.

        `generation=None` means the newest, the only generation with an index on uri. Raises StaleReadError if the
        generation is below the floor.
        """
        columns = [column for column in documents.c if column.name not in ("text", "marks")]
        query = (
            sa.select(*columns, sources.c.name.label("source"), sources.c.root)
            .join(sources, sources.c.id == documents.c.source_id)
            .where(documents.c.died.is_(None) if generation is None else alive(documents, generation), *conditions)
            .order_by(documents.c.uri)
            .limit(limit)
        )
        with self.read() as connection:
            rows = list(connection.execute(query).all())
        if generation is not None and self.floor() > generation:
            raise StaleReadError
        return rows

    def named(self, name: str, *conditions: sa.ColumnElement[bool]) -> Any | None:
        """The live document with this uri, else the one with this display name, if it meets the conditions.

        Names are the same in both Unicode forms: macOS decomposes letters with accents, keyboards do not.
        """
        for uri in dict.fromkeys((name, self.display_names().uri_of(name))):
            for written in dict.fromkeys((uri, normalize("NFC", uri), normalize("NFD", uri))):
                for row in self.documents(None, documents.c.uri == written, *conditions):
                    return row
        return None

    def counts(self, generation: int, *conditions: sa.ColumnElement[bool]) -> dict[str, tuple[int, int]]:
        """Number of documents and of chunks at a generation that meet the conditions, by name of the source.

        Raises StaleReadError if the generation is below the floor.
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
            raise StaleReadError
        return {name: (document_count, int(chunk_count)) for name, document_count, chunk_count in rows}

    def recipes(self, source_id: int | None = None) -> list[tuple[str, str, int, int]]:
        """The recipes and media types of live documents, with the number of documents and of their chunks.

        They are those of one source or of all.
        """
        columns = (documents.c.recipe, documents.c.media_type)
        query = (
            sa.select(*columns, sa.func.count(), sa.func.coalesce(sa.func.sum(documents.c.chunk_count), 0))
            .where(documents.c.died.is_(None))
            .group_by(*columns)
        )
        if source_id is not None:
            query = query.where(documents.c.source_id == source_id)
        with self.read() as connection:
            return [(recipe, kind, count, int(chunks)) for recipe, kind, count, chunks in connection.execute(query)]

    def document(self, document_id: int) -> tuple[str, tuple[Mark, ...]]:
        """Text and marks of a document version.

        Raises DamagedCollectionError if the text does not match its hash, StaleReadError if the row is gone.
        """
        query = sa.select(documents.c.uri, documents.c.text, documents.c.text_hash, documents.c.marks)
        with self.read() as connection:
            row = connection.execute(query.where(documents.c.id == document_id)).one_or_none()
        if row is None:
            raise StaleReadError
        if text_hash(row.text) != row.text_hash:
            raise self.damage_error(f"the text of {row.uri!r} does not match its hash")
        return row.text, tuple(map(Mark.from_list, row.marks))

    def image(self, key: str, generation: int, *conditions: sa.ColumnElement[bool]) -> ImagePart | None:
        """An image by its hash, if a document at a generation that meets the conditions has it in a chunk.

        Raises DamagedCollectionError if it does not match its hash.
        """
        with self.read() as connection:
            query = sa.select(images).where(images.c.hash == key, _in_a_chunk(generation, conditions))
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        if image_key(row.data) != key:
            raise self.damage_error(f"the image {key} does not match its hash")
        return ImagePart(row.data, row.media_type)

    def image_sizes(self, generation: int, *conditions: sa.ColumnElement[bool]) -> tuple[int, int]:
        """The number of images of the documents at a generation that meet the conditions, and their bytes."""
        size = sa.func.coalesce(sa.func.sum(sa.func.length(images.c.data)), 0)
        query = sa.select(sa.func.count(), size).where(_in_a_chunk(generation, conditions))
        with self.read() as connection:
            count, total = connection.execute(query).one()
        return count, int(total)

    # --- Chunks and vectors --------------------------------------------------------------------------------------

    def chunk_ids(self, generation: int, *conditions: sa.ColumnElement[bool]) -> Ids:
        """Ids of the chunks at a generation whose documents meet the conditions, ascending."""
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

    def chunk_rows(self, ids: Sequence[int]) -> dict[int, tuple[Any, str, str]]:
        """Chunks by id: each row, with data of its document, its text, and the document's text.

        Unknown ids are left out.
        Raises DamagedCollectionError if a text does not match its hash.
        """
        rows = self._rows(self._by_id.chunks, ids=list(ids))
        if self._by_id is _IN_ARRAY:
            texts = {row.document_id: row.document_text for row in rows if row.document_text is not None}
        else:
            of_documents = self._rows(self._by_id.texts, ids=list({row.document_id for row in rows}))
            texts = {row.id: row.text for row in of_documents}
        result = {}
        for row in rows:
            if row.document_id not in texts:  # compaction has deleted it since, or access rights have changed
                continue
            document = texts[row.document_id]
            text = document[row.start : row.end]
            if text_hash(embedded_text(row.context, text)) != row.text_hash:
                raise self.damage_error(f"the text of chunk {row.id} of {row.uri!r} does not match its hash")
            result[row.id] = (row, text, document)
        return result

    def documents_of(self, ids: Ids) -> tuple[Ids, list[str]]:
        """The id of each chunk's document, and the chunk's context; -1 and "" for unknown chunks. *Shape:* (n,)."""
        rows = {row.id: row for row in self._rows(self._by_id.documents, ids=ids.tolist())}
        found = [rows.get(chunk_id) for chunk_id in ids.tolist()]
        documents = np.array([-1 if row is None else row.document_id for row in found], dtype=np.int64)
        return documents, ["" if row is None else row.context for row in found]

    def neighbours(self, generation: int, chunk_id: int) -> list[int]:
        """The ids of the chunks before and after one in its document, at a generation; fewer at its ends."""
        start, document = (
            sa.select(column).where(chunks.c.id == chunk_id).scalar_subquery()
            for column in (chunks.c.start, chunks.c.document_id)
        )
        query = sa.select(chunks.c.id).where(chunks.c.document_id == document, alive(chunks, generation)).limit(1)
        with self.read() as connection:
            before = connection.scalar(query.where(chunks.c.start < start).order_by(chunks.c.start.desc()))
            after = connection.scalar(query.where(chunks.c.start > start).order_by(chunks.c.start))
        return [found for found in (before, after) if found is not None]

    def chunks_within(self, generation: int, chunk_id: int, start: int, end: int) -> list[int]:
        """The ids of the chunks that overlap a span of a chunk's document, at a generation, in order."""
        document = sa.select(chunks.c.document_id).where(chunks.c.id == chunk_id).scalar_subquery()
        query = (
            sa.select(chunks.c.id)
            .where(chunks.c.document_id == document, alive(chunks, generation))
            .where(chunks.c.start < end, chunks.c.end > start)
            .order_by(chunks.c.start)
        )
        with self.read() as connection:
            return list(connection.execute(query).scalars())

    def chunk_texts(self, ids: Ids) -> Iterator[str]:
        """The indexed text (context and text) of each chunk, in the order of the ids; read in batches.

        Raises StaleReadError if compaction has deleted one of them.
        """
        for batch in batches(ids.tolist()):
            rows = self.chunk_rows(batch)
            if len(rows) < len(batch):
                raise StaleReadError
            for chunk_id in batch:
                row, text, _ = rows[chunk_id]
                yield embedded_text(row.context, text)

    def known_hashes(self, contract_id: int, hashes: Iterable[bytes]) -> set[bytes]:
        """The hashes that have a vector under the contract."""
        known: set[bytes] = set()
        with self.read() as connection:
            for batch in batches(list(hashes)):
                query = sa.select(vectors.c.text_hash).where(
                    vectors.c.contract_id == contract_id, vectors.c.text_hash.in_(batch)
                )
                known.update(connection.execute(query).scalars())
        return known

    def chunk_vectors(self, generation: Generation, *, born_after: int = -1) -> tuple[Ids, Vectors]:
        """Ids and vectors of the chunks at a generation that were born after generation `born_after`.

        *Shape:* (n,), (n, dim). Raises DamagedCollectionError if a vector is missing or damaged.
        """
        conditions = [alive(chunks, generation.id)]
        if born_after >= 0:  # without it SQLite scans in order of id, instead of sorting rows with their vectors
            conditions.append(chunks.c.born > born_after)
        with self.read() as connection:
            count = connection.execute(sa.select(sa.func.count()).select_from(chunks).where(*conditions)).scalar_one()
            query = _vector_query(generation.contract_id).where(*conditions).order_by(chunks.c.id)
            # Streamed, so that the vectors are never all in memory as Python objects.
            rows = connection.execute(query.execution_options(yield_per=1000))
            return self._to_arrays(generation, count, rows)

    def vectors_of(self, generation: Generation, ids: Sequence[int]) -> tuple[Ids, Vectors]:
        """Ids and vectors of these chunks, ordered by id. Unknown ids are left out."""
        rows = self._rows(self._by_id.vectors, contract_id=generation.contract_id, ids=list(ids))
        return self._to_arrays(generation, len(rows), sorted(rows))

    def _to_arrays(self, generation: Generation, count: int, rows: Iterable[Any]) -> tuple[Ids, Vectors]:
        dim = int(generation.contract["dim"])
        ids, matrix = np.empty(count, dtype=np.int64), np.empty((count, dim), dtype=np.float32)
        for index, (chunk_id, vector, checksum) in enumerate(rows):
            if vector is None or len(vector) != 4 * dim or crc32(vector) != checksum:
                raise self.damage_error(f"chunk {chunk_id} has no vector of {dim} numbers with checksum {checksum}")
            ids[index] = chunk_id
            matrix[index] = np.frombuffer(vector, dtype="<f4")
        return ids, matrix


def read_property(connection: sa.Connection, key: str) -> Any:
    """The value in the table `properties`, as text; None if there is none."""
    return connection.execute(sa.select(properties.c.value).where(properties.c.key == key)).scalar()


def set_property(connection: sa.Connection, key: str, value: str | None) -> None:
    """Set a value in the table `properties`; with None, delete it."""
    connection.execute(properties.delete().where(properties.c.key == key))
    if value is not None:
        connection.execute(properties.insert().values(key=key, value=value))


def read_generation(connection: sa.Connection, generation: int | None = None) -> Generation | None:
    """A generation, by default the newest; None if there is none."""
    query = sa.select(generations, contracts.c.fingerprint).join(contracts).order_by(generations.c.id.desc()).limit(1)
    if generation is not None:
        query = query.where(generations.c.id == generation)
    row = connection.execute(query).one_or_none()
    return None if row is None else Generation(row.id, row.digest, row.contract_id, row.fingerprint, row.chunks)


def _is_lost(connection: sa.Connection, generation: int, digest: str) -> bool:
    """Whether the history has another commit, or none, in the place of a generation that was acknowledged."""
    known = connection.scalar(sa.select(generations.c.digest).where(generations.c.id == generation))
    # Compaction deletes old generations. One that was read before the compaction may be one of them.
    compacted = known is None and generation < int(read_property(connection, "floor") or 0)
    return known != digest and not compacted


def alive(table: sa.Table, generation: int) -> sa.ColumnElement[bool]:
    """The condition that a row of documents or chunks is visible at a generation."""
    return sa.and_(table.c.born <= generation, sa.or_(table.c.died.is_(None), table.c.died > generation))


def _in_a_chunk(generation: int, conditions: Sequence[sa.ColumnElement[bool]]) -> sa.ColumnElement[bool]:
    """The condition that an image is in a chunk of a document at a generation that meets the conditions."""
    used = sa.exists().where(chunks.c.image == images.c.hash, alive(chunks, generation))
    return used.where(documents.c.id == chunks.c.document_id, *conditions)


def batches(values: list[Any]) -> Iterator[list[Any]]:
    """The values in batches that fit into an `IN (...)` list."""
    for start in range(0, len(values), _MAX_IN_VALUES):
        yield values[start : start + _MAX_IN_VALUES]


_display_names = lru_cache(16)(DisplayNames)


def _vector_query(contract_id: int | sa.BindParameter[int]) -> sa.Select[Any]:
    match = sa.and_(vectors.c.text_hash == chunks.c.text_hash, vectors.c.contract_id == contract_id)
    return sa.select(chunks.c.id, vectors.c.vector, vectors.c.checksum).select_from(chunks.outerjoin(vectors, match))


# Queries of every search, built once: building one takes as long as running it.
_NEWEST = sa.select(generations.c.id, generations.c.digest).order_by(generations.c.id.desc()).limit(1)
_SOURCE_NAMES = sa.select(sources.c.name).where(sources.c.removed.is_(False))


class _ById:
    """Queries of rows by `ids`. `among` gives the condition that a column is one of them.

    The text of a document, which may have millions of characters, is read once for all its chunks: by the query
    `texts`, or in the first of their rows as `document_text`.
    """

    def __init__(
        self, among: Callable[[sa.Column[int]], sa.ColumnElement[bool]], *document_text: sa.ColumnElement[Any]
    ) -> None:
        self.vectors = _vector_query(sa.bindparam("contract_id")).where(among(chunks.c.id))
        self.documents = sa.select(chunks.c.id, chunks.c.document_id, chunks.c.context).where(among(chunks.c.id))
        self.chunks = (
            sa.select(
                *chunks.c,
                documents.c.uri,
                documents.c.media_type,
                documents.c.metadata["parsed_by"].as_string().label("parsed_by"),
                *document_text,
            )
            .join_from(chunks, documents, documents.c.id == chunks.c.document_id)
            .where(among(chunks.c.id))
        )
        self.texts = sa.select(documents.c.id, documents.c.text).where(among(documents.c.id))


# One parameter instead of one for each id: the same statement for any number of them, which is prepared once.
_IN_JSON = _ById(
    lambda column: column.in_(
        sa.select(sa.func.json_each(sa.bindparam("ids", type_=sa.JSON)).table_valued("value").c.value)
    )
)
# PostgreSQL sorts long texts by reference; SQLite would copy them for each chunk.
_IN_ARRAY = _ById(
    lambda column: column == sa.any_(sa.bindparam("ids", type_=ARRAY(sa.BigInteger))),
    sa.case(
        (sa.func.row_number().over(partition_by=documents.c.id, order_by=chunks.c.id) == 1, documents.c.text)
    ).label("document_text"),
)
