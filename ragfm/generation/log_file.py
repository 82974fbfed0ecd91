"""The answer log as an SQLite file next to the collection. Deleted entries are overwritten.

Several processes may write to it.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ragfm.core.errors import LogError
from ragfm.core.types import Contradiction
from ragfm.generation.log_entries import LogEntry, LogFilter, encode_row, make_entries, timestamp

SCHEMA = 4
_LOCK_SECONDS = 5.0  # to wait for another process's write
_TABLE = """
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused
    at TEXT NOT NULL,                      -- UTC, ISO 8601
    question TEXT NOT NULL, query TEXT NOT NULL, answer TEXT NOT NULL,
    abstained INTEGER NOT NULL, finished INTEGER NOT NULL,
    reader TEXT NOT NULL, adapter TEXT,
    groups TEXT,                           -- JSON, like all that follow; null for the owner
    passages TEXT NOT NULL, prompt TEXT NOT NULL, citations TEXT NOT NULL, usage TEXT NOT NULL, seconds TEXT NOT NULL,
    thumbs TEXT CHECK (thumbs IN ('up', 'down')), correction TEXT
)
"""
_ADD_CONTRADICTIONS = "ALTER TABLE entries ADD COLUMN contradictions TEXT NOT NULL DEFAULT '[]'"
# What a user of the server gets instead of the id, which would reveal how many questions others ask.
_ADD_RATING_ID = "ALTER TABLE entries ADD COLUMN rating_id TEXT"
_INDEX_RATING_ID = "CREATE UNIQUE INDEX ratings ON entries (rating_id)"
_ADD_REQUEST = [
    f"ALTER TABLE entries ADD COLUMN {column}"
    for column in ("shown TEXT", "status TEXT", "confidence REAL", "key TEXT", "request_id TEXT")
]
# Until schema 3, the key was known only by the group that no other key has.
_SET_KEY = "UPDATE entries SET key = (SELECT substr(value, 5) FROM json_each(groups) WHERE value LIKE 'key:%')"


class LogFile:
    """The entries in a file, which the first one creates. Implements LogStorage. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def insert(self, row: Mapping[str, Any]) -> int:
        """Store an entry. Returns its id."""
        columns, values = ", ".join(row), ", ".join(f":{name}" for name in row)
        with self._transaction(create=True) as connection:
            query = f"INSERT INTO entries ({columns}) VALUES ({values})"  # noqa: S608
            number = connection.execute(query, encode_row(row)).lastrowid
        assert number is not None
        return number

    def select(self, which: LogFilter) -> list[LogEntry]:
        """The entries that match a filter, oldest first."""
        with self._connect(create=False) as connection:
            connection.execute("BEGIN")
            return list(_select(connection, which))

    def change(self, which: LogFilter, values: Callable[[LogEntry], Mapping[str, Any] | None]) -> int:
        """Change the columns that `values` gives for each entry, or delete the entry. Returns how many."""
        with self._transaction() as connection:
            entries = list(_select(connection, which))
            for entry in entries:
                changed = values(entry)
                if changed is None:
                    connection.execute("DELETE FROM entries WHERE id = ?", (entry.id,))
                else:
                    columns = ", ".join(f"{name} = :{name}" for name in changed)
                    query = f"UPDATE entries SET {columns} WHERE id = :id"  # noqa: S608
                    connection.execute(query, {**encode_row(changed), "id": entry.id})
        return len(entries)

    def erase(self) -> None:
        """Rewrite the file and truncate the write-ahead log: old pages could still be read there."""
        with self._connect(create=False) as connection:
            connection.execute("VACUUM")
            busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise LogError(
                f"The entries are deleted, but {self.path}-wal still contains them: another process reads the log.",
                "Run the command again after that process has ended.",
            )

    @contextmanager
    def _transaction(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        with self._connect(create=create) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextmanager
    def _connect(self, *, create: bool) -> Iterator[sqlite3.Connection]:
        """A connection for each use: the last one to close checkpoints the write-ahead log."""
        if not create and not self.path.exists():
            raise LogError(
                f"There is no answer log at {self.path}.", "Set `log = true` under `[ask]` in ragfm.toml to keep one."
            )
        try:
            if create and not self.path.exists():
                os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))  # questions are private
            with closing(sqlite3.connect(self.path, timeout=_LOCK_SECONDS, isolation_level=None)) as connection:
                connection.row_factory = sqlite3.Row
                connection.execute("PRAGMA secure_delete = ON")
                connection.execute("PRAGMA temp_store = MEMORY")
                self._migrate(connection)
                yield connection
        except (sqlite3.Error, OSError) as error:
            why = getattr(error, "strerror", None) or error
            raise LogError(
                f"The answer log {self.path} cannot be used: {why}.", "Repair it, or move it away."
            ) from error

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == SCHEMA:
            return
        if version > SCHEMA:
            raise LogError(f"{self.path} was written by a newer ragfm: it has schema {version}.", "Update ragfm.")
        if version == 0:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()  # another process may have been faster
        if version < 2:
            connection.execute(_TABLE)
            connection.execute(_ADD_CONTRADICTIONS)
            # Schema 1 kept contradictions as sentences of the answer, with a citation each.
            for row in connection.execute("SELECT id, answer, citations FROM entries").fetchall():
                answer, citations, contradictions = row["answer"], [], []
                for citation in json.loads(row["citations"]):
                    known = {key: citation[key] for key in ("n", "uri", "page", "start", "end", "quote")}
                    contradiction = Contradiction(**known, answer_start=0, answer_end=0)
                    sentence = f" {contradiction.sentence}"
                    if sentence in answer:
                        end = answer.index(sentence)
                        answer = answer.replace(sentence, "", 1)
                        contradictions.append(asdict(replace(contradiction, answer_end=end)))
                    else:
                        citations.append(citation)
                if contradictions:
                    values = encode_row({"answer": answer, "citations": citations, "contradictions": contradictions})
                    connection.execute(
                        "UPDATE entries SET answer = :answer, citations = :citations, contradictions = :contradictions"
                        " WHERE id = :id",
                        {**values, "id": row["id"]},
                    )
        if version < 3:
            connection.execute(_ADD_RATING_ID)
            connection.execute("UPDATE entries SET rating_id = lower(hex(randomblob(8)))")
            connection.execute(_INDEX_RATING_ID)
        if version < SCHEMA:
            for statement in _ADD_REQUEST:
                connection.execute(statement)
            connection.execute(_SET_KEY)
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
        connection.execute("COMMIT")


def _select(connection: sqlite3.Connection, which: LogFilter) -> Iterator[LogEntry]:
    conditions, values = ["1"], list[Any]()
    if which.ids:
        conditions.append(f"id IN ({', '.join('?' * len(which.ids))})")
        values += which.ids
    if which.older_than is not None:
        conditions.append("at < ?")
        values.append(timestamp(datetime.now(UTC) - which.older_than))
    for column, value in (("thumbs", which.thumbs), ("rating_id", which.rating_id)):
        if value is not None:
            conditions.append(f"{column} = ?")
            values.append(value)
    query = f"SELECT * FROM entries WHERE {' AND '.join(conditions)} ORDER BY id"  # noqa: S608
    yield from make_entries(map(dict, connection.execute(query, values)), which)
