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
from ragfm.errors import DamagedCollectionError

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
    elif (folder / f"{FILE}-shm").exists():
        mode = "ro"
    else:
        mode = "ro&immutable=1"  # nobody can write there, and no log is left to read

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


def write_head(folder: Path, generation: int, digest: str) -> None:
    """Acknowledge a generation, durably."""
    write_durably(folder / HEAD, checksummed({"generation": generation, "digest": digest}))


def read_head(folder: Path) -> dict[str, Any]:
    """The last acknowledged generation and its digest. Raises DamagedCollectionError."""
    try:
        return read_checksummed(folder / HEAD)
    except (OSError, ValueError) as error:
        raise DamagedCollectionError(
            f"{folder / HEAD}, which says what was acknowledged, can't be read: {error}.", "Restore it from a backup."
        ) from error


def batches(values: list[Any]) -> Iterator[list[Any]]:
    """The values in parts that an `IN (...)` list takes."""
    for start in range(0, len(values), _ROWS):
        yield values[start : start + _ROWS]
