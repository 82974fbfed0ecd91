"""Tables with headers over several columns, symbols in cells of their own, and empty columns."""

from __future__ import annotations

import random

import pytest
from support.parsed_documents import document

from ragfm.parsing.own.web.html import read_html
from ragfm.parsing.rendering import MarkdownBuilder
from ragfm.parsing.table_layout import ArrangedTable, Cell, arrange_table, caption_lines


def table(*rows: str) -> list[list[Cell]]:
    """Rows of cells with `|` between them; `*2` at the end of a cell: it covers two columns."""
    cells = [[cell.strip().partition("*") for cell in row.split("|")] for row in rows]
    return [[Cell(text.rstrip(), int(columns or 1)) for text, _, columns in row] for row in cells]


def arranged(*rows: str, header_rows: int = 0, labels_only: bool = False) -> tuple[list[str], list[str]]:
    """The titles and the rows, with `|` between cells."""
    titles, found = arrange_table(table(*rows), header_rows, labels_only=labels_only)
    return titles, [" | ".join(row).strip() for row in found]


def test_a_financial_statement_has_one_header_and_one_cell_per_value() -> None:
    assert arranged(
        "*3 | Years ended *9",
        "*3 | September 30, 2023 *3 | *3 | September 24, 2022 *3",
        "Net sales: *3 | *9",
        "Products *3 | $ | 298,085 | | *3 | $ | 316,199 | ",
        "Services *3 | 85,200 *2 | | *3 | 78,129 *2 | ",
        "Other, net *3 | (565 *2 | ) | *3 | (334 *2 | )",
        "Growth *3 | (3 *2 | )% | *3 | 8 *2 | %",
        "Dividends *3 | $ | — | | *3 | — *2 | ",
    ) == (
        [],
        [
            "| Years ended September 30, 2023 | Years ended September 24, 2022",
            "Net sales: |  |",
            "Products | $298,085 | $316,199",
            "Services | 85,200 | 78,129",
            "Other, net | (565) | (334)",
            "Growth | (3)% | 8%",
            "Dividends | $— | —",
        ],
    )


@pytest.mark.parametrize(
    ("rows", "header_rows", "header"),
    [
        (
            ["Item | 2023 *2 | 2022 *2", "Item | Q1 | Q2 | Q1 | Q2", "Cost | 1 | 2 | 3 | 4"],
            2,
            "Item | 2023 Q1 | 2023 Q2 |",
        ),
        (["(In millions) | 2023 *2", "Segment | Net | Gross", "Toys | 1 | 2"], 0, "(In millions) Segment | 2023 Net |"),
        (
            [" | December 31, | December 31,", " | 2023 | 2022", "Cash | 1 | 2"],
            0,
            "| December 31, 2023 | December 31, 2022",
        ),
        ([" | 2023 | 2022", "Assets | | ", "Cash | 1 | 2"], 0, "| 2023 | 2022"),
        (["Founded | 1998 | 2004", "Seats | 12 | 14"], 0, "Founded | 1998 | 2004"),
        (["Room | Key *2", "North | Ada | Bo", "South | Cy | Di"], 0, "Room | Key | Key"),  # a table of texts
        (["Name | Price", "(text) | (EUR)", "Lamp | 5"], 2, "Name (text) | Price (EUR)"),
        (["Part I *2", "Item 1 | 4"], 0, "Part I |"),
        (["Name | Notes | Age", "Ada | | 36"], 0, "Name | Notes | Age"),  # nothing but a header
        (["a | b", "c | d"], 2, "a | b"),  # all rows are marked
    ],
)
def test_header(rows: list[str], header_rows: int, header: str) -> None:
    titles, found = arranged(*rows, header_rows=header_rows)
    assert not titles
    assert found[0].startswith(header)


def test_a_row_over_all_columns_is_a_title_above_a_table_of_numbers() -> None:
    assert arranged("Group A *3", " | Marks | Hours", "Part 1 | 10 | 3") == (
        ["Group A"],
        ["| Marks | Hours", "Part 1 | 10 | 3"],
    )
    assert arranged("Contacts *2", "Ada | ada@example.org") == ([], ["Contacts |", "Ada | ada@example.org"])


def test_rows_with_labels_only_have_no_header() -> None:
    page = (
        "<table><tr><th colspan=2>Lamp</th></tr><tr><th>Weight</th><td>5 kg</td></tr><tr><th>Height</th><td>9</td></tr>"
    )
    parsed = read_html(page + "</table>", "a.html")
    assert parsed.text == "Lamp\n\n|  |  |\n| --- | --- |\n| Weight | 5 kg |\n| Height | 9 |"
    assert [mark.value for mark in parsed.marks] == ["Lamp"]
    page = "<table><tr><th>Item</th><td>Price</td></tr><tr><td>Lamp</td><td>9</td></tr><tr><td>Oil</td><td>2</td></tr>"
    assert document(f"{page}</table>".encode(), "a.html").text.startswith("| Item | Price |")


def test_the_lines_above_a_table_of_a_page_say_what_it_is() -> None:
    page = "<p>We sold more lamps.</p><div>Balance sheet</div><div>(in thousands)</div><table>"
    parsed = read_html(f"{page}<tr><td></td><td>2023</td></tr><tr><td>Cash</td><td>7</td></tr></table>", "a.html")
    assert [mark.value for mark in parsed.marks] == ["Balance sheet\n(in thousands)\n|  | 2023 |\n| --- | --- |"]
    assert caption_lines(["The costs are listed below (in millions, except per share data).", "Costs"]) == [
        "in millions, except per share data",
        "Costs",
    ]


def test_no_text_is_lost() -> None:
    choices = ["", "", "Net sales", "$", "1,234", "(12", ")", "%", "2023", "—", "Year ended May 3,", "yes", "44.1%"]
    chance = random.Random(1)
    for _ in range(3_000):
        rows = [
            [Cell(chance.choice(choices), chance.choice((1, 1, 2, 3))) for _ in range(chance.randint(1, 6))]
            for _ in range(chance.randint(1, 6))
        ]
        rows = [row for row in rows if any(cell.text for cell in row)]
        if not rows:
            continue
        found: ArrangedTable = arrange_table(rows, chance.randint(0, 3), labels_only=chance.random() < 0.2)
        text = "\n".join([*found.titles, *map("".join, found.rows)])
        assert all(cell.text in text for row in rows for cell in row)
        assert len(found.rows[0]) == max(map(len, found.rows))


def test_a_wide_row_does_not_widen_all_others() -> None:
    rows = [[Cell("a", 50)] * 400, *([[Cell("b")]] * 20_000)]
    assert sum(map(len, arrange_table(rows).rows)) < 30_000


@pytest.mark.parametrize(
    ("header", "scale"),
    [
        (
            ["", "2016 (in thousands, except per share data)", "2015", "Year 2014"],
            "in thousands, except per share data",
        ),
        (["", "2016 ($ in millions)", "2015"], "$ in millions"),
        (["Company", "Sales (in millions)", "Staff"], ""),
        (["", "Sales 2016 (in millions)", "Shares 2016 (in thousands)"], ""),
    ],
)
def test_the_scale_in_the_header_of_a_year_belongs_to_the_caption(header: list[str], scale: str) -> None:
    builder = MarkdownBuilder()
    builder.add_table([header, ["Revenue", *map(str, range(1, len(header)))]])
    (table,) = builder.build().marks
    assert table.value.startswith(f"{scale}\n|" if scale else "|")
