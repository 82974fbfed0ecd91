"""What parent and worker say to each other: frames of a kind, JSON, and bytes. Nothing of it can run anything."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_args, get_type_hints

import ragfm.core.errors
from ragfm.core.errors import ParseError, RagfmError
from ragfm.core.types import Blob, Document, Mark, Scalar

READY, PARSE, DOCUMENT, ERROR, FULL, STEP, MODEL = b"r", b"p", b"d", b"e", b"f", b"s", b"m"
"""Kinds: a worker is ready; parse this; the document; why there is none; no memory left; a step; a model runs."""
MOST_TEXT = 256 << 20
"""Bytes of a document's text."""
_MOST_FIELDS = 256 << 20
_MOST_WORDS = 2000  # characters of an error
_HEADER = struct.Struct(">cQQ")
_KINDS = frozenset(get_args(get_type_hints(Mark)["kind"]))


class Frame(NamedTuple):
    """One message."""

    kind: bytes
    fields: Any = None
    data: bytes = b""


def pack(kind: bytes, fields: Any = None, data: bytes = b"") -> bytes:
    """A message as bytes."""
    text = json.dumps(fields).encode()
    return b"".join((_HEADER.pack(kind, len(text), len(data)), text, data))


class Inbox:
    """Puts messages together from bytes as they come."""

    def __init__(self, most: int | None = None) -> None:
        self._buffer = bytearray()
        self._most = most

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The messages that are whole with these bytes. Raises ValueError for what can be none."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            kind, fields, rest = _HEADER.unpack_from(self._buffer)
            if self._most is not None and (rest > self._most or fields > _MOST_FIELDS):
                raise ValueError("its text is too long")
            begin, end = _HEADER.size + fields, _HEADER.size + fields + rest
            if len(self._buffer) < end:
                return
            frame = Frame(kind, json.loads(self._buffer[_HEADER.size : begin]), bytes(self._buffer[begin:end]))
            del self._buffer[:end]
            yield frame


def pack_blob(blob: Blob, uri: str) -> bytes:
    """What a worker is to parse. The metadata of the source stays at home."""
    return pack(PARSE, [uri, blob.media_type], blob.data)


def unpack_blob(frame: Frame) -> tuple[Blob, str]:
    """The inverse."""
    uri, media_type = frame.fields
    return Blob(frame.data, media_type), uri


def pack_document(document: Document) -> bytes:
    """What a worker made of it. Raises ParseError where that is too much."""
    text = document.text.encode("utf-8", "replace")
    if len(text) > MOST_TEXT:
        raise ParseError(f"It has {len(text) >> 20:,} MiB of text, the limit is {MOST_TEXT >> 20} MiB.")
    marks = [(mark.kind, mark.start, mark.end, mark.value, mark.level) for mark in document.marks]
    return pack(DOCUMENT, [document.media_type, dict(document.metadata), marks], text)


def unpack_document(frame: Frame, blob: Blob, uri: str) -> Document:
    """The document. Raises ValueError or TypeError for one that can't be: who sent it may not be who it was."""
    media_type, metadata, marks = frame.fields
    text = frame.data.decode()
    good = isinstance(media_type, str) and isinstance(metadata, dict)
    good = good and all(isinstance(value, Scalar) for value in metadata.values())
    if not good or not all(_is_mark(mark, len(text)) for mark in marks):
        raise ValueError("it is no document")
    return Document(uri, text, media_type, {**metadata, **blob.metadata}, tuple(Mark(*mark) for mark in marks))


def _is_mark(mark: Any, length: int) -> bool:
    kind, start, end, value, level = mark
    numbers = type(start) is type(end) is type(level) is int
    return kind in _KINDS and numbers and 0 <= start <= end <= length and isinstance(value, str)


def pack_error(error: Exception) -> bytes:
    """Why there is no document."""
    own = isinstance(error, RagfmError)
    message = error.message if isinstance(error, RagfmError) else f"{type(error).__name__}: {error}"
    hint = error.hint if isinstance(error, RagfmError) else ""
    fields = {"type": type(error).__name__ if own else "", "message": message, "hint": hint}
    return pack(ERROR, {key: value[:_MOST_WORDS] for key, value in fields.items()})


def unpack_error(fields: Mapping[str, str]) -> RagfmError:
    """The same error, if it is one of ragfm's; a parser's own mistake is a ParseError."""
    kind = getattr(ragfm.core.errors, fields["type"], None) if fields["type"].isidentifier() else None
    known = kind if isinstance(kind, type) and issubclass(kind, RagfmError) else ParseError
    return known(fields["message"], fields["hint"])
