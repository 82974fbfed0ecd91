"""Renders pages and finds quotes on them in a confined process, from the bytes of PDF documents and images."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

from ragfm.core.errors import CollectionError, ParseError
from ragfm.core.types import Box
from ragfm.parsing.figures import DAMAGE, is_box, open_image
from ragfm.parsing.formats import PDF
from ragfm.parsing.own.media.image import count_pages, upright_page
from ragfm.parsing.own.media.ocr import has_ocr, recognize_words
from ragfm.parsing.own.pdf.pdf_types import Word
from ragfm.parsing.quote_boxes import find_quote
from ragfm.parsing.sandbox.confined_service import ConfinedService
from ragfm.parsing.sandbox.worker_process import Limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAX_PIXELS = 16_000_000
_MAX_PNG = 4 * _MAX_PIXELS  # bytes; noise does not shrink
_SECONDS = 30.0
_service = ConfinedService(__name__, limits=Limits(stall_seconds=_SECONDS, seconds=_SECONDS))


def render_page(data: bytes, media_type: str, name: str, page: int, width: int) -> bytes:
    """A page as PNG, `width` pixels wide; less if it is very high, or an image of fewer pixels. Raises as `handle`."""
    return _service.call(media_type, name, page, width, None, file=data, max_bytes=_MAX_PNG)[1]


def find_on_page(data: bytes, media_type: str, name: str, page: int, text: str, start: int, end: int) -> list[Box]:
    """The boxes of `text[start:end]`, see `find_quote`; `text` is that of the page. Raises as `handle`."""
    found, _ = _service.call(media_type, name, page, 0, (text, start, end), file=data)
    return [tuple(box) for box in found if is_box(box)]


def handle(
    file: BinaryIO, media_type: str, name: str, page: int, width: int, quote: tuple[str, int, int] | None
) -> tuple[Sequence[Box], bytes]:
    """Find a quote on a page or, without one, render the page. Runs in the confined process.

    The media type is PDF or IMAGE. Raises CollectionError if there is no such page, ParseError if the document is
    damaged.
    """
    import numpy as np

    file.seek(0)
    data = file.read()
    if media_type != PDF:
        try:
            image = open_image(data)
            _check_number(page, count_pages(image), name)
            shown = upright_page(image, page, name)
        except DAMAGE as error:
            raise ParseError(f"{name} is a damaged image: {error}") from error
        if quote is not None:
            words = recognize_words(np.asarray(shown), 1) if has_ocr() else []
            return _boxes(words, quote, shown.width, shown.height), b""
        shown.thumbnail((width, _MAX_PIXELS))
        return [], _encode_png(np.asarray(shown))

    import pypdfium2

    from ragfm.parsing.own.pdf.pdf_page import read_page

    try:
        with pypdfium2.PdfDocument(data) as document:
            _check_number(page, len(document), name)
            if quote is not None:
                content = read_page(document, page - 1)
                return _boxes(content.words, quote, content.width, content.height), b""
            document.init_forms()
            opened = document[page - 1]
            page_width, page_height = opened.get_size()
            scale = min(width / page_width, math.sqrt(_MAX_PIXELS / (page_width * page_height)))
            return [], _encode_png(opened.render(scale=scale, rev_byteorder=True).to_numpy())
    except (pypdfium2.PdfiumError, ArithmeticError, ValueError) as error:
        raise ParseError(f"Page {page} of {name} cannot be read: {error}") from error


def _check_number(page: int, count: int, name: str) -> None:
    if not 1 <= page <= count:
        raise CollectionError(f"There is no page {page} in {name}.", f"It has {count}.")


def _boxes(words: Sequence[Word], quote: tuple[str, int, int], width: float, height: float) -> list[Box]:
    def share(value: float, whole: float) -> float:
        return round(min(max(value / whole, 0.0), 1.0), 5)

    return [
        (share(box.x0, width), share(box.top, height), share(box.x1, width), share(box.bottom, height))
        for box in find_quote(words, *quote)
    ]


def _encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """*Shape:* (height, width, 3). Each row is stored as its difference from the one above, which compresses well."""
    import numpy as np

    height, width, channels = pixels.shape
    assert channels == 3
    rows = np.full((height, 1 + 3 * width), 2, np.uint8)  # 2: the filter "up"
    rows[:, 1:] = np.diff(pixels.reshape(height, -1), axis=0, prepend=np.uint8(0))
    parts = [b"\x89PNG\r\n\x1a\n"]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")):
        parts += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(kind + data))]
    return b"".join(parts)
