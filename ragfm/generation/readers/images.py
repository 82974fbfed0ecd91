"""Images for readers, and which of them a reader may get."""

from __future__ import annotations

from collections.abc import Sequence

from ragfm.core.errors import UnsupportedError
from ragfm.core.types import Message
from ragfm.parsing.image_preparation import IMAGE_SIDE, MAX_IMAGE_SIDE, PreparedImage, prepare_image

__all__ = ["IMAGE_SIDE", "MAX_IMAGE_SIDE", "PreparedImage", "check_images", "prepare_image"]


def check_images(messages: Sequence[Message], *, vision: bool, reader: str) -> None:
    """Raise UnsupportedError for images that a reader cannot see, and for images of other roles than the user."""
    for message in messages:
        if message.images and not vision:
            raise UnsupportedError(
                f"The messages have an image, and {reader} cannot see images.",
                "Use a reader with vision, or text only.",
            )
        if message.images and message.role != "user":
            raise UnsupportedError(
                f"A message of the {message.role} has an image.", "Put images in the user's messages."
            )
