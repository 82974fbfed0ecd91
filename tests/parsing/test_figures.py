"""Figures of all formats but PDF: image files, and pictures in DOCX, PPTX, ODT, HTML and EPUB."""

from __future__ import annotations

import io
import json
import zipfile
from base64 import b64encode

import docx
import pptx
import pytest
from PIL import Image
from support.figures import picture
from support.parsed_documents import check_invariants

from ragfm.core.errors import SkipDocument
from ragfm.core.types import Blob, Document, Mark, image_key
from ragfm.parsing import ParserChoice, formats, parse
from ragfm.parsing.figures import MAX_SIDE, image_type, kept_image, open_image
from ragfm.parsing.sandbox.worker_pool import WorkerPool
from ragfm.parsing.sandbox.worker_protocol import FrameReader, pack_document, unpack_document

CHART, PHOTO = picture("chart"), picture("photo", format="JPEG")


@pytest.fixture(autouse=True)
def _no_ocr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragfm.parsing.own.media.ocr.find_spec", lambda _: None)


def parsed(data: bytes | str, uri: str) -> tuple[Document, list[tuple[Mark, str]]]:
    """A document with figures, and each figure with its text."""
    blob = Blob(data.encode() if isinstance(data, str) else data)
    found = parse(blob, uri, ParserChoice(images=True))
    check_invariants(found)
    assert {mark.image for mark in found.marks if mark.kind == "figure"} == found.images.keys()
    assert all(key == image_key(image) and image_type(image) for key, image in found.images.items())
    return found, [(mark, found.text[mark.start : mark.end]) for mark in found.marks if mark.kind == "figure"]


def saved(written: docx.document.Document | pptx.presentation.Presentation) -> bytes:
    file = io.BytesIO()
    written.save(file)
    return file.getvalue()


# --- Images ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_an_image_file_is_kept_as_it_is(format: str) -> None:
    data = picture("plan", format=format)
    found, ((mark, text),) = parsed(data, "plans/site.img")
    assert found.images[mark.image] == data
    assert text == "![site.img]()"
    assert mark.box == (0, 0, 1, 1)
    with pytest.raises(SkipDocument, match="needs OCR"):
        parse(Blob(data), "plans/site.img")


def test_other_images_are_written_again_and_large_ones_scaled_down() -> None:
    for format in ("BMP", "GIF", "TIFF"):
        kept = kept_image(picture("plan", format=format))
        assert kept is not None
        assert image_type(kept) == "image/png"
    large = kept_image(picture("plan", size=(4 * MAX_SIDE, 400)))
    assert large is not None
    assert open_image(large).size == (MAX_SIDE, 100)
    noise = Image.effect_noise((600, 400), 80)
    file = io.BytesIO()
    noise.save(file, "BMP")
    photo = kept_image(file.getvalue())
    assert photo is not None
    assert image_type(photo) == "image/jpeg"


def test_a_rotated_photo_is_upright() -> None:
    image, file = open_image(PHOTO), io.BytesIO()
    exif = image.getexif()
    exif[274] = 6
    image.save(file, "JPEG", exif=exif)
    kept = kept_image(file.getvalue())
    assert kept is not None
    assert open_image(kept).size == (image.height, image.width)
    assert open_image(kept).getexif().get(274, 1) == 1


def test_small_plain_huge_and_damaged_images_are_not_figures() -> None:
    plain, huge = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (200, 200), "navy").save(plain, "PNG")
    Image.new("1", (10_000, 9_000)).save(huge, "PNG")
    for data in (picture(size=(300, 20)), plain.getvalue(), huge.getvalue(), CHART[:-40], b"<svg/>", b""):
        assert kept_image(data) is None


def test_the_pages_of_a_tiff_are_figures() -> None:
    file = io.BytesIO()
    pages = [open_image(picture(text)) for text in ("one", "two")]
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    found, figures = parsed(file.getvalue(), "fax.tiff")
    assert len(figures) == len(found.images) == 2
    assert [mark.value for mark in found.marks if mark.kind == "page"] == ["1", "2"]


# --- Documents ---------------------------------------------------------------------------------------------------


def test_docx() -> None:
    written = docx.Document()
    written.add_heading("Site", 1)
    written.add_picture(io.BytesIO(CHART))
    written.paragraphs[-1].runs[0]._r.xpath(".//wp:docPr")[0].set("descr", "Sales of four quarters")
    written.add_paragraph("Bild 1: Umsatz", style="Caption")
    written.add_paragraph("A text follows.")
    written.add_picture(io.BytesIO(PHOTO))
    written.add_paragraph("Another one.")
    found, figures = parsed(saved(written), "a.docx")
    assert [(mark.value, text) for mark, text in figures] == [
        ("Bild 1: Umsatz", "Bild 1: Umsatz\nSales of four quarters"),
        ("", f"![{figures[1][1][2:-3]}]()"),
    ]
    assert found.text.count("Bild 1") == 1
    assert found.images[figures[0][0].image] == CHART
    assert found.text.index("follows") < figures[1][0].start < found.text.index("Another")


def test_pptx() -> None:
    written = pptx.Presentation()
    width, height = int(written.slide_width or 0), int(written.slide_height or 0)
    for title in ("Sales", "Sales again"):
        slide = written.slides.add_slide(written.slide_layouts[5])
        slide.shapes.title.text = title
        shape = slide.shapes.add_picture(io.BytesIO(CHART), width // 2, height // 4, width // 4)
        shape._element._nvXxPr.cNvPr.set("descr", "A bar chart")
    found, ((mark, text),) = parsed(saved(written), "a.pptx")
    assert text == "A bar chart"
    assert mark.box is not None
    assert mark.box[:3] == pytest.approx((0.5, 0.25, 0.75), abs=0.001)
    assert mark.start > found.text.index("# Sales")


def test_html_reads_no_file_and_no_address() -> None:
    address = f"data:image/png;base64,{b64encode(CHART).decode()}"
    icon = f"data:image/png;base64,{b64encode(picture(size=(16, 16))).decode()}"
    page = (
        "<html><body><main><h1>Sales</h1><p>A long enough paragraph on the sales of the year.</p>"
        f"<figure><figcaption>Fig. 1: Sales</figcaption><img src='{address}' alt='Four bars'></figure>"
        f"<p>Words <img src='{icon}'> and words.</p><img src='/etc/passwd'><img src='https://example.org/a.png'>"
        f"<img src='{address}' alt='again'></main></body></html>"
    )
    found, ((mark, text),) = parsed(page, "a.html")
    assert (mark.value, text) == ("Fig. 1: Sales", "Fig. 1: Sales\nFour bars")
    assert found.text.count("Fig. 1") == 1
    assert "Words and words." in found.text


def archive(files: dict[str, bytes | str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def test_epub_reads_pictures_of_the_book() -> None:
    chapter = "<html><body><h1>One</h1><p>A text.</p><img src='../img/a%20b.png' alt='A plan'/></body></html>"
    book = archive(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<c><rootfiles><rootfile full-path="O/b.opf"/></rootfiles></c>',
            "O/b.opf": '<p><manifest><item id="c" href="text/c.xhtml" media-type="application/xhtml+xml"/></manifest>'
            '<spine><itemref idref="c"/></spine></p>',
            "O/text/c.xhtml": chapter,
            "O/img/a b.png": CHART,
        }
    )
    found, ((mark, text),) = parsed(book, "a.epub")
    assert text == "A plan"
    assert found.images[mark.image] == CHART


def test_odt() -> None:
    content = (
        '<d xmlns:t="t" xmlns:x="x"><body><text><t:h>Head</t:h><t:p>Text.<frame><image x:href="Pictures/a.png"/>'
        "<desc>A plan</desc></frame></t:p></text></body></d>"
    )
    data = archive(
        {"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": content, "Pictures/a.png": CHART}
    )
    found, ((_, text),) = parsed(data, "a.odt")
    assert text == "A plan"
    assert "A plan" not in parse(Blob(data), "a.odt").text
    assert len(found.images) == 1


# --- Recipes, and the ways of a document -------------------------------------------------------------------------


def test_recipes_change_only_where_images_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    text_only, images = ParserChoice(), ParserChoice(images=True)
    before = json.loads(text_only.description)
    changed = {kind for kind, versions in json.loads(images.description).items() if versions != before[kind]}
    assert changed == {
        *(
            formats.IMAGE,
            formats.PDF,
            formats.DOCX,
            formats.PPTX,
            formats.HTML,
            formats.EPUB,
            formats.ODT,
            formats.ODP,
        )
    }
    assert "images" not in text_only.description
    version = images.version(formats.DOCX)
    assert version == f"{text_only.version(formats.DOCX)}+images"
    pages = ParserChoice(images="pages")
    assert pages.version(formats.DOCX) == version
    assert pages.version(formats.PDF) != images.version(formats.PDF)
    monkeypatch.setattr("ragfm.parsing.parsers.has_ocr", lambda: True)
    assert images.version(formats.DOCX) == f"{version}+ocr"


def test_a_worker_sends_the_images() -> None:
    pool = WorkerPool(count=1)
    try:
        document = pool.submit(Blob(CHART), "a.png", ParserChoice(images=True)).result()
    finally:
        pool.close()
    assert document.images == {image_key(CHART): CHART}


@pytest.mark.parametrize("field", ["key", "size", "data", "box", "mark"])
def test_an_invalid_image_of_a_worker_is_refused(field: str) -> None:
    found, _ = parsed(CHART, "a.png")
    (frame,) = FrameReader().feed(pack_document(found))
    assert unpack_document(frame, Blob(b""), "a.png") == found
    media_type, metadata, marks, size, images = frame.fields
    data = frame.data
    if field == "key":
        images = {"0" * 32: len(CHART)}
    elif field == "size":
        images = {key: length - 1 for key, length in images.items()}
    elif field == "data":
        data = data[:size] + b"<svg>" + data[size + 5 :]
        images = {image_key(data[size:]): len(CHART)}
    elif field == "box":
        marks = [[*mark[:4], [mark[4][0], [0, 0, 2, 1]]] for mark in marks]
    else:
        marks = [[*mark[:4], ["1" * 32, None]] for mark in marks]
    with pytest.raises((ValueError, TypeError)):
        unpack_document(frame._replace(fields=[media_type, metadata, marks, size, images], data=data), Blob(b""), "a")
