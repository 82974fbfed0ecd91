"""Writing to the catalog: one commit, one generation, acknowledged when it is durable."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import pysqlite3
import sqlalchemy as sa

from ragfm.core.errors import CollectionError, CollectionReadOnlyError, DamagedCollectionError
from ragfm.store.catalog import Catalog, Source
from ragfm.store.database import FILE, HEAD, batches, create_database, open_engine, read_head, unreadable, write_head
from ragfm.store.document_rows import NewDocument, end_documents, insert_document, restrict
from ragfm.store.migrations import migrate
from ragfm.store.tables import (
    SCHEMA,
    SCHEMA_VERSION,
    contracts,
    documents,
    failures,
    generations,
    properties,
    sources,
    vectors,
)

if TYPE_CHECKING:
    from ragfm.core.types import Scalar, Vectors


@dataclass(frozen=True, slots=True)
class Failure:
    """A document that could not be brought in, at which stage (list, fetch, parse), and why."""

    path: str
    stage: str
    error: str
    revision: str = ""
    recipe: str = ""
    attempts: int = 1


@dataclass(slots=True)
class Commit:
    """A generation in the making. `record` what changes: the digest of the history is a chain over that."""

    connection: sa.Connection
    generation: int
    contract_id: int
    chunks: int
    changes: list[Any] = field(default_factory=list)

    def record(self, *change: Any) -> None:
        """Add a change to the history."""
        self.changes.append(change)


class CatalogWriter(Catalog):
    """The catalog as the one process that holds the collection's lock sees it."""

    def __init__(self, folder: Path) -> None:
        migrate(folder)
        super().__init__(folder, writable=True)
        self._mend_head()

    @classmethod
    def create(cls, folder: Path, contract: Mapping[str, Scalar]) -> None:
        """Make an empty catalog, at generation 0, in an existing folder."""
        create_database(folder)
        engine = open_engine(folder, writable=True)
        digest = blake2b(digest_size=16).hexdigest()
        stored = {"schema": str(SCHEMA_VERSION), "collection": uuid.uuid4().hex, "floor": "0"}
        first = {"id": 0, "digest": digest, "contract_id": 1, "chunks": 0, "created": _now()}
        try:
            with engine.begin() as connection:
                SCHEMA.create_all(connection)
                connection.execute(properties.insert(), [{"key": k, "value": v} for k, v in stored.items()])
                connection.execute(contracts.insert().values(id=1, fingerprint=dict(contract)))
                connection.execute(generations.insert().values(**first))
            # When it is closed SQLite does so too, but says nothing where that fails.
            with closing(engine.raw_connection()) as driver:
                driver.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except pysqlite3.Error as error:
            raise CollectionError(f"{folder / FILE} can't be written: {error}.") from error
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
            "removed": False,
        }
        with self.write() as connection:
            known = connection.execute(sa.select(sources).where(sources.c.name == source.name)).one_or_none()
            if known is None:
                inserted = connection.execute(sources.insert().values(name=source.name, **values)).inserted_primary_key
                assert inserted is not None
                return replace(source, id=int(inserted[0]))
        saved = replace(source, id=int(known.id))
        if set(known.allow) == set(source.allow):
            with self.write() as connection:
                connection.execute(sources.update().where(sources.c.id == known.id).values(**values))
            return saved

        def change(commit: Commit) -> None:
            commit.connection.execute(sources.update().where(sources.c.id == known.id).values(**values))
            restrict(commit.connection, saved, None)
            commit.record("allow", source.name, sorted(source.allow))

        self.generate(change)
        return saved

    def restrict(self, source: Source, paths: Mapping[str, tuple[str, ...] | None]) -> None:
        """Make what the connector says of documents' groups hold at once, older versions included."""

        def change(commit: Commit) -> None:
            restrict(commit.connection, source, paths)
            commit.record("allow", source.name, sorted(paths.items()))

        self.generate(change)

    def add_vectors(self, contract_id: int, hashes: Sequence[bytes], matrix: Vectors) -> None:
        """Keep the vectors of embedded texts; durable at once, so that an interrupted sync embeds nothing twice."""
        stored = [row.tobytes() for row in matrix.astype("<f4", copy=False)]
        rows = [
            {"contract_id": contract_id, "text_hash": key, "vector": vector, "checksum": crc32(vector)}
            for key, vector in zip(hashes, stored, strict=True)
        ]
        with self.write() as connection:
            connection.execute(vectors.insert(), rows)

    def commit(self, source: Source, added: Sequence[NewDocument], removed: Sequence[str]) -> int:
        """One generation: documents of a source that come, replacing older versions, and paths that go.

        When it returns, the commit is durable. Gives the new generation.
        """

        def change(commit: Commit) -> None:
            ended = [*removed, *(new.path for new in added)]
            commit.chunks -= end_documents(commit.connection, source.id, ended, commit.generation)
            commit.record("-", source.name, ended)
            for new in added:
                insert_document(commit.connection, source, new, commit.generation)
                commit.chunks += len(new.chunks)
                commit.record("+", new.document.uri, new.digest, new.recipe, len(new.chunks))
            _clear_failures(commit.connection, source.id, ended)

        return self.generate(change)

    def remove_source(self, source: Source) -> int:
        """One generation: a source goes, with all its documents."""
        paths = list(self.current(source.id))  # not in the transaction below, which this read would wait for

        def change(commit: Commit) -> None:
            commit.chunks -= end_documents(commit.connection, source.id, paths, commit.generation)
            commit.connection.execute(failures.delete().where(failures.c.source_id == source.id))
            commit.connection.execute(sources.update().where(sources.c.id == source.id).values(removed=True))
            commit.record("- source", source.name)

        return self.generate(change)

    def generate(self, change: Callable[[Commit], None]) -> int:
        """Make one generation of what `change` writes; when it returns, the generation is durable."""
        with self.write() as connection:
            last = connection.execute(sa.select(generations).order_by(generations.c.id.desc()).limit(1)).one()
            commit = Commit(connection, last.id + 1, last.contract_id, last.chunks)
            change(commit)
            digest = blake2b(json.dumps([last.digest, commit.changes]).encode(), digest_size=16).hexdigest()
            row = {"id": commit.generation, "digest": digest, "contract_id": commit.contract_id}
            connection.execute(generations.insert().values(**row, chunks=commit.chunks, created=_now()))
        write_head(self.folder, commit.generation, digest)
        return int(commit.generation)

    def note(
        self,
        source_id: int,
        *,
        revisions: Mapping[str, str] | None = None,
        failed: Sequence[Failure] = (),
        cleared: Sequence[str] = (),
    ) -> None:
        """Keep what changes no content: revisions of documents found equal, failures, and failures that ended."""
        with self.write() as connection:
            for path, revision in (revisions or {}).items():
                this = (documents.c.source_id == source_id, documents.c.path == path, documents.c.died.is_(None))
                connection.execute(documents.update().where(*this).values(revision=revision))
            _clear_failures(connection, source_id, [*cleared, *(failure.path for failure in failed)])
            for failure in failed:
                connection.execute(
                    failures.insert().values(
                        source_id=source_id,
                        path=failure.path,
                        stage=failure.stage,
                        error=failure.error,
                        revision=failure.revision,
                        recipe=failure.recipe,
                        attempts=failure.attempts,
                        at=_now(),
                    )
                )

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that is durable when the block is left. Raises CollectionError where it can't be."""
        try:
            # The lock is taken at once, not at the first write: there it could no longer be waited for.
            with self._engine.execution_options(begin="BEGIN IMMEDIATE").begin() as connection:
                yield connection
        except sa.exc.IntegrityError as error:
            if "documents" not in str(error.orig):
                raise self._failed(error) from error
            raise CollectionError(
                f"Two sources have a document of the same address ({error.orig}).", "Give one of them another --name."
            ) from error
        except sa.exc.DatabaseError as error:
            if "readonly" in str(error.orig):
                raise CollectionReadOnlyError(f"The collection {self.folder} is read-only.") from error
            raise self._failed(error) from error

    def _failed(self, error: sa.exc.DatabaseError) -> CollectionError:
        damage = unreadable(self.folder, error)
        if isinstance(damage, DamagedCollectionError):
            return damage
        return CollectionError(
            f"Writing to {self.folder / FILE} failed: {error.orig}. What was committed before is intact.",
            "Mend the cause and run it again.",
        )

    def _mend_head(self) -> None:
        """Acknowledge a commit whose writer was killed before it could: readers have seen it since."""
        newest = self.at()
        if newest.id > read_head(self.folder)["generation"]:
            write_head(self.folder, newest.id, newest.digest)
        for left in self.folder.glob(f"{HEAD}.*.new"):
            with suppress(OSError):  # they only take room
                left.unlink()


def _clear_failures(connection: sa.Connection, source_id: int, paths: Sequence[str]) -> None:
    for part in batches(list(paths)):
        connection.execute(failures.delete().where(failures.c.source_id == source_id, failures.c.path.in_(part)))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
