"""The formats, one line each: what they are called, how files of them are named, and who reads them."""

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
EML = "message/rfc822"
RTF = "application/rtf"
MSG = "application/vnd.ms-outlook"
DOC, PPT, XLS = "application/msword", "application/vnd.ms-powerpoint", "application/vnd.ms-excel"
EPUB = "application/epub+zip"
_OOXML = "application/vnd.openxmlformats-officedocument."
DOCX, PPTX, XLSX = (
    f"{_OOXML}wordprocessingml.document",
    f"{_OOXML}presentationml.presentation",
    f"{_OOXML}spreadsheetml.sheet",
)
ODT, ODP, ODS = (f"application/vnd.oasis.opendocument.{kind}" for kind in ("text", "presentation", "spreadsheet"))


class Format(NamedTuple):
    """`reader` is a function below `ragfm.parsing`; of a binary format it gets the bytes, of others the text."""

    media_type: str
    name: str
    suffixes: tuple[str, ...]
    reader: str
    binary: bool = False


CODE = "text/x-source"
IMAGE = "image/*"
AUDIO = "audio/*"
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
_SOUNDS = (".wav", ".mp3", ".m4a", ".m4b", ".flac", ".ogg", ".oga", ".opus")
_CODE = tuple(
    f".{suffix}" for suffix in "bash c cc cpp cs cxx go h hpp java js jsx mjs php py pyi rb rs sh ts tsx".split()
)

_ALL = (
    Format(TEXT, "text", (".txt", ".text"), "own.plain_text:read_text"),
    Format(MARKDOWN, "Markdown", (".md", ".markdown", ".mdown", ".mkd"), "own.markdown:read_markdown"),
    Format(HTML, "HTML", (".html", ".htm", ".xhtml"), "own.web.html:read_html"),
    Format(CSV, "CSV", (".csv",), "own.delimited_text:read_csv"),
    Format(TSV, "TSV", (".tsv", ".tab"), "own.delimited_text:read_tsv"),
    Format(JSON, "JSON", (".json",), "own.json_text:read_json"),
    Format(XML, "XML", (".xml",), "own.xml_text:read_xml"),
    Format(CODE, "source code", _CODE, "own.source_code:read_code"),
    Format(PDF, "PDF", (".pdf",), "own.pdf.pdf_document:read_pdf", binary=True),
    Format(DOCX, "DOCX", (".docx", ".docm", ".dotx"), "own.office.docx:read_docx", binary=True),
    Format(PPTX, "PPTX", (".pptx", ".pptm", ".ppsx"), "own.office.pptx:read_pptx", binary=True),
    Format(XLSX, "XLSX", (".xlsx", ".xlsm", ".xlsb"), "own.office.spreadsheets:read_sheets", binary=True),
    Format(XLS, "XLS", (".xls",), "own.office.spreadsheets:read_sheets", binary=True),
    Format(ODT, "ODT", (".odt", ".ott"), "own.office.odf:read_odf", binary=True),
    Format(ODP, "ODP", (".odp",), "own.office.odf:read_odf", binary=True),
    Format(ODS, "ODS", (".ods",), "own.office.spreadsheets:read_sheets", binary=True),
    Format(EPUB, "EPUB", (".epub",), "own.web.epub:read_epub", binary=True),
    Format(RTF, "RTF", (".rtf",), "own.office.rtf:read_rtf", binary=True),
    Format(EML, "EML", (".eml",), "own.web.mail_message:read_eml", binary=True),
    Format(MSG, "MSG", (".msg",), "own.web.mail_message:read_msg", binary=True),
    Format(IMAGE, "picture", _PICTURES, "own.media.image:read_image", binary=True),
    Format(AUDIO, "recording", _SOUNDS, "own.media.audio:read_audio", binary=True),
    Format(DOC, "DOC", (".doc",), "own.office.legacy_office:read_doc", binary=True),
    Format(PPT, "PPT", (".ppt",), "own.office.legacy_office:read_ppt", binary=True),
)

FORMATS = {entry.media_type: entry for entry in _ALL}
"""By media type."""
BY_SUFFIX = {suffix: entry.media_type for entry in _ALL for suffix in entry.suffixes}
DECLARED = {
    **{entry.media_type: entry.media_type for entry in _ALL},
    "application/xhtml+xml": HTML,
    "text/x-markdown": MARKDOWN,
    "application/csv": CSV,
    "text/xml": XML,
    "text/rtf": RTF,
    **{f"image/{kind}": IMAGE for kind in ("png", "jpeg", "tiff", "bmp", "webp", "gif")},
    **{f"audio/{kind}": AUDIO for kind in "wav x-wav wave mpeg mp3 mp4 m4a x-m4a flac x-flac ogg opus".split()},
}
"""What sources say, in lower case."""
