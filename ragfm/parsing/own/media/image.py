"""Images (PNG, JPEG, TIFF, BMP, WebP, GIF): the text that OCR recognizes."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.parsing.own.media.ocr import OCR_HINT, has_ocr, recognize_words
from ragfm.parsing.own.pdf.pdf_document import build_text
from ragfm.parsing.own.pdf.pdf_page import PageContent
from ragfm.parsing.rendering import ParsedText

if TYPE_CHECKING:
    from PIL import Image

_MAX_PIXELS = 100_000_000
_MAX_PAGES = 500  # of a TIFF
_MAX_SIDE = 4_000  # pixels; larger images are scaled down
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError)


def read_image(data: bytes, name: str) -> ParsedText:
    """Return the text in reading order, with page marks for a TIFF of several pages.

    Metadata: `width`, `height`, in pixels. Raises SkipDocument where OCR is not installed, ParseError for an image that
    is damaged or too large.
    """
    if not has_ocr():
        raise SkipDocument(f"{name} is an image: reading its text needs OCR.", OCR_HINT)
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
        _check_size(image, name)
        metadata = {"width": image.width, "height": image.height}
        # Only the first frame of an animation is read.
        page_count = min(getattr(image, "n_frames", 1), _MAX_PAGES) if image.format == "TIFF" else 1
        pages = []
        for number in range(page_count):
            image.seek(number)
            _check_size(image, name)  # each page of a TIFF has its own size
            upright = ImageOps.exif_transpose(image).convert("RGB")
            upright.thumbnail((_MAX_SIDE, _MAX_SIDE))
            pages.append(PageContent(upright.width, upright.height, recognize_words(np.asarray(upright), 1)))
    except ParseError:
        raise
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise ParseError(f"{name} is a damaged image: {error}") from error
    parsed = build_text(pages)
    if page_count == 1:
        parsed = parsed._replace(marks=tuple(mark for mark in parsed.marks if mark.kind != "page"))
    return parsed._replace(metadata=metadata)


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > _MAX_PIXELS:
        raise ParseError(
            f"{name} has {image.width:,} by {image.height:,} pixels; the limit is {_MAX_PIXELS:,} pixels in all."
        )
