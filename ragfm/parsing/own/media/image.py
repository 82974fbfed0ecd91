"""Pictures (PNG, JPEG, TIFF, BMP, WebP, GIF): the text that OCR reads in them."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.parsing.own.media.ocr import HINT, has_ocr, read_words
from ragfm.parsing.own.pdf.pdf_document import render_pages
from ragfm.parsing.own.pdf.pdf_page import Content
from ragfm.parsing.rendering import Parsed

if TYPE_CHECKING:
    from PIL import Image

_MAX_PIXELS = 100_000_000
_MAX_FRAMES = 500  # pages of a TIFF
_LONGEST = 4_000  # pixels of a side that are looked at; larger ones are scaled down
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError)


def read_image(data: bytes, name: str) -> Parsed:
    """The text, in the order of reading; a TIFF of several pages has these. Metadata: `width`, `height`, in pixels.

    Raises SkipDocument where OCR isn't installed, ParseError for what is damaged or absurdly large.
    """
    if not has_ocr():
        raise SkipDocument(f"{name} is a picture: what is written in it needs OCR.", HINT)
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data))
        if picture.width * picture.height > _MAX_PIXELS:
            raise ParseError(f"{name} has {picture.width:,} by {picture.height:,} pixels, too many to read.")
        size = (picture.width, picture.height)
        # Of what is animated the first picture is all.
        frames = min(getattr(picture, "n_frames", 1), _MAX_FRAMES) if picture.format == "TIFF" else 1
        pages = []
        for number in range(frames):
            picture.seek(number)
            pages.append(_page(picture, name))
    except ParseError:
        raise
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise ParseError(f"{name} is a damaged picture: {error}") from error
    parsed = render_pages(pages)
    if frames == 1:
        parsed = parsed._replace(marks=tuple(mark for mark in parsed.marks if mark.kind != "page"))
    return parsed._replace(metadata={"width": size[0], "height": size[1]})


def _page(picture: Image.Image, name: str) -> Content:
    import numpy as np
    from PIL import ImageOps

    if picture.width * picture.height > _MAX_PIXELS:  # each page of a TIFF has a size of its own
        raise ParseError(f"{name} has {picture.width:,} by {picture.height:,} pixels, too many to read.")
    upright = ImageOps.exif_transpose(picture).convert("RGB")
    upright.thumbnail((_LONGEST, _LONGEST))
    return Content(upright.width, upright.height, read_words(np.asarray(upright), 1))
