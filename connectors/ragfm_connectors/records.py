"""Records, as tables and JSON Lines hold them: which of their fields are a document's identity, text and metadata."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from hashlib import blake2b
from typing import Any, TypeAlias

from ragfm.core.errors import ConfigError, ConnectorError
from ragfm.core.types import Blob, Scalar

Record: TypeAlias = Mapping[str, Any]

_NOT_PLAIN = re.compile(r"[%/#\x00-\x1f\x7f]|^\.{1,2}$")
_LONGEST = 1_000
"""Characters of a field that is metadata without being named; a longer one is more likely text."""
_DEFAULT_IDS = ("_id", "id")


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a record are what.

    id           its identity; None: `_id` or `id` if it has one, else the hash of its content
    title        stands above the text; no error where a record has none
    text         fields joined by empty lines; a record that has none of them can't be read
    metadata     None: all other fields with one short value
    media_type   what the text is: plain, Markdown or HTML; it decides how the title is written

    A name with a dot, as `author.name`, leads into a record within the record, unless a field is named just so.
    """

    id: str | None = None
    title: str | None = "title"
    text: Sequence[str] = ("text",)
    metadata: Sequence[str] | None = None
    media_type: str = "text/plain"

    def __post_init__(self) -> None:
        """Raises ConfigError where there is no text field, or the media type is none of the three."""
        if not self.text:
            raise ConfigError("No field is named as the text.", "Name one with the option `text`.")
        if self.media_type not in ("text/plain", "text/markdown", "text/html"):
            raise ConfigError(
                f"Records can't be {self.media_type!r}.", "Set media_type to text/plain, text/markdown or text/html."
            )

    def identity(self, record: Record) -> str | None:
        """What names the record, as a path; None where it names itself by nothing. Raises ConnectorError."""
        for name in (self.id,) if self.id is not None else _DEFAULT_IDS:
            value = _find(record, name)
            value = value if isinstance(value, str) else scalar(value)
            if value is not None and value != "":
                return as_path(str(value))
        if self.id is not None:
            raise ConnectorError(f"it has no field {self.id!r}, which is to be its id.")
        return None

    def blob(self, record: Record) -> Blob:
        """The document that a record is. Raises ConnectorError where it has none of the text fields."""
        values = [_find(record, name) for name in self.text]
        if all(value is _ABSENT for value in values):
            names = " or ".join(repr(name) for name in self.text)
            raise ConnectorError(f"it has no field {names}, but {', '.join(map(repr, list(record)[:8]))}.")
        title = "" if self.title is None else " ".join(_text(_find(record, self.title)).split())
        text = "\n\n".join(part for part in map(_text, values) if part)
        metadata: dict[str, Scalar] = {"title": title} if title else {}
        metadata.update(self._metadata(record))
        data = f"{heading(title, self.media_type)}{text}" if text else ""
        return Blob(data.encode("utf-8", "replace"), self.media_type, metadata)

    def _metadata(self, record: Record) -> Iterator[tuple[str, Scalar]]:
        if self.metadata is None:
            taken = {self.id, self.title, *self.text, *(_DEFAULT_IDS if self.id is None else ())}
            names: Sequence[str] = [name for name in record if name not in taken]
        else:
            names = self.metadata
        for name in names:
            value = _find(record, name)
            if self.metadata is not None and isinstance(value, list | tuple):
                value = ", ".join(_text(part) for part in value)
            elif self.metadata is not None and isinstance(value, Mapping):
                value = _text(value)
            value = scalar(value)
            if value is None or (self.metadata is None and isinstance(value, str) and len(value) > _LONGEST):
                continue
            yield name.encode("utf-8", "replace").decode(), value


def revision(blob: Blob) -> str:
    """A hash of all that a record is made into: another mapping makes another revision."""
    rest = json.dumps([blob.media_type, dict(blob.metadata)], sort_keys=True)
    return blake2b(rest.encode() + b"\0" + blob.data, digest_size=16).hexdigest()


def as_path(identity: str) -> str:
    """An identity as one part of a path: `/`, `#`, `%` and control characters are written as `%2F`.

    Distinct identities have distinct paths. Raises ConnectorError for one that UTF-8 can't take.
    """
    try:
        identity.encode()
    except UnicodeEncodeError:
        raise ConnectorError(f"its id {identity!a} can't be written as UTF-8.") from None
    return _NOT_PLAIN.sub(lambda match: "".join(f"%{ord(character):02X}" for character in match[0]), identity)


def scalar(value: Any) -> Scalar | None:
    """A value as metadata; None for what is none: absent, null, not finite, bytes, lists and records."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if value is None or value is _ABSENT or isinstance(value, bytes | memoryview | list | tuple | set | Mapping):
        return None
    return str(value)  # decimal numbers, UUIDs


class _Absent:
    """Stands for the value of a field that a record lacks."""


_ABSENT = _Absent()


def _find(record: Record, name: str) -> Any:
    if name in record:
        return record[name]
    first, dot, rest = name.partition(".")
    inner = record.get(first) if dot else None
    return _find(inner, rest) if isinstance(inner, Mapping) else _ABSENT


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "\n\n".join(part for part in map(_text, value) if part)
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False, default=str)
    found = scalar(value)
    return "" if found is None else str(found)


def heading(title: str, media_type: str) -> str:
    """A title as it stands above a text of a media type."""
    if not title:
        return ""
    if media_type == "text/html":
        return f"<h1>{html.escape(title)}</h1>\n"
    return f"# {title}\n\n" if media_type == "text/markdown" else f"{title}\n\n"
