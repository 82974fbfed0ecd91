"""Images as bytes to pictures, as image models expect them.

They come from documents, so a confined process decodes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ragfm.core.errors import EmbeddingError, UnsupportedError
from ragfm.core.types import ImagePart
from ragfm.parsing.image_preparation import MAX_IMAGE_SIDE, prepare_image


def decode_images(images: Sequence[bytes]) -> list[Any]:
    """RGB images of Pillow, upright, on white where they are transparent, of up to `MAX_IMAGE_SIDE` pixels.

    Raises EmbeddingError for bytes that are not a PNG, JPEG or WebP image, MissingExtraError without Pillow.
    """
    pictures = []
    for data in images:
        try:
            prepared = prepare_image(ImagePart(data, "bytes"), MAX_IMAGE_SIDE)
        except UnsupportedError as error:
            raise EmbeddingError(f"An image cannot be embedded. {error.message}", error.hint) from error
        from PIL import Image

        pictures.append(Image.frombytes("RGB", (prepared.width, prepared.height), prepared.data))
    return pictures
