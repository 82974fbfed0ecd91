"""Bytes to documents: `parse` recognises the format by content first and renders what a reader may see.

Plain text and Markdown stay as they are, character for character. All else becomes Markdown-like text: headings with
`#`, lists with `-`, tables as Markdown tables, code in fences. What was a heading, a table, code or a page is told by
marks, which are taken from the source's own structure, so a paragraph that only looks like a heading is none.

media           what the bytes are
formats         the formats, and who reads them
rendering       text put together, with its marks
progress        what a parser says while it works
workers         all processes that parse
process         one of them, as its parent sees it
worker          the same from within
sandbox         what it gives up
wire            what the two say to each other
plain           plain text
markdown        Markdown
html_text       HTML
xml_text        XML
json_text       JSON
delimited       CSV and TSV
code            source code
packed          archives that are opened with care
office          what DOCX, PPTX and others have in common
office_chart    their charts
docx            DOCX
docx_styles     its styles: headings, items of lists
docx_numbers    its numbers and bullets
pptx            PPTX
sheets          spreadsheets
odf             ODT and ODP
old_office      DOC and PPT
rtf             RTF
epub            EPUB
mail            EML and MSG
pdf             PDF, page by page
pdf_page        what stands on a page
pdf_drawing     what is drawn there
pdf_paint       whether words are seen
pdf_lines       words to lines and paragraphs
pdf_tables      tables
pdf_layout      the order of reading
image           pictures
ocr             the text in them
audio           recordings
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.core.types import Blob, Document
from ragfm.parsing.formats import BINARY, FORMATS, HTML
from ragfm.parsing.media_types import begins_with, is_encrypted, promise_of, recognise
from ragfm.parsing.rendering import Parsed

__all__ = ["PARSER", "media_type", "parse"]

_VERSION = "4"
# Not those that a whole format needs: without them there is no text to change.
_OPTIONAL = {"ocr": find_spec("rapidocr") and find_spec("onnxruntime"), "code": find_spec("tree_sitter")}
PARSER = "+".join([_VERSION, *(name for name, there in _OPTIONAL.items() if there)])
"""Version of all parsers, with the optional ones that are there: another one makes other texts of the same bytes."""


def media_type(data: bytes, uri: str, declared: str | None = None) -> str:
    """What the bytes are, by content first, then by the suffix of `uri`, then by what the source `declared`.

    `application/octet-stream` stands for all that can't be parsed.
    """
    return recognise(data, uri, declared)[0]


def parse(blob: Blob, uri: str) -> Document:
    """The document that the bytes hold; what the source says (`blob.metadata`) goes before what the document says.

    Raises SkipDocument where there is nothing to index, ParseError where the bytes are not what they should be,
    MissingExtraError where the format needs a package that isn't installed.
    """
    name = uri.rstrip("/").rsplit("/", 1)[-1] or uri
    if not blob.data:
        raise SkipDocument(f"{name} is empty.")
    kind, text = recognise(blob.data, uri, blob.media_type)
    if kind == BINARY or promise_of(uri, blob.media_type).binary:
        _check_promise(blob, kind, uri, name)
    parsed = _read(kind, blob.data, text, name)
    if not parsed.text.strip():
        raise SkipDocument(f"{name} has no text in it.")
    return Document(uri, parsed.text, kind, {**parsed.metadata, **blob.metadata}, parsed.marks)


def _check_promise(blob: Blob, kind: str, uri: str, name: str) -> None:
    """Raise where the name promises another format than the content has, or where the content can't be parsed."""
    promise = promise_of(uri, blob.media_type)
    if promise.media_type == kind or (kind != BINARY and (FORMATS[kind].binary or kind == HTML)):
        return
    if is_encrypted(blob.data):
        raise ParseError(f"{name} is protected by a password.", "Save a copy without one.")
    begin = begins_with(blob.data)
    if promise.binary:
        article = "an" if promise.format[0] in "EMORX" else "a"
        raise ParseError(f"{name} is {promise.said} but isn't {article} {promise.format}: it begins with {begin}.")
    if promise.media_type:
        why = "has NUL bytes in it" if b"\0" in blob.data else "is in no known encoding"
        raise ParseError(f"{name} is {promise.said} but isn't text: it {why}, and begins with {begin}.")
    raise SkipDocument(f"{name} is of a format that isn't supported: it begins with {begin}.")


def _read(kind: str, data: bytes, text: str, name: str) -> Parsed:
    """Call the format's own parser; each is imported when its first document comes."""
    entry = FORMATS[kind]
    module, function = entry.reader.split(":")
    parsed: Parsed = getattr(import_module(f"ragfm.parsing.{module}"), function)(data if entry.binary else text, name)
    return parsed
