"""Spreadsheets (XLSX, XLSM, XLSB, XLS, ODS): each sheet is a heading with its tables; rows have cell references."""

from __future__ import annotations

import datetime
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias

from ragfm.core.errors import ParseError
from ragfm.core.types import Scalar
from ragfm.parsing import heartbeat
from ragfm.parsing.own.office.office_charts import add_chart
from ragfm.parsing.own.office.office_xml import Node, Package, attribute, descendants
from ragfm.parsing.rendering import MarkdownBuilder, ParsedText, clean
from ragfm.parsing.table_layout import MAX_HEADER_ROWS, arrange_table
from ragfm.parsing.table_layout import Cell as TableCell

if TYPE_CHECKING:
    from python_calamine import CalamineSheet

    Cell: TypeAlias = str | float | int | bool | datetime.datetime | datetime.date | datetime.time | datetime.timedelta

_MAX_PLACES = 2_000  # place marks per table; in a longer table, only every n-th row gets one
_MAX_MERGED_ROWS = 1_000
_MAX_NOTES = 10  # rows above a header
_MAX_TITLES = 3  # rows above a table that stay with each of its parts
_MAX_TITLE = 160  # characters of such a row
_MAX_CELLS = 20_000_000  # of the range that a sheet spans; one cell far out makes it large


def read_spreadsheet(data: bytes, name: str) -> ParsedText:
    """Return the visible sheets in order. Metadata: `rows`; `hidden_sheets`, which are left out.

    Empty rows and columns separate tables. A part of at least two rows and two columns is a table whose first row is
    the header. Raises ParseError.
    """
    import python_calamine as calamine

    charts = _read_charts(Package(data, name)) if data.startswith(b"PK") else {}
    builder, row_count = MarkdownBuilder(), 0
    hidden: list[str] = []
    try:
        workbook = calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
        for entry in workbook.sheets_metadata:
            if entry.visible != calamine.SheetVisibleEnum.Visible:
                hidden.append(entry.name)
                continue
            sheet_charts = charts.get(entry.name, [])
            if entry.typ == calamine.SheetTypeEnum.WorkSheet:
                sheet = workbook.get_sheet_by_name(entry.name)
                row_count += _add_sheet(sheet, builder, name, has_charts=bool(sheet_charts))
            for chart in sheet_charts:
                add_chart(chart, builder)
    except calamine.PasswordError as error:
        raise ParseError(f"{name} is protected by a password.", "Save a copy without a password.") from error
    except (calamine.CalamineError, calamine.XmlError, calamine.ZipError, OSError, ValueError) as error:
        raise ParseError(f"{name} is a damaged spreadsheet: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of calamine; no module exports the class
            raise
        raise ParseError(f"{name} is a damaged spreadsheet: {error}") from error
    metadata: dict[str, Scalar] = {"rows": row_count}
    if hidden:
        metadata["hidden_sheets"] = ", ".join(map(clean, hidden))
    return builder.build(metadata)


def _read_charts(package: Package) -> dict[str, list[Node]]:
    """The charts of an XLSX by sheet name; without those that are damaged."""
    path = package.related_part("", "officeDocument")
    if not path.endswith(".xml"):  # XLSB has binary parts
        return {}
    root, relations = package.xml(path), package.relations(path)
    charts: dict[str, list[Node]] = {}
    for sheet in descendants(root, "sheet"):
        sheet_path = next((relations[value].target for value in sheet.attrib.values() if value in relations), "")
        for drawing in package.relations(sheet_path).values() if sheet_path else ():
            for relation in package.relations(drawing.target).values() if drawing.kind == "drawing" else ():
                if relation.kind != "chart":
                    continue
                with suppress(ParseError):
                    chart = package.xml(relation.target)
                    if chart is not None:
                        charts.setdefault(attribute(sheet, "name"), []).append(chart)
    return charts


def _add_sheet(sheet: CalamineSheet, builder: MarkdownBuilder, name: str, *, has_charts: bool) -> int:
    if sheet.height * sheet.width > _MAX_CELLS:
        raise ParseError(
            f"{name} has a sheet of {sheet.height:,} by {sheet.width:,} cells; the limit is {_MAX_CELLS:,} cells."
        )
    _, first_column = sheet.start or (0, 0)
    wide: dict[int, dict[int, int]] = {}  # row: first column of a merged cell: number of columns
    for (top, left), (_, right) in sheet.merged_cell_ranges or ():
        if right > left:
            wide.setdefault(top, {})[left] = right - left + 1
    title = clean(" ".join(sheet.name.split()))
    prefix = title if title.isidentifier() else f"'{title}'"
    count = 0
    for top, cells in _parts(sheet):
        if not count:
            builder.add_heading(1, title)
        count += len(cells)
        # Empty columns separate tables only where each table has at least two columns: forms have empty columns, too.
        is_filled = [any(row[i] for row in cells) for i in range(len(cells[0]))]
        runs = [list(run) for filled, run in groupby(range(len(is_filled)), key=is_filled.__getitem__) if filled]
        if len(cells) == 1 or any(len(run) == 1 for run in runs):
            runs = [[runs[0][0], runs[-1][-1]]]
        for left, right in [(run[0], run[-1] + 1) for run in runs]:
            used = [i for i, row in enumerate(cells) if any(row[left:right])]
            rows = [row[left:right] for row in cells[used[0] : used[-1] + 1]]
            _add_part(builder, prefix, rows, top + used[0], first_column + left, wide)
    if has_charts and not count:
        builder.add_heading(1, title)
    return count


def _add_part(
    builder: MarkdownBuilder,
    prefix: str,
    rows: Sequence[Sequence[str]],
    first_row: int,
    first_column: int,
    wide: Mapping[int, Mapping[int, int]],
) -> None:
    """Add the titles and notes, then the table, of a part of a sheet. `wide` are cells over several columns."""
    group = len(rows)  # the first row with a header over several columns, whose own headers are in the row below
    for i, below in enumerate(rows[1:]) if wide else ():
        spans = ((at - first_column, columns) for at, columns in wide.get(first_row + i, {}).items())
        if any(start > 0 and sum(map(bool, below[start : start + columns])) > 1 for start, columns in spans):
            group = i
            break
    # Rows with one cell are titles of the table below, or text where there is no table.
    title_rows = 0
    while title_rows < group and (len(rows[0]) == 1 or sum(map(bool, rows[title_rows])) <= 1):
        title_rows += 1
    if len(rows) - title_rows == 1:  # one row is not a table
        title_rows = 1 if len(rows) == 1 else 0
    if group >= min(title_rows + _MAX_NOTES, len(rows)):
        title_rows += _count_notes(rows[title_rows:])
    letters = _column_letters(first_column)
    titles = [" | ".join(filter(None, row)) for row in rows[:title_rows]]
    for i, title in enumerate(titles):
        start = builder.add_block(title, tight=i > 0)
        builder.add_place(f"{prefix}!{letters}{first_row + i + 1}", start)
    table = rows[title_rows:]
    if not table:
        return
    first_row += title_rows
    merged = 0  # header rows that are one with the first
    if any(number in wide for number in range(first_row, first_row + MAX_HEADER_ROWS)):
        cell_rows: list[list[TableCell]] = []
        for number, texts in enumerate(table, first_row):
            cell_rows.append([])
            at = 0
            while at < len(texts):
                columns = min(wide.get(number, {}).get(first_column + at, 1), len(texts) - at)
                cell_rows[-1].append(TableCell(texts[at], columns))
                at += columns
        arranged = arrange_table(cell_rows).rows
        table, merged = arranged, len(table) - len(arranged)
    step = -(-len(table) // _MAX_PLACES)
    places = {i: f"{prefix}!{letters}{first_row + i + 1 + merged * (i > 0)}" for i in range(0, len(table), step)}
    notes = (" ".join(filter(None, row)) for row in rows[max(0, title_rows - _MAX_TITLES) : title_rows])
    builder.add_table(table, caption=[note for note in notes if len(note) <= _MAX_TITLE], places=places)


def _count_notes(rows: Sequence[Sequence[str]]) -> int:
    """The number of rows of scattered notes above the header: the first row with a different name in every column.

    A row with more than half of its cells is a header, whatever comes below it.
    """
    if not rows or 2 * sum(map(bool, rows[0])) > len(rows[0]):
        return 0
    for i, row in enumerate(rows[:_MAX_NOTES]):
        if all(row):
            is_header = len(set(row)) == len(row) and all(any(map(str.isalpha, cell)) for cell in row)
            return i if is_header and i + 1 < len(rows) else 0
    return 0


def _parts(sheet: CalamineSheet) -> Iterator[tuple[int, list[list[str]]]]:
    """The parts of a sheet without empty rows, as texts, each with the number of its first row.

    A cell that is merged over several rows is repeated in each, as in other formats.
    """
    _, first_column = sheet.start or (0, 0)
    merged: dict[int, dict[int, tuple[int, int]]] = {}  # row: column: row and column of the merged cell's first cell
    for (top, left), (bottom, _) in sheet.merged_cell_ranges or ():
        for row in range(top, min(bottom, top + _MAX_MERGED_ROWS) + 1 if bottom > top else top):
            merged.setdefault(row, {})[left] = (top, left)
    first_texts: dict[tuple[int, int], str] = {}  # of merged cells
    part: list[list[str]] = []
    number = 0
    for number, cells in enumerate(sheet.iter_rows()):
        heartbeat.beat()
        texts = [_cell_text(cell) for cell in cells]
        for column, position in merged.get(number, {}).items():
            if 0 <= column - first_column < len(texts):
                texts[column - first_column] = first_texts.setdefault(position, texts[column - first_column])
        if any(texts):
            part.append(texts)
        elif part:
            yield number - len(part), part
            part = []
    if part:
        yield number + 1 - len(part), part


def _cell_text(cell: Cell) -> str:
    if isinstance(cell, str):
        return clean(" ".join(cell.split())) if cell else cell
    if isinstance(cell, bool):
        return str(cell).upper()
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() and abs(cell) < 1e15 else f"{cell:.15g}"  # digits as in Excel
    if isinstance(cell, datetime.datetime):
        return cell.date().isoformat() if cell.time() == datetime.time() else cell.isoformat(" ", "seconds")
    return str(cell)


def _column_letters(column: int) -> str:
    """The name of a column, counted from 0: A to Z, AA and so on."""
    letters = ""
    column += 1
    while column:
        column, digit = divmod(column - 1, 26)
        letters = chr(ord("A") + digit) + letters
    return letters
