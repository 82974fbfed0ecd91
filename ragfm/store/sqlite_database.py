"""A collection in a folder, on SQLite: its lock, its creation, and how its database is opened."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from weakref import WeakSet

import sqlalchemy as sa
from filelock import FileLock, Timeout

from ragfm.core.config import SETTINGS_FILE
from ragfm.core.durable_files import (
    encode_checksummed,
    new_file_mode,
    new_folder,
    read_checksummed,
    storage_failure,
    sync_folder,
    temporary_paths,
    write_durably,
)
from ragfm.core.errors import (
    AccessDeniedError,
    CollectionBusyError,
    CollectionError,
    CollectionReadOnlyError,
    DamagedCollectionError,
)
from ragfm.core.fork import reset_in_children
from ragfm.store.database import LOCK_SECONDS
from ragfm.store.sqlite_driver import sqlite
from ragfm.store.sqlite_file import (
    CATALOG_FILE,
    HEAD_FILE,
    LOST_HEAD_HINT,
    create_database,
    open_engine,
    read_error,
)
from ragfm.store.tables import SCHEMA, uploads
from ragfm.store.views import VIEWS_FOLDER

LOCK = "LOCK"
_VACUUM_PAGES = 2_000  # freed per statement


class _PreparedQuery:
    """The SQL statement of a query, and how its parameters and rows are converted."""

    def __init__(self, query: sa.Select[Any], dialect: sa.Dialect) -> None:
        compiled, columns = query.compile(dialect=dialect), query.selected_columns
        self.statement = compiled.string
        binds = [compiled.binds[name] for name in compiled.positiontup or ()]
        self._parameters = [
            (bind.key, bind.value, bind.type.dialect_impl(dialect).bind_processor(dialect)) for bind in binds
        ]
        row: Any = namedtuple("_Row", columns.keys())  # type: ignore[misc]
        self._to_row = row._make
        converters = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
        self._converters = [(index, convert) for index, convert in enumerate(converters) if convert]

    def run(self, cursor: Any, parameters: Mapping[str, Any]) -> list[Any]:
        """The rows, as named tuples."""
        values = [
            convert(parameters.get(name, constant)) if convert else parameters.get(name, constant)
            for name, constant, convert in self._parameters
        ]
        rows = cursor.execute(self.statement, values).fetchall()
        if self._converters:
            rows = list(map(list, rows))
            for row in rows:
                for index, convert in self._converters:
                    row[index] = convert(row[index])
        return list(map(self._to_row, rows))


class SqliteDatabase:
    """The database file of a collection's folder."""

    shared = False
    seen = None
    loss_hint = "Restore it from a backup, or remove the folder and ingest again."

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.location = str(folder)
        self.settings_file = folder.parent / SETTINGS_FILE
        self.name = str(folder / CATALOG_FILE)
        self._prepared: dict[sa.Select[Any], _PreparedQuery] = {}
        self._engines: WeakSet[sa.Engine] = WeakSet()
        self._inherited: list[sa.Pool] = []  # connections from before a fork
        reset_in_children(self)

    def reset_after_fork(self) -> None:
        """Put the connections aside until this process opens its own: another thread may just have been in SQLite."""
        for engine in self._engines:
            self._inherited.append(engine.pool)
            engine.dispose(close=False)

    def _close_inherited(self) -> None:
        # The locks of their files belong to the parent, and SQLite would count them as those of this process.
        while self._inherited:
            self._inherited.pop().dispose()

    @property
    def default_name(self) -> str:
        """The name of the folder, or of the parent folder if that is hidden."""
        path = self.folder.resolve()
        return path.parent.name if path.name.startswith(".") else path.name

    @property
    def exists(self) -> bool:
        """Whether the folder holds a collection. Raises DamagedCollectionError if HEAD or the catalog is missing."""
        for _ in range(2):  # another process may be creating it
            has_head = (self.folder / HEAD_FILE).exists()
            has_catalog = (self.folder / CATALOG_FILE).exists()
            if has_head == has_catalog:
                return has_catalog
        if has_catalog:
            raise DamagedCollectionError(f"{HEAD_FILE} is missing from '{self.folder}'.", LOST_HEAD_HINT)
        raise DamagedCollectionError(
            f"{CATALOG_FILE} is missing from '{self.folder}'.",
            "Restore the collection from a backup, or remove its folder and ingest again.",
        )

    def identity(self) -> tuple[int, int] | None:
        """Device and inode of the database file, None if there is none."""
        try:
            status = (self.folder / CATALOG_FILE).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_dev, status.st_ino

    @contextmanager
    def creating(self) -> Iterator[SqliteDatabase]:
        """The database of a temporary folder, which is renamed when the block ends. Raises CollectionError."""
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise CollectionError(
                f"The folder '{self.folder}' is not empty and is not a collection.",
                "Choose a different folder with -c.",
            )
        folder = self.folder.resolve()  # it may be a link to a larger disk
        try:
            with new_folder(folder) as temporary:
                yield SqliteDatabase(temporary)
        except (OSError, sa.exc.DBAPIError, CollectionError) as error:
            error_type, why = storage_failure(folder.parent, error)
            if isinstance(error, CollectionError):
                error_type = type(error)
            elif error_type is AccessDeniedError:
                error_type = CollectionReadOnlyError
            raise error_type(
                f"The collection '{self.folder}' cannot be created: {why}.", "Choose a different folder with -c."
            ) from error

    def create(self, fill: Callable[[sa.Connection], tuple[int, str]]) -> None:
        """Create the database file in the folder, which exists, and HEAD. Raises OSError, CollectionError."""
        create_database(self.folder)
        engine = self.open_engine(writable=True)
        try:
            with engine.begin() as connection:
                SCHEMA.create_all(connection)
                uploads.create(connection)
                generation, digest = fill(connection)
            # Closing does a checkpoint too, but ignores errors.
            with closing(engine.raw_connection()) as driver:
                driver.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite.Error as error:
            error_type, why = storage_failure(self.folder, error)
            raise error_type(f"'{self.name}' cannot be written: {why}.") from error
        finally:
            engine.dispose()
        self.write_head(generation, digest)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock file, and remove what killed writers left."""
        if not os.access(self.folder, os.W_OK):
            raise CollectionReadOnlyError(
                f"The collection '{self.folder}' cannot be written: its folder is read-only.",
                "Searching and asking still work.",
            )
        with write_lock(self.folder):
            parent = self.folder.resolve().parent
            try:
                sync_folder(parent)  # the process that created the folder may not have done it
            except OSError as error:
                error_type, why = storage_failure(parent, error)
                raise error_type(
                    f"The folder '{parent}' cannot be synced: {why}.",
                    "Nothing was written. Run the command again.",
                ) from error
            for leftover in leftovers(self.folder):
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    with contextlib.suppress(OSError):  # it only takes space
                        leftover.unlink()
            yield

    def views_lock(self) -> contextlib.AbstractContextManager[bool]:
        """Do nothing: only the holder of the write lock saves views."""
        return nullcontext(True)

    def open_engine(self, *, writable: bool) -> sa.Engine:
        """An engine for the database file."""
        engine = open_engine(self.folder, writable=writable, before_connect=self._close_inherited)
        self._engines.add(engine)
        return engine

    def fetch(
        self, engine: sa.Engine, query: sa.Select[Any], parameters: Mapping[str, Any], groups: frozenset[str] | None
    ) -> Sequence[Any]:
        """The rows of a query, without SQLAlchemy, which takes longer than the query."""
        del groups  # see `restrict`
        if query not in self._prepared:
            self._prepared[query] = _PreparedQuery(query, engine.dialect)
        prepared = self._prepared[query]
        with closing(engine.raw_connection()) as driver:
            try:
                return prepared.run(driver.cursor(), parameters)
            except sqlite.Error as error:
                raise sa.exc.DatabaseError(prepared.statement, None, error) from error

    def restrict(self, connection: sa.Connection, groups: frozenset[str]) -> None:
        """Do nothing: SQLite has no row-level security."""

    @contextmanager
    def begin_write(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        """A write transaction; durable when the block ends."""
        # IMMEDIATE takes the lock at once. Taken at the first write, SQLite could no longer wait for it.
        with engine.execution_options(begin="BEGIN IMMEDIATE").begin() as connection:
            yield connection

    def seal(self, connection: sa.Connection, generation: int, written: Sequence[int]) -> None:
        """Do nothing: all pages have checksums."""

    def damaged_rows(self, connection: sa.Connection) -> Iterator[tuple[str, str, str]]:
        """None: see `seal`."""
        return iter(())

    def unprotected_tables(self, connection: sa.Connection) -> list[str]:
        """None: see `restrict`."""
        return []

    def saw(self, generation: int, digest: str) -> None:
        """Do nothing: HEAD is in the same folder, and the writer writes it."""

    def replaced(self, _: sa.Connection) -> bool:
        """False: an open file stays the same one. `identity` notices that another one has its name."""
        return False

    def read_head(self) -> dict[str, Any]:
        """The last acknowledged `generation` and its `digest`. Raises DamagedCollectionError."""
        try:
            return read_checksummed(self.folder / HEAD_FILE)
        except (OSError, ValueError) as error:
            raise DamagedCollectionError(
                f"The record of the last commit, '{self.folder / HEAD_FILE}', cannot be read: {error}.", LOST_HEAD_HINT
            ) from error

    def write_head(self, generation: int, digest: str) -> None:
        """Acknowledge a generation durably. Raises CollectionError."""
        try:
            write_durably(self.folder / HEAD_FILE, encode_checksummed({"generation": generation, "digest": digest}))
        except OSError as error:
            error_type, why = storage_failure(self.folder, error)
            raise error_type(
                f"Generation {generation} is committed, but '{self.folder / HEAD_FILE}' cannot be written: {why}.",
                "Fix the cause and run the command again.",
            ) from error

    def read_error(self, error: sa.exc.DatabaseError) -> CollectionError:
        """The error to raise for a failed read: damage, a full disk, a missing permission, or anything else."""
        return read_error(self.folder, error)

    def write_error(self, error: sa.exc.DatabaseError) -> CollectionError:
        """The error to raise for a failed write: read-only, damage, a full disk, or anything else."""
        if "readonly" in str(error.orig):
            return CollectionReadOnlyError(f"The collection '{self.folder}' is read-only.")
        damage = read_error(self.folder, error)
        if isinstance(damage, DamagedCollectionError):
            return damage
        error_type, why = storage_failure(self.folder, error)
        return error_type(
            f"Writing to '{self.name}' failed: {why}. Earlier commits are intact.",
            "Fix the cause and run the command again.",
        )

    def damage_error(self, damage: str) -> DamagedCollectionError:
        """The error to raise for damage of the catalog."""
        return DamagedCollectionError(
            f"The catalog '{self.name}' is damaged: {damage}.",
            "Restore it from a backup, or save the readable documents with `ragfm verify --salvage OUT`.",
        )

    def size(self, _: sa.Engine) -> int:
        """The size of the database file and its write-ahead log, in bytes."""
        files = (self.folder / CATALOG_FILE, self.folder / f"{CATALOG_FILE}-wal")
        return sum(file.stat().st_size for file in files if file.exists())

    def shrink(self, engine: sa.Engine) -> None:
        """Return free pages to the file system, and merge the write-ahead log into the database.

        Raises CollectionError on failure; no data is lost.
        """
        try:
            with closing(engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
                while cursor.execute("PRAGMA freelist_count").fetchone()[0]:
                    cursor.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
                cursor.execute("PRAGMA busy_timeout=1000")  # readers may block the checkpoint; a later one shrinks it
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            sync_folder(self.folder)  # SQLite ignores an error of its own sync of the folder
        except (sqlite.Error, OSError) as error:
            error_type, why = storage_failure(self.folder, error)
            raise error_type(
                f"Free space in '{self.name}' cannot be returned: {why}. No data was lost.",
                "Fix the cause and run `ragfm compact`.",
            ) from error


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders of a collection. Under its lock, they are those of writers that were killed."""
    return sorted([*folder.glob("*.new"), *(folder / VIEWS_FOLDER).glob("*.new"), *temporary_paths(folder.resolve())])


@contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a collection. Raises CollectionBusyError, which names the holder, after `LOCK_SECONDS`."""
    holder_file = folder / f"{LOCK}.holder"
    mode = new_file_mode(folder)
    lock = FileLock(folder / LOCK, timeout=LOCK_SECONDS, mode=mode, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        try:
            holder: dict[str, Any] = json.loads(holder_file.read_text())
            name = f"Process {holder['pid']} on {holder['host']}"
        except (OSError, ValueError):
            name = "Another process"
        raise CollectionBusyError(
            f"{name} is writing to '{folder}'.", "Wait until it ends, then run the command again."
        ) from error
    except OSError as error:
        error_type, why = storage_failure(folder, error)
        raise error_type(f"'{lock.lock_file}' cannot be locked: {why}.", "Run the command again.") from error
    try:
        with contextlib.suppress(OSError):  # the file only serves the message above
            holder_data = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
            with os.fdopen(os.open(holder_file, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, mode), "wb") as file:
                file.write(holder_data)
        yield
    finally:
        with contextlib.suppress(OSError):
            holder_file.unlink()
        lock.release()
