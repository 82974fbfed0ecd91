from __future__ import annotations

import io

import pytest
from support.parsed_documents import document

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.core.types import Blob
from ragfm.parsing import parse
from ragfm.parsing.own.media import ocr

Image = pytest.importorskip("PIL.Image")
ImageDraw = pytest.importorskip("PIL.ImageDraw")
ImageFont = pytest.importorskip("PIL.ImageFont")
needs_ocr = pytest.mark.skipif(not ocr.has_ocr(), reason="rapidocr is not installed")


def picture(kind: str, *texts: str) -> bytes:
    pages = []
    for text in texts:
        page = Image.new("RGB", (700, 220), "white")
        ImageDraw.Draw(page).multiline_text((30, 40), text, "black", ImageFont.load_default(34))
        pages.append(page)
    stream = io.BytesIO()
    pages[0].save(stream, kind, **({"save_all": True, "append_images": pages[1:]} if len(pages) > 1 else {}))
    return stream.getvalue()


def slides(*pictures: bytes) -> bytes:
    """A presentation with one picture on each slide, and nothing where it is empty."""
    presentation = pytest.importorskip("pptx").Presentation()
    for data in pictures:
        slide = presentation.slides.add_slide(presentation.slide_layouts[6])
        if data:
            slide.shapes.add_picture(io.BytesIO(data), 0, 0)
    stream = io.BytesIO()
    presentation.save(stream)
    return stream.getvalue()


@needs_ocr
@pytest.mark.slow
def test_a_picture_and_a_scan_are_read() -> None:
    parsed = document(picture("PNG", "All ships are\nwritten down."), "a.png")
    assert " ".join(parsed.text.split()) == "All ships are written down."
    assert parsed.marks == ()
    parsed = document(picture("PDF", "The first page", "A second one"), "a.pdf")
    assert parsed.text.split("\n\n") == ["The first page", "A second one"]
    assert [mark.value for mark in parsed.marks] == ["1", "2"]
    parsed = document(slides(b"", picture("PNG", "Ships sail on")), "a.pptx")
    assert (parsed.text, [mark.value for mark in parsed.marks]) == ("Ships sail on", ["2"])
    small = picture("PDF", "A small table").replace(b"/MediaBox [ 0 0 700.0 220.0 ]", b"/MediaBox [ 0 0 1900. 900.0 ]")
    assert b"1900." in small
    assert document(small, "a.pdf").text == "A small table"


def test_without_ocr_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "find_spec", lambda _: None)
    files = {"a.png": picture("PNG", "x"), "a.pdf": picture("PDF", "x"), "a.pptx": slides(picture("PNG", "x"))}
    for name, data in files.items():
        with pytest.raises(SkipDocument, match=r"a\.p.* OCR.*pip install 'ragfm\[ocr\]'"):
            parse(Blob(data), name)


@needs_ocr
def test_absurd_and_damaged_pictures_are_refused() -> None:
    header = picture("PNG", "x")
    huge = header[:16] + (60_000).to_bytes(4, "big") * 2 + header[24:]
    with pytest.raises(ParseError, match=r"60,000|damaged"):
        parse(Blob(huge), "a.png")
    with pytest.raises(ParseError, match="damaged picture"):
        parse(Blob(header[:200]), "a.png")
