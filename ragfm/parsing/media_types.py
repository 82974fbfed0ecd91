"""Detect the media type of bytes, by content first, then by name and declaration."""

from __future__ import annotations

import contextlib
import io
import json
import re
import zipfile
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.parsing import formats
from ragfm.parsing.formats import Format
from ragfm.parsing.parsers import known_formats
from ragfm.parsing.text_encoding import decode

_PROLOGUE = r"(?>\s+|<!--.*?-->|<\?xml.*?\?>)*"  # atomic: backtracking would take exponential time
_HTML = re.compile(rf"{_PROLOGUE}<(?:!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL)
_META_CHARSET = re.compile(rb"<meta[^>]{1,200}?charset\s*=\s*[\"']?([\w.:-]{2,40})", re.IGNORECASE)
_XML_CHARSET = re.compile(rb"\s*<\?xml[^>]{1,100}?encoding\s*=\s*[\"']([\w.:-]{2,40})")
_POSTSCRIPT = "%!PS"  # its bytes are text, but not the text that a reader sees
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # Microsoft's OLE compound file, a file system in a file
_OLE_STREAMS = (
    (formats.MSG, "__properties_version1.0"),
    (formats.DOC, "WordDocument"),
    (formats.PPT, "PowerPoint Document"),
    (formats.XLS, "Workbook"),
    (formats.XLS, "Book"),
)
_IMAGES = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|II\*\0|MM\0\*|BM.{4}\0{4}|RIFF.{4}WEBP", re.DOTALL)
_AUDIO = re.compile(rb"RIFF.{4}WAVE|fLaC|OggS|ID3[\2-\4]|.{4}ftypM4[AB] ", re.DOTALL)
_MAYBE_AUDIO = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]|.{4}ftyp", re.DOTALL)  # MP3 without tags; MP4
_VIDEO = re.compile(rb"\x1a\x45\xdf\xa3|RIFF.{4}AVI |.{4}ftyp(?:isom|iso\d|mp4\d|avc1|dash|M4V |qt  )", re.DOTALL)
MBOX_LINE = re.compile(rb"From \S(?=.*\b(?:19|20)\d\d\b).*\d\d:\d\d")
"""The first line of a message in an mbox, after an empty line. Text may begin so: "From 10:30 on, it is closed."."""
_MBOX = re.compile(MBOX_LINE.pattern + rb".*\n[!-9;-~]+:")  # with a header
_OOXML_FOLDERS = (("word/", formats.DOCX), ("ppt/", formats.PPTX), ("xl/", formats.XLSX))
_MIMETYPE_ENTRIES = {kind.encode(): kind for kind in (formats.EPUB, formats.ODT, formats.ODP, formats.ODS)}


def _expected_format(uri: str, declared: str | None) -> tuple[Format | None, str]:
    """The format that the suffix of `uri` announces, else the one that the source declared, and what announces it."""
    known = known_formats()
    path = urlsplit(uri).path if "://" in uri else uri
    suffix = PurePosixPath(path).suffix.lower()
    named = known.by_type.get(known.by_suffix.get(suffix, ""))
    declaration = (declared or "").partition(";")[0].strip().lower()
    by_declaration = known.by_type.get(known.declared.get(declaration, ""))
    # A URL with .php serves a page, not its source.
    if named and not (named.media_type == formats.CODE and "://" in uri and by_declaration):
        return named, f"named {suffix}"
    return by_declaration, f"declared as {declaration}"


def check_type(kind: str, data: bytes, uri: str, declared: str | None, name: str) -> None:
    """Raise ParseError if the detected type is not the expected one, SkipDocument for an unknown format."""
    expected, evidence = _expected_format(uri, declared)
    is_expected = not (expected and expected.binary) or expected.media_type == kind
    if kind != formats.BINARY and (is_expected or known_formats().by_type[kind].binary or kind == formats.HTML):
        return
    if data.startswith(_OLE) and "EncryptedPackage\0".encode("utf-16-le") in data:  # an Office document
        raise ParseError(f"{name} is protected by a password.", "Save a copy without a password.")
    first = data.lstrip()[:16].split(b"\n")[0].strip()
    start = repr(first.decode()) if first.isascii() and first.decode().isprintable() else first[:8].hex(" ")
    if expected is None:
        raise SkipDocument(f"{name} has an unsupported format: it begins with {start}.")
    if expected.binary:
        article = "an" if expected.name[0] in "EMORXai" else "a"
        raise ParseError(f"{name} is {evidence} but is not {article} {expected.name}: it begins with {start}.")
    reason = "has NUL bytes" if b"\0" in data else "is in no known encoding"
    raise ParseError(f"{name} is {evidence} but is not text: it {reason}, and begins with {start}.")


def detect(data: bytes, uri: str, declared: str | None) -> tuple[str, str]:
    """Return the media type and the decoded text; the text is empty for binary formats."""
    expected, _ = _expected_format(uri, declared)
    expected_type = expected.media_type if expected else ""
    if data.lstrip()[:5] == b"%PDF-" or (expected_type == formats.PDF and b"%PDF-" in data[:1024]):
        return formats.PDF, ""
    # Formats that other parsers add have no signature here, so the name decides.
    named = expected.media_type if expected and expected.binary else formats.BINARY
    named = formats.BINARY if named in formats.RECOGNIZED_BY_CONTENT else named
    if data.startswith(b"PK\x03\x04"):
        kind = _archive_type(data)
        return (named if kind == formats.BINARY else kind), ""
    if data.startswith(_OLE):
        kinds = [kind for kind, stream in _OLE_STREAMS if f"{stream}\0".encode("utf-16-le") in data]
        if expected_type in kinds:  # where other documents are embedded, the file name decides
            return expected_type, ""
        return (kinds[0] if kinds else named), ""
    if data.startswith(b"{\\rtf"):
        return formats.RTF, ""
    if _IMAGES.match(data):
        return formats.IMAGE, ""
    if _AUDIO.match(data) or (expected_type == formats.AUDIO and _MAYBE_AUDIO.match(data)):
        return formats.AUDIO, ""
    if _VIDEO.match(data):
        return formats.VIDEO, ""
    if named != formats.BINARY:
        return named, ""
    if is_mbox(data):
        return formats.MBOX, ""
    text = decode(data, declared_charset(data, declared))
    if text is None or text.startswith(_POSTSCRIPT):
        return (formats.PDF if b"%PDF-" in data[:1024] else formats.BINARY), ""
    if _HTML.match(text):
        return formats.HTML, text
    if expected and not expected.binary:
        return expected_type, text
    if text.lstrip().startswith("<?xml"):
        return formats.XML, text
    if text.lstrip()[:1] in ("{", "[") and text.rstrip()[-1:] in ("}", "]"):
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(text)
            return formats.JSON, text
    return formats.TEXT, text


def is_mbox(data: bytes) -> bool:
    """Whether data begins as an mbox does: with a line that says from whom and when, and a header."""
    return _MBOX.match(data) is not None


def _archive_type(data: bytes) -> str:
    """The format of an archive, by its `mimetype` entry or by its folders."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if "mimetype" in names:
                with archive.open("mimetype") as file:
                    return _MIMETYPE_ENTRIES.get(file.read(100).strip(), formats.BINARY)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, KeyError):
        return formats.BINARY
    if "[Content_Types].xml" in names:
        for folder, kind in _OOXML_FOLDERS:
            if any(name.startswith(folder) for name in names):
                return kind
    return formats.BINARY


def declared_charset(data: bytes, declared: str | None) -> str | None:
    """The encoding that the source declares, else an XML declaration or a `meta` element at the start."""
    match = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", declared or "", re.IGNORECASE)
    if match:
        return match[1]
    element = _XML_CHARSET.match(data) or _META_CHARSET.search(data[:4096])
    return element[1].decode() if element else None
