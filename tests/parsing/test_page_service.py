"""Rendered pages, and quotes found on scans, in a confined process."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from support.written_pdf import lines, pdf

from ragfm.core.errors import CollectionError, ParseError
from ragfm.parsing.formats import IMAGE, PDF
from ragfm.parsing.page_service import find_on_page, render_page


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return image


def picture(*texts: str, size: tuple[int, int] = (800, 400), kind: str = "PNG", **options: object) -> bytes:
    image = Image.new("RGB", size, "white")
    for row, text in enumerate(texts):
        ImageDraw.Draw(image).text((60, 60 + 90 * row), text, "black", ImageFont.load_default(36))
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_a_page_of_a_pdf_is_drawn_as_wide_as_asked() -> None:
    data = pdf("1 0 0 rg 0 396 306 396 re f", lines("Two"))  # red in the upper left quarter
    image = opened(render_page(data, PDF, "a.pdf", 1, 600))
    assert image.size == (600, 777)
    assert [image.getpixel(at) for at in ((150, 200), (450, 200), (150, 600))] == [
        (255, 0, 0),
        (255, 255, 255),
        (255, 255, 255),
    ]
    with pytest.raises(CollectionError, match=r"There is no page 3 in a\.pdf\. It has 2\."):
        render_page(data, PDF, "a.pdf", 3, 600)
    with pytest.raises(CollectionError, match="no page 0"):
        render_page(data, PDF, "a.pdf", 0, 600)
    with pytest.raises(ParseError, match=r"Page 1 of a\.pdf cannot be read"):
        render_page(data[:200], PDF, "a.pdf", 1, 600)


def test_a_rotated_page_is_upright_and_a_very_high_one_smaller() -> None:
    data = pdf("1 0 0 rg 0 396 306 396 re f", page="/Rotate 90")
    image = opened(render_page(data, PDF, "a.pdf", 1, 792))
    assert image.size == (792, 612)
    assert image.getpixel((700, 100)) == (255, 0, 0)
    high = pdf(lines("High"), page="/CropBox [0 0 10 792]")
    assert np.prod(opened(render_page(high, PDF, "a.pdf", 1, 2400)).size) <= 16_100_000


def test_an_image_is_turned_upright_and_never_enlarged() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    data = picture(size=(800, 400), kind="JPEG", exif=exif)
    assert opened(render_page(data, IMAGE, "a.jpg", 1, 200)).size == (200, 400)
    assert opened(render_page(data, IMAGE, "a.jpg", 1, 2000)).size == (400, 800)
    with pytest.raises(CollectionError, match="no page 2"):
        render_page(data, IMAGE, "a.jpg", 2, 200)
    with pytest.raises(ParseError, match=r"a\.jpg is a damaged image"):
        render_page(data[:300], IMAGE, "a.jpg", 1, 200)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "media_type"), [("PNG", IMAGE), ("PDF", PDF)])
def test_a_quote_on_a_scan_is_found_by_ocr(kind: str, media_type: str) -> None:
    pytest.importorskip("rapidocr")
    data = picture("The keeper lights the lamp.", "The pilot waits below.", kind=kind)
    text = "The keeper lights the lamp.\nThe pilot waits below."
    ((left, top, right, bottom),) = find_on_page(data, media_type, "scan", 1, text, text.index("The pilot"), len(text))
    assert left == pytest.approx(60 / 800, abs=0.02)
    assert 0.5 < right < 0.8
    assert (top + bottom) / 2 == pytest.approx(170 / 400, abs=0.04)
    assert find_on_page(data, media_type, "scan", 1, "The captain sleeps.", 0, 19) == []
