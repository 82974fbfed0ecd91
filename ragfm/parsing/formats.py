"""The supported formats: their names, suffixes and parser functions."""

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

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
_AUDIO_SUFFIXES = (".wav", ".mp3", ".m4a", ".m4b", ".flac", ".ogg", ".oga", ".opus")
_CODE_SUFFIXES = tuple(
    f".{suffix}" for suffix in "bash c cc cpp cs cxx go h hpp java js jsx mjs php py pyi rb rs sh ts tsx".split()
)


class Format(NamedTuple):
    """A format. `parser` is a function below `ragfm.parsing`: (data or text, file name) -> ParsedText."""

    media_type: str
    name: str
    suffixes: tuple[str, ...]
    parser: str
    binary: bool = False
    """Whether the parser takes the bytes; others take the decoded text."""


_FORMATS = (
    Format(TEXT, "text", (".txt", ".text"), "own.plain_text:read_text"),
    Format(MARKDOWN, "Markdown", (".md", ".markdown", ".mdown", ".mkd"), "own.markdown:read_markdown"),
    Format(HTML, "HTML", (".html", ".htm", ".xhtml"), "own.web.html:read_html"),
    Format(CSV, "CSV", (".csv",), "own.delimited_text:read_csv"),
    Format(TSV, "TSV", (".tsv", ".tab"), "own.delimited_text:read_tsv"),
    Format(JSON, "JSON", (".json",), "own.json_text:read_json"),
    Format(XML, "XML", (".xml",), "own.xml_text:read_xml"),
    Format(CODE, "source code", _CODE_SUFFIXES, "own.source_code:read_code"),
    Format(PDF, "PDF", (".pdf",), "own.pdf.pdf_document:read_pdf", binary=True),
    Format(DOCX, "DOCX", (".docx", ".docm", ".dotx"), "own.office.docx:read_docx", binary=True),
    Format(PPTX, "PPTX", (".pptx", ".pptm", ".ppsx"), "own.office.pptx:read_pptx", binary=True),
    Format(XLSX, "XLSX", (".xlsx", ".xlsm", ".xlsb"), "own.office.spreadsheets:read_spreadsheet", binary=True),
    Format(XLS, "XLS", (".xls",), "own.office.spreadsheets:read_spreadsheet", binary=True),
    Format(ODT, "ODT", (".odt", ".ott"), "own.office.odf:read_odf", binary=True),
    Format(ODP, "ODP", (".odp",), "own.office.odf:read_odf", binary=True),
    Format(ODS, "ODS", (".ods",), "own.office.spreadsheets:read_spreadsheet", binary=True),
    Format(EPUB, "EPUB", (".epub",), "own.web.epub:read_epub", binary=True),
    Format(RTF, "RTF", (".rtf",), "own.office.rtf:read_rtf", binary=True),
    Format(EML, "EML", (".eml",), "own.web.mail_message:read_eml", binary=True),
    Format(MSG, "MSG", (".msg",), "own.web.mail_message:read_msg", binary=True),
    Format(IMAGE, "image", _IMAGE_SUFFIXES, "own.media.image:read_image", binary=True),
    Format(AUDIO, "audio file", _AUDIO_SUFFIXES, "own.media.audio:read_audio", binary=True),
    Format(DOC, "DOC", (".doc",), "own.office.legacy_office:read_doc", binary=True),
    Format(PPT, "PPT", (".ppt",), "own.office.legacy_office:read_ppt", binary=True),
)

FORMATS = {entry.media_type: entry for entry in _FORMATS}
"""Formats by media type."""
WITH_LINES = frozenset({TEXT, MARKDOWN, CODE})
"""Media types whose documents have exactly the lines of the file, since their parsers return the decoded text."""
BY_SUFFIX = {suffix: entry.media_type for entry in _FORMATS for suffix in entry.suffixes}
"""Media types by suffix, in lower case."""
DECLARED = {
    **{entry.media_type: entry.media_type for entry in _FORMATS},
    "application/xhtml+xml": HTML,
    "text/x-markdown": MARKDOWN,
    "application/csv": CSV,
    "text/xml": XML,
    "text/rtf": RTF,
    **{f"image/{kind}": IMAGE for kind in ("png", "jpeg", "tiff", "bmp", "webp", "gif")},
    **{f"audio/{kind}": AUDIO for kind in "wav x-wav wave mpeg mp3 mp4 m4a x-m4a flac x-flac ogg opus".split()},
}
"""Media types by the type that a source declares, in lower case."""
