"""Rows of Markdown tables with their header and section."""

from __future__ import annotations

from ragfm.core.table_rows import TableRow, cell_at, row_cells, row_line, table_lines, text_blocks


def rows(text: str, context: str = "") -> list[TableRow]:
    return [line.row for line in table_lines(text, context) if not line.is_header]


def test_a_row_has_the_header_of_its_own_table() -> None:
    text = "| A | B |\n|---|---|\n| 1 | 2 |\n\nProse.\n\n| C | D |\n| --- | --- |\n| 3 | 4 |\n\n| 5 | 6 |"
    assert [(row.header, row.cells) for row in rows(text)] == [
        (("A", "B"), ("1", "2")),
        (("C", "D"), ("3", "4")),
        (("C", "D"), ("5", "6")),
    ]
    for line in table_lines(text):
        assert tuple(row_cells(text[line.start : line.end])) == line.row.cells


def test_a_table_that_continues_has_its_header_in_the_context() -> None:
    context = "Rates > Boats\nIn crowns\n| Size | Rate |\n| --- | --- |"
    first, second, below = rows("| Small | 12 |\n| - | - |\n\nBelow.\n\n| a | b |", context)
    assert first.header == second.header == ("Size", "Rate")
    assert second.cells == ("-", "-"), "only the second line of a table is a rule"
    assert below.header == ()


def test_a_row_is_labelled_with_its_section() -> None:
    text = "| | 2023 |\n|---|---|\n| Sales: | |\n| Boats | 7 |\n| Costs: | |\n| Boats | 3 |"
    assert [row.text for row in rows(text)] == [
        "Sales:",
        "Sales > Boats — 2023: 7",
        "Costs:",
        "Costs > Boats — 2023: 3",
    ]


def test_a_bar_in_a_cell_is_escaped() -> None:
    line = row_line(["a|b", "c"])
    assert row_cells(line) == ["a|b", "c"]
    assert [cell_at(line, at) for at in (0, line.index("b"), line.index("c"))] == [0, 0, 1]


def test_a_row_without_a_fitting_header_has_values_only() -> None:
    row = TableRow(("A", "B"), ("x", "1", "2"), label="x", column=2)
    assert row.text == "x — 2"
    assert row.markdown == "|  |  |  |\n| --- | --- | --- |\n| x | 1 | **2** |"


def test_a_passage_as_prose_and_tables() -> None:
    text = "# Fares\n\nIn crowns:\n\n| Size | Rate |\n|---|---|\n| Small | 12 |\n| Large | 30 |\n\nBy boat."
    before, table, after = text_blocks(text)
    assert (before, after) == ("# Fares\n\nIn crowns:", "By boat.")
    assert isinstance(table, list)
    assert [row.cells for row in table] == [("Small", "12"), ("Large", "30")]
    assert list(text_blocks("Prose only.")) == ["Prose only."]
