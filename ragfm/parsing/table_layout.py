"""Tables that are laid out for the eye, as tables whose rows can be read one by one.

Reports write "Year ended December 31," over two columns and the years below it, put "$" and ")" into cells of their
own, and separate columns by empty ones. `arrange_table` merges the header rows into one, which says all about each
column, and gives each value one cell.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Reversible, Sequence
from itertools import accumulate, compress
from typing import NamedTuple

MAX_CAPTION_LINES = 3
MAX_CAPTION = 160  # characters of a line
MAX_HEADER_ROWS = 6
_MAX_REPEATED = 100  # characters of a header over several columns that the others repeat
_MAX_REPEATS = 20_000  # cells of one table that repeat the cell above, so that spans cannot multiply a page
_MAX_REPEATED_CELL = 200  # characters of a repeated cell
_MAX_SYMBOL, _MAX_VALUE = 5, 40  # characters
_NEAR = 3  # columns between a symbol and its value, plus one
# The scale of a table, at the start of a longer headnote or in brackets: "[In thousands (1.2 represents 1,200) …".
_SCALE = re.compile(
    r"(?:^|[(\[])\s*(?:[\w$€£¥₹₩-]+ ){0,4}?in (?:thousands|millions|billions)\b"
    r"(?:, except [\w\s,-]{0,120}(?=[;:.()\[\]]))?",
    re.IGNORECASE,
)
_YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?!\d)")
_CURRENCY = r"[A-Z]{0,3}[$€£¥₹₩]"
_VALUE = re.compile(
    rf"(?!(?:19|20)\d\d$|\d{{1,2}}[./]\d{{1,2}}[./](?:\d\d){{1,2}}$)"  # neither a year nor a date, as headers have
    rf"[-\u2212\u2013+~<>≈±]?\s*[(\[]?\s*(?:{_CURRENCY})?\s*[-\u2212\u2013(]?\s*\d[\d.,'\s]*(?:%|‰|x|bps|pts)?[)\]]*\s*%?"
)
_NOTHING = re.compile(r"[-\u2212\u2013\u2014]")  # in place of a value
_OPENING = re.compile(rf"\(|\(?{_CURRENCY}\(?")  # in a cell of its own, in front of a value
_CLOSING = re.compile(r"[)%‰]{1,3}")  # behind one


class Cell(NamedTuple):
    """A cell of a table: the columns and rows that it covers; with 0 rows, it is a part of the cell above it."""

    text: str
    columns: int = 1
    rows: int = 1


class ArrangedTable(NamedTuple):
    """The rows of a table, the first of which is the header; `titles` are the lines above it, over all columns."""

    titles: list[str]
    rows: list[list[str]]


def repeat_cells(rows: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    """The rows of a table in which a cell over several rows is in each of them.

    A row has only the cells that begin in it, and those with 0 rows.
    """
    repeated: list[list[Cell]] = []
    open_cells: dict[int, Cell] = {}  # by first column; `rows` are those to come
    above: dict[int, Cell] = {}  # cells of the last row with text, by first column
    repeats_left = _MAX_REPEATS
    for row in rows:
        line: dict[int, Cell] = {}
        column = 0
        for cell in [*row, None]:
            while column in open_cells:
                line[column] = open_cells.pop(column)
                if line[column].rows > 1:
                    open_cells[column] = line[column]._replace(rows=line[column].rows - 1)
                column += line[column].columns
            if cell is None:
                break
            if not cell.rows and not cell.text:
                cell = above.get(column, cell)
            repeats = (min(cell.rows, len(rows)) - 1) * cell.columns
            if 0 < repeats <= repeats_left:
                repeats_left -= repeats
                open_cells[column] = cell._replace(text=cell.text[:_MAX_REPEATED_CELL], rows=cell.rows - 1)
            line[column] = cell
            column += cell.columns
        repeated.append(list(line.values()))
        above = line if any(cell.text for cell in line.values()) else above
    return repeated


def arrange_table(rows: Sequence[Sequence[Cell]], header_rows: int = 0, *, labels_only: bool = False) -> ArrangedTable:
    """Arrange rows, none of which is empty. `header_rows`: how many the document marks as header, 0 if none.

    Without such marks, the first row is the header, with the rows below it as long as they lack a label or belong to
    a header over several columns; a row with numbers other than years is never one of these. With `labels_only`, the
    document marks the first cells of rows as their labels: the header is empty.
    """
    if header_rows >= len(rows) or header_rows > MAX_HEADER_ROWS:  # all rows are marked, for their looks
        header_rows = min(header_rows, 1)
    width = max(sum(cell.columns for cell in row) for row in rows)
    titles: list[str] = []
    first_value = next((at for at, row in enumerate(rows) if any(_is_value(cell.text) for cell in row[1:])), len(rows))
    has_values = first_value < len(rows)
    # Of a table of texts, nobody knows whether the row below the title is a header.
    while len(rows) > 1 and (labels_only or (has_values and first_value > 1)):
        filled = [cell for cell in rows[0] if cell.text]
        if len(filled) != 1 or (len(rows[0]) > 1 and filled[0].columns < width):
            break  # a title is over all columns
        titles.append(filled[0].text)
        rows, header_rows, first_value = rows[1:], max(header_rows - 1, 0), first_value - 1
    if labels_only:
        rows, header_rows, first_value = [[Cell("")], *rows], 1, first_value + 1
    body = header_rows or (first_value if has_values else 1)

    # By column, up to the row's last; a cell over several columns has its text in the first.
    texts = [[text for cell in row for text in (cell.text, *[""] * (cell.columns - 1))] for row in rows]
    values = Counter(
        start for row in rows[body:] for cell, start, _ in _spans(row) if cell.columns == 1 and _is_value(cell.text)
    )
    for row, line in zip(rows[body:], texts[body:], strict=True):
        for cell, start, end in _spans(row):
            if cell.columns > 1 and start and (_is_value(cell.text) or _NOTHING.fullmatch(cell.text)):
                # A value over several columns, such as those of "$" and the number: where others have theirs.
                best = max(range(start, end), key=lambda at: (values[at], -at))
                line[start], line[best] = "", cell.text
        _join_symbols(line)
    if not header_rows:
        header_rows = 1
        has_text = _filled(texts[body:], width)
        while has_values and header_rows < min(first_value, MAX_HEADER_ROWS):
            above = _spans(rows[header_rows - 1])
            is_below_group = any(cell.text and sum(has_text[start:end]) > 1 for cell, start, end in above)
            if texts[header_rows][0] and not is_below_group:
                break
            header_rows += 1

    kept = _filled(texts[header_rows if body else 0 :] or texts, width)
    headers = [_header(row, width, kept) for row in rows[:header_rows]] if body else texts[:1]
    columns = [at for at in range(width) if kept[at]]
    merged = [" ".join(dict.fromkeys(line[at] for line in headers if at < len(line) and line[at])) for at in columns]
    return ArrangedTable(titles, [merged, *(list(compress(line, kept)) for line in texts[header_rows:])])


def caption_lines(above: Reversible[str]) -> list[str]:
    """Those of the paragraphs directly above a table that are its caption and unit: short, and no sentence."""
    lines: list[str] = []
    for text in reversed(above):
        line = " ".join(text.split())
        if len(line) > MAX_CAPTION or line.endswith((".", ";")):
            return [*filter(None, [scale_of(line)]), *lines]
        lines.insert(0, line)
    return lines


def scale_of(text: str) -> str:
    """The scale in a line above a table, such as "In millions, except per share amounts"; empty without one."""
    found = _SCALE.search(text)
    return " ".join(found[0].strip("([ ").split()) if found else ""


def shared_scale(header: Sequence[str]) -> str:
    """The scale that one cell of a header states for all columns, which are years: "2016 (in thousands)", "2015"."""
    scales = {scale for cell in header[1:] if (scale := scale_of(cell))}
    return scales.pop() if len(scales) == 1 and all(map(_YEAR.search, filter(None, header[1:]))) else ""


def _is_value(text: str) -> bool:
    return len(text) <= _MAX_VALUE and _VALUE.fullmatch(text) is not None


def _spans(row: Sequence[Cell]) -> Iterator[tuple[Cell, int, int]]:
    """The cells of a row, with the first column of each and the one behind it."""
    ends = accumulate(cell.columns for cell in row)
    return ((cell, end - cell.columns, end) for cell, end in zip(row, ends, strict=True))


def _filled(lines: Sequence[Sequence[str]], width: int) -> list[bool]:
    """Which columns have a text."""
    filled = [False] * width
    for line in lines:
        for at, text in enumerate(line):
            if text:
                filled[at] = True
    return filled


def _join_symbols(line: list[str]) -> None:
    """Join currency signs, brackets and percent signs in cells of their own with the value next to them."""
    for at, text in enumerate(line):
        if not at or not text or len(text) > _MAX_SYMBOL:
            continue
        if _OPENING.fullmatch(text):
            value = next((i for i in range(at + 1, min(at + _NEAR, len(line))) if line[i]), at)
            if value > at and (line[value][:1].isdigit() or line[value][0] in "(-\u2212\u2013\u2014."):
                line[at], line[value] = "", text + line[value]
        elif _CLOSING.fullmatch(text):
            value = next((i for i in range(at - 1, max(at - _NEAR, 0), -1) if line[i]), at)
            if value < at and any(map(str.isdigit, line[value])):
                line[at], line[value] = "", line[value] + text


def _header(row: Sequence[Cell], width: int, kept: list[bool]) -> list[str]:
    """The texts that a header row has over each column. Columns with nothing but a header are kept, too."""
    line = [""] * width
    for cell, start, end in _spans(row):
        if not cell.text:
            continue
        if not any(kept[start:end]):
            kept[start] = True
        first = start + kept[start:end].index(True)
        line[first:end] = [cell.text[:_MAX_REPEATED] if cell.columns < width else ""] * (end - first)
        line[first] = cell.text
    return line
