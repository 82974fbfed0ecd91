"""The work queue of an ingest by several processes: the table `work` of a collection on PostgreSQL.

    lister (holds the write lock)      add ─→ rows ─→ take ─→ commit ─→ remove
    workers (hold a lease on rows)             └→ lease ─→ prepare ─→ stage ┘

A row is an entry of a source that is new or changed. A lease lasts `LEASE_SECONDS`, and its worker renews it; when it
has ended, another worker may take the row. Only the holder of a lease stages an outcome. A lister that wants another
revision ends the lease. The table belongs to no generation.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from ragfm.core.errors import CollectionError, CollectionNotFound
from ragfm.core.types import Ref, Vectors
from ragfm.store.catalog import Catalog, batches
from ragfm.store.document_rows import insert_vectors
from ragfm.store.tables import DATABASE_NOW, work

if TYPE_CHECKING:
    from ragfm.store.catalog_writer import CatalogWriter
    from ragfm.store.postgres import PostgresDatabase

LEASE_SECONDS = 30.0
"""How long a lease holds without being renewed: a worker that was killed delays its documents for that long."""
MAX_LEASES = 5
"""How often an entry is leased before it counts as failed: its content may be what ends the workers."""
_TAKEN_AT_ONCE = 64


class WorkQueue:
    """The queue of a collection. All methods raise CollectionError.

    Those of the lister take the catalog that it writes: they fail if it has lost the write lock.
    """

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        # Renewing leases and staging lock the same rows, in different orders.
        self._writing = threading.Lock()

    @property
    def exists(self) -> bool:
        """Whether the collection has the table."""
        with self._database.reading() as connection:
            return sa.inspect(connection).has_table(work.name, self._database.default_name)

    def check(self) -> None:
        """Raise CollectionError if the collection has no table: an older ragfm created it."""
        if not self.exists:
            raise CollectionError(
                "Workers need the table `work`, which a newer ragfm creates.",
                "Run `ragfm ingest` once as the role that owns the collection.",
            )

    # --- The lister ----------------------------------------------------------------------------------------------

    def add(
        self, catalog: CatalogWriter, source_id: int, run: str, job: str, entries: Mapping[str, tuple[Ref, str | None]]
    ) -> None:
        """Let the queue of a source hold these entries, with the digests of their known content, and no others.

        What workers have staged, or have begun, stays if neither the entry nor the job has changed.
        """
        with catalog.write() as connection:
            self._lock(connection)
            queued = connection.execute(sa.select(work.c.path).where(work.c.source_id == source_id)).scalars()
            _delete(connection, source_id, [path for path in queued if path not in entries])
            row = insert(work)
            same = sa.and_(
                sa.cast(work.c.ref, sa.String) == sa.cast(row.excluded.ref, sa.String),
                work.c.job == row.excluded.job,
                work.c.known_digest.is_not_distinct_from(row.excluded.known_digest),
            )
            kept = {name: sa.case((same, work.c[name])) for name in ("worker", "outcome")}
            kept |= {name: sa.case((same, work.c[name]), else_=0) for name in ("until", "leases")}
            new = {name: row.excluded[name] for name in ("run", "job", "ref", "known_digest")}
            statement = row.on_conflict_do_update(index_elements=["source_id", "path"], set_={**kept, **new})
            common = {"source_id": source_id, "run": run, "job": job}
            rows = [
                {**common, "path": path, "ref": asdict(ref), "known_digest": known}
                for path, (ref, known) in entries.items()
            ]
            if rows:
                connection.execute(statement, rows)

    def _lock(self, connection: sa.Connection) -> None:
        """Let workers wait until the transaction ends, which locks many rows in an order that is not theirs."""
        connection.exec_driver_sql(
            f'LOCK TABLE "{self._database.default_name}".{work.name} IN SHARE ROW EXCLUSIVE MODE'
        )

    def take(self, catalog: CatalogWriter, source_id: int, run: str, gave_up: bytes) -> list[tuple[str, bytes]]:
        """Some of the staged outcomes that this run has not taken yet, by path. They stay until they are removed.

        Entries that were leased `MAX_LEASES` times in vain get the outcome `gave_up`.
        """
        mine = (work.c.source_id == source_id, work.c.run == run)
        lost = (*mine, work.c.outcome.is_(None), work.c.leases >= MAX_LEASES, work.c.until < DATABASE_NOW)
        staged = (*mine, work.c.outcome.is_not(None), work.c.taken.is_distinct_from(run))
        some = sa.select(work.c.id).where(*staged).order_by(work.c.id).limit(_TAKEN_AT_ONCE)
        take = work.update().where(work.c.id.in_(some)).values(taken=run).returning(work.c.path, work.c.outcome)
        with catalog.write() as connection:
            connection.execute(work.update().where(*lost).values(outcome=gave_up))
            return [(row.path, row.outcome) for row in connection.execute(take)]

    def remove(self, catalog: CatalogWriter, source_id: int, paths: Sequence[str]) -> None:
        """Remove entries that are committed."""
        with catalog.write() as connection:
            _delete(connection, source_id, paths)

    def clear(self, catalog: CatalogWriter, source_id: int | None = None) -> None:
        """Remove all entries of a source, or of all sources, if the collection has the table."""
        of_source = () if source_id is None else (work.c.source_id == source_id,)
        if self.exists:
            with catalog.write() as connection:
                self._lock(connection)
                connection.execute(work.delete().where(*of_source))

    def busy_workers(self) -> int:
        """The number of workers with a lease."""
        query = sa.select(sa.func.count(work.c.worker.distinct())).where(
            work.c.until > DATABASE_NOW, work.c.outcome.is_(None)
        )
        with self._database.reading() as connection:
            return int(connection.scalar(query) or 0)

    # --- Workers -------------------------------------------------------------------------------------------------

    @contextmanager
    def working(self) -> Iterator[str]:
        """Give the name of a new worker, renew its leases during the block, and give them up at its end."""
        name, stop = uuid.uuid4().hex, threading.Event()
        own = work.update().where(work.c.worker == name, work.c.outcome.is_(None))

        def renew() -> None:
            while not stop.wait(LEASE_SECONDS / 3):
                with self._writing, contextlib.suppress(CollectionError), self._database.committing() as connection:
                    connection.execute(own.values(until=DATABASE_NOW + LEASE_SECONDS))

        renewing = threading.Thread(target=renew, name="ragfm-lease", daemon=True)
        renewing.start()
        try:
            yield name
        finally:
            stop.set()
            renewing.join()
            with contextlib.suppress(CollectionError):
                self.give_up(name)

    def give_up(self, worker: str) -> None:
        """Give up the leases of a worker. That is not a failure of the documents."""
        own = work.update().where(work.c.worker == worker, work.c.outcome.is_(None))
        with self._writing, self._database.committing() as connection:
            connection.execute(own.values(worker=None, until=0, leases=work.c.leases - 1))

    def lease(self, worker: str, count: int) -> list[Any]:
        """Lease up to `count` entries: rows with id, source_id, path, run, job, ref, known_digest."""
        free = (work.c.outcome.is_(None), work.c.until < DATABASE_NOW, work.c.leases < MAX_LEASES)
        some = sa.select(work.c.id).where(*free).order_by(work.c.id).limit(count).with_for_update(skip_locked=True)
        chosen = some.cte("chosen").prefix_with("MATERIALIZED")
        values = {"worker": worker, "until": DATABASE_NOW + LEASE_SECONDS, "leases": work.c.leases + 1}
        columns = (work.c[name] for name in ("id", "source_id", "path", "run", "job", "ref", "known_digest"))
        lease = work.update().where(work.c.id.in_(sa.select(chosen.c.id))).values(values).returning(*columns)
        try:
            with self._database.committing() as connection:
                return sorted(connection.execute(lease), key=lambda row: int(row.id))
        except CollectionNotFound:  # no ingest with workers has begun
            return []

    def stage(self, worker: str, outcomes: Mapping[int, bytes]) -> None:
        """Store outcomes by id. Those of entries that the worker no longer holds a lease on are dropped."""
        held = (work.c.id == sa.bindparam("row"), work.c.worker == worker, work.c.outcome.is_(None))
        stage = work.update().where(*held).values(outcome=sa.bindparam("prepared"))
        if outcomes:
            with self._writing, self._database.committing() as connection:
                connection.execute(stage, [{"row": row, "prepared": prepared} for row, prepared in outcomes.items()])


class WorkerCatalog(Catalog):
    """The catalog of a worker. It adds vectors, and nothing else, without the collection's lock."""

    database: PostgresDatabase

    def add_vectors(self, contract_id: int, hashes: Sequence[bytes], matrix: Vectors) -> None:
        """Save the vectors of embedded texts, durably, unless another process has saved them."""
        with self.database.committing() as connection:
            insert_vectors(connection, contract_id, hashes, matrix)


def _delete(connection: sa.Connection, source_id: int, paths: Sequence[str]) -> None:
    for batch in batches(list(paths)):
        connection.execute(work.delete().where(work.c.source_id == source_id, work.c.path.in_(batch)))
