"""Living documents read whole, with chunks and vectors, and everything that is not as it was committed.

All is read on one connection, in one transaction, so it is of one generation however long it takes. `LivingDocuments`
also reads a database with damaged pages: row by row, past what can't be read, without the indexes where these are what
is damaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import sqlalchemy as sa

from ragfm.core.types import embedded_text
from ragfm.store.catalog import Generation, Source, text_hash
from ragfm.store.document_rows import tag_row, visible_to
from ragfm.store.tables import chunks, contracts, documents, generations, groups, sources, tags, vectors

_RANGE = 4096  # rowids that are looked through at once
_rowid: sa.ColumnElement[int] = sa.literal_column("rowid", sa.Integer)
_DOCUMENT = sa.select(documents).where(documents.c.id == sa.bindparam("id"))
_SPANS = sa.select(chunks).where(chunks.c.document_id == sa.bindparam("id"), chunks.c.died.is_(None))
_CHUNK = sa.select(chunks).where(chunks.c.id == sa.bindparam("id"), chunks.c.died.is_(None))
_VECTOR = sa.select(vectors.c.vector, vectors.c.checksum).where(
    vectors.c.contract_id == sa.bindparam("contract"), vectors.c.text_hash == sa.bindparam("key")
)
_VECTOR_AT = sa.select(vectors.c.vector, vectors.c.checksum).where(_rowid == sa.bindparam("rowid"))
_VECTORS = (
    sa.select(vectors.c.text_hash, vectors.c.vector, vectors.c.checksum)
    .join(chunks, chunks.c.text_hash == vectors.c.text_hash)
    .where(
        chunks.c.document_id == sa.bindparam("id"),
        chunks.c.died.is_(None),
        vectors.c.contract_id == sa.bindparam("contract"),
    )
)
_TAGS = sa.select(tags).where(tags.c.document_id == sa.bindparam("id"))
_GROUPS = sa.select(groups.c.name).where(groups.c.document_id == sa.bindparam("id"))

UNREADABLE = (sa.exc.DatabaseError, ValueError)
"""What reading a damaged row raises: SQLite's error, or that of a text that is no JSON."""


class Wrong(NamedTuple):
    """Something that is not as it should be."""

    what: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class WholeDocument:
    """A document's row, its living chunks in order of id, its vectors by hash, and what is wrong with all of that.

    `stray` is what of its rows in `tags` and `groups` doesn't follow from its metadata and its source.
    """

    row: Any
    chunks: Sequence[Any]
    vectors: Mapping[bytes, bytes]
    wrong: Sequence[Wrong]
    stray: Sequence[Wrong]


def newest_generation(connection: sa.Connection) -> Generation:
    """The generation that the transaction sees. Raises DatabaseError or ValueError where it can't be read."""
    query = sa.select(generations, contracts.c.fingerprint).join(contracts)
    row = connection.execute(query.order_by(generations.c.id.desc()).limit(1)).one_or_none()
    if row is None:
        raise ValueError("no generation has a contract")
    return Generation(row.id, row.digest, row.contract_id, row.fingerprint, row.chunks)


class LivingDocuments:
    """The living documents that a connection's transaction sees. With `vectors=False`, these are not looked at."""

    def __init__(self, connection: sa.Connection, *, vectors: bool = True) -> None:
        self._connection = connection
        self._with_vectors = vectors
        self.generation = newest_generation(connection)
        self._dim = int(self.generation.contract["dim"])

    @cached_property
    def sources(self) -> dict[int, Source]:
        """Those sources that can be read, and were not removed, by id."""
        rows = self._ranges(sources, sources.c.id, [sa.select(sa.func.max(sources.c.id))])
        found = {}
        for at, _ in rows:
            try:
                query = sa.select(sources).where(sources.c.id == at, sources.c.removed.is_(False))
                row = self._connection.execute(query).one_or_none()
                if row is None:
                    continue
                found[at] = Source.of(row)
            except UNREADABLE:
                continue
        return found

    def __iter__(self) -> Iterator[tuple[int, str | None]]:
        """Id and uri of each, in order of id; no uri where the row can't be read and the index has none."""
        for at, row in self._ranges(documents, documents.c.id, _highest(documents), documents.c.uri, documents.c.died):
            if row is None:
                uris, complete = self._indexed
                if at in uris or not complete:
                    yield at, uris.get(at)
            elif row.died is None:
                yield at, row.uri

    def count(self) -> int:
        """How many there are; 0 where that can't be read."""
        try:
            query = sa.select(sa.func.count()).select_from(documents).where(documents.c.died.is_(None))
            return int(self._connection.execute(query).scalar_one())
        except UNREADABLE:
            return 0

    def read(self, document_id: int) -> WholeDocument | Wrong:
        """A document with all that belongs to it, else why it can't be read."""
        try:
            row = self._connection.execute(_DOCUMENT, {"id": document_id}).one()
            source = self.sources.get(row.source_id)
            if source is None:
                return Wrong(f"the source of {row.uri}", "readable", "it can't be read")
            spans = self._spans(document_id)
            found = self._vectors(document_id, spans) if self._with_vectors else {}
            stray = [*self._stray(row, source)]
            wrong = [*_wrong_text(row, spans)]
            if self._with_vectors:
                wrong += _wrong_vectors(row, spans, found, self._dim)
            return WholeDocument(row, spans, {key: vector for key, (vector, _) in found.items()}, wrong, stray)
        except UNREADABLE as error:
            return Wrong(f"document {document_id}", "readable", str(getattr(error, "orig", error)))

    def _spans(self, document_id: int) -> list[Any]:
        try:
            rows = list(self._connection.execute(_SPANS, {"id": document_id}).all())
        except sa.exc.DatabaseError:  # it may be the index that is damaged
            ids = self._chunk_ids.get(document_id, [])
            rows = [row for at in ids if (row := self._connection.execute(_CHUNK, {"id": at}).one_or_none())]
        return sorted(rows, key=lambda row: int(row.id))

    def _vectors(self, document_id: int, spans: Sequence[Any]) -> dict[bytes, tuple[bytes, int]]:
        contract = self.generation.contract_id
        try:
            rows = self._connection.execute(_VECTORS, {"id": document_id, "contract": contract})
            return {key: (vector, checksum) for key, vector, checksum in rows}
        except sa.exc.DatabaseError:
            return {
                key: row
                for key in {span.text_hash for span in spans}
                if (row := self._vector(contract, key)) is not None
            }

    def _vector(self, contract: int, key: bytes) -> tuple[bytes, int] | None:
        try:
            row = self._connection.execute(_VECTOR, {"contract": contract, "key": key}).one_or_none()
        except sa.exc.DatabaseError:
            try:
                at = self._vector_rows.get((contract, key))
                row = self._connection.execute(_VECTOR_AT, {"rowid": at}).one_or_none()
            except sa.exc.DatabaseError:
                return None
        return None if row is None else (row.vector, row.checksum)

    def _stray(self, row: Any, source: Source) -> Iterator[Wrong]:
        this = {"id": row.id}
        has = {(tag.key, tag.text, tag.number) for tag in self._connection.execute(_TAGS, this)}
        should = {
            (tag["key"], tag["text"], tag["number"]) for tag in (tag_row(0, *tag) for tag in row.metadata.items())
        }
        if has != should:
            yield Wrong(f"the tags of {row.uri}", _few(should), _few(has))
        names = visible_to(source.allow, row.allow)
        may = set(self._connection.execute(_GROUPS, this).scalars())
        if bool(row.restricted) != (names is not None) or may != set(names or ()):
            found = sorted(may) if row.restricted else "everybody"
            yield Wrong(f"who may see {row.uri}", str("everybody" if names is None else names), str(found))

    # --- Past damage ---------------------------------------------------------------------------------------------

    def _ranges(
        self, table: sa.Table, key: sa.ColumnElement[Any], highest: Sequence[sa.Select[Any]], *columns: Any
    ) -> Iterator[tuple[int, Any]]:
        """Rows of a table by rowid, read from the table itself; None for a rowid whose page can't be read."""
        query = sa.select(key.label("at"), *columns).select_from(table).order_by(key)
        query = query.where(key.between(sa.bindparam("low"), sa.bindparam("high")))
        for low in range(1, self._most(highest) + 1, _RANGE):
            yield from self._range(query, low, low + _RANGE - 1)

    def _range(self, query: sa.Select[Any], low: int, high: int) -> Iterator[tuple[int, Any]]:
        try:
            rows = self._connection.execute(query, {"low": low, "high": high}).all()
        except sa.exc.DatabaseError:
            if low == high:
                yield low, None
                return
            middle = (low + high) // 2
            yield from self._range(query, low, middle)
            yield from self._range(query, middle + 1, high)
            return
        for row in rows:
            yield row.at, row

    def _most(self, queries: Sequence[sa.Select[Any]]) -> int:
        """The highest rowid that one of several places knows of."""
        found = [0]
        for query in queries:
            try:
                found.append(int(self._connection.execute(query).scalar() or 0))
            except UNREADABLE:
                continue
        return max(found)

    @cached_property
    def _indexed(self) -> tuple[Mapping[int, str], bool]:
        """Ids and uris of the living as the index has them, and whether it could be read to its end."""
        found: dict[int, str] = {}
        query = sa.select(documents.c.uri, documents.c.id).where(documents.c.died.is_(None)).order_by(documents.c.uri)
        try:
            for uri, at in self._connection.execute(query.execution_options(yield_per=100)):
                found[at] = uri  # noqa: PERF403  what came before an error is kept
        except UNREADABLE:
            return found, False
        return found, True

    @cached_property
    def _chunk_ids(self) -> Mapping[int, list[int]]:
        found: dict[int, list[int]] = {}
        columns = (chunks.c.document_id, chunks.c.died)
        for at, row in self._ranges(chunks, chunks.c.id, _highest(chunks), *columns):
            if row is not None and row.died is None:
                found.setdefault(row.document_id, []).append(at)
        return found

    @cached_property
    def _vector_rows(self) -> Mapping[tuple[int, bytes], int]:
        columns = (vectors.c.contract_id, vectors.c.text_hash, vectors.c.checksum)
        highest = [sa.select(sa.func.max(_rowid)).select_from(vectors)]
        rows = self._ranges(vectors, _rowid, highest, *columns)
        return {(row.contract_id, row.text_hash): at for at, row in rows if row is not None}


def _highest(table: sa.Table) -> list[sa.Select[Any]]:
    given = sa.text("SELECT seq FROM sqlite_sequence WHERE name = :name").bindparams(name=table.name)
    return [sa.select(sa.func.max(table.c.id)), given.columns(sa.column("seq", sa.Integer))]  # type: ignore[list-item]


def _wrong_text(row: Any, spans: Sequence[Any]) -> Iterator[Wrong]:
    found = text_hash(row.text)
    if found != row.text_hash:
        yield Wrong(f"the hash of the text of {row.uri}", row.text_hash.hex(), found.hex())
    if len(row.text) != row.characters:
        yield Wrong(f"the length of the text of {row.uri}", f"{row.characters} characters", f"{len(row.text)}")
    if len(spans) != row.chunk_count:
        yield Wrong(f"the chunks of {row.uri}", str(row.chunk_count), str(len(spans)))
    for span in spans:
        text = row.text[span.start : span.end]
        key = text_hash(embedded_text(span.context, text))
        if key != span.text_hash:
            yield Wrong(f"the hash of chunk {span.id} of {row.uri}", span.text_hash.hex(), key.hex())


def _wrong_vectors(
    row: Any, spans: Sequence[Any], found: Mapping[bytes, tuple[bytes, int]], dim: int
) -> Iterator[Wrong]:
    for span in spans:
        if span.text_hash not in found:
            yield Wrong(f"the vector of chunk {span.id} of {row.uri}", "there", "missing")
            continue
        for what, expected, is_ in wrong_vector(*found[span.text_hash], dim):
            yield Wrong(f"{what} of the vector of chunk {span.id} of {row.uri}", expected, is_)


def wrong_vector(vector: bytes, checksum: int, dim: int) -> Iterator[Wrong]:
    """What is wrong with a stored vector: its checksum, its number of dimensions, its length."""
    if crc32(vector) != checksum:
        yield Wrong("the checksum", str(checksum), str(crc32(vector)))
    elif len(vector) != 4 * dim:
        yield Wrong("the size", f"{dim} dimensions", f"{len(vector)} bytes")
    elif not abs(float(np.linalg.norm(np.frombuffer(vector, dtype="<f4"))) - 1) <= 2e-3:  # so is NaN wrong
        yield Wrong("the length", "1", str(float(np.linalg.norm(np.frombuffer(vector, dtype="<f4")))))


def _few(values: set[Any]) -> str:
    return str(sorted(values, key=str))[:200]
