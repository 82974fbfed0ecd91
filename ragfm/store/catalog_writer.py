"""Writing the catalog: each commit makes one generation and returns when it is durable."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ragfm.core.errors import CollectionError
from ragfm.core.text import check_characters
from ragfm.core.types import Scalar, Vectors
from ragfm.store.catalog import Catalog, Source, batches
from ragfm.store.document_rows import (
    NewDocument,
    end_documents,
    insert_document,
    insert_vectors,
    update_groups,
    update_tags,
)
from ragfm.store.tables import (
    SCHEMA_VERSION,
    contracts,
    documents,
    failures,
    generations,
    properties,
    sources,
)

if TYPE_CHECKING:
    from ragfm.store.database import Database


@dataclass(frozen=True, slots=True)
class Failure:
    """A document that could not be ingested: the stage that failed (list, fetch, parse), and the error."""

    path: str
    stage: str
    error: str
    revision: str = ""
    recipe: str = ""
    attempts: int = 1


@dataclass(slots=True)
class Commit:
    """An uncommitted generation. The digest of the history is a hash chain over the recorded changes.

    `written` are the ids of documents whose rows were inserted or changed.
    """

    connection: sa.Connection
    generation: int
    contract_id: int
    chunks: int
    changes: list[Any] = field(default_factory=list)
    written: list[int] = field(default_factory=list)

    def record(self, *change: Any) -> None:
        """Add a change, as values that JSON can hold, to the history."""
        self.changes.append(change)


class CatalogWriter(Catalog):
    """The catalog, for the one process that holds the collection's lock."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, writable=True)
        # A commit whose writer was killed before it wrote HEAD is acknowledged now: readers may have seen it.
        newest, head = self.at(), database.read_head()
        if head is None or newest.id > head["generation"]:
            database.write_head(newest.id, newest.digest)

    @classmethod
    def create(cls, database: Database, contract: Mapping[str, Scalar]) -> None:
        """Create an empty catalog, at generation 0. Raises OSError, CollectionError."""
        digest = blake2b(digest_size=16).hexdigest()
        facts = {"schema": str(SCHEMA_VERSION), "collection": uuid.uuid4().hex, "floor": "0"}

        def fill(connection: sa.Connection) -> tuple[int, str]:
            connection.execute(properties.insert(), [{"key": k, "value": v} for k, v in facts.items()])
            inserted = connection.execute(contracts.insert().values(fingerprint=dict(contract))).inserted_primary_key
            assert inserted is not None
            values = {"id": 0, "digest": digest, "contract_id": inserted[0], "chunks": 0, "created": _now()}
            connection.execute(generations.insert(), values)
            return 0, digest

        database.create(fill)

    def size(self) -> int:
        """The size of the catalog on disk, in bytes."""
        return self.database.size(self._engine)

    def shrink(self) -> None:
        """Return free space to the file system. Raises CollectionError on failure; no data is lost."""
        self.database.shrink(self._engine)

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that is durable when the block ends. Raises CollectionError."""
        try:
            with self.database.begin_write(self._engine) as connection:
                yield connection
        except sa.exc.DatabaseError as error:
            if isinstance(error, sa.exc.IntegrityError) and "documents" in str(error.orig):
                raise CollectionError(
                    f"Two sources have a document with the same uri ({error.orig}).",
                    "Choose a different --name for one of them.",
                ) from error
            raise self.database.write_error(error) from error
        except UnicodeEncodeError as error:
            check_characters("name", error.object)
            raise

    @contextmanager
    def new_generation(self) -> Iterator[Commit]:
        """Make one generation of the block's writes; it is durable when the block ends."""
        with self.write() as connection:
            last = connection.execute(sa.select(generations).order_by(generations.c.id.desc()).limit(1)).one()
            commit = Commit(connection, last.id + 1, last.contract_id, last.chunks)
            yield commit
            digest = blake2b(json.dumps([last.digest, commit.changes]).encode(), digest_size=16).hexdigest()
            connection.execute(
                generations.insert().values(
                    id=commit.generation,
                    digest=digest,
                    contract_id=commit.contract_id,
                    chunks=commit.chunks,
                    created=_now(),
                )
            )
            self.database.seal(connection, commit.generation, commit.written)
        self.database.write_head(commit.generation, digest)

    def commit(self, source: Source, added: Sequence[NewDocument], removed: Sequence[str]) -> int:
        """Add documents of a source, replacing their older versions, and remove paths, in one generation.

        Returns the generation when it is durable. Raises CollectionError if a uri belongs to another source.
        """
        with self.new_generation() as commit:
            ended = [*removed, *(new.path for new in added)]
            commit.chunks -= end_documents(commit.connection, source.id, ended, commit.generation)
            commit.record("-", source.name, ended)
            for new in added:
                commit.written.append(insert_document(commit.connection, source, new, commit.generation))
                commit.chunks += len(new.chunks)
                commit.record("+", new.document.uri, new.digest, new.recipe, len(new.chunks))
            _clear_failures(commit.connection, source.id, ended)
        return commit.generation

    def remove_source(self, source: Source) -> int:
        """Remove a source with all its documents, in one generation. Returns the generation when it is durable."""
        paths = list(self.current(source.id))  # outside of the write transaction, which this read would wait for
        with self.new_generation() as commit:
            commit.chunks -= end_documents(commit.connection, source.id, paths, commit.generation)
            commit.connection.execute(failures.delete().where(failures.c.source_id == source.id))
            commit.connection.execute(sources.update().where(sources.c.id == source.id).values(removed=True))
            commit.record("- source", source.name)
        return commit.generation

    def save_source(self, source: Source) -> Source:
        """Insert a source or update the one with the same name. Returns it with its id.

        A changed `allow` applies at once to all document versions of the source.
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
            existing = connection.execute(sa.select(sources).where(sources.c.name == source.name)).one_or_none()
            if existing is None:
                inserted = connection.execute(sources.insert().values(name=source.name, **values)).inserted_primary_key
                assert inserted is not None
                return replace(source, id=int(inserted[0]))
        saved = replace(source, id=int(existing.id))
        update = sources.update().where(sources.c.id == existing.id).values(**values)
        if set(existing.allow) == set(source.allow):
            with self.write() as connection:
                connection.execute(update)
            return saved
        with self.new_generation() as commit:
            commit.connection.execute(update)
            commit.written += update_groups(commit.connection, saved, None)
            commit.record("allow", source.name, sorted(source.allow))
        return saved

    def restrict(self, source: Source, paths: Mapping[str, tuple[str, ...] | None]) -> None:
        """Apply the access groups that the connector reports for these paths to all their versions, at once."""
        with self.new_generation() as commit:
            commit.written += update_groups(commit.connection, source, paths)
            commit.record("allow", source.name, sorted(paths.items()))

    def retag(self, source: Source, changes: Mapping[str, tuple[Mapping[str, Scalar], str]]) -> None:
        """Change the metadata of live documents in place, in one generation.

        `changes` has for each path the changed keys, and the document's new recipe.
        """
        with self.new_generation() as commit:
            for path, (metadata, recipe) in changes.items():
                commit.written.append(update_tags(commit.connection, source.id, path, metadata, recipe))
            commit.record("tags", source.name, sorted((path, recipe) for path, (_, recipe) in changes.items()))

    def add_vectors(self, contract_id: int, hashes: Sequence[bytes], matrix: Vectors) -> None:
        """Save the vectors of embedded texts; durable at once, so that an interrupted sync embeds nothing twice."""
        with self.write() as connection:
            insert_vectors(connection, contract_id, hashes, matrix)

    def note(
        self,
        source_id: int,
        *,
        revisions: Mapping[str, str] | None = None,
        failed: Sequence[Failure] = (),
        cleared: Sequence[str] = (),
    ) -> None:
        """Save what changes no content: revisions of unchanged documents by path, new failures, cleared failures."""
        with self.write() as connection:
            for path, revision in (revisions or {}).items():
                live = (documents.c.source_id == source_id, documents.c.path == path, documents.c.died.is_(None))
                connection.execute(documents.update().where(*live).values(revision=revision))
            _clear_failures(connection, source_id, [*cleared, *(failure.path for failure in failed)])
            for failure in failed:
                connection.execute(failures.insert().values(source_id=source_id, at=_now(), **asdict(failure)))


def _clear_failures(connection: sa.Connection, source_id: int, paths: Sequence[str]) -> None:
    for batch in batches(list(paths)):
        connection.execute(failures.delete().where(failures.c.source_id == source_id, failures.c.path.in_(batch)))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
