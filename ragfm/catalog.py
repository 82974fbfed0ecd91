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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa

from ragfm.database import FILE, batches, open_engine, read_head, unreadable
from ragfm.errors import DamagedCollectionError
from ragfm.schema import (
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
    from ragfm.types import Ids, Scalar, Vectors


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


class Catalog:
    """One open database, for reading; see `commit.CatalogWriter` for writing. Thread-safe."""

    def __init__(self, folder: Path, *, writable: bool = False) -> None:
        self.folder = folder
        self._engine = open_engine(folder, writable=writable)
        try:
            self._check()
        except sa.exc.DatabaseError as error:
            self.close()
            raise unreadable(folder, error) from error
        except DamagedCollectionError:
            self.close()
            raise

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
            for part in batches(list(hashes)):
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
        wanted = (alive(chunks, generation), chunks.c.born > born_after)
        query = sa.select(chunks.c.id, vectors.c.vector).select_from(joined).where(*wanted).order_by(chunks.c.id)
        with self.read() as connection:
            count = connection.execute(sa.select(sa.func.count()).select_from(chunks).where(*wanted)).scalar_one()
            ids = np.empty(count, dtype=np.int64)
            matrix = np.empty((count, dim), dtype=np.float32)
            rows = connection.execution_options(yield_per=1000).execute(query)  # never all of them as Python objects
            for place, row in enumerate(rows):
                if row.vector is None or len(row.vector) != 4 * dim:
                    raise DamagedCollectionError(
                        f"Chunk {row.id} in {self.folder / FILE} has no vector of {dim} numbers.",
                        "Restore it from a backup.",
                    )
                ids[place] = row.id
                matrix[place] = np.frombuffer(row.vector, dtype="<f4")
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
            for part in batches(list(ids)):
                query = sa.select(*columns).join(documents, documents.c.id == chunks.c.document_id)
                rows |= {row.id: row for row in connection.execute(query.where(chunks.c.id.in_(part)))}
        return rows

    def documents(self, generation: int, *conditions: sa.ColumnElement[bool]) -> list[Any]:
        """The documents that live at a generation and meet the conditions, in order of uri."""
        columns = [column for column in documents.c if column.name != "text"]
        query = (
            sa.select(*columns, sources.c.name.label("source"))
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

    # --- Inside --------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        # HEAD is read first: a commit that lands in between only makes the catalog newer.
        head = read_head(self.folder)
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
