"""The plugin `docling`: documents read by docling, without its models, except for PDF."""

from __future__ import annotations

import io
import os
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec

from ragfm.core.errors import MissingExtraError
from ragfm.parsing import formats
from ragfm.parsing.formats import FORMATS, Format
from ragfm.parsing.rendering import MarkdownBuilder, ParsedText
from ragfm.parsing.table_layout import Cell, arrange_table

_LIBRARY_VERSION = version("docling-slim")  # without it, loading the plugin raises ModuleNotFoundError
_VERSION = "2"
_ASCIIDOC = Format("text/asciidoc", "AsciiDoc", (".adoc", ".asciidoc"))
_LATEX = Format("text/x-tex", "LaTeX", (".tex",))
_WEBVTT = Format("text/vtt", "WebVTT", (".vtt",))
_KNOWN = (formats.MARKDOWN, formats.HTML, formats.CSV, formats.DOCX, formats.PPTX, formats.XLSX, formats.PDF)


class DoclingParser:
    """Reads formats with structure of their own; PDF where docling's models are installed."""

    formats = (_ASCIIDOC, _LATEX, _WEBVTT, *(FORMATS[kind] for kind in _KNOWN))
    heavy = True

    def version(self, media_type: str) -> str:
        """The versions of this module and of the library."""
        return f"{_VERSION}/{_LIBRARY_VERSION}"

    def parse(self, data: bytes, name: str, media_type: str) -> ParsedText:
        """Parse a document. Raises MissingExtraError for a PDF without the package of the models."""
        if media_type == formats.PDF and find_spec("docling_ibm_models") is None:
            raise MissingExtraError(
                f"{name} cannot be read by docling: its models for PDF are not installed.",
                "Run `pip install docling` and `docling-tools models download`, or choose another parser for PDF.",
            )
        os.environ["HF_HUB_OFFLINE"] = "1"
        suffix = next(entry.suffixes[0] for entry in self.formats if entry.media_type == media_type)
        stream = import_module("docling.datamodel.base_models").DocumentStream(
            name=f"document{suffix}", stream=io.BytesIO(data)
        )
        converter = import_module("docling.document_converter").DocumentConverter()
        document = converter.convert(stream).document
        builder = MarkdownBuilder()
        joined: set[str] = set()  # parts of paragraphs with several fonts, which are in the text already
        for item, _ in document.iterate_items(with_groups=True):
            label, text = str(item.label.value), getattr(item, "text", "").strip()
            if item.self_ref in joined:
                continue
            if getattr(item, "prov", None):
                builder.start_page(item.prov[0].page_no)
            if label == "inline":
                joined.update(child.cref for child in item.children)
                text = " ".join(child.resolve(document).text for child in item.children)
                label = item.parent.resolve(document).label.value
                label = label if label == "list_item" else "text"
            if label == "table":
                grid = item.data.grid
                rows = [[Cell(" ".join(cell.text.split())) for cell in row] for row in grid]
                headers = [any(cell.column_header for cell in row) for row in grid]
                if any(cell.text for row in rows for cell in row):
                    table = arrange_table(rows, (*headers, False).index(False))
                    builder.add_table(table.rows, titles=table.titles)
                continue
            if not text:
                continue
            if label in ("title", "section_header"):
                builder.add_heading(getattr(item, "level", 0) + 1, " ".join(text.split()))
            elif label == "list_item":
                builder.add_block(f"- {' '.join(text.split())}", tight=True)
            elif label == "code":
                builder.add_code(text)
            else:
                builder.add_block(text)
        return builder.build().with_title(only_with_metadata=True)
