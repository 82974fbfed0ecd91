"""Parse documents: detect the format of the bytes and return the text that a reader of the document sees, with marks.

Plain text, Markdown and source code are unchanged. All other formats become Markdown-like text: headings with `#`,
lists with `-`, tables as Markdown tables, code in fences. Marks tell headings, tables, code, pages and places apart;
they come from the structure of the source, so a paragraph that only looks like a heading is not one.

    formats        the table of formats: names and suffixes
    parsers        the installed parsers, and which of them reads which format
    media_types    detection of the media type
    text_encoding  decoding of text
    rendering      builds the text and its marks
    table_layout   headers over several columns, symbols in cells of their own
    figures        images of documents: which are kept, and in which size
    image_preparation  images for models: decoded and scaled in a confined process
    own/           text, Markdown, CSV and TSV, JSON, XML, source code
    own/pdf/       PDF: words, lines, tables, columns, hidden text
    own/office/    DOCX, PPTX, spreadsheets, ODT and ODP, RTF, DOC and PPT
    own/web/       HTML, EPUB, email (EML, MSG, mbox)
    own/media/     images (OCR), audio (speech recognition)
    sandbox/       confined worker processes in which documents are parsed
    page_service   rendered pages, and quotes found on them, in a confined process
    quote_boxes    where on a page a quote stands
    stated_period  the period that a report covers, as metadata
    heartbeat      signs of life from a parser in a worker
"""

from __future__ import annotations

from ragfm.core.errors import SkipDocument
from ragfm.core.types import Blob, Document
from ragfm.parsing import heartbeat
from ragfm.parsing.formats import Format
from ragfm.parsing.media_types import check_type, detect
from ragfm.parsing.own.office.zip_container import open_zip
from ragfm.parsing.parsers import OWN, Parser, ParserChoice, image_formats, installed_parsers, known_formats
from ragfm.parsing.rendering import MarkdownBuilder, ParsedText, clean
from ragfm.parsing.stated_period import stated_period

__all__ = ["Format", "MarkdownBuilder", "ParsedText", "Parser", "ParserChoice", "media_type", "parse"]


def media_type(data: bytes, uri: str, declared: str | None = None) -> str:
    """Return the media type, by content first, then by the suffix of `uri`, then by the type the source `declared`.

    Bytes that cannot be parsed are `application/octet-stream`.
    """
    return detect(data, uri, declared)[0]


def parse(blob: Blob, uri: str, choice: ParserChoice = ParserChoice()) -> Document:  # noqa: B008  frozen
    """Parse a document; metadata of the source (`blob.metadata`) overrides metadata in the document.

    `period` is the last day of the period that a report covers, if its first page states one; `parsed_by` names the
    parser, unless it is ragfm's own.

    Raises SkipDocument where there is nothing to index, ParseError where the bytes do not match the format or are
    damaged, MissingExtraError where the format needs a package that is not installed.
    """
    name = uri.rstrip("/").rsplit("/", 1)[-1] or uri
    if not blob.data:
        raise SkipDocument(f"{name} is empty.")
    named = "" if blob.written else uri
    kind, text = detect(blob.data, named, blob.media_type)
    check_type(kind, blob.data, named, blob.media_type, name)
    data = blob.data if known_formats().by_type[kind].binary else text.encode("utf-8", "replace")
    first_error: Exception | None = None
    for parser_name in choice.parsers_for(kind):
        parser = installed_parsers()[parser_name]
        if parser.heavy:
            heartbeat.announce("heavy")
        try:
            if parser_name != OWN and data.startswith(b"PK\x03\x04"):
                open_zip(data, name).close()  # refuse decompression bombs, as ragfm's own parsers do
            options = {"images": choice.images} if choice.images and kind in image_formats(parser_name) else {}
            parsed = parser.parse(data, name, kind, **options)
            break
        except (SkipDocument, MemoryError):
            raise
        except Exception as error:  # the fallback is tried, whatever the reason
            first_error = first_error or error
    else:
        assert first_error is not None
        raise first_error
    if parser_name != OWN:
        parsed = parsed._replace(text=clean(parsed.text), metadata={**parsed.metadata, "parsed_by": parser_name})
    if not parsed.text.strip():
        raise SkipDocument(f"{name} has no text.")
    period = stated_period(parsed.text)
    found = {**({"period": period} if period else {}), **parsed.metadata, **blob.metadata}
    metadata = {clean(key): clean(value) if isinstance(value, str) else value for key, value in found.items()}
    return Document(uri, parsed.text, kind, metadata, parsed.marks, parsed.images)
