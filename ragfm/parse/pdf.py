"""PDF: the text layer, page by page, in the order that PDFium gives it."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

from ragfm.errors import ParseError, SkipDocument
from ragfm.parse.rendering import Parsed, Rendering, clean
from ragfm.types import Scalar

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

_LOCK = threading.Lock()  # PDFium is not thread-safe, whatever the document
# PDFium puts a mark where a hyphen at a line's end split a word, and joins the lines. Before a capital or a digit the
# hyphen is the word's own ("Case-Study").
_OWN_HYPHEN = re.compile(r"[\x02\ufffe](?=[A-Z\d])")
_CONTROLS = re.compile("[\x01-\x08\x0b\x0e-\x1f\ufffe\uffff]")
_PROTECTED = {4, 5}  # FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY


def read_pdf(data: bytes, name: str) -> Parsed:
    """The pages' text, with one mark per page that has some.

    Raises ParseError for a damaged or protected file, SkipDocument where no page has text.
    """
    import pypdfium2

    with _LOCK:
        try:
            document = pypdfium2.PdfDocument(data)
        except pypdfium2.PdfiumError as error:
            if error.err_code in _PROTECTED:
                raise ParseError(f"{name} is protected by a password.", "Save a copy without one.") from error
            raise ParseError(f"{name} is a damaged PDF: {error}") from error
        try:
            return _read_pages(document, name)
        finally:
            document.close()


def _read_pages(document: PdfDocument, name: str) -> Parsed:
    pages = len(document)
    if not pages:
        raise ParseError(f"{name} is a damaged PDF: it has no pages.")
    rendering = Rendering()
    empty = True
    for number in range(1, pages + 1):
        text = _page_text(document, number, name)
        if text.strip():
            rendering.page(number)
            rendering.block(text)
            empty = False
    if empty:
        raise SkipDocument(f"{name} has no text layer, it is perhaps a scan: OCR is needed.")
    return rendering.finish(_metadata(document))


def _page_text(document: PdfDocument, number: int, name: str) -> str:
    from pypdfium2 import PdfiumError

    try:
        page = document[number - 1]
        try:
            text_page = page.get_textpage()
            try:
                text: str = text_page.get_text_bounded()
            finally:
                text_page.close()
        finally:
            page.close()
    except PdfiumError as error:
        raise ParseError(f"{name} is a damaged PDF: page {number} can't be read ({error}).") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return clean(_CONTROLS.sub("", _OWN_HYPHEN.sub("-", text))).strip("\n")


def _metadata(document: PdfDocument) -> dict[str, Scalar]:
    given = {key.lower(): " ".join(clean(document.get_metadata_value(key)).split()) for key in ("Title", "Author")}
    return {key: value for key, value in given.items() if value}
