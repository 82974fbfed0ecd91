"""Spreadsheets (XLSX, XLSM, XLSB, XLS, ODS): each sheet is a heading with its tables; rows know their cells' places."""

from __future__ import annotations

import datetime
import io
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias

from ragfm.core.errors import MissingExtraError, ParseError
from ragfm.core.types import Scalar
from ragfm.parsing.heartbeat import step
from ragfm.parsing.own.office.office_charts import render_chart
from ragfm.parsing.own.office.office_xml import Node, Package, attribute, descendants
from ragfm.parsing.rendering import Parsed, Rendering, clean

if TYPE_CHECKING:
    from python_calamine import CalamineSheet

    Cell: TypeAlias = str | float | int | bool | datetime.datetime | datetime.date | datetime.time | datetime.timedelta

_PLACES = 2_000  # of one table, so that a long one has not as many marks as rows
_MAX_MERGED = 1_000  # rows
_MAX_CELLS = 20_000_000  # that a sheet may span; one cell far out spans many


def read_sheets(data: bytes, name: str) -> Parsed:
    """The sheets in order. Metadata: `rows`; `hidden_sheets`, which are left out. Raises ParseError.

    A sheet's rows are parted at empty ones; what has two rows and columns is a table whose first row is the header.
    """
    try:
        import python_calamine as calamine
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"Spreadsheets need the module {error.name!r}, which is not installed.",
            "Run `pip install 'ragfm[documents]'`.",
        ) from error
    charts = _charts(Package(data, name)) if data.startswith(b"PK") else {}
    try:
        book = calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
        visible = calamine.SheetVisibleEnum.Visible
        shown = [sheet.name for sheet in book.sheets_metadata if sheet.visible == visible]
        hidden = [sheet.name for sheet in book.sheets_metadata if sheet.visible != visible]
        kinds = {sheet.name: sheet.typ for sheet in book.sheets_metadata}
        rendering, rows = Rendering(), 0
        for title in shown:
            if kinds[title] == calamine.SheetTypeEnum.WorkSheet:
                rows += _render(book.get_sheet_by_name(title), rendering, name, title in charts)
            for chart in charts.get(title, ()):
                render_chart(chart, rendering)
    except calamine.PasswordError as error:
        raise ParseError(f"{name} is protected by a password.", "Save a copy without one.") from error
    except (calamine.CalamineError, calamine.XmlError, calamine.ZipError, OSError, ValueError) as error:
        raise ParseError(f"{name} is a damaged spreadsheet: {error}") from error
    metadata: dict[str, Scalar] = {"rows": rows}
    if hidden:
        metadata["hidden_sheets"] = ", ".join(map(clean, hidden))
    return rendering.finish(metadata)


def _charts(package: Package) -> dict[str, list[Node]]:
    """The charts of an XLSX by the name of their sheet."""
    path = package.part("", "officeDocument")
    root, related = package.xml(path) if path else None, package.related(path)
    found: dict[str, list[Node]] = {}
    for sheet in descendants(root, "sheet"):
        part = next((related[value][1] for value in sheet.attrib.values() if value in related), "")
        for kind, drawing in package.related(part).values() if part else ():
            for inner, chart in package.related(drawing).values() if kind == "drawing" else ():
                chart_root = package.xml(chart) if inner == "chart" else None
                if chart_root is not None:
                    found.setdefault(attribute(sheet, "name"), []).append(chart_root)
    return found


def _render(sheet: CalamineSheet, rendering: Rendering, name: str, charts: bool) -> int:
    if sheet.height * sheet.width > _MAX_CELLS:
        raise ParseError(f"{name} has a sheet of {sheet.height:,} by {sheet.width:,} cells, too many to read.")
    _, first_column = sheet.start or (0, 0)
    title = clean(" ".join(sheet.name.split()))
    quoted = title if title.isidentifier() else f"'{title}'"
    count = 0
    for top, cells in _parts(_filled(sheet)):
        if not count:
            rendering.heading(1, title)
        count += len(cells)
        for left, right in _sides(cells):
            used = [i for i, row in enumerate(cells) if any(row[left:right])]
            rows = [row[left:right] for row in cells[used[0] : used[-1] + 1]]
            column, line = _letters(first_column + left), top + used[0] + 1
            titles = _titles(rows) if right - left > 1 else len(rows)
            for i, row in enumerate(rows[:titles]):
                start = rendering.block(" | ".join(filter(None, row)), tight=i > 0)
                rendering.place(f"{quoted}!{column}{line + i}", start)
            if len(rows) > titles:
                step = -(-(len(rows) - titles) // _PLACES)
                places = {i: f"{quoted}!{column}{line + titles + i}" for i in range(0, len(rows) - titles, step)}
                rendering.table(rows[titles:], places=places)
    if charts and not count:
        rendering.heading(1, title)
    return count


def _filled(sheet: CalamineSheet) -> Iterator[list[str]]:
    """The rows as texts; a cell that is merged over several rows is repeated in each, as in other formats."""
    _, first_column = sheet.start or (0, 0)
    merged: dict[int, dict[int, tuple[int, int]]] = {}  # row: column: the merged cell's row and column
    for (top, left), (bottom, _) in sheet.merged_cell_ranges or ():
        for row in range(top + 1, min(bottom, top + _MAX_MERGED) + 1):
            merged.setdefault(row, {})[left] = (top, left)
    begun: dict[int, list[int]] = {}  # row: columns of the merged cells that begin there
    for top, left in {place for places in merged.values() for place in places.values()}:
        begun.setdefault(top, []).append(left)
    kept: dict[tuple[int, int], str] = {}
    for number, cells in enumerate(sheet.iter_rows()):
        step()
        texts = [_text(cell) for cell in cells]
        for column, place in merged.get(number, {}).items():
            if 0 <= column - first_column < len(texts):
                texts[column - first_column] = kept.get(place, "")
        for column in begun.get(number, ()):
            if 0 <= column - first_column < len(texts):
                kept[number, column] = texts[column - first_column]
        yield texts


def _parts(rows: Iterator[list[str]]) -> Iterator[tuple[int, list[list[str]]]]:
    """Rows without an empty one between them, as texts, and the number of the first."""
    start, part = 0, list[list[str]]()
    for number, texts in enumerate(rows):
        if any(texts):
            if not part:
                start = number
            part.append(texts)
        elif part:
            yield start, part
            part = []
    if part:
        yield start, part


def _sides(rows: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """First column, and the one after the last, of the tables beside each other; a form's empty columns part none."""
    filled = [any(row[i] for row in rows) for i in range(len(rows[0]))]
    runs = [list(run) for full, run in groupby(range(len(filled)), key=filled.__getitem__) if full]
    if len(rows) > 1 and all(len(run) > 1 for run in runs):
        return [(run[0], run[-1] + 1) for run in runs]
    return [(runs[0][0], runs[-1][-1] + 1)]


def _text(cell: Cell) -> str:
    if isinstance(cell, str):
        return clean(" ".join(cell.split())) if cell else cell
    if isinstance(cell, bool):
        return str(cell).upper()
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() and abs(cell) < 1e15 else repr(cell)
    if isinstance(cell, datetime.datetime):
        return cell.date().isoformat() if cell.time() == datetime.time() else cell.isoformat(" ", "seconds")
    return str(cell)


def _titles(rows: Sequence[Sequence[str]]) -> int:
    """How many rows stand above a table as its title, with one cell each; all where there is no table below."""
    count = 0
    while count < len(rows) and sum(map(bool, rows[count])) <= 1:
        count += 1
    if len(rows) - count == 1:  # one row is no table
        return len(rows) if len(rows) == 1 else 0
    return count


def _letters(column: int) -> str:
    """The name of a column, counted from 0: A to Z, AA and so on."""
    letters = ""
    column += 1
    while column:
        column, digit = divmod(column - 1, 26)
        letters = chr(ord("A") + digit) + letters
    return letters
