"""Bytes to documents: `parse` recognises the format by content first and renders what a reader may see.

Plain text and Markdown stay as they are, character for character. All else becomes Markdown-like text: headings with
`#`, lists with `-`, tables as Markdown tables, code in fences. What was a heading, a table, code or a page is told by
marks, which are taken from the source's own structure, so a paragraph that only looks like a heading is none.
"""

from __future__ import annotations

from ragfm.errors import ParseError, SkipDocument
from ragfm.parse.media import BINARY, CSV, DOCX, HTML, JSON, MARKDOWN, PDF, TSV, begins_with, promise_of, recognise
from ragfm.parse.rendering import Parsed
from ragfm.types import Blob, Document

__all__ = ["PARSER", "media_type", "parse"]

PARSER = "2"
"""Version of all parsers: another one makes other texts of the same bytes."""


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
    if promise.media_type == kind:
        return
    begin = begins_with(blob.data)
    if promise.binary:
        hint = "It may be protected by a password, or be a .doc." if blob.data.startswith(b"\xd0\xcf\x11\xe0") else ""
        raise ParseError(f"{name} is {promise.said} but isn't a {promise.format}: it begins with {begin}.", hint)
    if promise.media_type:
        why = "has NUL bytes in it" if b"\0" in blob.data else "is in no known encoding"
        raise ParseError(f"{name} is {promise.said} but isn't text: it {why}, and begins with {begin}.")
    raise SkipDocument(f"{name} is of a format that isn't supported: it begins with {begin}.")


def _read(kind: str, data: bytes, text: str, name: str) -> Parsed:
    """Call the format's own parser; each is imported when its first document comes."""
    match kind:
        case _ if kind == PDF:
            from ragfm.parse.pdf import read_pdf

            return read_pdf(data, name)
        case _ if kind == DOCX:
            from ragfm.parse.docx import read_docx

            return read_docx(data, name)
        case _ if kind == HTML:
            from ragfm.parse.html_text import read_html

            return read_html(text, name)
        case _ if kind == MARKDOWN:
            from ragfm.parse.markdown import read_markdown

            return read_markdown(text)
        case _ if kind in {CSV, TSV}:
            from ragfm.parse.delimited import read_delimited

            return read_delimited(text, name, tabs=kind == TSV)
        case _ if kind == JSON:
            from ragfm.parse.json_text import read_json

            return read_json(text, name)
    return Parsed(text)
