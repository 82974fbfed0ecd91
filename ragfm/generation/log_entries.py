"""The entries of the answer log: rows of its table, filters over them, and redaction."""

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
_JSON_COLUMNS = ("groups", "passages", "prompt", "citations", "contradictions", "usage", "seconds")
TEXT_COLUMNS = ("question", "query", "answer", "correction", "prompt", "citations", "contradictions", "passages")
"""The columns that hold text of users and documents."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A question and its answer.

    `finished` is False if the reader was stopped. `groups` are those of a restricted handle, None for the owner's.
    `passages` are the hits by uri, span, chunk and scores; their text is in the `prompt`. `seconds` has `found`
    (retrieval), `first` (first piece of text) and `total`.
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
    contradictions: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Selects the entries that meet all given conditions. `text` is searched in all text of an entry, in any case."""

    ids: Sequence[int] = ()
    text: str | None = None
    older_than: timedelta | None = None
    thumbs: Literal["up", "down"] | None = None

    def __post_init__(self) -> None:
        if self.text is not None and not self.text.strip():
            raise ValueError("the text is empty")


def select_entries(connection: sqlite3.Connection, which: LogFilter) -> Iterator[LogEntry]:
    """The entries that match a filter, oldest first."""
    conditions, values = ["1"], list[Any]()
    if which.ids:
        conditions.append(f"id IN ({', '.join('?' * len(which.ids))})")
        values += which.ids
    if which.older_than is not None:
        conditions.append("at < ?")
        values.append(timestamp(datetime.now(UTC) - which.older_than))
    if which.thumbs:
        conditions.append("thumbs = ?")
        values.append(which.thumbs)
    pattern = None if which.text is None else _pattern(which.text)
    query = f"SELECT * FROM entries WHERE {' AND '.join(conditions)} ORDER BY id"  # noqa: S608
    for row in connection.execute(query, values):
        record = {field.name: row[field.name] for field in fields(LogEntry)}
        record |= {name: record[name] and json.loads(record[name]) for name in _JSON_COLUMNS}
        entry = LogEntry(**{**record, "abstained": bool(row["abstained"]), "finished": bool(row["finished"])})
        if pattern is None or any(map(pattern.search, _texts([getattr(entry, name) for name in TEXT_COLUMNS]))):
            yield entry


def _texts(value: object) -> Iterator[str]:
    """All strings in nested lists and mappings, except roles of messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([part for key, part in value.items() if key != "role"])
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


def redact(value: Any, text: str | None) -> Any:
    """The value with a text replaced wherever it occurs; if None, with all strings replaced except uris and keys."""
    if isinstance(value, str):
        return REDACTED if text is None else _pattern(text).sub(REDACTED, value)
    if isinstance(value, list):
        return [redact(part, text) for part in value]
    if isinstance(value, Mapping):
        kept = ("role", "fault") if text is not None else ("role", "fault", "uri", "name")
        return {key: part if key in kept else redact(part, text) for key, part in value.items()}
    return value


def _pattern(text: str) -> re.Pattern[str]:
    """Matches the text in any case, with any white space, and with composed or decomposed accents."""
    forms = dict.fromkeys([text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))])
    words = (r"\s+".join(re.escape(word) for word in form.split()) for form in forms)
    return re.compile("|".join(words), re.IGNORECASE)


def encode_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for SQLite: JSON columns as text, and no lone surrogates."""
    encoded: dict[str, Any] = {}
    for name, value in row.items():
        if name in _JSON_COLUMNS and value is not None:
            value = json.dumps(value, ensure_ascii=False)
        encoded[name] = value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
    return encoded


def timestamp(when: datetime) -> str:
    """A time in the format of the table."""
    return when.isoformat(timespec="milliseconds")
