"""Images as bytes to RGB pictures, as image models expect them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

from ragfm.core.errors import EmbeddingError, MissingExtraError

MAX_PIXELS = 100_000_000
"""Larger images are refused: one takes 300 MB."""


def decode_images(images: Sequence[bytes]) -> list[Any]:
    """RGB images of Pillow, upright, on white where they are transparent.

    Raises EmbeddingError for bytes that are not a PNG, JPEG or WebP image of up to `MAX_PIXELS`.
    """
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "Embedding images requires Pillow, which is not installed.", "Run `pip install 'ragfm[vision]'`."
        ) from error

    decoded = []
    for data in images:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is our own
                image: Image.Image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it has {image.width} × {image.height} pixels")
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            decoded.append(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises
            raise EmbeddingError(
                f"An image of {len(data)} bytes cannot be embedded: {error}.", "It must be PNG, JPEG or WebP."
            ) from error
    return decoded
