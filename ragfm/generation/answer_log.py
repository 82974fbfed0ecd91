"""The answer log: each question with its passages, prompt, answer and times, and the user's rating of the answer.

An SQLite file next to the collection, but not part of it. It is off by default. Deleted entries are overwritten.
Several processes may write to it.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

from ragfm.citations.decision import describe_contradiction
from ragfm.core.errors import LogError
from ragfm.core.types import Answer, Contradiction, Sampling
from ragfm.generation.log_entries import (
    TEXT_COLUMNS,
    LogEntry,
    LogFilter,
    encode_row,
    redact,
    select_entries,
    timestamp,
)
from ragfm.generation.passage_retrieval import SearchHandle
from ragfm.generation.prompt import Prompt

_log = logging.getLogger(__name__)

SCHEMA = 3
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
# What a user of the server gets instead of the id, which would tell how many questions others ask.
_ADD_RATING_ID = "ALTER TABLE entries ADD COLUMN rating_id TEXT"
_INDEX_RATING_ID = "CREATE UNIQUE INDEX ratings ON entries (rating_id)"


class Answering(Protocol):
    """The part of `Rag` that the log needs."""

    reader_name: str
    sampling: Sampling

    @property
    def collection(self) -> SearchHandle:
        """The handle that it answers from."""


@dataclass(frozen=True, slots=True)
class AnswerContext:
    """How a question was answered: `start` is its `time.monotonic`, `found` the seconds that retrieval took."""

    reader: str
    adapter: str | None
    groups: frozenset[str] | None
    prompt: Prompt | None
    start: float
    found: float

    @classmethod
    def of(cls, rag: Answering, prompt: Prompt | None, start: float) -> AnswerContext:
        """The context of a question that `rag` was asked at `start` and has retrieved the passages for just now."""
        groups, adapter = rag.collection.groups, rag.sampling.adapter
        return cls(rag.reader_name, adapter, groups, prompt, start, time.monotonic() - start)


class AnswerLog:
    """The log at a path. The file is created by the first entry. Thread-safe.

    All methods raise LogError if the file cannot be read or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def for_collection(cls, collection: str | Path) -> AnswerLog:
        """The log of a collection's folder: `.ragfm-log.db` for `.ragfm`."""
        folder = Path(os.path.abspath(collection))  # noqa: PTH100  without `..`
        return cls(folder.with_name(f"{folder.name}-log.db"))

    def record_stream(
        self, pieces: Generator[str, None, Answer], context: AnswerContext, unfinished: Answer
    ) -> Generator[str, None, Answer]:
        """Pass an answer's pieces through, and log the answer at the end; it is returned with its `log_id`.

        If the stream is stopped, the text so far is logged in place of that of `unfinished`. An error of the log is a
        warning: it never costs an answer.
        """
        text: list[str] = []
        first_piece: float | None = None
        try:
            while True:
                try:
                    piece = next(pieces)
                except StopIteration as end:
                    answer: Answer = end.value
                    return replace(answer, log_id=self.record(answer, context, first_piece, finished=True))
                if first_piece is None:
                    first_piece = time.monotonic() - context.start
                text.append(piece)
                yield piece
        except BaseException:  # the consumer stopped, Ctrl-C, or an error of the reader
            pieces.close()
            seconds = round(time.monotonic() - context.start, 3)
            answer = replace(unfinished, text="".join(text).strip(), seconds=seconds)
            self.record(answer, context, first_piece, finished=False)
            raise

    def record(
        self, answer: Answer, context: AnswerContext, first: float | None = None, *, finished: bool = True
    ) -> int | None:
        """Like `add`, but errors of the log become warnings and return None."""
        try:
            return self.add(answer, context, first, finished=finished)
        except KeyboardInterrupt:
            why = "interrupted"
        except Exception as error:  # no error of the log may cost the answer
            why = error.message if isinstance(error, LogError) else f"{type(error).__name__}: {error}"
        _log.warning("The answer was not logged: %s", why)
        return None

    def add(self, answer: Answer, context: AnswerContext, first: float | None = None, *, finished: bool = True) -> int:
        """Log an answer and return its id. `first` is the time of the first piece of text, in seconds."""
        hit_keys = ("uri", "start", "end", "page", "chunk_id", "n", "score", "scores")
        seconds = {"found": context.found, "first": first, "total": answer.seconds}
        row = {
            "at": timestamp(datetime.now(UTC)),
            "question": answer.question,
            "query": answer.query,
            "answer": answer.text,
            "abstained": answer.abstained,
            "finished": finished,
            "reader": context.reader,
            "adapter": context.adapter,
            "groups": None if context.groups is None else sorted(context.groups),
            "passages": [{key: getattr(hit, key) for key in hit_keys} for hit in answer.hits],
            "prompt": [asdict(message) for message in context.prompt.messages] if context.prompt else [],
            "citations": [asdict(citation) for citation in answer.citations],
            "contradictions": [asdict(contradiction) for contradiction in answer.contradictions],
            "usage": asdict(answer.usage),
            "seconds": {key: round(value, 3) for key, value in seconds.items() if value is not None},
            "rating_id": secrets.token_hex(8),
        }
        columns, values = ", ".join(row), ", ".join(f":{name}" for name in row)
        with self._transaction(create=True) as connection:
            query = f"INSERT INTO entries ({columns}) VALUES ({values})"  # noqa: S608
            number = connection.execute(query, encode_row(row)).lastrowid
        assert number is not None
        return number

    def entries(self, which: LogFilter = LogFilter(), *, limit: int | None = None) -> list[LogEntry]:
        """The entries that match a filter, oldest first; with `limit`, the newest of them."""
        with self._connect(create=False) as connection:
            connection.execute("BEGIN")
            entries = list(select_entries(connection, which))
        return entries[-limit:] if limit else entries

    def entry(self, number: int) -> LogEntry:
        """The entry with an id. Raises LogError if there is none."""
        entries = self.entries(LogFilter(ids=[number]))
        if not entries:
            raise LogError(f"{self.path} has no entry {number}.", "`ragfm log list` shows all entries.")
        return entries[0]

    def rating_id(self, number: int) -> str:
        """The random id by which a user of the server rates the answer. Raises LogError if there is no such entry."""
        with self._connect(create=False) as connection:
            row = connection.execute("SELECT rating_id FROM entries WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise LogError(f"{self.path} has no entry {number}.", "`ragfm log list` shows all entries.")
        return str(row["rating_id"])

    def entry_of_rating(self, rating_id: str) -> LogEntry | None:
        """The entry with a rating id, or None."""
        with self._connect(create=False) as connection:
            row = connection.execute("SELECT id FROM entries WHERE rating_id = ?", (rating_id,)).fetchone()
        return self.entry(row["id"]) if row else None

    def rate(self, number: int, thumbs: Literal["up", "down"], correction: str | None = None) -> None:
        """Store a user's rating of an answer, and the right answer if given. A later rating replaces an earlier one."""
        self.entry(number)
        with self._transaction() as connection:
            connection.execute(
                "UPDATE entries SET thumbs = ?, correction = ? WHERE id = ?", (thumbs, correction, number)
            )

    def forget(self, which: LogFilter) -> int:
        """Delete entries so that the file holds nothing of them, and return how many."""
        with self._transaction() as connection:
            ids = [(entry.id,) for entry in select_entries(connection, which)]
            connection.executemany("DELETE FROM entries WHERE id = ?", ids)
        self._vacuum()
        return len(ids)

    def redact(self, which: LogFilter) -> int:
        """Replace the filter's text, or all text if it has none, by `[redacted]`, and return how many entries."""
        with self._transaction() as connection:
            entries = list(select_entries(connection, which))
            for entry in entries:
                values = {name: redact(getattr(entry, name), which.text) for name in TEXT_COLUMNS}
                columns = ", ".join(f"{name} = :{name}" for name in values)
                query = f"UPDATE entries SET {columns} WHERE id = :id"  # noqa: S608
                connection.execute(query, {**encode_row(values), "id": entry.id})
        self._vacuum()
        return len(entries)

    def _vacuum(self) -> None:
        """Rewrite the file and truncate the write-ahead log: old pages could still be read there."""
        with self._connect(create=False) as connection:
            connection.execute("VACUUM")
            busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise LogError(
                f"The entries are deleted, but {self.path}-wal still has them: another process is reading the log.",
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
                    sentence = f" {describe_contradiction(contradiction)}"
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
        if version < SCHEMA:
            connection.execute(_ADD_RATING_ID)
            connection.execute("UPDATE entries SET rating_id = lower(hex(randomblob(8)))")
            connection.execute(_INDEX_RATING_ID)
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
        connection.execute("COMMIT")
