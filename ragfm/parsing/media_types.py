"""What the bytes are: media type and encoding, by content first, by name and declaration second."""

from __future__ import annotations

import codecs
import io
import json
import re
import zipfile
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from ragfm.parsing.formats import (
    AUDIO,
    BINARY,
    BY_SUFFIX,
    CODE,
    DECLARED,
    DOC,
    DOCX,
    EML,
    EPUB,
    FORMATS,
    HTML,
    IMAGE,
    JSON,
    MSG,
    ODP,
    ODS,
    ODT,
    PDF,
    PPT,
    PPTX,
    RTF,
    TEXT,
    XLS,
    XLSX,
    XML,
)

_PROLOGUE = r"(?>\s+|<!--.*?-->|<\?xml.*?\?>)*"  # atomic: backtracking would take exponential time
_HTML = re.compile(rf"{_PROLOGUE}<(?:!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL)
_META_CHARSET = re.compile(rb"<meta[^>]{1,200}?charset\s*=\s*[\"']?([\w.:-]{2,40})", re.IGNORECASE)
_XML_CHARSET = re.compile(rb"\s*<\?xml[^>]{1,100}?encoding\s*=\s*[\"']([\w.:-]{2,40})")
_NOT_FOR_READERS = "%!PS"  # a format whose bytes are text, though what a reader sees is not
_COMPOUND = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # Microsoft's format of files within a file
_STREAMS = (
    (MSG, "__properties_version1.0"),
    (DOC, "WordDocument"),
    (PPT, "PowerPoint Document"),
    (XLS, "Workbook"),
    (XLS, "Book"),
)
_IMAGES = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|II\*\0|MM\0\*|BM.{4}\0{4}|RIFF.{4}WEBP", re.DOTALL)
_SOUNDS = re.compile(rb"RIFF.{4}WAVE|fLaC|OggS|ID3[\2-\4]|.{4}ftypM4[AB] ", re.DOTALL)
_PERHAPS_SOUNDS = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]|.{4}ftyp", re.DOTALL)  # MP3 without tags; MP4
_FOLDERS = (("word/", DOCX), ("ppt/", PPTX), ("xl/", XLSX))
_TYPED = {kind.encode(): kind for kind in (EPUB, ODT, ODP, ODS)}
# The first match wins: the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = bytes(code for code in range(32) if code not in b"\b\t\n\v\f\r\x1a\x1b")  # hardly ever in 8-bit text
_SAMPLE = 1 << 16  # bytes from which an encoding is guessed


class Promise(NamedTuple):
    """The format that a name or a declaration announces; `media_type` is empty where there is none."""

    media_type: str
    said: str

    @property
    def format(self) -> str:
        """The name of a binary format, as `PDF`; else empty."""
        entry = FORMATS.get(self.media_type)
        return entry.name if entry and entry.binary else ""

    @property
    def binary(self) -> bool:
        """True where the content alone decides, and must be what was announced."""
        return bool(self.format)


def promise_of(uri: str, declared: str | None) -> Promise:
    """What the suffix announces; else what the source declared."""
    path = urlsplit(uri).path if "://" in uri else uri
    suffix = PurePosixPath(path).suffix.lower()
    kind = BY_SUFFIX.get(suffix, "")
    said = (declared or "").partition(";")[0].strip().lower()
    meant = DECLARED.get(said, "")
    if kind and not (kind == CODE and "://" in uri and meant):  # the program that makes a page is not what it serves
        return Promise(kind, f"named {suffix}")
    return Promise(meant, f"declared as {said}")


def begins_with(data: bytes) -> str:
    """The first bytes, fit for one line of a message."""
    first = data.lstrip()[:16].split(b"\n")[0].strip()
    return repr(first.decode()) if first.isascii() and first.decode().isprintable() else first[:8].hex(" ")


def is_encrypted(data: bytes) -> bool:
    """Whether it is a document of today's Office, kept in the older format because it has a password."""
    return data.startswith(_COMPOUND) and "EncryptedPackage\0".encode("utf-16-le") in data


def recognise(data: bytes, uri: str, declared: str | None) -> tuple[str, str]:
    """Media type and text; the text is empty for binary formats."""
    promise = promise_of(uri, declared)
    if data.lstrip()[:5] == b"%PDF-" or (promise.media_type == PDF and b"%PDF-" in data[:1024]):
        return PDF, ""
    if data.startswith(b"PK\x03\x04"):
        return _packed(data), ""
    if data.startswith(_COMPOUND):
        return _compound(data, promise), ""
    if data.startswith(b"{\\rtf"):
        return RTF, ""
    if _IMAGES.match(data):
        return IMAGE, ""
    if _SOUNDS.match(data) or (promise.media_type == AUDIO and _PERHAPS_SOUNDS.match(data)):
        return AUDIO, ""
    if promise.media_type == EML:
        return EML, ""
    text = decode(data, _charset(data, declared))
    if text is None or text.startswith(_NOT_FOR_READERS):
        return (PDF if b"%PDF-" in data[:1024] else BINARY), ""
    if _HTML.match(text):
        return HTML, text
    if promise.media_type and not promise.binary:
        return promise.media_type, text
    if text.lstrip().startswith("<?xml"):
        return XML, text
    return (JSON if _is_json(text) else TEXT), text


def decode(data: bytes, charset: str | None = None) -> str | None:
    """The text, with LF at the ends of lines and no byte order mark; None where the bytes are no text.

    `charset` is what the source or the page itself says; it counts where neither a mark nor UTF-8 settles it, since
    bytes that happen to be UTF-8 are UTF-8.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decode_as(encoding, data)
    if b"\0" in data:
        return _decode_as(_utf16_order(data), data)
    text = _decode_as("utf-8", data)
    if text is None and len(data) - len(data.translate(None, _CONTROLS)) <= len(data) / 1000:
        text = _decode_as(charset, data) or _decode_as(_guess(data), data)
    return text


def _decode_as(encoding: str | None, data: bytes) -> str | None:
    if encoding is None:
        return None
    try:
        text = data.decode(encoding)
    except (LookupError, ValueError):  # an unknown encoding; bytes that it does not allow
        return None
    return None if "\0" in text else text.replace("\r\n", "\n")


def _utf16_order(data: bytes) -> str | None:
    """The byte order of UTF-16 without a mark: in most texts every other byte is often NUL, its neighbours never."""
    even, odd = data[::2].count(0), data[1::2].count(0)
    if odd > len(data) / 8 and not even:
        return "utf-16-le"
    return "utf-16-be" if even > len(data) / 8 and not odd else None


def _guess(data: bytes) -> str | None:
    from charset_normalizer import from_bytes

    sample = data[:_SAMPLE]
    if len(data) > _SAMPLE:  # not within a character: a line feed is never the second byte of one
        sample = sample[: sample.rfind(b"\n") + 1] or sample
    best = from_bytes(sample).best()
    return best.encoding if best else None


def _charset(data: bytes, declared: str | None) -> str | None:
    """The encoding that the source, else a `meta` element at the page's beginning, names."""
    named = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", declared or "", re.IGNORECASE)
    if named:
        charset = named[1].lower()
    elif meta := _XML_CHARSET.match(data) or _META_CHARSET.search(data[:4096]):
        charset = meta[1].decode().lower()
    else:
        return None
    # Browsers read Latin-1 as Windows-1252 (https://encoding.spec.whatwg.org/#names-and-labels).
    return "cp1252" if charset in {"iso-8859-1", "latin1", "latin-1", "us-ascii", "ascii"} else charset


def _packed(data: bytes) -> str:
    """The format of an archive, by what it says of itself or by the folders in it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if names[:1] == ["mimetype"] or "mimetype" in names:
                with archive.open("mimetype") as file:
                    return _TYPED.get(file.read(100).strip(), BINARY)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, KeyError):
        return BINARY
    if "[Content_Types].xml" not in names:
        return BINARY
    return next((kind for folder, kind in _FOLDERS if any(name.startswith(folder) for name in names)), BINARY)


def _compound(data: bytes, promise: Promise) -> str:
    """The format by the names of the files within; where documents lie within a document, by its own name."""
    kinds = [kind for kind, stream in _STREAMS if f"{stream}\0".encode("utf-16-le") in data]
    return promise.media_type if promise.media_type in kinds else kinds[0] if kinds else BINARY


def _is_json(text: str) -> bool:
    begin = text.lstrip()[:1]
    if begin not in ("{", "[") or text.rstrip()[-1:] not in ("}", "]"):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
