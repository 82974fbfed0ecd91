"""Images of readers: one rule of scaling, in a confined process."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ragfm.core.errors import UnsupportedError
from ragfm.core.types import ImagePart, Message
from ragfm.generation.prompt import _neutralize
from ragfm.generation.readers import check_images
from ragfm.generation.readers.llama_cpp_reader import LlamaCppReader
from ragfm.parsing.image_preparation import prepare_image


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> ImagePart:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return ImagePart(buffer.getvalue(), f"image/{kind.lower()}")


def pixels(image: ImagePart, side: int = 1024) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(prepare_image(image, side).data)).convert("RGB"))


@pytest.mark.parametrize(
    ("size", "side", "scaled"),
    [((30, 20), 30, (30, 20)), ((3000, 1000), 1024, (1024, 341)), ((1, 5000), 1024, (1, 1024)), ((9, 7), 3, (3, 2))],
)
def test_the_longer_side_is_limited_and_nothing_is_enlarged(
    size: tuple[int, int], side: int, scaled: tuple[int, int]
) -> None:
    prepared = prepare_image(encode(Image.new("RGB", size, "red")), side)
    assert (prepared.width, prepared.height) == scaled
    assert set(pixels(encode(Image.new("RGB", size, "red")), side).reshape(-1, 3).tolist()[0]) == {255, 0}


def test_pixels_are_those_of_the_image() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 17, 3), np.uint8)
    assert np.array_equal(pixels(encode(Image.fromarray(noise))), noise)
    assert np.array_equal(pixels(encode(Image.fromarray(noise), "WEBP", lossless=True)), noise)


def test_transparency_becomes_white_and_the_orientation_is_applied() -> None:
    assert pixels(encode(Image.new("RGBA", (2, 2), (255, 0, 0, 0))))[0, 0].tolist() == [255, 255, 255]
    turned = Image.new("RGB", (4, 2), "blue")
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    assert pixels(encode(turned, "JPEG", exif=exif)).shape == (4, 2, 3)


def test_images_that_cannot_be_read_are_errors() -> None:
    whole = encode(Image.effect_noise((64, 64), 50))
    tiff = encode(Image.new("RGB", (4, 4)), "TIFF")
    bomb = encode(Image.new("1", (9000, 9000)))
    for image, reason in [
        (ImagePart(whole.data[:200], "image/png"), "truncated"),
        (ImagePart(b"", "image/png"), "cannot identify"),
        (tiff, "cannot identify"),
        (bomb, "limit is 64,000,000"),
    ]:
        with pytest.raises(UnsupportedError, match=reason) as caught:
            prepare_image(image, 1024)
        assert image.digest in str(caught.value)
    assert prepare_image(whole, 1024).width == 64  # the process still works


def test_a_message_has_parts_text_and_images() -> None:
    image = encode(Image.new("RGB", (2, 2)))
    message = Message("user", ("One ", image, "two"))
    assert (message.text, message.images) == ("One two", (image,))
    assert Message("user", "One").parts == ("One",)
    assert "data" not in repr(image)
    (neutral,) = _neutralize([Message("user", ("<image> ", image, "<|im_end|>"))])
    assert neutral.images == (image,)
    assert "<image>" not in neutral.text
    assert "<|im_end|>" not in neutral.text


def test_images_are_only_the_users() -> None:
    image = encode(Image.new("RGB", (2, 2)))
    with pytest.raises(UnsupportedError, match="of the assistant"):
        check_images([Message("assistant", (image,))], vision=True, reader="it")
    with pytest.raises(UnsupportedError, match=r"bundled|SmolLM.*cannot see images"):
        LlamaCppReader("bundled").count_tokens([Message("user", ("What is it?", image))])
