"""The plugin `ragfm`: ragfm's own parsers."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Literal

from ragfm.core.errors import MissingExtraError, ParseError
from ragfm.parsing import formats
from ragfm.parsing.own.media.ocr import has_ocr
from ragfm.parsing.rendering import ParsedText

_VERSION = "13"
# Functions below `ragfm.parsing.own`: (data, or text if the format is not binary; file name) -> ParsedText.
_FUNCTIONS = {
    formats.MARKDOWN: "markdown:read_markdown",
    formats.HTML: "web.html:read_html",
    formats.CSV: "delimited_text:read_csv",
    formats.TSV: "delimited_text:read_tsv",
    formats.JSON: "json_text:read_json",
    formats.XML: "xml_text:read_xml",
    formats.CODE: "source_code:read_code",
    formats.PDF: "pdf.pdf_document:read_pdf",
    formats.DOCX: "office.docx:read_docx",
    formats.PPTX: "office.pptx:read_pptx",
    formats.XLSX: "office.spreadsheets:read_spreadsheet",
    formats.XLS: "office.spreadsheets:read_spreadsheet",
    formats.ODT: "office.odf:read_odf",
    formats.ODP: "office.odf:read_odf",
    formats.ODS: "office.spreadsheets:read_spreadsheet",
    formats.EPUB: "web.epub:read_epub",
    formats.RTF: "office.rtf:read_rtf",
    formats.EML: "web.mail_message:read_eml",
    formats.MBOX: "web.mail_message:read_mbox",
    formats.MSG: "web.mail_message:read_msg",
    formats.IMAGE: "media.image:read_image",
    formats.AUDIO: "media.audio:read_audio",
    formats.VIDEO: "media.audio:read_audio",
    formats.DOC: "office.legacy_office:read_doc",
    formats.PPT: "office.legacy_office:read_ppt",
}
# Extras that change the text of a document, by media type. Without the others, their formats cannot be parsed at all.
_EXTRAS = {
    **dict.fromkeys((formats.PDF, formats.PPTX, formats.PPT, formats.IMAGE), "ocr"),
    formats.CODE: "code",
}
_WITH_IMAGES = frozenset(
    getattr(formats, name) for name in ("IMAGE", "PDF", "DOCX", "PPTX", "HTML", "EPUB", "ODT", "ODP")
)
_INSTALLED = {"ocr": has_ocr(), "code": find_spec("tree_sitter") is not None}


class OwnParser:
    """Reads every format of `formats.FORMATS`."""

    formats = tuple(formats.FORMATS.values())
    heavy = False
    image_formats = _WITH_IMAGES

    def version(self, media_type: str) -> str:
        """The version, with the extra that changes the text of this format, if it is installed."""
        extra = _EXTRAS.get(media_type, "")
        return f"{_VERSION}+{extra}" if _INSTALLED.get(extra) else _VERSION

    def parse(self, data: bytes, name: str, media_type: str, *, images: bool | Literal["pages"] = False) -> ParsedText:
        """Parse a document; only the module of its format is imported. `images` is for the formats that have them.

        Raises MissingExtraError where the extra `documents` is missing.
        """
        if media_type == formats.TEXT:
            return ParsedText(data.decode())
        module, function = _FUNCTIONS[media_type].split(":")
        read = getattr(import_module(f"ragfm.parsing.own.{module}"), function)
        options = {"images": images} if images else {}
        try:
            parsed: ParsedText = read(data if formats.FORMATS[media_type].binary else data.decode(), name, **options)
        except RecursionError as error:
            raise ParseError(f"{name} nests its elements too deeply.") from error
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"{formats.FORMATS[media_type].name} needs the module {error.name!r}, which is not installed.",
                "Run `pip install -e '.[documents]'` in ragfm's source folder.",
            ) from error
        return parsed
