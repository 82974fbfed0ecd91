"""Records of tables and JSON Lines: which of their fields are a document's identity, title, text and metadata."""

from __future__ import annotations

import contextlib
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from hashlib import blake2b
from typing import Any, TypeAlias

from ragfm.core.errors import ConfigError, ConnectorError
from ragfm.core.types import Blob, Scalar

Record: TypeAlias = Mapping[str, Any]

_UNSAFE_IN_PATH = re.compile(r"[%/#\x00-\x1f\x7f]|^\.{1,2}$")
_MAX_METADATA_CHARACTERS = 1_000
"""Maximum length of a field that becomes metadata without being named; a longer one is more likely text."""
_DEFAULT_IDS = ("_id", "id")
_MAX_SHOWN_FIELDS = 8
_ABSENT = object()  # the value of a field that a record lacks, which is not the same as null


@dataclass(frozen=True, slots=True)
class Fields:
    """The roles of a record's fields.

    id           the identity; None: `_id` or `id` if the record has one, else the hash of its content
    title        is put above the text; a record may lack it
    text         fields joined by empty lines; a record that has none of them cannot be read
    metadata     None: all other fields with a single short value
    media_type   of the text: plain, Markdown or HTML; decides how the title is written

    A name with a dot, such as `author.name`, is the path of a field in a nested record, unless a field has that name.
    """

    id: str | None = None
    title: str | None = "title"
    text: Sequence[str] = ("text",)
    metadata: Sequence[str] | None = None
    media_type: str = "text/plain"

    def __post_init__(self) -> None:
        """Raises ConfigError without a text field, and for an unsupported media type."""
        if not self.text:
            raise ConfigError("No text field is named.", "Name one with the option `text`.")
        if self.media_type not in ("text/plain", "text/markdown", "text/html"):
            raise ConfigError(
                f"The media type {self.media_type!r} is not supported for records.",
                "Set media_type to text/plain, text/markdown or text/html.",
            )

    def identity(self, record: Record) -> str | None:
        """The identity of a record as a path; None if it has none. Raises ConnectorError if the id field is missing."""
        for name in (self.id,) if self.id is not None else _DEFAULT_IDS:
            value = _decoded(_find(record, name))
            value = value if isinstance(value, str) else scalar(value)
            if value is not None and value != "":
                return as_path(str(value))
        if self.id is not None:
            raise ConnectorError(f"it has no id field {self.id!r}.")
        return None

    def blob(self, record: Record) -> Blob:
        """The document of a record. Raises ConnectorError if it has none of the text fields."""
        values = [_find(record, name) for name in self.text]
        if all(value is _ABSENT for value in values):
            wanted = ", ".join(map(repr, self.text))
            present = ", ".join(map(repr, list(record)[:_MAX_SHOWN_FIELDS]))
            raise ConnectorError(f"none of the text fields {wanted} was found; the record has {present}.")
        title = "" if self.title is None else " ".join(_text(_find(record, self.title)).split())
        text = "\n\n".join(part for part in map(_text, values) if part)
        metadata: dict[str, Scalar] = {"title": title} if title else {}
        if self.metadata is not None:
            for name in self.metadata:
                value = _find(record, name)
                if isinstance(value, list | tuple):
                    value = ", ".join(map(_text, value))
                elif isinstance(value, Mapping):
                    value = _text(value)
                value = scalar(value)
                if value is not None:
                    metadata[_valid_utf8(name)] = value
        else:
            used = {self.id, self.title, *self.text, *(_DEFAULT_IDS if self.id is None else ())}
            for name, field in record.items():
                value = scalar(field)
                too_long = isinstance(value, str) and len(value) > _MAX_METADATA_CHARACTERS
                if name not in used and value is not None and not too_long:
                    metadata[_valid_utf8(name)] = value
        data = f"{heading(title, self.media_type)}{text}" if text else ""
        return Blob(data.encode("utf-8", "replace"), self.media_type, metadata, written=True)


def record_revision(blob: Blob) -> str:
    """A hash of a record's document, so that other field roles make another revision."""
    rest = json.dumps([blob.media_type, dict(blob.metadata)], sort_keys=True)
    return blake2b(rest.encode() + b"\0" + blob.data, digest_size=16).hexdigest()


def as_path(identity: str) -> str:
    """An identity as one part of a path: `/`, `#`, `%` and control characters are escaped, such as `%2F`.

    Distinct identities have distinct paths. Raises ConnectorError for an identity that is not valid UTF-8.
    """
    try:
        identity.encode()
    except UnicodeEncodeError:
        raise ConnectorError(f"its id {identity!a} is not valid UTF-8.") from None
    return _UNSAFE_IN_PATH.sub(lambda match: "".join(f"%{ord(character):02X}" for character in match[0]), identity)


def scalar(value: Any) -> Scalar | None:
    """A value as metadata; None if it has no such form: absent, null, not finite, bytes, lists and records."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return _valid_utf8(value)
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if value is None or value is _ABSENT or isinstance(value, bytes | memoryview | list | tuple | set | Mapping):
        return None
    return str(value)  # decimal numbers, UUIDs


def heading(title: str, media_type: str) -> str:
    """A title as it is written above a text of a media type."""
    if not title:
        return ""
    if media_type == "text/html":
        return f"<h1>{html.escape(title)}</h1>\n"
    return f"# {title}\n\n" if media_type == "text/markdown" else f"{title}\n\n"


def html_page(title: str, body: str) -> bytes:
    """A document in HTML, whose body may have empty elements as in XHTML."""
    head = f'<html xmlns="http://www.w3.org/1999/xhtml"><head><title>{html.escape(title)}</title></head>'
    page = f"{head}<body>{heading(title, 'text/html')}{body}</body></html>"
    return page.encode("utf-8", "replace")


def _find(record: Record, name: str) -> Any:
    if name in record:
        return record[name]
    first, dot, rest = name.partition(".")
    inner = record.get(first) if dot else None
    return _find(inner, rest) if isinstance(inner, Mapping) else _ABSENT


def _decoded(value: Any) -> Any:
    """A value, as text if it is bytes in UTF-8: many Parquet files and databases store text in binary columns."""
    if isinstance(value, bytes | memoryview):
        with contextlib.suppress(UnicodeDecodeError):
            return bytes(value).decode()
    return value


def _text(value: Any) -> str:
    value = _decoded(value)
    if isinstance(value, list | tuple):
        return "\n\n".join(part for part in map(_text, value) if part)
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False, default=str)
    text = scalar(value)
    return "" if text is None else str(text)


def _valid_utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
