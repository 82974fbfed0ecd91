"""A collection on PostgreSQL: one schema of a database, and a local folder for HEAD and views.

Everything here works through a connection pooler in transaction mode, such as PgBouncer: no session settings, locks or
prepared statements. Readers are `REPEATABLE READ READ ONLY` transactions. See docs/decisions/041-postgresql.md.

The write lock is a lease: the row `writer` of the table `properties` says who holds it and until when, by the clock of
the database. Its holder renews it. Every write transaction locks that row and ends with an error if another process
holds the lease by then, so a writer that was suspended too long cannot write.

Tables with the content of documents have policies, by which `restrict` hides rows from a transaction.

HEAD, in the local folder, records the newest generation that this machine has seen and its digest. A database that has
lost it, such as a standby that was promoted too early or an older backup, is refused.

A dump keeps the collection's id. So the folder is named after the id and the place of the collection: server, database
and schema. The property `home` is the place where it was last written. A collection elsewhere is a clone, and has a
folder of its own; the first writer there gives it an id of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.schema import CreateSchema

from ragfm.core.cache import cache_folder
from ragfm.core.config import CONFIG_VARIABLE, SETTINGS_FILE
from ragfm.core.durable_files import encode_checksummed, read_checksummed, write_durably
from ragfm.core.errors import (
    AccessDeniedError,
    CollectionBusyError,
    CollectionError,
    CollectionNotFound,
    CollectionReadOnlyError,
    CollectionUnavailableError,
    ConfigError,
    DamagedCollectionError,
    DiskFullError,
    MissingExtraError,
)
from ragfm.core.fork import reset_in_children
from ragfm.store.database import LOCK_SECONDS
from ragfm.store.sqlite_file import HEAD_FILE
from ragfm.store.tables import (
    SCHEMA,
    SERVER_STATE,
    document_checksums,
    generations,
    properties,
)

LEASE_SECONDS = 30.0
"""How long a lease holds without being renewed: a writer on a machine that failed blocks others for that long."""
DEFAULT_NAME = "ragfm"
_NAME = re.compile(r"(?!pg_)[a-z_][a-z0-9_-]{0,62}")
_WRITER = "writer"  # key of the write lock's lease in `properties`; `writer until` is when it ends
UPLOADS_TURN = "uploads"
"""Key of the lease of the process that indexes uploads."""
_NOBODY, _NEVER = "{}", "0"
NO_LEASE: Mapping[str, str] = {
    key: value for name in (_WRITER, UPLOADS_TURN) for key, value in ((name, _NOBODY), (f"{name} until", _NEVER))
}
"""The rows of the leases in `properties` while nobody holds them."""
_ADDRESS_HINT = "It looks like `postgresql://user@host/database?collection=NAME`."
_IDLE_TIMEOUT_MS = 300_000  # after which the server ends the transaction of a writer that no longer responds
_CONNECT_SECONDS = 10
_ONLY_ON_REQUEST = 1_000_000_000  # times that a statement runs before psycopg prepares it unasked
_GROUPS = "ragfm.groups"  # setting of a transaction: JSON of the groups that its rows are restricted to
_READ_ALL = "pg_read_all_data"  # predefined role, to which policies apply
_TABLES_MAPPED_TO = "schema_translate_map"
_DURABLE_SETTINGS = ("fsync", "full_page_writes", "synchronous_commit")
_CURRENT_GROUPS = f"(SELECT nullif(current_setting('{_GROUPS}', true), '')::jsonb)"
# What a restricted transaction sees of each table. A subquery sees only what the policies of its own table allow.
_POLICIES: Mapping[str, str] = {
    "documents": "NOT restricted OR EXISTS (SELECT FROM {schema}.groups g WHERE g.document_id = documents.id)",
    "groups": f"{_CURRENT_GROUPS} ? name",
    "tags": "EXISTS (SELECT FROM {schema}.documents d WHERE d.id = document_id)",
    "chunks": "EXISTS (SELECT FROM {schema}.documents d WHERE d.id = document_id)",
    "vectors": "EXISTS (SELECT FROM {schema}.chunks c WHERE c.text_hash = vectors.text_hash)",
    "images": "EXISTS (SELECT FROM {schema}.chunks c WHERE c.image = images.hash)",
    "failures": "false",
}
_SERVER_POLICIES: Mapping[str, str] = {
    "document_checksums": "false",
    "answer_log": f"groups <@ {_CURRENT_GROUPS}",  # all groups that it was answered for
    "uploads": f"{_CURRENT_GROUPS} ? owner",
    "upload_parts": "EXISTS (SELECT FROM {schema}.uploads u WHERE u.id = upload_id)",
    "work": "false",
}
HOME = "home"
"""The property with the place where the collection was last written; another value makes it a clone."""
SEALED = "document checksums"
"""The property with the generation up to which `document_checksums` is current; versions without it raise only this."""
# Everything in the row of a document that no other checksum covers, except what changes with the source's listing, and
# its groups.
_ROW_CHECKSUM = """
    sha256(convert_to(json_build_array(
        source_id, born, restricted, characters, chunk_count, encode(text_hash, 'hex'), digest, recipe, media_type,
        path, uri, allow, metadata, marks,
        (SELECT json_agg(g.name ORDER BY g.name) FROM {schema}.groups g WHERE g.document_id = documents.id)
    )::text, 'UTF8'))
"""
_ERRORS: Mapping[str, type[CollectionError]] = {
    "25006": CollectionReadOnlyError,  # read_only_sql_transaction
    "42501": AccessDeniedError,  # insufficient_privilege
    "42P01": CollectionNotFound,  # undefined_table
    "53100": DiskFullError,  # disk_full
    "XX001": DamagedCollectionError,  # data_corrupted
    "XX002": DamagedCollectionError,  # index_corrupted
    "40001": CollectionBusyError,  # serialization_failure: on a standby, a conflict with recovery
    "40P01": CollectionBusyError,  # deadlock_detected
}
_log = logging.getLogger(__name__)


class PostgresDatabase:
    """The schema of a collection in a PostgreSQL database. Thread-safe.

    The address is `postgresql://user@host/database?collection=NAME`, with `ragfm` as the default name. Other parameters
    are those of libpq; `?host=DIR` names the folder of a socket. A password belongs into `PGPASSWORD` or `~/.pgpass`.
    """

    shared = True

    def __init__(self, address: str) -> None:
        try:
            url = sa.make_url(address)
        except sa.exc.ArgumentError as error:
            raise ConfigError(f"The address of the collection is not valid: {error}.", _ADDRESS_HINT) from None
        for password in url.normalized_query.get("password", ()):
            url = url.set(password=password)
        url = url.difference_update_query(["password"])
        name = url.query.get("collection", DEFAULT_NAME)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"The name of the collection, {name!r}, is not valid.",
                "Use up to 63 lower-case letters, digits, `_` and `-`; the first one is a letter or `_`.",
            )
        self.location = self.name = url.render_as_string(hide_password=True)
        self._schema = self.default_name = name
        self.address = url._replace(password=None).render_as_string()  # `set` ignores None
        """The address without its password, which `password_variables` gives to another process."""
        self.password_variables = {"PGPASSWORD": str(url.password)} if url.password else {}
        self._url = url.difference_update_query(["collection"]).set(drivername="postgresql+psycopg")
        self._cache = cache_folder() / "collections"
        self._token: str | None = None  # of the lease, while this process holds it
        self._seen: tuple[int, str] | None = None  # the newest generation that this process has seen, and its digest
        self._head_lock = threading.Lock()
        self._key: str | None = None  # the name of the folder
        self._compiled: dict[sa.Select[Any], tuple[str, Mapping[str, Any]]] = {}
        self._restricting: dict[str, str] | None = None  # settings, besides the groups, that make policies apply
        reset_in_children(self)

    def reset_after_fork(self) -> None:
        """Leave connections and the write lock to the parent of a forked process."""
        self._token, self._head_lock = None, threading.Lock()
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
        place, home = self._place(connection), connection.scalar(_property(HOME))
        if home not in (None, place):
            _log.warning(
                "%s is a clone of a collection elsewhere. It has views and a record of commits of its own; the next "
                "ingest gives it an id of its own.",
                self.location,
            )
        names = json.dumps([place] if home is None else sorted({place, home}))
        digest = blake2b(names.encode(), digest_size=4).hexdigest()
        return f"{connection.scalar(_property('collection'))}-{digest}"

    def _place(self, connection: sa.Connection) -> str:
        """The server, which a standby has in common with its primary server, the database, and the schema."""
        may = sa.text("SELECT has_function_privilege('pg_control_system()', 'EXECUTE')")
        server = sa.text("SELECT system_identifier FROM pg_control_system()")
        database = sa.text("SELECT oid FROM pg_database WHERE datname = current_database()")
        system = connection.scalar(server) if connection.scalar(may) else "unknown"
        return f"{system}/{connection.scalar(database)}/{self._schema}"

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
            return self._has_tables(connection)

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
        try:
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
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "A collection on PostgreSQL needs psycopg, which is not installed.",
                "Run `pip install -e '.[postgres]'` in ragfm's source folder.",
            ) from error
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
        """Let the policies hide the rows of documents that none of the groups may see, until the transaction ends.

        Policies do not apply to superusers and to roles with BYPASSRLS: those take the role `pg_read_all_data`.
        """
        if self._restricting is None:
            row = connection.execute(_WALL, {"table": f'"{self._schema}".documents', "role": _READ_ALL}).one()
            self._restricting = {"role": _READ_ALL} if row.has_policies and not row.apply and row.may_switch else {}
            if not (row.apply or self._restricting):
                why = f"the role {row.name!r} bypasses them" if row.has_policies else "they are switched off"
                _log.warning("%s: row-level policies do not apply, %s (docs/scale-out.md).", self.location, why)
        # Not built by SQLAlchemy, which takes longer than the call.
        connection.exec_driver_sql(*self._restriction(groups))

    def _restriction(self, groups: frozenset[str]) -> tuple[str, tuple[str, ...]]:
        """The statement that restricts a transaction to groups, and its parameters."""
        settings = {_GROUPS: json.dumps(sorted(groups)), **(self._restricting or {})}
        calls = ", ".join(["set_config(%s, %s, true)"] * len(settings))
        return f"SELECT {calls}", tuple(itertools.chain.from_iterable(settings.items()))

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
        if groups is not None and self._restricting is None:
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
                            driver.execute(*self._restriction(groups))
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
        """A transaction of the holder of the lease; durable when the block ends.

        Raises CollectionBusyError, and changes nothing, if another process has taken the lease.
        """
        del engine
        with self._writing_engine.begin() as connection:
            timeout = sa.func.set_config("idle_in_transaction_session_timeout", str(_IDLE_TIMEOUT_MS), True)
            connection.execute(sa.select(timeout))
            lease = json.loads(connection.scalar(_property(_WRITER).with_for_update()) or "{}")
            if self._token is None or lease.get("token") != self._token:
                raise CollectionBusyError(
                    f"The write lock of '{self.location}' was lost to {_holder(lease)}: this process did not renew it "
                    f"for {LEASE_SECONDS:g} s.",
                    "Earlier commits are intact. Run the command again.",
                )
            yield connection
            connection.execute(_renewal(_WRITER))

    # --- Checksums of rows, which pages need not have ---------------------------------------------------------------

    def seal(self, connection: sa.Connection, generation: int, written: Sequence[int] | None) -> None:
        """Store checksums of these documents, or of all; then those of this generation are complete.

        Without the right to write them, they stay incomplete until a role that has it opens the collection for writing.
        """
        if not self.may(connection, document_checksums, "UPDATE"):
            return
        schema = f'"{self._schema}"'
        if written != []:
            statement = (
                f"INSERT INTO {schema}.document_checksums "  # noqa: S608  our own names
                f"SELECT id, {_ROW_CHECKSUM.format(schema=schema)} FROM {schema}.documents "
                f"{'' if written is None else 'WHERE id = ANY(:ids)'} "
                "ON CONFLICT (document_id) DO UPDATE SET checksum = excluded.checksum"
            )
            connection.execute(sa.text(statement), {} if written is None else {"ids": written})
        upsert = insert(properties).values(key=SEALED, value=str(generation))
        connection.execute(upsert.on_conflict_do_update(index_elements=["key"], set_={"value": upsert.excluded.value}))

    def _is_sealed(self, connection: sa.Connection) -> bool:
        """Whether the rows of the newest generation, like those of all before it, have checksums."""
        newest = connection.scalar(sa.select(sa.func.max(generations.c.id)))
        return bool(connection.scalar(_property(SEALED)) == str(newest))

    def damaged_rows(self, connection: sa.Connection) -> Iterator[tuple[str, str, str]]:
        """See Database. Checksums are compared if they are complete, and this role may read them."""
        if self._is_sealed(connection) and self.may(connection, document_checksums, "SELECT"):
            schema = f'"{self._schema}"'
            query = sa.text(
                "SELECT uri, encode(checksum, 'hex') AS expected, encode(actual, 'hex') AS actual FROM "  # noqa: S608
                f"(SELECT id, uri, died, {_ROW_CHECKSUM.format(schema=schema)} AS actual FROM {schema}.documents) d "
                f"LEFT JOIN {schema}.document_checksums ON document_id = id "
                "WHERE died IS NULL AND checksum IS DISTINCT FROM actual ORDER BY id"
            )
            for row in connection.execute(query):
                yield row.uri, str(row.expected), row.actual

    def open_tables(self, connection: sa.Connection, *, own: bool = False) -> list[str]:
        """See Database. With `own`, only those that this role may change."""
        rows = connection.execute(_WITHOUT_SECURITY, {"schema": self._schema}).all()
        return [row.relname for row in rows if self._policy(row.relname) is not None and (row.own or not own)]

    def _policy(self, table: str) -> str | None:
        """The policy that a table should have."""
        if table.startswith("pgvector_"):
            # With OFFSET, the subquery is never planned as a scan of all chunks: a search visits few rows.
            return f"EXISTS (SELECT FROM {{schema}}.chunks c WHERE c.text_hash = {table}.text_hash OFFSET 0)"
        return {**_POLICIES, **_SERVER_POLICIES}.get(table)

    # --- Creation ------------------------------------------------------------------------------------------------

    @contextmanager
    def creating(self) -> Iterator[PostgresDatabase]:
        """The database itself: the collection is created in one transaction."""
        yield self

    def create(self, fill: Callable[[sa.Connection], tuple[int, str]]) -> None:
        """Create the schema, if it does not exist, and its tables. Raises CollectionError if the tables exist."""
        with self._creating_tables() as connection:
            if self._has_tables(connection):
                raise CollectionError(
                    f"There already is a collection at '{self.location}'.", "Choose a different name."
                )
            self._create_tables(connection)
            generation, digest = fill(connection)
            connection.execute(properties.insert(), [{"key": k, "value": v} for k, v in NO_LEASE.items()])
        self._key = self._seen = None  # of one that was dropped
        self.saw(generation, digest)

    @contextmanager
    def _creating_tables(self) -> Iterator[sa.Connection]:
        """A transaction of the only process that creates tables in the schema, which is created if necessary."""
        self.check_server()
        with self.committing() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(self._creation_key)))
            schemas = sa.text("SELECT count(*) FROM pg_namespace WHERE nspname = :name")
            if not connection.scalar(schemas, {"name": self._schema}):
                connection.execute(CreateSchema(self._schema))
            yield connection

    @property
    def _creation_key(self) -> sa.ColumnElement[Any]:
        """The key of the lock of those who create tables."""
        return sa.func.hashtextextended(f"ragfm {self._schema}", 0)

    def _has_tables(self, connection: sa.Connection) -> bool:
        table = f'"{self._schema}".generations'
        return connection.scalar(sa.select(sa.func.to_regclass(table))) is not None

    def _create_tables(self, connection: sa.Connection) -> None:
        SCHEMA.create_all(connection, checkfirst=False)
        SERVER_STATE.create_all(connection, checkfirst=False)
        connection.exec_driver_sql(
            f'ALTER TABLE "{self._schema}".upload_parts ALTER COLUMN data SET STORAGE EXTERNAL'  # not compressed
        )
        self.create_policies(connection, self.open_tables(connection))

    def create_policies(self, connection: sa.Connection, tables: Iterable[str]) -> None:
        """Let restricted transactions see only some rows of tables; see `restrict`. Others see all rows."""
        for name in tables:
            table = f'"{self._schema}".{name}'
            visible = str(self._policy(name)).format(schema=f'"{self._schema}"')
            for statement in (
                f"DROP POLICY IF EXISTS access ON {table}",
                f"CREATE POLICY access ON {table} USING ({_UNRESTRICTED} OR {visible})",
                f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
                f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",  # also for the role that owns the table
            ):
                connection.exec_driver_sql(statement)

    def _prepare_writing(self) -> None:
        """Switch on policies that were switched off, and complete the checksums. A clone gets an id of its own."""
        with self.committing() as connection:
            self._settle(connection)
            self.create_policies(connection, self.open_tables(connection, own=True))
            if not self._is_sealed(connection):
                newest = connection.scalar(sa.select(sa.func.max(generations.c.id)))
                self.seal(connection, int(newest or 0), None)

    def _settle(self, connection: sa.Connection) -> None:
        """Record where the collection is. If it was elsewhere, it gets a new id."""
        place, home = self._place(connection), connection.scalar(_property(HOME))
        if home == place:
            return
        upsert = insert(properties).values(key=HOME, value=place)
        connection.execute(upsert.on_conflict_do_update(index_elements=["key"], set_={"value": place}))
        if home is not None:
            new_id = properties.update().where(properties.c.key == "collection").values(value=uuid.uuid4().hex)
            connection.execute(new_id)
            self._key = self._seen = None

    def check_server(self) -> None:
        """Raise CollectionError for a server that may lose acknowledged commits, or that cannot be written."""
        with self.reading() as connection:
            names = (*_DURABLE_SETTINGS, "server_encoding")
            row = connection.execute(sa.select(*(sa.func.current_setting(name) for name in names))).one()
            standby = connection.scalar(sa.select(sa.func.pg_is_in_recovery()))
        values = dict(zip(names, row, strict=True))
        off = [f"{name}=off" for name in _DURABLE_SETTINGS if values[name] == "off"]
        if off:
            raise CollectionError(
                f"The server of '{self.location}' may lose acknowledged commits: {', '.join(off)}.",
                "Turn it on in postgresql.conf, for the database and for the role.",
            )
        if values["server_encoding"] != "UTF8":
            raise CollectionError(
                f"The database of '{self.location}' has the encoding {values['server_encoding']}, which cannot store "
                "all texts.",
                "Create one with `CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0`.",
            )
        if standby:
            raise CollectionReadOnlyError(
                f"The collection '{self.location}' cannot be written: its server is a standby.",
                "Connect to the primary server.",
            )

    # --- The write lock ------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lease. Raises CollectionBusyError, which names the holder, after `LOCK_SECONDS`."""
        self.check_server()
        token, deadline = uuid.uuid4().hex, time.monotonic() + LOCK_SECONDS
        while (holder := self._take_lease(token)) is not None:
            if time.monotonic() > deadline:
                raise CollectionBusyError(
                    f"{_holder(holder)} is writing to '{self.location}'.",
                    "Wait until it ends, then run the command again. If it was killed, its lock ends "
                    f"{LEASE_SECONDS:g} s later.",
                )
            time.sleep(0.1)
        self._token = token
        try:
            with self._keeping_lease(token, _WRITER):
                self._prepare_writing()
                yield
        finally:
            self._token = None

    @contextmanager
    def turn(self, name: str) -> Iterator[bool]:
        """Hold a lease for work that one process does at a time; False if another one holds it."""
        token = uuid.uuid4().hex
        if self._take_lease(token, name) is not None:
            yield False
            return
        with self._keeping_lease(token, name):
            yield True

    def turn_is_taken(self, connection: sa.Connection, name: str) -> bool:
        """Whether a process holds the lease."""
        return self._valid_holder(connection, name, connection.scalar(_property(name))) is not None

    def may_write(self, connection: sa.Connection) -> bool:
        """Whether this role may write to the collection, and the server is not a standby."""
        query = sa.text("SELECT NOT pg_is_in_recovery() AND has_table_privilege(:table, 'INSERT')")
        return bool(connection.scalar(query, {"table": f'"{self._schema}".generations'}))

    def may(self, connection: sa.Connection, table: sa.Table, privilege: str) -> bool:
        """Whether this role has a privilege on a table."""
        query = sa.text("SELECT has_table_privilege(oid, :privilege) FROM pg_class WHERE oid = to_regclass(:table)")
        values = {"table": f'"{self._schema}".{table.name}', "privilege": privilege}
        return bool(connection.scalar(query, values))

    @contextmanager
    def _keeping_lease(self, token: str, name: str) -> Iterator[None]:
        """Renew a lease in the block, and give it up at its end."""
        stop = threading.Event()
        renewing = threading.Thread(target=self._renew_lease, args=(token, stop, name), name="ragfm-lease", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            stop.set()
            renewing.join()
            with contextlib.suppress(CollectionError), self.committing() as connection:
                row = sa.and_(properties.c.key == name, properties.c.value.contains(token))
                connection.execute(properties.update().where(row).values(value=_NOBODY))

    def _take_lease(self, token: str, name: str = _WRITER) -> dict[str, Any] | None:
        """Take a lease if it is free. Returns its holder if it is not."""
        with self.committing() as connection:
            locked = connection.scalar(_property(name).with_for_update(skip_locked=True))
            if locked is None:  # a transaction of its holder runs
                holder: dict[str, Any] = json.loads(connection.scalar(_property(name)) or _NOBODY)
                return holder
            if (valid := self._valid_holder(connection, name, locked)) is not None:
                return valid
            value = {"token": token, "pid": os.getpid(), "host": socket.gethostname(), "machine": _machine()}
            update = properties.update().where(properties.c.key == name)
            connection.execute(update.values(value=json.dumps(value)))
            connection.execute(_renewal(name))
        return None

    def _valid_holder(self, connection: sa.Connection, name: str, value: str | None) -> dict[str, Any] | None:
        """Who holds a lease whose row has this value; None if it has ended."""
        holder: dict[str, Any] = json.loads(value or _NOBODY)
        if not holder or _has_ended(holder):
            return None
        until = connection.scalar(_property(f"{name} until"))
        return holder if float(until or 0) > float(connection.scalar(sa.select(_NOW)) or 0) else None

    def _renew_lease(self, token: str, stop: threading.Event, name: str) -> None:
        while not stop.wait(LEASE_SECONDS / 3):
            with contextlib.suppress(CollectionError), self.committing() as connection:
                # If the row is locked, a transaction of this process runs, which renews the lease at its end.
                holder = connection.scalar(_property(name).with_for_update(skip_locked=True))
                if holder is not None and token in holder:
                    connection.execute(_renewal(name))

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

    # --- HEAD ----------------------------------------------------------------------------------------------------

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

    # --- Errors --------------------------------------------------------------------------------------------------

    def read_error(self, error: sa.exc.DBAPIError) -> CollectionError:
        """The error to raise for a failed read."""
        error_type, why = self._failure(error)
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
        error_type, why = self._failure(error)
        return error_type(
            f"Writing to '{self.location}' failed: {why}. Earlier commits are intact.",
            "Fix the cause and run the command again.",
        )

    def _not_found(self) -> CollectionNotFound:
        return CollectionNotFound(
            f"There is no collection at '{self.location}'.", "Create one with `ragfm ingest FOLDER`."
        )

    def _failure(self, error: sa.exc.DBAPIError) -> tuple[type[CollectionError], str]:
        """The type of error to raise, and the reason in one line."""
        state = getattr(error.orig, "sqlstate", None) or ""
        # libpq's second line asks "Is the server running …?", which the hint of the error does, too.
        primary = getattr(getattr(error.orig, "diag", None), "message_primary", None)  # without the statement
        why = " ".join((primary or str(error.orig)).partition("\n\tIs the server")[0].split()).rstrip(".")
        # Classes of states: 08 connection exception, 28 authorization, 3D unknown database, 57 server is shut down.
        unknown = not state and not isinstance(error, sa.exc.DataError)  # psycopg itself refuses a NUL
        if error.connection_invalidated or unknown or state[:2] in ("08", "28", "3D", "57"):
            return CollectionUnavailableError, why
        return _ERRORS.get(state, CollectionError), why

    def damage_error(self, damage: str) -> DamagedCollectionError:
        """The error to raise for damage of the catalog."""
        return DamagedCollectionError(
            f"The catalog '{self.location}' is damaged: {damage}.", "Restore it from a backup of the database."
        )

    # --- Space ---------------------------------------------------------------------------------------------------

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


_UNRESTRICTED = f"(SELECT nullif(current_setting('{_GROUPS}', true), '')) IS NULL"  # evaluated once per query
_WALL = sa.text(
    "SELECT current_user AS name, relrowsecurity AS has_policies, row_security_active(oid) AS apply, "
    "pg_has_role(CAST(:role AS name), 'MEMBER') AS may_switch FROM pg_class WHERE oid = CAST(:table AS regclass)"
)
_WITHOUT_SECURITY = sa.text(
    "SELECT relname, pg_has_role(relowner, 'USAGE') AS own FROM pg_class "
    "JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = :schema "
    "AND relkind = 'r' AND NOT (relrowsecurity AND relforcerowsecurity AND EXISTS "
    "(SELECT FROM pg_policy WHERE polrelid = pg_class.oid AND polname = 'access' "
    "AND position(:setting IN pg_get_expr(polqual, polrelid)) > 0)) ORDER BY relname"
).bindparams(setting=_GROUPS)
_NOW = sa.extract("epoch", sa.func.clock_timestamp())  # of the database, in seconds


def _allow_prepared(connection: Any, _: object) -> None:
    """Let `fetch` prepare its statements, if the session belongs to this connection.

    A pooler may run each transaction in another session. It answers with a process id of its own making.
    """
    (session,) = connection.execute("SELECT pg_backend_pid()").fetchone()
    connection.rollback()
    if session == connection.info.backend_pid:
        connection.prepare_threshold = _ONLY_ON_REQUEST


def _property(key: str) -> sa.Select[Any]:
    return sa.select(properties.c.value).where(properties.c.key == key)


def _renewal(name: str) -> sa.Update:
    """The statement that lets a lease last `LEASE_SECONDS` from now."""
    until = sa.cast(_NOW + LEASE_SECONDS, sa.String)
    return properties.update().where(properties.c.key == f"{name} until").values(value=until)


def _holder(lease: Mapping[str, Any]) -> str:
    return f"Process {lease['pid']} on {lease['host']}" if lease else "Another process"


def _machine() -> str:
    """Identifies the processes that this one can see: those since the machine's start, in the same container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return uuid.uuid4().hex


def _has_ended(lease: Mapping[str, Any]) -> bool:
    """Whether the holder of a lease was a process on this machine that no longer exists."""
    if lease["machine"] != _machine():
        return False
    try:
        os.kill(lease["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
