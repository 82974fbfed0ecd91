"""The plugin `unstructured`: documents read by unstructured, without its models and without a network.

unstructured gives elements with a category; ragfm writes the text from them, so marks are exact.
"""

from __future__ import annotations

import io
import os
import re
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ragfm.core.errors import UnsupportedError
from ragfm.parsing import formats
from ragfm.parsing.formats import FORMATS, Format
from ragfm.parsing.own.media.image import read_image
from ragfm.parsing.own.office.legacy_office import convert
from ragfm.parsing.own.web.html import read_table
from ragfm.parsing.rendering import MarkdownBuilder, ParsedText

if TYPE_CHECKING:
    from collections.abc import Iterable

_LIBRARY_VERSION = version("unstructured")  # without it, loading the plugin raises ModuleNotFoundError
_VERSION = "2"
RST = Format("text/x-rst", "reStructuredText", (".rst", ".rest"))
ORG = Format("text/x-org", "Org", (".org",))
HEIC = Format("image/heic", "HEIC", (".heic", ".heif"), binary=True)
# Names of modules with functions `partition_…`. PDF is left out, because it needs models of
# layouts, and CSV, because the separator is guessed wrongly where there is one column.
_PARTITIONERS = {
    formats.TEXT: "text",
    formats.MARKDOWN: "md",
    formats.HTML: "html",
    formats.TSV: "tsv",
    formats.XML: "xml",
    RST.media_type: "rst",
    ORG.media_type: "org",
    formats.DOCX: "docx",
    formats.DOC: "docx",
    formats.PPTX: "pptx",
    formats.PPT: "pptx",
    formats.XLSX: "xlsx",
    formats.XLS: "xlsx",
    formats.ODT: "odt",
    formats.EPUB: "epub",
    formats.RTF: "rtf",
    formats.EML: "email",
    formats.MSG: "msg",
}
_DROPPED = {"PageBreak", "Header", "Footer", "Page-header", "Page-footer", "PageNumber"}
_XML_DECLARATION = re.compile(rb"\s*<\?xml[^>]*\?>")


class UnstructuredParser:
    """Reads most formats of ragfm, and RST, Org and HEIC."""

    formats = (RST, ORG, HEIC, *(FORMATS[kind] for kind in _PARTITIONERS if kind in FORMATS))
    heavy = True

    def version(self, media_type: str) -> str:
        """The versions of this module and of the library."""
        return f"{_VERSION}/{_LIBRARY_VERSION}"

    def parse(self, data: bytes, name: str, media_type: str) -> ParsedText:
        """Parse a document. DOC and PPT are converted by LibreOffice; pictures are read by ragfm's OCR."""
        if media_type == HEIC.media_type:
            import_module("pi_heif").register_heif_opener()
            return read_image(data, name)
        if media_type in (formats.DOC, formats.PPT):
            data = convert(data, name, *(("doc", "docx") if media_type == formats.DOC else ("ppt", "pptx")))
        elif media_type == formats.XML:
            data = _XML_DECLARATION.sub(b"", data, count=1)  # it may name the encoding of the file, and this is UTF-8
        _without_downloads()
        module = _PARTITIONERS[media_type]
        options: dict[str, Any] = {"process_attachments": False} if module in ("email", "msg") else {}
        partition = getattr(import_module(f"unstructured.partition.{module}"), f"partition_{module}")
        # `languages`: else the language is detected, which loads more models.
        return _render(partition(file=io.BytesIO(data), languages=[""], **options))


@cache
def _without_downloads() -> None:
    """Switch off telemetry, and the loader that downloads a spaCy model and installs it into site-packages.

    The model finds parts of speech, which tell titles from sentences. Here, headings come from the structure only.
    """
    os.environ |= {"DO_NOT_TRACK": "true", "UNSTRUCTURED_DISABLE_NOTICE": "1"}
    tokenize = import_module("unstructured.nlp.tokenize")
    if not hasattr(tokenize, "_load_spacy_model"):
        raise UnsupportedError(
            f"unstructured {_LIBRARY_VERSION} loads its language model in a way that ragfm does not know.",
            "Run `pip install -e '.[unstructured]'` in ragfm's source folder for a version that works.",
        )

    def load_blank_model() -> Any:
        model = import_module("spacy").blank("en")
        model.add_pipe("sentencizer")
        return model

    setattr(tokenize, "_load_spacy_model", load_blank_model)  # noqa: B010  the module has no types


def _render(elements: Iterable[Any]) -> ParsedText:
    from selectolax.lexbor import LexborHTMLParser

    builder = MarkdownBuilder()
    outer_depth: int | None = None  # of the list that is being written; some formats count from 0, others from 1
    for element in elements:
        category, about, text = element.category, element.metadata, element.text.strip()
        if category in _DROPPED or not text:
            continue
        if about.subject and not builder.length:
            builder.add_heading(1, " ".join(about.subject.split()))
        if about.page_number is not None and about.page_name is None:
            builder.start_page(about.page_number)
        depth = about.category_depth
        outer_depth = None if category != "ListItem" else depth or 0 if outer_depth is None else outer_depth
        html = about.text_as_html if category == "Table" else None
        node = LexborHTMLParser(html).css_first("table") if html else None
        table = read_table(node) if node is not None else None
        before = builder.length
        if table is not None and table.rows:
            builder.add_table(table.rows, titles=table.titles)
        elif category == "Title" and depth is not None:
            builder.add_heading(min(depth, 5) + 1, " ".join(text.split()))
        elif outer_depth is not None:
            builder.add_block(f"{'  ' * ((depth or 0) - outer_depth)}- {' '.join(text.split())}", tight=True)
        elif category == "CodeSnippet":
            builder.add_code(text)
        else:
            builder.add_block(text)
        if about.page_name:
            builder.add_place(about.page_name, before and before + 2)  # after the blank line
    return builder.build().with_title()
