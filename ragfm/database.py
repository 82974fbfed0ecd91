"""A collection's database file and its HEAD: how they are opened, and what was acknowledged."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from ragfm.durable import checksummed, read_checksummed, write_durably
from ragfm.errors import CollectionError, DamagedCollectionError

FILE = "catalog.sqlite"
HEAD = "HEAD"
_ROWS = 500  # per IN (...) list; SQLite's oldest limit is 999 variables


def open_engine(folder: Path, *, writable: bool, create: bool = False) -> sa.Engine:
    """Connections to a database. A reader can't write; a writer's transactions take the write lock at once."""
    name = quote(str((folder / FILE).absolute()))
    if create:
        mode = "rwc"
    elif writable or os.access(folder, os.W_OK):
        mode = "rw"  # readers too: SQLite needs its shared-memory file beside the database; see query_only below
    elif os.statvfs(folder).f_flag & os.ST_RDONLY and not _has_log(folder):
        mode = "ro&immutable=1"  # SQLite needs no shared memory where nothing can change
    else:
        mode = "ro"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(f"file:{name}?mode={mode}", uri=True, check_same_thread=False, timeout=30)
        connection.isolation_level = None  # SQLAlchemy begins and commits, see below
        if create:
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        if not writable:
            connection.execute("PRAGMA query_only=ON")
        return connection

    engine = sa.create_engine("sqlite+pysqlite://", creator=connect, poolclass=sa.pool.QueuePool)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # Python's sqlite3 would begin only at the first write, so that two reads could see two states.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writable else "BEGIN")

    return engine


def unreadable(folder: Path, error: sa.exc.DatabaseError) -> CollectionError:
    """What it means that a catalog can't be read: damage, or something that passes."""
    cause = error.orig
    code = getattr(cause, "sqlite_errorname", "")
    if code in ("SQLITE_CORRUPT", "SQLITE_NOTADB") or "no such table" in str(cause):
        return DamagedCollectionError(
            f"The catalog {folder / FILE} can't be read: {cause}.", "Restore it from a backup."
        )
    hint = "Run it again."
    if not os.access(folder, os.W_OK):
        hint = f"To read it, SQLite must be able to write to {folder}, or the file system must be read-only."
        if _has_log(folder):
            hint = f"It has commits in {FILE}-wal; open it once where its folder can be written."
    return CollectionError(f"The catalog {folder / FILE} can't be opened: {cause}.", hint)


def write_head(folder: Path, generation: int, digest: str) -> None:
    """Acknowledge a generation, durably. Raises CollectionError where it can't be written."""
    try:
        write_durably(folder / HEAD, checksummed({"generation": generation, "digest": digest}))
    except OSError as error:
        raise CollectionError(
            f"Generation {generation} is committed, but {folder / HEAD} can't be written: {error.strerror}.",
            "Mend the cause and run it again.",
        ) from error


def read_head(folder: Path) -> dict[str, Any]:
    """The last acknowledged generation and its digest. Raises DamagedCollectionError."""
    try:
        return read_checksummed(folder / HEAD)
    except (OSError, ValueError) as error:
        raise DamagedCollectionError(
            f"{folder / HEAD}, which says what was acknowledged, can't be read: {error}.", "Restore it from a backup."
        ) from error


def _has_log(folder: Path) -> bool:
    log = folder / f"{FILE}-wal"
    return log.exists() and log.stat().st_size > 0


def batches(values: list[Any]) -> Iterator[list[Any]]:
    """The values in parts that an `IN (...)` list takes."""
    for start in range(0, len(values), _ROWS):
        yield values[start : start + _ROWS]
