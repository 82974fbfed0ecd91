"""Images of documents: which of them are kept as figures, and in which size.

An image is kept as it is if browsers and models can show it: PNG, JPEG or WebP, upright, of one frame, and with up to
2,048 pixels on its longer side. Any other image is scaled down to that and written again: as PNG, or as JPEG if it was
one or the PNG has over half a byte per pixel, as photographs have. Too small ones, which are icons and rules, are not
figures. All of this happens in the confined process.
"""

from __future__ import annotations

import io
import math
import warnings
from typing import TYPE_CHECKING, Any

from ragfm.parsing import heartbeat

if TYPE_CHECKING:
    from PIL import Image

MAX_SIDE = 2_048
"""Pixels on the longer side of an image that is kept."""
MIN_SIDE = 32
"""Pixels on the shorter side of a figure."""
MAX_PIXELS = 100_000_000
"""Pixels of an image that is read at all."""
_MAX_FIGURE_PIXELS = 50_000_000  # what a worker can decode and convert within its memory
MAX_IMAGES = 64 << 20
"""Bytes of all images of a document. Figures beyond that are text only."""
WHOLE_PAGE = (0.0, 0.0, 1.0, 1.0)
"""The box of a page that is an image."""
_KEPT_FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA"), "JPEG": ("L", "RGB"), "WEBP": ("RGB", "RGBA")}
_ORIENTATION = 274  # the EXIF tag; 1 is upright
_JPEG_QUALITY = 90
_MAX_PNG_RATE = 0.5  # bytes per pixel
VISION_HINT = "Run `pip install -e '.[vision]'` in ragfm's source folder."
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError)
"""Exceptions that Pillow raises for a damaged image."""


def image_type(data: bytes) -> str | None:
    """The media type of an image that may be kept, by its first bytes; None for any other."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def is_box(box: Any) -> bool:
    """Whether this is a box: four fractions of the page, in order."""
    if len(box) != 4 or not all(isinstance(value, int | float) and math.isfinite(value) for value in box):
        return False
    left, top, right, bottom = box
    return bool(0 <= left <= right <= 1 and 0 <= top <= bottom <= 1)


def open_image(data: bytes) -> Image.Image:
    """Open an image without decoding it. Raises the exceptions of `DAMAGE`."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error


def kept_image(data: bytes) -> bytes | None:
    """An image as it is kept, None for one that is damaged, of an unknown format, too small or too large."""
    heartbeat.beat()
    try:
        image = open_image(data)
        if min(image.size) < MIN_SIDE or image.width * image.height > _MAX_FIGURE_PIXELS:
            return None
        form = image.format or ""
        kept = form in _KEPT_FORMATS and max(image.size) <= MAX_SIDE and getattr(image, "n_frames", 1) == 1
        image.draft("RGB", (MAX_SIDE, MAX_SIDE))  # JPEG decodes at a fraction of its size
        image.load()
        if image.getcolors(1) is not None:  # of one colour
            return None
        if kept and image.mode in _MODES[form] and image.getexif().get(_ORIENTATION, 1) == 1:
            return data
        return encoded(image)
    except DAMAGE:
        return None


def encoded(image: Image.Image) -> bytes:
    """An image upright and scaled down, as PNG or JPEG."""
    from PIL import Image, ImageOps

    form = "JPEG" if image.format in ("JPEG", "MPO") else "PNG"
    image = ImageOps.exif_transpose(image)
    if max(image.size) > MAX_SIDE or image.mode not in _MODES[form]:
        image = image.convert("RGBA" if form == "PNG" and image.has_transparency_data else "RGB")
        image.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    if form == "PNG":
        image.save(file, form)
        if file.tell() <= _MAX_PNG_RATE * image.width * image.height:
            return file.getvalue()
        file = io.BytesIO()
        if image.has_transparency_data:
            paper = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(paper, image.convert("RGBA"))
    image.convert("RGB").save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()
