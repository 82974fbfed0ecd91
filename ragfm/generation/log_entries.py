"""The entries of the answer log, filters over them, and redaction."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from ragfm.core.types import AnswerStatus

REDACTED = "[redacted]"
TEXT_COLUMNS = (
    "question",
    "query",
    "answer",
    "shown",
    "correction",
    "prompt",
    "citations",
    "contradictions",
    "calculation",
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
    None. Of a calculated answer, which no reader took part in, `reader` is None, and `calculation` says how.
    `fingerprint` names the collection and the models that its citations come from, None for a structured answer.
    """

    id: int
    at: str
    question: str
    query: str
    answer: str
    abstained: bool
    finished: bool
    reader: str | None
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
    calculation: dict[str, Any] | None
    fingerprint: dict[str, str] | None

    @property
    def read_uris(self) -> set[str]:
        """The documents that the reader read."""
        return {passage["uri"] for passage in self.passages if passage["n"] is not None}


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Selects the entries that meet all given conditions. `text` is searched in all text of an entry, in any case.

    `key` is the name of an API key, `rated` selects what a user rated. With `groups`, a database lets its policies hide
    the entries for handles that have other groups, too.
    """

    ids: Sequence[int] = ()
    text: str | None = None
    older_than: timedelta | None = None
    newer_than: timedelta | None = None
    thumbs: Literal["up", "down"] | None = None
    rated: bool = False
    rating_id: str | None = None
    key: str | None = None
    groups: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.text is not None and not self.text.strip():
            raise ValueError("the text is empty")


def contains(entry: LogEntry, text: str) -> bool:
    """Whether any text of an entry contains a text, see `LogFilter`."""
    return any(map(_pattern(text).search, _texts([getattr(entry, name) for name in TEXT_COLUMNS])))


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
