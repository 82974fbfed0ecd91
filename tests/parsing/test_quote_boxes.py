"""Where a quote stands on a page: the text that PDFium finds in the boxes is the quote."""

from __future__ import annotations

import pypdfium2
import pytest
from support.parsed_documents import document
from support.written_pdf import lines, pdf

from ragfm.parsing.own.pdf.pdf_page import read_page
from ragfm.parsing.quote_boxes import find_quote


@pytest.fixture(autouse=True)
def no_ocr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragfm.parsing.own.media.ocr.find_spec", lambda _: None)


def text_in_boxes(data: bytes, quote: str, *, nth: int = 0) -> list[str]:
    """The text that PDFium finds in each box of the quote's n-th occurrence in the parsed text."""
    text = document(data, "a.pdf").text
    start = -1
    for _ in range(nth + 1):
        start = text.index(quote, start + 1)
    with pypdfium2.PdfDocument(data) as opened:
        content, shown = read_page(opened, 0), opened[0].get_textpage()
        boxes = find_quote(content.words, text, start, start + len(quote))
        texts = []
        for box in boxes:
            text = shown.get_text_bounded(left=box.x0, bottom=792 - box.bottom, right=box.x1, top=792 - box.top)
            texts.append(" ".join(text.split()))
        return texts


def test_a_quote_has_a_box_for_each_line() -> None:
    data = pdf(lines("The keeper writes down every ship that", "passes between dusk and dawn, with its", "lights."))
    assert text_in_boxes(data, "every ship that passes between dusk") == ["every ship that", "passes between dusk"]
    assert text_in_boxes(data, "lights") == ["lights."]


def test_hyphens_and_ligatures_do_not_matter() -> None:
    data = pdf(lines("Ships in the har-", "bour wait for of\\256cers, and so do all of the others."))
    first, second = text_in_boxes(data, "the harbour wait for officers")
    assert first.startswith("the har")
    assert second.startswith("bour wait for of")
    assert second.endswith("cers,")


def test_a_table_row_has_the_box_of_its_line() -> None:
    rows = [("Sales", "120", "130"), ("Costs", "90", "95"), ("Profit", "30", "35")]
    stream = "".join(
        lines(cell, x=72 + 150 * column, y=700 - 20 * number)
        for column in range(3)  # the file has the cells column by column
        for number, row in enumerate([("Millions", "2024", "2025"), *rows])
        for cell in [row[column]]
    )
    data = pdf(stream)
    assert text_in_boxes(data, "| Costs | 90 | 95 |") == ["Costs9095"]  # PDFium adds no spaces between cells


def test_of_equal_quotes_the_one_with_the_same_context_has_the_box() -> None:
    data = pdf(
        lines("Paris sold ships. The total was 500 in all.", y=700)
        + lines("Oslo sold boats. The total was 500 in all.", y=600)
    )
    content = read_page(pypdfium2.PdfDocument(data), 0)
    text = document(data, "a.pdf").text
    quote = "The total was 500 in all."
    tops = []
    for start in (text.index(quote), text.rindex(quote)):
        (box,) = find_quote(content.words, text, start, start + len(quote))
        tops.append(round(792 - box.bottom, -1))
    assert tops == [700, 600]


@pytest.mark.parametrize(
    ("text", "quote"),
    [
        ("The keeper saw nine ships.", "nine ships"),  # other words
        ("500", "500"),  # twice on the page, without a context that tells them apart
        ("keep", "keep"),  # a part of a word
        ("…", "…"),  # no letters
    ],
)
def test_a_quote_without_a_certain_place_has_no_box(text: str, quote: str) -> None:
    data = pdf(lines("The keeper saw 500 ships and 500 boats."))
    start = text.index(quote)
    assert find_quote(read_page(pypdfium2.PdfDocument(data), 0).words, text, start, start + len(quote)) == []


def test_words_that_the_text_has_twice_and_the_page_once_have_one_place() -> None:
    words = read_page(pypdfium2.PdfDocument(pdf(lines("The keeper saw 500 ships and nine boats."))), 0).words
    text = "The captain met 500 ships.\n\nThe keeper saw 500 ships and nine boats."
    first, second = text.index("500 ships"), text.rindex("500 ships")
    assert find_quote(words, text, first, first + 9) == []
    assert len(find_quote(words, text, second, second + 9)) == 1


def test_a_link_is_found_by_its_text() -> None:
    words = read_page(pypdfium2.PdfDocument(pdf(lines("Read the manual of the lamp first."))), 0).words
    text = "Read [the manual](https://example.org/a_(b)) of the lamp first."
    (box,) = find_quote(words, text, 5, text.index(" lamp"))
    assert (box.x0, box.x1) == (words[1].x0, words[4].x1)
