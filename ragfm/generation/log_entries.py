"""The entries of the answer log: rows of its table, filters over them, redaction, and what a storage provides."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

from ragfm.core.types import AnswerStatus

REDACTED = "[redacted]"
JSON_COLUMNS = ("groups", "passages", "prompt", "citations", "contradictions", "usage", "seconds")
TEXT_COLUMNS = (
    "question",
    "query",
    "answer",
    "shown",
    "correction",
    "prompt",
    "citations",
    "contradictions",
    "passages",
)
"""The columns that hold text of users and documents."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A question and its answer.

    `finished` is False if the reader was stopped. `groups` are those of a restricted handle, None for the owner's.
    `passages` are the hits by uri, span, chunk and scores; their text is in the `prompt`. `seconds` has `found`
    (retrieval), `first` (first piece of text) and `total`. Users of a server rate the answer by its `rating_id`.
    `answer` is the text, `shown` what users saw of it, with the document's words. `status` is `answered`, `unsure` or
    `not_found`. Both are None if it was not finished. `key` and `request_id` are those of a server's request, else
    None. Entries of older versions lack `shown`, `status`, `confidence` and `request_id`.
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
    rating_id: str
    shown: str | None
    status: AnswerStatus | None
    confidence: float | None
    key: str | None
    request_id: str | None


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Selects the entries that meet all given conditions. `text` is searched in all text of an entry, in any case.

    With `groups`, a database lets its policies hide the entries for handles that have other groups, too.
    """

    ids: Sequence[int] = ()
    text: str | None = None
    older_than: timedelta | None = None
    thumbs: Literal["up", "down"] | None = None
    rating_id: str | None = None
    groups: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.text is not None and not self.text.strip():
            raise ValueError("the text is empty")


class LogStorage(Protocol):
    """Where the entries are: `LogFile` or `LogTable`. Thread-safe. All methods raise LogError."""

    @property
    def path(self) -> str | Path:
        """The file or the database, for messages."""

    def insert(self, row: Mapping[str, Any]) -> int:
        """Store an entry. Returns its id."""

    def select(self, which: LogFilter) -> list[LogEntry]:
        """The entries that match a filter, oldest first."""

    def change(self, which: LogFilter, values: Callable[[LogEntry], Mapping[str, Any] | None]) -> int:
        """Change the columns that `values` gives for each entry, or delete the entry. Returns how many."""

    def erase(self) -> None:
        """Overwrite what was deleted or changed."""


def make_entries(rows: Iterable[Mapping[str, Any]], which: LogFilter) -> Iterator[LogEntry]:
    """The entries of rows, with JSON as text or decoded, that contain the text of a filter."""
    pattern = None if which.text is None else _pattern(which.text)
    for row in rows:
        record = {field.name: row[field.name] for field in fields(LogEntry)}
        record |= {name: json.loads(record[name]) for name in JSON_COLUMNS if isinstance(record[name], str)}
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
    """A row for a database: JSON columns as text, and no lone surrogates."""
    encoded: dict[str, Any] = {}
    for name, value in row.items():
        if name in JSON_COLUMNS and value is not None:
            value = json.dumps(value, ensure_ascii=False)
        encoded[name] = value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
    return encoded


def timestamp(when: datetime) -> str:
    """A time in the format of the table."""
    return when.isoformat(timespec="milliseconds")
