"""A collection on PostgreSQL: its connections, its write lock, and the local folder with its HEAD.

HEAD records the newest generation that this machine has seen and its digest. A database that has lost it, such as a
standby that was promoted too early or an older backup, is refused.

A dump keeps the collection's id. So the folder is named after the id and the place of the collection: server, database
and schema. The property `home` is the place where it was last written. A collection elsewhere is a clone, and has a
folder of its own; the first writer there gives it an id of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock, Timeout

from ragfm.core.cache import cache_folder
from ragfm.core.config import CONFIG_VARIABLE, SETTINGS_FILE
from ragfm.core.durable_files import encode_checksummed, read_checksummed, write_durably
from ragfm.core.errors import (
    CollectionBusyError,
    CollectionError,
    CollectionNotFound,
    CollectionUnavailableError,
    ConfigError,
    DamagedCollectionError,
    needs_extra,
)
from ragfm.core.fork import reset_in_children
from ragfm.store.catalog import read_property, set_property
from ragfm.store.database import LOCK_SECONDS
from ragfm.store.postgres import lease, schema
from ragfm.store.postgres.address import parse_address
from ragfm.store.postgres.lease import NO_LEASE, WRITER, Lease
from ragfm.store.postgres.policies import RowSecurity
from ragfm.store.postgres.server_errors import failure
from ragfm.store.sqlite_file import HEAD_FILE
from ragfm.store.tables import SCHEMA, generations, properties

HOME = "home"
"""The property with the place where the collection was last written; another value makes it a clone."""
_IDLE_TIMEOUT_MS = 300_000  # after which the server ends the transaction of a writer that no longer responds
_CONNECT_SECONDS = 10
_ONLY_ON_REQUEST = 1_000_000_000  # times that a statement runs before psycopg prepares it unasked
_TABLES_MAPPED_TO = "schema_translate_map"
_log = logging.getLogger(__name__)


class PostgresDatabase:
    """The schema of a collection in a PostgreSQL database. Thread-safe.

    The address is `postgresql://user@host/database?collection=NAME`, with `ragfm` as the default name. Other parameters
    are those of libpq; `?host=DIR` names the folder of a socket. A password belongs into `PGPASSWORD` or `~/.pgpass`.
    """

    shared = True

    def __init__(self, address: str) -> None:
        url, self._schema = parse_address(address)
        self.default_name = self._schema
        self.location = self.name = url.render_as_string(hide_password=True)
        self.address = url._replace(password=None).render_as_string()  # `set` ignores None
        """The address without its password, which `password_variables` gives to another process."""
        self.password_variables = {"PGPASSWORD": str(url.password)} if url.password else {}
        self._url = url.difference_update_query(["collection"]).set(drivername="postgresql+psycopg")
        self._cache = cache_folder() / "collections"
        self._lease: Lease | None = None  # the write lock, while this process holds it
        self._seen: tuple[int, str] | None = None  # the newest generation that this process has seen, and its digest
        self._head_lock = threading.Lock()
        self._key: str | None = None  # the name of the folder
        self._compiled: dict[sa.Select[Any], tuple[str, Mapping[str, Any]]] = {}
        self.security = RowSecurity(self._schema, self.location)
        reset_in_children(self)

    def reset_after_fork(self) -> None:
        """Leave connections and the write lock to the parent of a forked process."""
        self._lease, self._head_lock = None, threading.Lock()
        if "_engine" in self.__dict__:  # once it is made
            self._engine.dispose(close=False)

    # --- Where things are ----------------------------------------------------------------------------------------

    @property
    def loss_hint(self) -> str:
        """What to do if acknowledged commits are missing."""
        return (
            "Connect to the server that has them. If an older state was restored on purpose, remove the folder "
            f"'{self.folder}' on every machine. If the server is a copy of another one's files, give the collection "
            "another `home` there: docs/scale-out.md."
        )

    @property
    def folder(self) -> Path:
        """The folder of HEAD and views on this machine, which may not exist. Raises CollectionNotFound."""
        if self._key is None:
            if not self.exists:
                raise self._not_found()
            with self.reading() as connection:
                self._key = self._read_key(connection)
        return self._cache / self._key

    def _read_key(self, connection: sa.Connection) -> str:
        """The collection's id with a hash of its place, and of its home if that is another place."""
        place, home = schema.server_place(connection, self._schema), read_property(connection, HOME)
        if home not in (None, place):
            _log.warning(
                "%s is a clone of a collection elsewhere. It has views and a record of commits of its own; the next "
                "ingest gives it an id of its own.",
                self.location,
            )
        names = json.dumps([place] if home is None else sorted({place, home}))
        digest = blake2b(names.encode(), digest_size=4).hexdigest()
        return f"{read_property(connection, 'collection')}-{digest}"

    @property
    def settings_file(self) -> Path:
        """The file that `RAGFM_CONFIG` names, else `ragfm.toml` in the working directory. Raises ConfigError."""
        named = os.environ.get(CONFIG_VARIABLE)
        if named and not Path(named).is_file():
            raise ConfigError(f"There is no settings file '{named}'.", f"Correct --config or {CONFIG_VARIABLE}.")
        return Path(named or SETTINGS_FILE).absolute()

    @property
    def exists(self) -> bool:
        """Whether the schema has a collection."""
        with self.reading() as connection:
            return schema.has_tables(connection, self._schema)

    def identity(self) -> str | None:
        """The name of the folder, as last seen; None if there is no collection."""
        try:
            return self.folder.name
        except CollectionNotFound:
            return None

    def replaced(self, connection: sa.Connection) -> bool:
        """Whether the schema now has another collection, which is then used."""
        current = self._read_key(connection)
        if current == self._key:
            return False
        self._key, self._seen = current, None
        return True

    # --- Connections ---------------------------------------------------------------------------------------------

    @cached_property
    def _engine(self) -> sa.Engine:
        with needs_extra("A collection on PostgreSQL", "postgres"):
            engine = sa.create_engine(
                self._url,
                hide_parameters=True,
                use_native_hstore=False,
                connect_args={
                    "prepare_threshold": None,  # see `_allow_prepared`
                    "connect_timeout": self._url.query.get("connect_timeout", _CONNECT_SECONDS),
                },
                execution_options={_TABLES_MAPPED_TO: {None: self._schema}},
            )
        sa.event.listen(engine, "connect", _allow_prepared)
        return engine

    def open_engine(self, *, writable: bool) -> sa.Engine:
        """An engine whose transactions see one state each, and cannot write unless `begin_write` starts them."""
        del writable  # see `begin_write`
        return self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that sees one state. Raises CollectionError."""
        try:
            with self.open_engine(writable=False).begin() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            raise self.read_error(error) from error

    @contextmanager
    def committing(self) -> Iterator[sa.Connection]:
        """A transaction that writes; what it writes to the catalog needs `begin_write`. Raises CollectionError."""
        try:
            with self._writing_engine.begin() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            raise self.write_error(error) from error

    @property
    def _writing_engine(self) -> sa.Engine:
        # READ COMMITTED: whoever waited for the lease's row sees what its previous holder committed.
        return self._engine.execution_options(isolation_level="READ COMMITTED")

    def restrict(self, connection: sa.Connection, groups: frozenset[str]) -> None:
        """Let the policies hide the rows of documents that none of the groups may see, until the transaction ends."""
        self.security.restrict(connection, groups)

    def unprotected_tables(self, connection: sa.Connection) -> list[str]:
        """See Database."""
        return self.security.unprotected_tables(connection)

    def fetch(
        self, engine: sa.Engine, query: sa.Select[Any], parameters: Mapping[str, Any], groups: frozenset[str] | None
    ) -> Sequence[Any]:
        """The rows of a query, in one round trip and without SQLAlchemy, which takes longer than the query."""
        import psycopg
        from psycopg.rows import namedtuple_row

        del engine
        if query not in self._compiled:
            compiled = query.compile(
                dialect=self._engine.dialect, schema_translate_map={None: self._schema}, render_schema_translate=True
            )
            self._compiled[query] = compiled.string, compiled.params
        statement, constants = self._compiled[query]
        if groups is not None and not self.security.is_known:
            with self.reading() as connection:
                self.restrict(connection, groups)
        try:
            with contextlib.closing(self._engine.raw_connection()) as pooled:
                driver: Any = pooled.driver_connection
                try:
                    if not driver.autocommit:  # the engines set what they need in each connection that they take
                        driver.autocommit = True
                    cursor = driver.cursor(binary=True, row_factory=namedtuple_row)
                    with driver.pipeline() if groups is not None else contextlib.nullcontext():
                        if groups is not None:
                            driver.execute("BEGIN READ ONLY")
                            driver.execute(*self.security.restriction(groups))
                        cursor.execute(statement, {**constants, **parameters}, prepare=True)
                        if groups is not None:
                            driver.execute("COMMIT")
                        return list(cursor)
                finally:
                    if driver.closed:  # the other connections to the server are closed, too
                        pooled.invalidate()
                        self._engine.dispose()
        except psycopg.Error as error:
            raise sa.exc.DatabaseError(statement, None, error) from error

    @contextmanager
    def begin_write(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        """A transaction of the holder of the write lock; durable when the block ends.

        Raises CollectionBusyError, and changes nothing, if another process has taken the lock.
        """
        del engine
        with self._writing_engine.begin() as connection:
            timeout = sa.func.set_config("idle_in_transaction_session_timeout", str(_IDLE_TIMEOUT_MS), True)
            connection.execute(sa.select(timeout))
            own = lease.check_writer(connection, self._lease, self.location)
            yield connection
            own.renew(connection)

    def seal(self, connection: sa.Connection, generation: int, written: Sequence[int]) -> None:
        """See Database."""
        schema.seal(connection, self._schema, generation, written)

    def damaged_rows(self, connection: sa.Connection) -> Iterator[tuple[str, str, str]]:
        """See Database."""
        return schema.damaged_rows(connection, self._schema)

    # --- Creation and the write lock -----------------------------------------------------------------------------

    @contextmanager
    def creating(self) -> Iterator[PostgresDatabase]:
        """The database itself: the collection is created in one transaction."""
        yield self

    def create(self, fill: Callable[[sa.Connection], tuple[int, str]]) -> None:
        """Create the schema, if it does not exist, and its tables. Raises CollectionError if the tables exist."""
        self.check_server()
        with self.committing() as connection:
            schema.create_tables(connection, self._schema, self.location)
            self.security.create_policies(connection, self.security.unprotected_tables(connection))
            generation, digest = fill(connection)
            connection.execute(properties.insert(), [{"key": k, "value": v} for k, v in NO_LEASE.items()])
        self._key = self._seen = None  # of one that was dropped
        self.saw(generation, digest)

    def check_server(self) -> None:
        """Raise CollectionError for a server that may lose acknowledged commits, or that cannot be written."""
        with self.reading() as connection:
            schema.check_server(connection, self.location)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the write lock. Raises CollectionBusyError, which names the holder, after `LOCK_SECONDS`.

        Policies that were switched off are switched on, and checksums completed. A clone gets an id of its own.
        """
        self.check_server()
        writer, deadline = Lease(WRITER, self.committing), time.monotonic() + LOCK_SECONDS
        while (holder := writer.take()) is not None:
            if time.monotonic() > deadline:
                raise CollectionBusyError(
                    f"{lease.holder_name(holder)} is writing to '{self.location}'.",
                    "Wait until it ends, then run the command again. If it was killed, its lock ends "
                    f"{lease.LEASE_SECONDS:g} s later.",
                )
            time.sleep(0.1)
        self._lease = writer
        try:
            with writer.kept():
                with self.committing() as connection:
                    place, home = schema.server_place(connection, self._schema), read_property(connection, HOME)
                    if home != place:
                        set_property(connection, HOME, place)
                        if home is not None:
                            set_property(connection, "collection", uuid.uuid4().hex)
                            self._key = self._seen = None
                    self.security.create_policies(connection, self.security.unprotected_tables(connection, own=True))
                    if not schema.is_sealed(connection):
                        newest = connection.scalar(sa.select(sa.func.max(generations.c.id)))
                        schema.seal(connection, self._schema, int(newest or 0), None)
                yield
        finally:
            self._lease = None

    @contextmanager
    def turn(self, name: str) -> Iterator[bool]:
        """Hold a lease for work that one process does at a time; False if another one holds it."""
        own = Lease(name, self.committing)
        if own.take() is not None:
            yield False
            return
        with own.kept():
            yield True

    def turn_is_taken(self, connection: sa.Connection, name: str) -> bool:
        """Whether a process holds the lease."""
        return lease.valid_holder(connection, name, read_property(connection, name)) is not None

    def may_write(self, connection: sa.Connection) -> bool:
        """Whether this role may write to the collection, and the server is not a standby."""
        query = sa.text("SELECT NOT pg_is_in_recovery() AND has_table_privilege(:table, 'INSERT')")
        return bool(connection.scalar(query, {"table": f'"{self._schema}".generations'}))

    # --- The local folder ----------------------------------------------------------------------------------------

    @contextmanager
    def views_lock(self) -> Iterator[bool]:
        """Held while the views of this machine are replaced; False if another process holds it."""
        lock = FileLock(self.folder / "views.lock", thread_local=False)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise CollectionError(
                f"Views cannot be saved in '{self.folder}': {error.strerror}.",
                "Set XDG_CACHE_HOME to a folder that is writable.",
            ) from error
        try:
            for leftover in (self.folder / "views").glob("*.new"):  # of processes that were killed
                shutil.rmtree(leftover, ignore_errors=True)
            yield True
        finally:
            lock.release()

    @property
    def seen(self) -> tuple[int, str] | None:
        """The newest generation that this process has seen, and its digest."""
        return self._seen

    def saw(self, generation: int, digest: str) -> None:
        """Remember a generation, also for later processes on this machine."""
        if self._seen is not None and generation <= self._seen[0]:
            return
        try:
            self.write_head(generation, digest)
        except CollectionError as error:
            _log.warning("%s", error)
        self._seen = (generation, digest)

    def read_head(self) -> dict[str, Any] | None:
        """The newest generation that this machine has seen, None if it has seen none."""
        path = self.folder / HEAD_FILE
        try:
            return read_checksummed(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DamagedCollectionError(
                f"The record of the last commit, '{path}', cannot be read: {error}.", "Remove the file."
            ) from error

    def write_head(self, generation: int, digest: str) -> None:
        """Remember a generation durably, unless a newer one is recorded."""
        folder = self.folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._head_lock, FileLock(folder / f"{HEAD_FILE}.lock"):
                recorded = self.read_head()
                if recorded is None or recorded["generation"] < generation:
                    write_durably(folder / HEAD_FILE, encode_checksummed({"generation": generation, "digest": digest}))
        except OSError as error:
            raise CollectionError(
                f"Generation {generation} is committed, but '{folder / HEAD_FILE}' cannot be written: {error}.",
                "Fix the cause and run the command again.",
            ) from error

    # --- Errors and space ----------------------------------------------------------------------------------------

    def read_error(self, error: sa.exc.DBAPIError) -> CollectionError:
        """The error to raise for a failed read."""
        error_type, why = failure(error)
        if error_type is CollectionUnavailableError:
            return error_type(
                f"The collection '{self.location}' cannot be reached: {why}.", "Check the address and the server."
            )
        if error_type is DamagedCollectionError:
            return self.damage_error(why)
        if error_type is CollectionNotFound:
            return self._not_found()
        return error_type(f"The collection '{self.location}' cannot be read: {why}.", "Run the command again.")

    def write_error(self, error: sa.exc.DBAPIError) -> CollectionError:
        """The error to raise for a failed write."""
        error_type, why = failure(error)
        return error_type(
            f"Writing to '{self.location}' failed: {why}. Earlier commits are intact.",
            "Fix the cause and run the command again.",
        )

    def _not_found(self) -> CollectionNotFound:
        return CollectionNotFound(
            f"There is no collection at '{self.location}'.", "Create one with `ragfm ingest FOLDER`."
        )

    def damage_error(self, damage: str) -> DamagedCollectionError:
        """The error to raise for damage of the catalog."""
        return DamagedCollectionError(
            f"The catalog '{self.location}' is damaged: {damage}.", "Restore it from a backup of the database."
        )

    def size(self, engine: sa.Engine) -> int:
        """The size of all tables with their indexes, in bytes."""
        tables = (f'"{self._schema}"."{table.name}"' for table in SCHEMA.sorted_tables)
        sizes = (sa.func.pg_total_relation_size(sa.func.to_regclass(table)) for table in tables)
        with engine.begin() as connection:
            return sum(map(int, filter(None, connection.execute(sa.select(*sizes)).one())))

    def shrink(self, engine: sa.Engine) -> None:
        """Let the server use the space of deleted rows again, and update its statistics."""
        del engine
        try:
            with self._engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                for table in SCHEMA.sorted_tables:
                    connection.execute(sa.text(f'VACUUM (ANALYZE) "{self._schema}"."{table.name}"'))
        except sa.exc.DBAPIError as error:
            raise self.write_error(error) from error

    def rewrite(self, table: str) -> bool:
        """Let the server write a table to a new file, without what was deleted. False if this role may not."""
        name = f'"{self._schema}"."{table}"'
        file = sa.text("SELECT pg_relation_filenode(CAST(:name AS regclass))")
        try:
            with self._engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                before = connection.scalar(file, {"name": name})
                connection.execute(sa.text(f"VACUUM (FULL) {name}"))
                return bool(connection.scalar(file, {"name": name}) != before)
        except sa.exc.DBAPIError as error:
            raise self.write_error(error) from error


def _allow_prepared(connection: Any, _: object) -> None:
    """Let `fetch` prepare its statements, if the session belongs to this connection.

    A pooler may run each transaction in another session. It answers with a process id of its own making.
    """
    (session,) = connection.execute("SELECT pg_backend_pid()").fetchone()
    connection.rollback()
    if session == connection.info.backend_pid:
        connection.prepare_threshold = _ONLY_ON_REQUEST
