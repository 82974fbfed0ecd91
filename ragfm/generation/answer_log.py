"""The answer log: each question with its passages, prompt, answer and times, and what the user thought of the answer.

An SQLite file beside the collection, which is not part of it: off by default, and what is deleted from it is gone.
Several processes may write to it.

entries    the entries as rows of its table
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ragfm.core.errors import LogError
from ragfm.generation.log_entries import REDACTED, WORDS, LogEntry, Which, encoded, redacted, rows, stamp

if TYPE_CHECKING:
    from ragfm.core.types import Answer
    from ragfm.generation.prompt import Prompt

__all__ = ["REDACTED", "AnswerLog", "Circumstances", "LogEntry", "Which"]

_log = logging.getLogger(__name__)

SCHEMA = 1
_WAIT = 5.0  # seconds for another process's write
_TABLE = """
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice
    at TEXT NOT NULL,                      -- UTC, ISO 8601
    question TEXT NOT NULL, query TEXT NOT NULL, answer TEXT NOT NULL,
    abstained INTEGER NOT NULL, finished INTEGER NOT NULL,
    reader TEXT NOT NULL, adapter TEXT,
    groups TEXT,                           -- JSON, as all that follow; null is the owner
    passages TEXT NOT NULL, prompt TEXT NOT NULL, citations TEXT NOT NULL, usage TEXT NOT NULL, seconds TEXT NOT NULL,
    thumbs TEXT CHECK (thumbs IN ('up', 'down')), correction TEXT
)
"""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """How a question was answered: `found` is how many seconds the passages took, `start` when that began."""

    reader: str
    adapter: str | None
    groups: frozenset[str] | None
    prompt: Prompt | None
    start: float
    found: float


class AnswerLog:
    """The log at a path; nothing is read or made before it is used. Thread-safe.

    All methods raise LogError where the file can't be read or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def beside(cls, collection: str | Path) -> AnswerLog:
        """The log of a collection's folder: `.ragfm` has `.ragfm-log.db` beside it."""
        folder = Path(os.path.abspath(collection))  # noqa: PTH100  without `..`
        return cls(folder.with_name(f"{folder.name}-log.db"))

    def recorded(
        self, pieces: Generator[str, None, Answer], how: Circumstances, so_far: Answer
    ) -> Generator[str, None, Answer]:
        """The same pieces; the answer is logged when they end, and has its number in the log.

        One that is stopped is logged as far as it came, in place of the text in `so_far`. What goes wrong with the log
        is a warning, and costs no answer.
        """
        said: list[str] = []
        first: float | None = None
        try:
            while True:
                try:
                    piece = next(pieces)
                except StopIteration as end:
                    answer: Answer = end.value
                    return replace(answer, log_id=self.record(answer, how, first, finished=True))
                first = time.monotonic() - how.start if first is None else first
                said.append(piece)
                yield piece
        except BaseException:  # stopped by who reads, by Ctrl-C, or by an error of the reader
            pieces.close()
            text, seconds = "".join(said).strip(), round(time.monotonic() - how.start, 3)
            self.record(replace(so_far, text=text, seconds=seconds), how, first, finished=False)
            raise

    def record(
        self, answer: Answer, how: Circumstances, first: float | None = None, *, finished: bool = True
    ) -> int | None:
        """Log an answer, or warn of what goes wrong with that."""
        try:
            return self.add(answer, how, first, finished=finished)
        except KeyboardInterrupt:
            why = "interrupted"
        except Exception as error:  # whatever it is, it must not cost the answer
            why = error.message if isinstance(error, LogError) else f"{type(error).__name__}: {error}"
        _log.warning("The answer was not logged: %s", why)
        return None

    def add(self, answer: Answer, how: Circumstances, first: float | None = None, *, finished: bool = True) -> int:
        """Log an answer; gives its number."""
        keys = ("uri", "start", "end", "page", "chunk_id", "n", "score", "scores")
        seconds = {"found": how.found, "first": first, "total": answer.seconds}
        row = {
            "at": stamp(datetime.now(UTC)),
            "question": answer.question,
            "query": answer.query,
            "answer": answer.text,
            "abstained": answer.abstained,
            "finished": finished,
            "reader": how.reader,
            "adapter": how.adapter,
            "groups": None if how.groups is None else sorted(how.groups),
            "passages": [{key: getattr(hit, key) for key in keys} for hit in answer.hits],
            "prompt": [asdict(message) for message in how.prompt.messages] if how.prompt else [],
            "citations": [asdict(citation) for citation in answer.citations],
            "usage": asdict(answer.usage),
            "seconds": {key: round(value, 3) for key, value in seconds.items() if value is not None},
        }
        names, marks = ", ".join(row), ", ".join(f":{name}" for name in row)
        with self._writing(create=True) as connection:
            number = connection.execute(f"INSERT INTO entries ({names}) VALUES ({marks})", encoded(row)).lastrowid  # noqa: S608
        assert number is not None
        return number

    def entries(self, which: Which = Which(), *, limit: int | None = None) -> list[LogEntry]:
        """Those entries, the newest last; with `limit`, only so many of the newest."""
        with self._reading() as connection:
            found = list(rows(connection, which))
        return found[-limit:] if limit else found

    def entry(self, number: int) -> LogEntry:
        """One entry. Raises LogError where there is none of that number."""
        found = self.entries(Which(ids=[number]))
        if not found:
            raise LogError(f"{self.path} has no entry {number}.", "`ragfm log list` shows those that there are.")
        return found[0]

    def judge(self, number: int, thumbs: Literal["up", "down"], correction: str | None = None) -> None:
        """Keep what the user thought of an answer, and what would have been right. The last word counts."""
        self.entry(number)
        with self._writing() as connection:
            connection.execute(
                "UPDATE entries SET thumbs = ?, correction = ? WHERE id = ?", (thumbs, correction, number)
            )

    def forget(self, which: Which) -> int:
        """Delete entries, so that nothing of them is left in the file; gives how many."""
        with self._writing() as connection:
            numbers = [(entry.id,) for entry in rows(connection, which)]
            connection.executemany("DELETE FROM entries WHERE id = ?", numbers)
        self._clean()
        return len(numbers)

    def redact(self, which: Which) -> int:
        """Put `[redacted]` in the place of a text, or without one of all words, and leave the rest; gives how many."""
        with self._writing() as connection:
            found = list(rows(connection, which))
            for entry in found:
                words = {name: redacted(getattr(entry, name), which.text) for name in WORDS}
                sets = ", ".join(f"{name} = :{name}" for name in words)
                connection.execute(f"UPDATE entries SET {sets} WHERE id = :id", {**encoded(words), "id": entry.id})  # noqa: S608
        self._clean()
        return len(found)

    def _clean(self) -> None:
        """Write the file anew, and empty the log of changes, where old pages would still be read."""
        with self._connected(create=False) as connection:
            connection.execute("VACUUM")
            busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise LogError(
                f"It is deleted, but {self.path}-wal still holds it, since another process reads the log.",
                "Run it again when that has ended.",
            )

    @contextmanager
    def _writing(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        with self._connected(create=create) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._connected(create=False) as connection:
            connection.execute("BEGIN")
            yield connection

    @contextmanager
    def _connected(self, *, create: bool) -> Iterator[sqlite3.Connection]:
        """A connection of its own for each use, so that the last to leave folds the log of changes in."""
        if not create and not self.path.exists():
            raise LogError(
                f"There is no answer log at {self.path}.", "`log = true` under `[ask]` in ragfm.toml keeps one."
            )
        try:
            if create and not self.path.exists():
                os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))  # what people ask is nobody's business
            with closing(sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None)) as connection:
                connection.row_factory = sqlite3.Row
                connection.execute("PRAGMA secure_delete = ON")
                connection.execute("PRAGMA temp_store = MEMORY")
                self._prepare(connection)
                yield connection
        except (sqlite3.Error, OSError) as error:
            why = getattr(error, "strerror", None) or error
            raise LogError(f"The answer log {self.path} can't be used: {why}.", "Mend it, or move it away.") from error

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_TABLE)
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
            connection.execute("COMMIT")
        elif version > SCHEMA:
            raise LogError(f"{self.path} was written by a newer ragfm: it is of schema {version}.", "Update ragfm.")
