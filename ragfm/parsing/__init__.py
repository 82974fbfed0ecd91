"""Parse documents: detect the format of the bytes and return the text that a reader of the document sees, with marks.

Plain text, Markdown and source code are unchanged. All other formats become Markdown-like text: headings with `#`,
lists with `-`, tables as Markdown tables, code in fences. Marks tell headings, tables, code, pages and places apart;
they come from the structure of the source, so a paragraph that only looks like a heading is not one.

    formats        the table of formats: suffixes and parser functions
    media_types    detection of media type and encoding
    rendering      builds the text and its marks
    own/           text, Markdown, CSV and TSV, JSON, XML, source code
    own/pdf/       PDF: words, lines, tables, columns, hidden text
    own/office/    DOCX, PPTX, spreadsheets, ODT and ODP, RTF, DOC and PPT
    own/web/       HTML, EPUB, mail (EML, MSG)
    own/media/     images (OCR), audio (speech recognition)
    sandbox/       confined worker processes in which documents are parsed
    stated_period  the period that a report covers, as metadata
    heartbeat      signs of life from a parser in a worker
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.core.types import Blob, Document
from ragfm.parsing.formats import BINARY, FORMATS, HTML
from ragfm.parsing.media_types import describe_start, detect, expected_format, is_encrypted
from ragfm.parsing.rendering import ParsedText
from ragfm.parsing.stated_period import stated_period

__all__ = ["PARSER", "media_type", "parse"]

_VERSION = "5"
# Only extras that change the text of a document. Without the others, their formats cannot be parsed at all.
_OPTIONAL = {"ocr": find_spec("rapidocr") and find_spec("onnxruntime"), "code": find_spec("tree_sitter")}
PARSER = "+".join([_VERSION, *(name for name, spec in _OPTIONAL.items() if spec)])
"""Version of the parsers and the installed extras that change their output. A change re-parses all documents."""


def media_type(data: bytes, uri: str, declared: str | None = None) -> str:
    """Return the media type, by content first, then by the suffix of `uri`, then by the type the source `declared`.

    Bytes that cannot be parsed are `application/octet-stream`.
    """
    return detect(data, uri, declared)[0]


def parse(blob: Blob, uri: str) -> Document:
    """Parse a document; metadata of the source (`blob.metadata`) overrides metadata in the document.

    `period` is the last day of the period that a report covers, if its first page states one.

    Raises SkipDocument where there is nothing to index, ParseError where the bytes do not match the format or are
    damaged, MissingExtraError where the format needs a package that is not installed.
    """
    name = uri.rstrip("/").rsplit("/", 1)[-1] or uri
    if not blob.data:
        raise SkipDocument(f"{name} is empty.")
    kind, text = detect(blob.data, uri, blob.media_type)
    expected = expected_format(uri, blob.media_type)
    is_expected = not expected.binary or expected.media_type == kind
    if kind == BINARY or not (is_expected or FORMATS[kind].binary or kind == HTML):
        if is_encrypted(blob.data):
            raise ParseError(f"{name} is protected by a password.", "Save a copy without a password.")
        start = describe_start(blob.data)
        if expected.binary:
            article = "an" if expected.format[0] in "EMORXai" else "a"
            raise ParseError(
                f"{name} is {expected.evidence} but is not {article} {expected.format}: it begins with {start}."
            )
        if expected.media_type:
            reason = "has NUL bytes" if b"\0" in blob.data else "is in no known encoding"
            raise ParseError(f"{name} is {expected.evidence} but is not text: it {reason}, and begins with {start}.")
        raise SkipDocument(f"{name} has an unsupported format: it begins with {start}.")
    entry = FORMATS[kind]
    module, function = entry.parser.split(":")
    read = getattr(import_module(f"ragfm.parsing.{module}"), function)
    parsed: ParsedText = read(blob.data if entry.binary else text, name)
    if not parsed.text.strip():
        raise SkipDocument(f"{name} has no text.")
    period = stated_period(parsed.text)
    metadata = {**({"period": period} if period else {}), **parsed.metadata, **blob.metadata}
    return Document(uri, parsed.text, kind, metadata, parsed.marks)
