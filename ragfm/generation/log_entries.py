"""The entries of the answer log: as rows of its table, which of them are meant, and without their words."""

from __future__ import annotations

import json
import re
import sqlite3
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

REDACTED = "[redacted]"
_JSON = ("groups", "passages", "prompt", "citations", "usage", "seconds")
WORDS = ("question", "query", "answer", "correction", "prompt", "citations", "passages")
"""The columns that hold words of users and documents."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A question and what became of it.

    `finished`: the reader came to the end, and was not stopped. `groups` are those of a restricted handle, None for the
    owner's. `passages` are the hits, by address, span, chunk and scores; their words are in the `prompt`. `seconds` has
    `found`, `first` (piece of text) and `total`.
    """

    id: int
    at: str
    question: str
    query: str
    answer: str
    abstained: bool
    finished: bool
    reader: str
    adapter: str | None
    groups: list[str] | None
    passages: list[dict[str, Any]]
    prompt: list[dict[str, Any]]
    citations: list[dict[str, Any]]
    usage: dict[str, Any]
    seconds: dict[str, float]
    thumbs: Literal["up", "down"] | None
    correction: str | None


@dataclass(frozen=True, slots=True)
class Which:
    """Which entries: those that meet all conditions given. `text` may stand in any of their words, in any case."""

    ids: Sequence[int] = ()
    text: str | None = None
    older_than: timedelta | None = None
    thumbs: Literal["up", "down"] | None = None

    def __post_init__(self) -> None:
        if self.text is not None and not self.text.strip():
            raise ValueError("the text is empty")

    def where(self) -> tuple[str, list[Any]]:
        """As SQL and its parameters; `text` is not in it."""
        conditions, values = ["1"], list[Any]()
        if self.ids:
            conditions.append(f"id IN ({', '.join('?' * len(self.ids))})")
            values += self.ids
        if self.older_than is not None:
            conditions.append("at < ?")
            values.append(stamp(datetime.now(UTC) - self.older_than))
        if self.thumbs:
            conditions.append("thumbs = ?")
            values.append(self.thumbs)
        return " AND ".join(conditions), values


def rows(connection: sqlite3.Connection, which: Which) -> Iterator[LogEntry]:
    """Those entries, in the order in which they were made."""
    condition, values = which.where()
    pattern = None if which.text is None else _pattern(which.text)
    for row in connection.execute(f"SELECT * FROM entries WHERE {condition} ORDER BY id", values):  # noqa: S608
        record = {field.name: row[field.name] for field in fields(LogEntry)}
        record |= {name: record[name] and json.loads(record[name]) for name in _JSON}
        entry = LogEntry(**{**record, "abstained": bool(row["abstained"]), "finished": bool(row["finished"])})
        if pattern is None or any(map(pattern.search, _texts(entry))):
            yield entry


def _texts(value: object) -> Iterator[str]:
    """All words in an entry's columns."""
    if isinstance(value, LogEntry):
        value = [getattr(value, name) for name in WORDS]
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        value = [part for key, part in value.items() if key != "role"]
    if isinstance(value, list):
        for part in value:
            yield from _texts(part)


def redacted(value: Any, text: str | None) -> Any:
    """The value with a text replaced wherever it stands; without one, all but addresses and figures."""
    if isinstance(value, str):
        return REDACTED if text is None else _pattern(text).sub(REDACTED, value)
    if isinstance(value, list):
        return [redacted(part, text) for part in value]
    if isinstance(value, Mapping):
        kept = ("role", "fault") if text is not None else ("role", "fault", "uri")
        return {key: part if key in kept else redacted(part, text) for key, part in value.items()}
    return value


def _pattern(text: str) -> re.Pattern[str]:
    """The text in any case and with any white space; an accent may be part of its letter, or a character behind it."""
    forms = dict.fromkeys([text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))])
    words = (r"\s+".join(re.escape(word) for word in form.split()) for form in forms)
    return re.compile("|".join(words), re.IGNORECASE)


def encoded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as SQLite takes it, which knows no lone surrogates."""
    values = {
        name: json.dumps(value, ensure_ascii=False) if name in _JSON and value is not None else value
        for name, value in row.items()
    }
    return {
        name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
        for name, value in values.items()
    }


def stamp(when: datetime) -> str:
    """A time as the table has it."""
    return when.isoformat(timespec="milliseconds")
