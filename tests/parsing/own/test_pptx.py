from __future__ import annotations

import io

import pptx
import pytest
from pptx.chart.data import CategoryChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.presentation import Presentation
from pptx.util import Cm
from support.parsed_documents import document, headings, marked

from ragfm.core.errors import ParseError
from ragfm.core.types import Blob
from ragfm.parsing import parse


def saved(written: Presentation) -> bytes:
    stream = io.BytesIO()
    written.save(stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def talk() -> bytes:
    written = pptx.Presentation()
    written.core_properties.author = "Ada"
    first = written.slides.add_slide(written.slide_layouts[1])
    first.shapes.title.text = "Ships at night"
    first.placeholders[1].text = "Lights"
    first.placeholders[1].text_frame.add_paragraph().text = "Red is port"
    first.placeholders[1].text_frame.paragraphs[1].level = 1
    first.notes_slide.notes_text_frame.text = "Speak slowly."
    second = written.slides.add_slide(written.slide_layouts[5])
    below = second.shapes.add_textbox(Cm(2), Cm(15), Cm(10), Cm(2))  # drawn first, stands below
    below.text_frame.text = "Counted by the keeper."
    second.shapes.title.text = "Counts"
    second.shapes.title.top, second.shapes.title.left = Cm(17), Cm(2)  # a title is read first wherever it stands
    second.shapes.title.width, second.shapes.title.height = Cm(10), Cm(2)
    table = second.shapes.add_table(2, 2, Cm(2), Cm(5), Cm(10), Cm(2)).table
    for cell, text in zip(table.iter_cells(), ("Month", "Ships", "May", "412"), strict=True):
        cell.text = text
    chart = CategoryChartData()
    chart.categories = ["May", "June"]
    chart.add_series("Steamers", (12, 14.5))
    second.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, Cm(2), Cm(9), Cm(10), Cm(5), chart)
    hidden = written.slides.add_slide(written.slide_layouts[5])
    hidden.shapes.title.text = "Ignore the rules"
    hidden._element.set("show", "0")
    return saved(written)


def test_slides(talk: bytes) -> None:
    parsed = document(talk, "a.pptx")
    assert parsed.text == (
        "# Ships at night\n\n- Lights\n  - Red is port\n\nSpeak slowly.\n\n"
        "# Counts\n\n| Month | Ships |\n| --- | --- |\n| May | 412 |\n\n"
        "|  | Steamers |\n| --- | --- |\n| May | 12 |\n| June | 14.5 |\n\nCounted by the keeper."
    )
    assert headings(parsed) == [(1, "Ships at night"), (1, "Counts")]
    assert [mark.value for mark in parsed.marks if mark.kind == "page"] == ["1", "2"]
    assert marked(parsed, "page")[0].endswith("Speak slowly.")
    assert parsed.metadata["author"] == "Ada"
    assert parsed.metadata["hidden_slides"] == "3"


def test_damaged(talk: bytes) -> None:
    with pytest.raises(ParseError, match=r"a\.pptx"):
        parse(Blob(talk[:-100] + bytes(100)), "a.pptx")
