"""Where the answer log is: an SQLite file next to the collection, or the database of a collection on PostgreSQL.

Several processes may write to it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa

from ragfm.core.errors import CollectionError, CollectionNotFound, CollectionUnavailableError, LogError
from ragfm.store.tables import answer_log, citation_labels

if TYPE_CHECKING:
    from ragfm.store.postgres import PostgresDatabase

T = TypeVar("T")
SCHEMA = 8
LOCK_SECONDS = 15.0  # to wait for another process's write


class LogFile:
    """The log in a file: runs transactions on the tables `answer_log` and `citation_labels`. Thread-safe.

    Deleted entries are overwritten. All methods raise LogError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # A connection for each use: the last one to close checkpoints the write-ahead log.
        self._engine = sa.create_engine(
            "sqlite://", creator=self._open, poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT"
        )

    def read(self, action: Callable[[sa.Connection], T], groups: frozenset[str] | None = None) -> T:
        """The result of an action that sees one state. A file has no policies for `groups`."""
        return self._run(action, "BEGIN")

    def write(self, action: Callable[[sa.Connection], T], *, create: bool = False) -> T:
        """The result of an action. `create` makes a missing file."""
        return self._run(action, "BEGIN IMMEDIATE", create=create)

    def erase(self) -> None:
        """Rewrite the file and truncate the write-ahead log: old pages could still be read there."""

        def rewrite(connection: sa.Connection) -> bool:
            connection.exec_driver_sql("VACUUM")
            return bool(connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar())

        if self._run(rewrite):
            raise LogError(
                f"The entries are deleted, but {self.path}-wal still contains them: another process reads the log.",
                "Run the command again after that process has ended.",
            )

    def _run(self, action: Callable[[sa.Connection], T], begin: str = "", *, create: bool = False) -> T:
        if not create and not self.path.exists():
            raise LogError(
                f"There is no answer log at {self.path}.", "Set `log = true` under `[ask]` in ragfm.toml to keep one."
            )
        try:
            if create and not self.path.exists():
                os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))  # questions are private
            with self._engine.connect() as connection:
                version = connection.exec_driver_sql("PRAGMA user_version").scalar()
                if version == 0:  # a new file
                    connection.exec_driver_sql("PRAGMA journal_mode = WAL")
                    connection.exec_driver_sql("BEGIN IMMEDIATE")  # another process may be faster
                    for table in (answer_log, citation_labels):
                        table.create(connection, checkfirst=True)
                    connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA}")
                    connection.exec_driver_sql("COMMIT")
                elif version != SCHEMA:
                    raise LogError(
                        f"{self.path} was written by another version of ragfm: it has schema {version}, not {SCHEMA}.",
                        "Use that version, or move the file away.",
                    )
                if not begin:
                    return action(connection)
                connection.exec_driver_sql(begin)
                result = action(connection)
                connection.exec_driver_sql("COMMIT")  # after an error, closing the connection rolls back
                return result
        except (sa.exc.DBAPIError, OSError) as error:
            why = getattr(error, "strerror", None) or getattr(error, "orig", error)
            raise LogError(
                f"The answer log {self.path} cannot be used: {why}.", "Repair it, or move it away."
            ) from error

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=LOCK_SECONDS, isolation_level=None)
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA temp_store = MEMORY")
        return connection


class LogTable:
    """The same in a database, which all servers and commands of the collection share."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self.path = database.location

    def read(self, action: Callable[[sa.Connection], T], groups: frozenset[str] | None = None) -> T:
        """The result of an action that sees one state; with `groups`, only what the policies show to them."""

        def run() -> T:
            with self._database.reading() as connection:
                if groups is not None:
                    self._database.restrict(connection, groups)
                return action(connection)

        return self._run(run)

    def write(self, action: Callable[[sa.Connection], T], *, create: bool = False) -> T:
        """The result of an action, which may run twice if a connection is lost."""

        def run() -> T:
            with self._database.committing() as connection:
                return action(connection)

        return self._run(run)

    def erase(self) -> None:
        """Let the server write the table to a new file, which needs its owner. WAL and backups keep older states."""
        if not self._run(lambda: self._database.rewrite(answer_log.name)):
            raise LogError(
                f"The entries are deleted, but the files of '{self.path}' still have them: only the table's owner may "
                "rewrite it.",
                "Run the command again as the owner of the collection.",
            )

    def _run(self, action: Callable[[], T]) -> T:
        try:
            try:
                return action()
            except CollectionUnavailableError:  # the server was restarted: the first failure closes old connections
                return action()
        except CollectionNotFound as error:
            raise LogError(
                f"There is no answer log in '{self.path}'.", "The owner of the collection adds it with `ragfm ingest`."
            ) from error
        except CollectionError as error:
            raise LogError(f"The answer log in '{self.path}' cannot be used: {error.message}", error.hint) from error
