"""Images (PNG, JPEG, TIFF, BMP, WebP, GIF): the text that OCR recognizes, and the images themselves as figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.parsing.figures import DAMAGE, MAX_PIXELS, encoded, kept_image, open_image
from ragfm.parsing.own.media.ocr import OCR_HINT, has_ocr, recognize_words
from ragfm.parsing.rendering import ParsedText

if TYPE_CHECKING:
    from PIL import Image

_MAX_PAGES = 500  # of a TIFF
_MAX_SIDE = 4_000  # pixels; larger images are scaled down


def read_image(data: bytes, name: str, *, images: bool = False) -> ParsedText:
    """Return the text in reading order, with page marks for a TIFF of several pages.

    With `images`, each page is a figure. Metadata: `width`, `height`, in pixels. Raises SkipDocument where OCR is not
    installed and images are not kept, ParseError for an image that is damaged or too large.
    """
    if not (has_ocr() or images):
        raise SkipDocument(f"{name} is an image: reading its text needs OCR.", OCR_HINT)
    import numpy as np

    from ragfm.parsing.own.pdf.pdf_document import build_text
    from ragfm.parsing.own.pdf.pdf_page import PageContent

    try:
        image = open_image(data)
        _check_size(image, name)
        metadata = {"width": image.width, "height": image.height}
        page_count = count_pages(image)
        pages = []
        for number in range(1, page_count + 1):
            upright = upright_page(image, number, name)
            kept = b""
            if images:
                kept = kept_image(data) or b"" if page_count == 1 else encoded(image)
            words = recognize_words(np.asarray(upright), 1) if has_ocr() else []
            pages.append(PageContent(upright.width, upright.height, words, image=kept))
    except ParseError:
        raise
    except DAMAGE as error:
        raise ParseError(f"{name} is a damaged image: {error}") from error
    parsed = build_text(pages, name=name)
    if page_count == 1:
        parsed = parsed._replace(marks=tuple(mark for mark in parsed.marks if mark.kind != "page"))
    return parsed._replace(metadata=metadata)


def count_pages(image: Image.Image) -> int:
    """The number of pages: of a TIFF, up to a limit; of an animation, only the first frame counts."""
    return min(getattr(image, "n_frames", 1), _MAX_PAGES) if image.format == "TIFF" else 1


def upright_page(image: Image.Image, number: int, name: str) -> Image.Image:
    """A page, counted from 1, in RGB and turned as its metadata says. A large one is scaled down."""
    from PIL import ImageOps

    image.seek(number - 1)
    _check_size(image, name)  # each page of a TIFF has its own size
    upright = ImageOps.exif_transpose(image).convert("RGB")
    upright.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return upright


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ParseError(
            f"{name} has {image.width:,} by {image.height:,} pixels; the limit is {MAX_PIXELS:,} pixels in all."
        )
