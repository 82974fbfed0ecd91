"""Images for models: decoded and scaled in a confined process, since they come from documents and from users.

One rule for all models: an image whose longer side exceeds `image_side` pixels is reduced to it, with its proportions;
none is enlarged. Transparent pixels become white, and the orientation of the camera is applied. What a model does with
the image afterwards, cut it into tiles or resize it to its own size, is the model's.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any

from ragfm.core.errors import MissingExtraError, ParseError, UnsupportedError, needs_extra
from ragfm.core.types import ImagePart
from ragfm.parsing.sandbox.confined_service import ConfinedService
from ragfm.parsing.sandbox.worker_process import Limits

IMAGE_SIDE = 1024
"""Longest side of an image in pixels, unless a reader's option `image_side` sets another."""
MAX_IMAGE_SIDE = 4096
MAX_PIXELS = 64_000_000
"""An A3 page at 400 dpi has 31 million."""
_FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_ORIENTATION = 0x0112  # in the EXIF data: 1 is upright
_CACHED_IMAGES = 8
_SECONDS = 30.0
_service = ConfinedService(__name__, limits=Limits(stall_seconds=_SECONDS, seconds=_SECONDS))


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """A scaled image of `width` * `height` pixels, as a file in `media_type`."""

    width: int
    height: int
    media_type: str
    data: bytes


@lru_cache(_CACHED_IMAGES)
def prepare_image(image: ImagePart, side: int) -> PreparedImage:
    """Decode and scale an image: its own file if it needs no change, else a PNG.

    Raises UnsupportedError for an image that cannot be read, MissingExtraError without Pillow.
    """
    try:
        fields, data = _service.call(side, file=image.data, max_bytes=4 * MAX_IMAGE_SIDE**2)
    except MissingExtraError:
        raise
    except (ParseError, UnsupportedError) as error:
        raise UnsupportedError(
            f"Cannot read the image {image.digest} ({image.media_type}): {error.message}",
            "Use a PNG, JPEG or WebP image.",
        ) from error
    return PreparedImage(fields["width"], fields["height"], fields["media_type"], data)


def handle(file: IO[bytes], side: int) -> tuple[dict[str, Any], bytes]:
    """Decode and scale an image in the confined process. Raises UnsupportedError with the reason."""
    with needs_extra("Reading images", "vision"):
        from PIL import Image, ImageOps
    try:
        Image.MAX_IMAGE_PIXELS = None  # checked here, as an error rather than a warning
        opened = Image.open(file, formats=tuple(_FORMATS))
        if opened.width * opened.height > MAX_PIXELS:
            raise UnsupportedError(f"it has {opened.width} x {opened.height} pixels, and the limit is {MAX_PIXELS:,}.")
        media_type = _FORMATS[str(opened.format)]
        image = ImageOps.exif_transpose(opened)
        is_upright = opened.getexif().get(_ORIENTATION, 1) == 1
        unchanged = is_upright and not image.has_transparency_data and max(image.size) <= side
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("RGB")
    except UnsupportedError:
        raise
    except Exception as error:  # a damaged image makes a decoder raise anything
        raise UnsupportedError(f"{error}.") from error
    if max(image.size) > side:
        scale = side / max(image.size)
        width, height = (max(1, round(length * scale)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    fields = {"width": image.width, "height": image.height, "media_type": media_type}
    if unchanged:
        file.seek(0)
        return fields, file.read()
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {**fields, "media_type": "image/png"}, buffer.getvalue()
