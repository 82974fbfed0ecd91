"""The formats that ragfm recognizes: their names and suffixes. Parsers of other packages may add more."""

from __future__ import annotations

from typing import NamedTuple

BINARY = "application/octet-stream"
PDF = "application/pdf"
HTML = "text/html"
MARKDOWN = "text/markdown"
CSV = "text/csv"
TSV = "text/tab-separated-values"
JSON = "application/json"
XML = "application/xml"
TEXT = "text/plain"
CODE = "text/x-source"
EML = "message/rfc822"
MBOX = "application/mbox"
RTF = "application/rtf"
MSG = "application/vnd.ms-outlook"
DOC, PPT, XLS = "application/msword", "application/vnd.ms-powerpoint", "application/vnd.ms-excel"
EPUB = "application/epub+zip"
_OOXML = "application/vnd.openxmlformats-officedocument."
DOCX = f"{_OOXML}wordprocessingml.document"
PPTX = f"{_OOXML}presentationml.presentation"
XLSX = f"{_OOXML}spreadsheetml.sheet"
ODT, ODP, ODS = (f"application/vnd.oasis.opendocument.{kind}" for kind in ("text", "presentation", "spreadsheet"))
IMAGE = "image/*"
AUDIO = "audio/*"
VIDEO = "video/*"

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
_AUDIO_SUFFIXES = (".wav", ".mp3", ".m4a", ".m4b", ".flac", ".ogg", ".oga", ".opus")
_VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
_CODE_SUFFIXES = tuple(
    f".{suffix}" for suffix in "bash c cc cpp cs cxx go h hpp java js jsx mjs php py pyi rb rs sh ts tsx".split()
)


class Format(NamedTuple):
    """A format. Documents of formats that are not `binary` are decoded before they are parsed."""

    media_type: str
    name: str
    suffixes: tuple[str, ...]
    """In lower case, with the dot."""
    binary: bool = False


_FORMATS = (
    Format(TEXT, "text", (".txt", ".text")),
    Format(MARKDOWN, "Markdown", (".md", ".markdown", ".mdown", ".mkd")),
    Format(HTML, "HTML", (".html", ".htm", ".xhtml")),
    Format(CSV, "CSV", (".csv",)),
    Format(TSV, "TSV", (".tsv", ".tab")),
    Format(JSON, "JSON", (".json",)),
    Format(XML, "XML", (".xml",)),
    Format(CODE, "source code", _CODE_SUFFIXES),
    Format(PDF, "PDF", (".pdf",), binary=True),
    Format(DOCX, "DOCX", (".docx", ".docm", ".dotx"), binary=True),
    Format(PPTX, "PPTX", (".pptx", ".pptm", ".ppsx"), binary=True),
    Format(XLSX, "XLSX", (".xlsx", ".xlsm", ".xlsb"), binary=True),
    Format(XLS, "XLS", (".xls",), binary=True),
    Format(ODT, "ODT", (".odt", ".ott"), binary=True),
    Format(ODP, "ODP", (".odp",), binary=True),
    Format(ODS, "ODS", (".ods",), binary=True),
    Format(EPUB, "EPUB", (".epub",), binary=True),
    Format(RTF, "RTF", (".rtf",), binary=True),
    Format(EML, "EML", (".eml",), binary=True),
    Format(MBOX, "mbox", (".mbox", ".mbx"), binary=True),
    Format(MSG, "MSG", (".msg",), binary=True),
    Format(IMAGE, "image", _IMAGE_SUFFIXES, binary=True),
    Format(AUDIO, "audio file", _AUDIO_SUFFIXES, binary=True),
    Format(VIDEO, "video", _VIDEO_SUFFIXES, binary=True),
    Format(DOC, "DOC", (".doc",), binary=True),
    Format(PPT, "PPT", (".ppt",), binary=True),
)

FORMATS = {entry.media_type: entry for entry in _FORMATS}
"""Formats by media type."""
WITH_LINES = frozenset({TEXT, MARKDOWN, CODE})
"""Media types whose documents have exactly the lines of the file, since their parsers return the decoded text."""
RECOGNIZED_BY_CONTENT = frozenset(entry.media_type for entry in _FORMATS if entry.binary) - {EML}
"""Media types whose content has a signature. Of other binary formats, only the name tells."""
DECLARED = {
    "application/xhtml+xml": HTML,
    "text/x-markdown": MARKDOWN,
    "application/csv": CSV,
    "text/xml": XML,
    "text/rtf": RTF,
    **{f"image/{kind}": IMAGE for kind in ("png", "jpeg", "tiff", "bmp", "webp", "gif")},
    **{f"audio/{kind}": AUDIO for kind in "wav x-wav wave mpeg mp3 mp4 m4a x-m4a flac x-flac ogg opus".split()},
    **{f"video/{kind}": VIDEO for kind in ("mp4", "quicktime", "webm", "x-matroska", "x-msvideo")},
}
"""Media types by other types that a source may declare, in lower case."""
