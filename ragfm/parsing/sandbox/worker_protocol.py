"""The messages between parent and worker: frames of a kind, JSON fields, and bytes. Nothing in them is executable."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_args, get_type_hints

import ragfm.core.errors
from ragfm.core.errors import ParseError, RagfmError
from ragfm.core.types import Blob, Document, Mark, Scalar, image_key
from ragfm.parsing.figures import MAX_IMAGES, image_type, is_box
from ragfm.parsing.parsers import ParserChoice

# Kinds of frames. The parent sends PARSE and CALL, the worker everything else.
READY = b"r"  # the worker has started; the fields are its id and the protections that are active
PARSE = b"p"
DOCUMENT = b"d"
CALL = b"c"  # of a service: whether a file comes with it, and the arguments
RESULT = b"v"  # of a call
ERROR = b"e"  # why there is no document or result
OUT_OF_MEMORY = b"f"  # the worker ends
SIGN = b"s"  # a `heartbeat.Sign`: the parser makes progress, or needs more memory from now on

MAX_TEXT = 256 << 20
"""Size of a document's text, in bytes."""
MAX_DATA = MAX_TEXT + MAX_IMAGES
"""Size of a document's text and images, in bytes."""
_MAX_FIELDS = 256 << 20  # bytes
_MAX_ERROR = 2000  # characters
_HEADER = struct.Struct(">cQQ")  # kind, size of the fields, size of the data
_MARK_KINDS = frozenset(get_args(get_type_hints(Mark)["kind"]))


class Frame(NamedTuple):
    """One message."""

    kind: bytes
    fields: Any = None
    data: bytes = b""


def pack(kind: bytes, fields: Any = None, data: bytes = b"") -> bytes:
    """Encode a message."""
    text = json.dumps(fields).encode()
    return b"".join((_HEADER.pack(kind, len(text), len(data)), text, data))


class FrameReader:
    """Decodes messages from bytes that arrive in pieces. With `max_data`, larger messages are refused."""

    def __init__(self, max_data: int | None = None) -> None:
        self._buffer = bytearray()
        self._max_data = max_data

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the messages that are complete with these bytes. Raises ValueError for an invalid or large message."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            kind, fields_size, data_size = _HEADER.unpack_from(self._buffer)
            if self._max_data is not None and (data_size > self._max_data or fields_size > _MAX_FIELDS):
                raise ValueError("its text is too long")
            fields_end = _HEADER.size + fields_size
            end = fields_end + data_size
            if len(self._buffer) < end:
                return
            fields = json.loads(self._buffer[_HEADER.size : fields_end])
            frame = Frame(kind, fields, bytes(self._buffer[fields_end:end]))
            del self._buffer[:end]
            yield frame


def pack_blob(blob: Blob, uri: str, choice: ParserChoice) -> bytes:
    """Encode a document to parse. The worker does not get the metadata of the source."""
    fields = [uri, blob.media_type, blob.written, dict(choice.parsers), choice.fallback, choice.images]
    return pack(PARSE, fields, blob.data)


def unpack_blob(frame: Frame) -> tuple[Blob, str, ParserChoice]:
    """The inverse of `pack_blob`."""
    uri, media_type, written, parsers, fallback, images = frame.fields
    return Blob(frame.data, media_type, written=written), uri, ParserChoice(parsers, fallback, images)


def pack_document(document: Document) -> bytes:
    """Encode a parsed document, its images after its text. Raises ParseError where its text is too long."""
    text = document.text.encode("utf-8", "replace")
    if len(text) > MAX_TEXT:
        raise ParseError(f"The text of the document has {len(text) >> 20:,} MiB; the limit is {MAX_TEXT >> 20} MiB.")
    marks = [mark.to_list() for mark in document.marks]
    sizes = {key: len(data) for key, data in document.images.items()}
    fields = [document.media_type, dict(document.metadata), marks, len(text), sizes]
    return pack(DOCUMENT, fields, b"".join((text, *document.images.values())))


def unpack_document(frame: Frame, blob: Blob, uri: str) -> Document:
    """Decode a document, and check every field: the worker may be under a document's control.

    Raises ValueError or TypeError for an invalid document.
    """
    media_type, metadata, mark_lists, text_size, sizes = frame.fields
    text = frame.data[:text_size].decode()
    images, end = {}, text_size
    for key, size in sizes.items():
        images[key] = frame.data[end : end + size]
        end += size
    if end != len(frame.data) or min(sizes.values(), default=1) < 1:
        raise ValueError("its images are not complete")
    marks = tuple(map(Mark.from_list, mark_lists))
    valid = isinstance(media_type, str) and isinstance(metadata, dict)
    valid = valid and all(isinstance(value, Scalar) for value in metadata.values())
    valid = valid and all(key == image_key(data) and image_type(data) for key, data in images.items())
    for mark in marks:
        valid = valid and mark.kind in _MARK_KINDS and type(mark.start) is type(mark.end) is type(mark.level) is int
        valid = valid and 0 <= mark.start <= mark.end <= len(text) and isinstance(mark.value, str)
        valid = valid and (mark.image in images) == (mark.kind == "figure")
        valid = valid and (mark.box is None or is_box(mark.box))
    if not valid:
        raise ValueError("it is not a document")
    return Document(uri, text, media_type, {**metadata, **blob.metadata}, marks, images)


def pack_error(error: Exception) -> bytes:
    """Encode an error; of an exception that is not ragfm's own, only its text."""
    if isinstance(error, RagfmError):
        fields = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
    else:
        fields = {"type": "", "message": f"{type(error).__name__}: {error}", "hint": ""}
    return pack(ERROR, {key: value[:_MAX_ERROR] for key, value in fields.items()})


def unpack_error(fields: Mapping[str, str]) -> RagfmError:
    """Decode an error; one that is not ragfm's own becomes a ParseError."""
    try:
        name, message, hint = (str(fields[key]) for key in ("type", "message", "hint"))
    except (TypeError, KeyError, IndexError) as error:
        return ParseError(f"The parser sent an invalid error: {error!r}.")
    kind = getattr(ragfm.core.errors, name, None) if name.isidentifier() else None
    error_class = kind if isinstance(kind, type) and issubclass(kind, RagfmError) else ParseError
    return error_class(message, hint)
