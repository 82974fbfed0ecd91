"""Decodes and scales images in a confined process."""

from __future__ import annotations

import io
from typing import IO, Any

from ragfm.core.errors import MissingExtraError, UnsupportedError

MAX_PIXELS = 64_000_000
"""An A3 page at 400 dpi has 31 million."""
_FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


def handle(file: IO[bytes], side: int, encoded: bool) -> tuple[dict[str, Any], bytes]:
    """See `image_preparation.prepare_image`. Raises UnsupportedError with the reason."""
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "Images need the package 'pillow'.", "Run `pip install -e '.[vision]'` in ragfm's source folder."
        ) from error
    try:
        Image.MAX_IMAGE_PIXELS = None  # checked here, as an error rather than a warning
        opened = Image.open(file, formats=tuple(_FORMATS))
        if opened.width * opened.height > MAX_PIXELS:
            raise UnsupportedError(f"it has {opened.width} x {opened.height} pixels, and the limit is {MAX_PIXELS:,}.")
        media_type = _FORMATS[str(opened.format)]
        image = ImageOps.exif_transpose(opened)
        unchanged = image.size == opened.size and max(image.size) <= side
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
    if not encoded:
        return fields, image.tobytes()
    if unchanged:
        file.seek(0)
        return fields, file.read()
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {**fields, "media_type": "image/png"}, buffer.getvalue()
