"""Reads live documents with everything that belongs to them, and checks it against its hashes and counts.

Everything is read on one connection in one transaction, so it is of one generation. `LiveDocuments` also reads a
damaged database: it skips rows on damaged pages, and reads tables directly if an index is damaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import sqlalchemy as sa

from ragfm.core.types import embedded_text, image_key
from ragfm.store.catalog import Generation, Source, read_generation
from ragfm.store.document_rows import allowed_groups, tag_row
from ragfm.store.tables import chunks, documents, groups, images, sources, tags, text_hash, vectors

_RANGE = 4096  # rowids per query of a table scan
_MAX_NORM_ERROR = 2e-3
_MAX_EXCERPT = 200  # characters of a list of tags in a message
_rowid: sa.ColumnElement[int] = sa.literal_column("rowid", sa.Integer)
_LIVE_CHUNKS = sa.select(chunks).where(chunks.c.died.is_(None))
_DOCUMENT = sa.select(documents).where(documents.c.id == sa.bindparam("id"))
_IMAGE = sa.select(images.c.data).where(images.c.hash == sa.bindparam("key"))
_VECTORS_OF_DOCUMENT = (
    sa.select(vectors.c.text_hash, vectors.c.vector, vectors.c.checksum)
    .join(chunks, chunks.c.text_hash == vectors.c.text_hash)
    .where(
        chunks.c.document_id == sa.bindparam("id"),
        chunks.c.died.is_(None),
        vectors.c.contract_id == sa.bindparam("contract"),
    )
)
_VECTOR = sa.select(vectors.c.vector, vectors.c.checksum).where(
    vectors.c.contract_id == sa.bindparam("contract"), vectors.c.text_hash == sa.bindparam("key")
)
_VECTOR_BY_ROWID = sa.select(vectors.c.vector, vectors.c.checksum).where(_rowid == sa.bindparam("rowid"))
_TAGS = sa.select(tags).where(tags.c.document_id == sa.bindparam("id"))
_GROUPS = sa.select(groups.c.name).where(groups.c.document_id == sa.bindparam("id"))

READ_ERRORS = (sa.exc.DatabaseError, ValueError)
"""Errors of reading a damaged row: SQLite's, or a value that is not valid JSON."""


class Discrepancy(NamedTuple):
    """A value that differs from the committed one."""

    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.what}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document's row, its live chunks ordered by id, its vectors by hash of the embedded text, and its images.

    `damage` concerns text, chunks, vectors and images. `tags` and `groups` concern its rows in these tables, which
    follow from its metadata, its source and the connector's rules.
    """

    row: Any
    chunks: Sequence[Any]
    vectors: Mapping[bytes, bytes]
    images: Mapping[str, bytes]
    damage: Sequence[Discrepancy]
    tags: Sequence[Discrepancy]
    groups: Sequence[Discrepancy]


def newest_generation(connection: sa.Connection) -> Generation:
    """The newest generation in this transaction. Raises DatabaseError or ValueError if it cannot be read."""
    newest = read_generation(connection)
    if newest is None:
        raise ValueError("no generation has a contract")
    return newest


class LiveDocuments:
    """The live documents in a connection's transaction. With `vectors=False`, vectors are not read."""

    def __init__(self, connection: sa.Connection, *, vectors: bool = True) -> None:
        self._connection = connection
        self._with_vectors = vectors
        self.generation = newest_generation(connection)
        self._dim = int(self.generation.contract["dim"])

    @cached_property
    def sources(self) -> dict[int, Source]:
        """The readable sources that were not removed, by id."""
        result = {}
        for source_id, _ in self._scan(sources, sources.c.id):
            query = sa.select(sources).where(sources.c.id == source_id, sources.c.removed.is_(False))
            try:
                row = self._connection.execute(query).one_or_none()
                if row is not None:
                    result[source_id] = Source.from_row(row)
            except READ_ERRORS:
                continue
        return result

    def __iter__(self) -> Iterator[tuple[int, str | None]]:
        """Id and uri of each document, ordered by id. The uri is None if neither row nor index can be read."""
        columns = (documents.c.uri, documents.c.died)
        for document_id, row in self._scan(documents, documents.c.id, *columns):
            if row is None:
                uris, complete = self._indexed_uris
                if document_id in uris or not complete:
                    yield document_id, uris.get(document_id)
            elif row.died is None:
                yield document_id, row.uri

    def count(self) -> int:
        """The number of documents, 0 if it cannot be read."""
        try:
            query = sa.select(sa.func.count()).select_from(documents).where(documents.c.died.is_(None))
            return int(self._connection.execute(query).scalar_one())
        except READ_ERRORS:
            return 0

    def read(self, document_id: int) -> StoredDocument | Discrepancy:
        """A document with everything that belongs to it, or a discrepancy if it cannot be read."""
        try:
            with self._savepoint():
                return self._read(document_id)
        except READ_ERRORS as error:
            if getattr(error, "connection_invalidated", False):  # the server is gone, not the document
                raise
            return Discrepancy(f"document {document_id}", "readable", str(getattr(error, "orig", error)))

    def _read(self, document_id: int) -> StoredDocument | Discrepancy:
        row = self._connection.execute(_DOCUMENT, {"id": document_id}).one_or_none()
        if row is None:
            return Discrepancy(f"document {document_id}", "there", "missing")
        source = self.sources.get(row.source_id)
        if source is None:
            return Discrepancy(f"the source of {row.uri}", "readable", "missing or damaged")
        chunk_rows = self._chunks_of(document_id)
        stored = self._vectors_of(document_id, chunk_rows) if self._with_vectors else {}
        wrong_tags, wrong_groups, damage = list[Discrepancy](), list[Discrepancy](), list[Discrepancy]()
        stored_tags = {(tag.key, tag.text, tag.number) for tag in self._connection.execute(_TAGS, {"id": row.id})}
        tag_rows = (tag_row(row.id, key, value) for key, value in row.metadata.items())
        expected_tags = {(tag["key"], tag["text"], tag["number"]) for tag in tag_rows}
        if stored_tags != expected_tags:
            tag_lists = (str(sorted(tags, key=str))[:_MAX_EXCERPT] for tags in (expected_tags, stored_tags))
            wrong_tags.append(Discrepancy(f"the tags of {row.uri}", *tag_lists))
        names = allowed_groups(source.allow, row.allow)
        stored_groups = set(self._connection.execute(_GROUPS, {"id": row.id}).scalars())
        if bool(row.restricted) != (names is not None) or stored_groups != set(names or ()):
            expected_groups = "everybody" if names is None else str(names)
            found_groups = str(sorted(stored_groups)) if row.restricted else "everybody"
            wrong_groups.append(Discrepancy(f"the access groups of {row.uri}", expected_groups, found_groups))
        uri, actual = row.uri, text_hash(row.text)
        if actual != row.text_hash:
            damage.append(Discrepancy(f"the hash of the text of {uri}", row.text_hash.hex(), actual.hex()))
        if len(row.text) != row.characters:
            length = f"{row.characters} characters"
            damage.append(Discrepancy(f"the length of the text of {uri}", length, f"{len(row.text)}"))
        if len(chunk_rows) != row.chunk_count:
            damage.append(Discrepancy(f"the chunks of {uri}", str(row.chunk_count), str(len(chunk_rows))))
        for chunk in chunk_rows:
            key = text_hash(embedded_text(chunk.context, row.text[chunk.start : chunk.end]))
            if key != chunk.text_hash:
                what = f"the hash of chunk {chunk.id} of {uri}"
                damage.append(Discrepancy(what, chunk.text_hash.hex(), key.hex()))
        for chunk in chunk_rows if self._with_vectors else ():
            what = f"the vector of chunk {chunk.id} of {uri}"
            if chunk.text_hash not in stored:
                damage.append(Discrepancy(what, "there", "missing"))
                continue
            for part, expected, found in check_vector(*stored[chunk.text_hash], self._dim):
                damage.append(Discrepancy(f"{part} of {what}", expected, found))
        stored_images: dict[str, bytes] = {}
        for key in dict.fromkeys(chunk.image for chunk in chunk_rows if chunk.image):
            data = self._connection.execute(_IMAGE, {"key": key}).scalar()
            stored_images[key] = data or b""
            damage += check_image(key, data, f"the image {key} of {uri}")
        stored_vectors = {key: vector for key, (vector, _) in stored.items()}
        return StoredDocument(row, chunk_rows, stored_vectors, stored_images, damage, wrong_tags, wrong_groups)

    def _savepoint(self) -> AbstractContextManager[Any]:
        """Limit what a failed statement undoes: on PostgreSQL, it would end the whole transaction."""
        return self._connection.begin_nested() if self._connection.dialect.name == "postgresql" else nullcontext()

    def _chunks_of(self, document_id: int) -> list[Any]:
        try:
            query = _LIVE_CHUNKS.where(chunks.c.document_id == document_id)
            rows = list(self._connection.execute(query).all())
        except sa.exc.DatabaseError:  # the index may be damaged
            rows = []
            for chunk_id in self._scanned_chunk_ids.get(document_id, []):
                row = self._connection.execute(_LIVE_CHUNKS.where(chunks.c.id == chunk_id)).one_or_none()
                if row is not None:
                    rows.append(row)
        return sorted(rows, key=lambda row: int(row.id))

    def _vectors_of(self, document_id: int, chunk_rows: Sequence[Any]) -> dict[bytes, tuple[bytes, int]]:
        """Vectors and their checksums by hash of the embedded text."""
        contract = self.generation.contract_id
        try:
            rows = self._connection.execute(_VECTORS_OF_DOCUMENT, {"id": document_id, "contract": contract})
            return {key: (vector, checksum) for key, vector, checksum in rows}
        except sa.exc.DatabaseError:
            result = {}
            for key in {chunk.text_hash for chunk in chunk_rows}:
                with suppress(sa.exc.DatabaseError):
                    try:
                        row = self._connection.execute(_VECTOR, {"contract": contract, "key": key}).one_or_none()
                    except sa.exc.DatabaseError:
                        rowid = self._scanned_vector_rowids.get((contract, key))
                        row = self._connection.execute(_VECTOR_BY_ROWID, {"rowid": rowid}).one_or_none()
                    if row is not None:
                        result[key] = (row.vector, row.checksum)
            return result

    # --- Reading a damaged database ------------------------------------------------------------------------------

    def _scan(self, table: sa.Table, key: sa.ColumnElement[int], *columns: Any) -> Iterator[tuple[int, Any]]:
        """Rowids or ids and rows of a table, read without indexes; None for a row on a damaged page."""
        max_queries: list[sa.Select[Any]] = [sa.select(sa.func.max(key)).select_from(table)]
        if self._connection.dialect.name == "sqlite":  # it also has the highest id that a row ever had
            sequence = sa.table("sqlite_sequence", sa.column("name"), sa.column("seq", sa.Integer))
            max_queries.append(sa.select(sequence.c.seq).where(sequence.c.name == table.name))
        highest = 0
        for max_query in max_queries:
            with suppress(*READ_ERRORS), self._savepoint():
                highest = max(highest, int(self._connection.execute(max_query).scalar() or 0))
        query = sa.select(key.label("row_id"), *columns).select_from(table).order_by(key)
        query = query.where(key.between(sa.bindparam("low"), sa.bindparam("high")))
        pending = [(low, low + _RANGE - 1) for low in range(1, highest + 1, _RANGE)][::-1]
        while pending:
            low, high = pending.pop()
            try:
                with self._savepoint():
                    rows = self._connection.execute(query, {"low": low, "high": high}).all()
            except sa.exc.DatabaseError as error:
                if error.connection_invalidated:
                    raise
                middle = (low + high) // 2
                if low == high:
                    yield low, None
                else:
                    pending += [(middle + 1, high), (low, middle)]
                continue
            for row in rows:
                yield row.row_id, row

    @cached_property
    def _indexed_uris(self) -> tuple[Mapping[int, str], bool]:
        """Uris of live documents by id, from the index, and whether the index could be read to its end."""
        uris: dict[int, str] = {}
        query = sa.select(documents.c.uri, documents.c.id).where(documents.c.died.is_(None)).order_by(documents.c.uri)
        try:
            for uri, document_id in self._connection.execute(query.execution_options(yield_per=100)):
                uris[document_id] = uri  # noqa: PERF403  entries before an error are kept
        except READ_ERRORS:
            return uris, False
        return uris, True

    @cached_property
    def _scanned_chunk_ids(self) -> Mapping[int, list[int]]:
        """Ids of live chunks by document, without an index."""
        ids: dict[int, list[int]] = {}
        columns = (chunks.c.document_id, chunks.c.died)
        for chunk_id, row in self._scan(chunks, chunks.c.id, *columns):
            if row is not None and row.died is None:
                ids.setdefault(row.document_id, []).append(chunk_id)
        return ids

    @cached_property
    def _scanned_vector_rowids(self) -> Mapping[tuple[int, bytes], int]:
        """Rowids of vectors by contract and hash, without an index."""
        columns = (vectors.c.contract_id, vectors.c.text_hash, vectors.c.checksum)
        rows = self._scan(vectors, _rowid, *columns)
        return {(row.contract_id, row.text_hash): rowid for rowid, row in rows if row is not None}


def check_vector(vector: bytes, checksum: int, dim: int) -> Iterator[Discrepancy]:
    """Check a stored vector: its checksum, number of dimensions, and norm."""
    if crc32(vector) != checksum:
        yield Discrepancy("the checksum", str(checksum), str(crc32(vector)))
    elif len(vector) != 4 * dim:
        yield Discrepancy("the size", f"{dim} dimensions", f"{len(vector)} bytes")
    else:
        norm = float(np.linalg.norm(np.frombuffer(vector, dtype="<f4")))
        if not abs(norm - 1) <= _MAX_NORM_ERROR:  # also true for NaN
            yield Discrepancy("the length", "1", str(norm))


def check_image(key: str, data: bytes | None, what: str) -> Iterator[Discrepancy]:
    """Check a stored image: that it is there, and its hash."""
    if data is None:
        yield Discrepancy(what, "there", "missing")
    elif (actual := image_key(data)) != key:
        yield Discrepancy(f"the hash of {what}", key, actual)
