"""Rows of Markdown tables: their cells, the header and the section that they stand under.

All other modules take rows from here; none of them looks for the header of a row itself.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

TABLE_RULE = re.compile(r"[|:\-\s]+")
"""The line below the header of a Markdown table."""
_BORDER = re.compile(r"(?<!\\)\|")
_LABELLED = "—"


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of a table: its cells, those of the header, and the last row above it that has only a label ("Sales:").

    `header` is empty if the table has none. `label` names the row: its section and its first cell. `column` is the
    index of the cell that most likely has the answer; None if it is not known.
    """

    header: tuple[str, ...]
    cells: tuple[str, ...]
    section: str = ""
    label: str = ""
    column: int | None = None

    @property
    def text(self) -> str:
        """`label — column: value` of the likeliest cell, or of all cells, in one line."""
        if self.column:
            return f"{self.label} {_LABELLED} {self.titled(self.column)}"
        others = "; ".join(self.titled(at) for at, cell in enumerate(self.cells) if at and cell)
        return f"{self.label} {_LABELLED} {others}" if others else self.label

    @property
    def markdown(self) -> str:
        """The row below its header as a Markdown table, with the likeliest cell in bold."""
        cells = [f"**{cell}**" if at == self.column and cell else cell for at, cell in enumerate(self.cells)]
        return "\n".join(map(row_line, (self.titles, ["---"] * len(cells), cells)))

    @property
    def titles(self) -> Sequence[str]:
        """The column titles, one for each cell; empty ones if the header does not fit the row."""
        return self.header if len(self.header) == len(self.cells) else [""] * len(self.cells)

    def titled(self, at: int) -> str:
        """`column: value` of a cell."""
        title = self.titles[at]
        return f"{title.rstrip(':')}: {self.cells[at]}" if title else self.cells[at]


@dataclass(frozen=True, slots=True)
class TableLine:
    """A line of a table at `start:end` of a text; `is_header`: it is the header or the rule below that."""

    start: int
    end: int
    row: TableRow
    is_header: bool = False


def row_cells(line: str) -> list[str]:
    """The cells of a table row in Markdown."""
    inner = line.strip().removeprefix("|")
    if inner.endswith("|") and not inner.endswith("\\|"):
        inner = inner[:-1]
    return [cell.strip().replace("\\|", "|") for cell in _BORDER.split(inner)]


def row_line(cells: Iterable[str]) -> str:
    """A table row in Markdown."""
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def cell_at(line: str, offset: int) -> int:
    """The index of the cell that stands at an offset of a table row in Markdown."""
    return sum(1 for _ in _BORDER.finditer(line, 1, max(offset, 1)))


def table_lines(text: str, context: str = "") -> list[TableLine]:
    """The lines of all tables in a passage, in order.

    A passage that is the continuation of a table has its header in the `context`.
    """
    above = [line for line in context.splitlines() if line.startswith("|") and not TABLE_RULE.fullmatch(line)]
    header = tuple(row_cells(above[-1])) if above else ()
    section, found = "", list[TableLine]()
    position, raw = 0, [*text.split("\n"), ""]
    number_in_table = 2 if above else 0  # only the second line of a table is the rule below its header
    for line, below in pairwise(raw):
        start, stripped = position + len(line) - len(line.lstrip()), line.strip()
        position += len(line) + 1
        if not stripped.startswith("|"):
            number_in_table = 0
            if stripped:
                header, section = (), ""
            continue
        cells = tuple(row_cells(stripped))
        is_title = number_in_table == 0 and below.strip().startswith("|") and bool(TABLE_RULE.fullmatch(below))
        is_header = is_title or (number_in_table == 1 and bool(TABLE_RULE.fullmatch(stripped)))
        number_in_table += 1
        if is_title:
            header, section = cells, ""
        is_section = bool(cells[0]) and len(cells) > 1 and not any(cells[1:])
        section = cells[0] if is_section else section
        label = cells[0] if is_section or not section else " > ".join(filter(None, (section.rstrip(":"), cells[0])))
        row = TableRow(() if is_header else header, cells, "" if is_section else section, label)
        found.append(TableLine(start, start + len(stripped), row, is_header))
    return found


def line_at(lines: Sequence[TableLine], position: int) -> TableLine | None:
    """The line of a table that has a position."""
    at = bisect_right(lines, position, key=lambda line: line.start)
    return lines[at - 1] if at and position < lines[at - 1].end else None


def text_blocks(text: str, context: str = "") -> Iterator[str | list[TableRow]]:
    """A passage as it is shown: its prose, and the rows of each table, of which each has the header."""
    done, rows = 0, list[TableRow]()
    for line in table_lines(text, context):
        prose = text[done : line.start]
        if rows and (line.is_header or prose.strip()):
            yield rows
            rows = []
        if prose.strip():
            yield prose.strip("\n")
        if not line.is_header:
            rows.append(line.row)
        done = line.end
    if rows:
        yield rows
    if text[done:].strip():
        yield text[done:].strip("\n")
