from __future__ import annotations

import datetime
import io

import pptx
import pytest
from pptx.chart.data import CategoryChartData, ChartData, XyChartData
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


def test_two_header_rows_become_one() -> None:
    written = pptx.Presentation()
    slide = written.slides.add_slide(written.slide_layouts[6])
    table = slide.shapes.add_table(4, 3, Cm(2), Cm(5), Cm(10), Cm(2)).table
    texts = ("Item", "2023", "", "", "Q1", "Q2", "Cost", "1", "2", "", "3", "4")
    for cell, text in zip(table.iter_cells(), texts, strict=True):
        cell.text = text
    table.cell(0, 0).merge(table.cell(1, 0))
    table.cell(0, 1).merge(table.cell(0, 2))
    table.cell(2, 0).merge(table.cell(3, 0))
    assert marked(document(saved(written), "a.pptx"), "table") == [
        "| Item | 2023 Q1 | 2023 Q2 |\n| --- | --- | --- |\n| Cost | 1 | 2 |\n| Cost | 3 | 4 |"
    ]


def chart_text(kind: XL_CHART_TYPE, chart: ChartData) -> str:
    written = pptx.Presentation()
    slide = written.slides.add_slide(written.slide_layouts[6])
    slide.shapes.add_chart(kind, Cm(2), Cm(2), Cm(10), Cm(5), chart)
    return document(saved(written), "a.pptx").text


def test_series_of_a_scatter_chart_keep_their_own_x_values() -> None:
    chart = XyChartData()
    for name, points in (("Lamps", ((1, 2), (3, 4))), ("Sirens", ((5, 6), (7, 8)))):
        series = chart.add_series(name)
        for x, y in points:
            series.add_data_point(x, y)
    assert chart_text(XL_CHART_TYPE.XY_SCATTER, chart) == (
        "|  | Lamps |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n\n|  | Sirens |\n| --- | --- |\n| 5 | 6 |\n| 7 | 8 |"
    )


def test_categories_of_a_chart_with_levels() -> None:
    chart = CategoryChartData()
    for year in ("2023", "2024"):
        category = chart.add_category(year)
        category.add_sub_category("Q1")
        category.add_sub_category("Q2")
    chart.add_series("Ships", (1, 2, 3, 4))
    rows = chart_text(XL_CHART_TYPE.COLUMN_CLUSTERED, chart).splitlines()[2:]
    assert rows == ["| 2023 Q1 | 1 |", "| 2023 Q2 | 2 |", "| 2024 Q1 | 3 |", "| 2024 Q2 | 4 |"]


def test_dates_of_a_chart() -> None:
    chart = CategoryChartData()
    chart.categories = [datetime.date(2024, 1, 1), datetime.date(2024, 2, 1)]
    chart.add_series("Ships", (1, 2))
    rows = chart_text(XL_CHART_TYPE.LINE, chart).splitlines()[2:]
    assert rows == ["| 2024-01-01 | 1 |", "| 2024-02-01 | 2 |"]


def test_shapes_of_a_group_are_read_from_top_to_bottom() -> None:
    written = pptx.Presentation()
    slide = written.slides.add_slide(written.slide_layouts[6])
    for left, side in ((12, "right"), (2, "left")):
        group = slide.shapes.add_group_shape()
        for top in (3, 1, 2):
            group.shapes.add_textbox(Cm(left), Cm(top), Cm(4), Cm(1)).text_frame.text = f"{side} {top}"
    texts = document(saved(written), "a.pptx").text.split("\n\n")
    assert texts == ["left 1", "left 2", "left 3", "right 1", "right 2", "right 3"]


def test_superscripts_of_numbers_are_not_digits_of_them() -> None:
    written = pptx.Presentation()
    slide = written.slides.add_slide(written.slide_layouts[6])
    paragraph = slide.shapes.add_textbox(Cm(2), Cm(2), Cm(10), Cm(2)).text_frame.paragraphs[0]
    for text, baseline in (("It shone 10", 0), ("6", 30_000), (" hours of 1", 0), ("2", -25_000), (".", 0)):
        run = paragraph.add_run()
        run.text = text
        run._r.get_or_add_rPr().set("baseline", str(baseline))
    assert document(saved(written), "a.pptx").text == "It shone 10⁶ hours of 12."


def test_damaged(talk: bytes) -> None:
    with pytest.raises(ParseError, match=r"a\.pptx"):
        parse(Blob(talk[:-100] + bytes(100)), "a.pptx")
