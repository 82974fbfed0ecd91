"""Images for models: decoded and scaled in a confined process, since they come from documents and from users.

One rule for all models: an image whose longer side exceeds `image_side` pixels is reduced to it, with its proportions;
none is enlarged. Transparent pixels become white, and the orientation of the camera is applied. What a model does with
the image afterwards, cut it into tiles or resize it to its own size, is the model's.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import lru_cache

from ragfm.core.errors import MissingExtraError, ParseError, UnsupportedError
from ragfm.core.types import ImagePart
from ragfm.parsing.sandbox.confined_service import ConfinedService
from ragfm.parsing.sandbox.worker_process import Limits

IMAGE_SIDE = 1024
"""Longest side of an image in pixels, unless a reader's option `image_side` sets another."""
MAX_IMAGE_SIDE = 4096
_CACHED_IMAGES = 8
_SECONDS = 30.0
_service = ConfinedService("ragfm.parsing.image_service", limits=Limits(stall_seconds=_SECONDS, seconds=_SECONDS))


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """A scaled image: `width` * `height` pixels of three bytes (red, green, blue), or a file in `media_type`."""

    width: int
    height: int
    media_type: str
    data: bytes


@lru_cache(_CACHED_IMAGES)
def prepare_image(image: ImagePart, side: int, *, encoded: bool = False) -> PreparedImage:
    """Decode and scale an image; with `encoded`, as a file: the image's own if it needs no change, else a PNG.

    Raises UnsupportedError for an image that cannot be read, MissingExtraError without Pillow.
    """
    with tempfile.TemporaryFile() as file:
        file.write(image.data)
        file.seek(0)
        try:
            fields, data = _service.call(side, encoded, file=file.fileno(), max_bytes=4 * MAX_IMAGE_SIDE**2)
        except MissingExtraError:
            raise
        except (ParseError, UnsupportedError) as error:
            raise UnsupportedError(
                f"Cannot read the image {image.digest} ({image.media_type}): {error.message}",
                "Use a PNG, JPEG or WebP image.",
            ) from error
    return PreparedImage(fields["width"], fields["height"], fields["media_type"], data)
