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


def image(kind: str, *texts: str) -> bytes:
    pages = []
    for text in texts:
        page = Image.new("RGB", (700, 220), "white")
        ImageDraw.Draw(page).multiline_text((30, 40), text, "black", ImageFont.load_default(34))
        pages.append(page)
    stream = io.BytesIO()
    pages[0].save(stream, kind, **({"save_all": True, "append_images": pages[1:]} if len(pages) > 1 else {}))
    return stream.getvalue()


def slides(*images: bytes) -> bytes:
    """A presentation with one image on each slide; an empty one adds an empty slide."""
    presentation = pytest.importorskip("pptx").Presentation()
    for data in images:
        slide = presentation.slides.add_slide(presentation.slide_layouts[6])
        if data:
            slide.shapes.add_picture(io.BytesIO(data), 0, 0)
    stream = io.BytesIO()
    presentation.save(stream)
    return stream.getvalue()


@needs_ocr
@pytest.mark.slow
def test_images_and_scans_are_read() -> None:
    parsed = document(image("PNG", "All ships are\nwritten down."), "a.png")
    assert " ".join(parsed.text.split()) == "All ships are written down."
    assert parsed.marks == ()
    parsed = document(image("PDF", "The first page", "A second one"), "a.pdf")
    assert parsed.text.split("\n\n") == ["The first page", "A second one"]
    assert [mark.value for mark in parsed.marks] == ["1", "2"]
    parsed = document(slides(b"", image("PNG", "Ships sail on")), "a.pptx")
    assert (parsed.text, [mark.value for mark in parsed.marks]) == ("Ships sail on", ["2"])
    small = image("PDF", "A small table").replace(b"/MediaBox [ 0 0 700.0 220.0 ]", b"/MediaBox [ 0 0 1900. 900.0 ]")
    assert b"1900." in small
    assert document(small, "a.pdf").text == "A small table"


def test_without_ocr_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "find_spec", lambda _: None)
    files = {"a.png": image("PNG", "x"), "a.pdf": image("PDF", "x"), "a.pptx": slides(image("PNG", "x"))}
    for name, data in files.items():
        with pytest.raises(SkipDocument, match=r"a\.p.* OCR.*pip install -e '\.\[ocr\]'"):
            parse(Blob(data), name)


@needs_ocr
def test_huge_and_damaged_images_are_refused() -> None:
    header = image("PNG", "x")
    huge = header[:16] + (60_000).to_bytes(4, "big") * 2 + header[24:]
    with pytest.raises(ParseError, match=r"60,000|damaged"):
        parse(Blob(huge), "a.png")
    with pytest.raises(ParseError, match="damaged image"):
        parse(Blob(header[:200]), "a.png")
