"""Tables of numbers, as in financial reports: rows are the lines of the page, columns are where numbers are aligned.

White gutters alone do not show such a table: the wide gap between labels and numbers, or between two periods, looks
like the gutter between two columns of text.

1. Each line is cut into cells, see `pdf_number_cells`.
2. Lines with numbers, and the few lines of text between them, are a candidate.
3. Numbers with the same right edge, or that overlap, are a column, see `pdf_number_columns`.
4. Lines above the columns are the header; a header over several columns counts for each of them.
5. A label that is broken into lines is joined, and a line without numbers stays a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from ragfm.parsing.own.pdf.pdf_lines import Block, box_around
from ragfm.parsing.own.pdf.pdf_number_cells import PERIOD, Row, is_years, read_row
from ragfm.parsing.own.pdf.pdf_number_columns import Column, column_headers, column_of, find_columns, header_lines
from ragfm.parsing.own.pdf.pdf_tables import is_contents
from ragfm.parsing.own.pdf.pdf_types import HYPHEN, Word

_LEADER = " \t.·_…"
_MIN_LEADER = 4  # characters
_OPEN_END = (",", "\u2013", "\u2014", "-")
_MAX_GAP = 2.6  # times the line height: a wider gap ends a table
_LARGER = 1.1  # times the font size of the table: a heading
_MAX_TEXT_LINES = 12  # without numbers, in a row
_MIN_LABELLED = 0.6  # share of the lines with numbers that have a label
_MAX_CROWDED = 0.2  # share of the lines in which two pieces fall into one cell
_PROSE = 45  # characters: longer texts next to each other are prose in columns


def number_tables(lines: Sequence[Sequence[Word]]) -> Iterator[tuple[int, int, Block]]:
    """Yield the tables of numbers among lines that are ordered from top to bottom: first line, end, and table."""
    rows = [read_row(line) for line in lines]
    start = used = 0
    while start < len(rows):
        if not rows[start].values:
            start += 1
            continue
        end = _end_of_table(rows, start)
        table = _table(rows, used, start, end)
        if table is not None:
            yield table
            used = table[1]
            start = max(end, used)
        else:
            start += max(1, (end - start) // 8)  # takes linear time, nearly


def _end_of_table(rows: Sequence[Row], start: int) -> int:
    """The end of the lines from `start` on that may be one table: the last has numbers."""
    end = start + 1
    left = min(piece.x0 for piece in rows[start].values)
    right = max(piece.x1 for piece in rows[start].values)
    margin = rows[start].pieces[0].x0
    known = rows[start].values
    # The line above may have the headers of columns whose first cells are empty.
    headers = rows[start - 1].pieces if start and not rows[start - 1].values else []
    headers = [piece for piece in headers if piece.x0 > rows[start].pieces[0].x1] if len(headers) > 1 else []
    for i in range(start + 1, len(rows)):
        row, above = rows[i], rows[i - 1]
        height = min(row.bottom - row.top, 2 * row.size)
        if row.top - above.bottom > _MAX_GAP * height or i - end >= _MAX_TEXT_LINES:
            break
        if row.values:
            aligned = [
                piece
                for piece in row.values
                if any(
                    abs(piece.edge - other.edge) < 0.6 * piece.words[0].size
                    or (piece.x0 < other.x1 and other.x0 < piece.x1)
                    for other in (*known, *headers)
                )
            ]
            if not aligned and (len(row.values) > 1 or len(row.pieces) == 1 or len(known) > 1):
                break
            if len(row.pieces) == 1 and (not above.values or row.top - above.bottom > 1.2 * height):
                break  # the number of the page
            end = i + 1
            left = min([left, *(piece.x0 for piece in aligned)])
            right = max(right, *(piece.x1 for piece in row.values))
            known = (known + row.values)[-40:]
            continue
        text = row.pieces[0]
        is_above_columns = text.x0 >= left - 2 * row.size and any(piece.kind == "text" for piece in row.pieces)
        begins_header = is_above_columns and (len(row.pieces) > 1 or PERIOD.search(text.text))
        if is_years(row.pieces) or begins_header or row.size > _LARGER * rows[start].size:
            break
        crosses = text.x1 > left + max(0.35 * (right - left), 3 * row.size)
        if crosses and (len(row.pieces) == 1 or text.x1 > right):
            is_section = abs(text.x0 - margin) < 2 * row.size and len(text.text) < 110 and not text.text.endswith(".")
            if not is_section or (i + 1 < len(rows) and not rows[i + 1].values and not text.text.endswith(":")):
                break
    return end


def _table(rows: Sequence[Row], first: int, start: int, end: int) -> tuple[int, int, Block] | None:
    """The table whose lines with numbers begin at `start`; its header is searched for from `first` on."""
    body = rows[start:end]
    numeric = [row for row in body if row.values]
    found = find_columns(body, numeric)
    if found is None:
        return None
    columns, border, left = found
    begin, top = header_lines(rows, first, start, columns, border, left)
    while begin == top > first and _continues(rows[top - 1], rows[top], border, left):
        begin = top = top - 1  # the label of the first line began above
    while end < len(rows) and _continues_below(rows[end - 1], rows[end], border):
        end += 1
    cells = _body(rows[top:end], columns, border, left)
    if not cells:
        return None
    labelled = [bool(row[0]) for row in cells if any(row[1:])]
    values = [piece for row in numeric for piece in row.values]
    if not labelled or sum(labelled) < _MIN_LABELLED * len(labelled) or _is_prose(cells, columns, border):
        return None
    header = column_headers(rows[begin:top], columns, border)
    of_numbers = [j for j, column in enumerate(columns) if column.numeric]
    if len(of_numbers) == 1:
        gaps = [row.values[0].x0 - row.pieces[0].x1 for row in numeric if len(row.pieces) > 1]
        if (
            len(labelled) < max(3, 0.5 * len(cells))
            or (begin == top and is_contents([piece.text for piece in values]))
            or median(gaps) < 1.5 * median(row.size for row in numeric)
        ):
            return None
    elif len(labelled) < 2 and not all(header[j] for j in of_numbers):
        return None
    table = [header, *cells]
    used = [j for j in range(len(columns)) if any(row[j] for row in cells)]
    edges = tuple(columns[j].x1 for j in used if columns[j].numeric)
    words = [word for row in rows[begin:end] for piece in row.pieces for word in piece.words]
    block = Block("", box_around(words), rows=[[row[j] for j in used] for row in table], edges=edges)
    return begin, end, block


def _body(rows: Sequence[Row], columns: Sequence[Column], border: float, left: float) -> list[list[str]]:
    """The cells of each row; lines that continue a label or a cell are joined to it.

    Empty if there are more columns than were found: too many cells would have several texts.
    """
    table: list[list[str]] = []
    above: Row | None = None
    crowded = 0
    for row in rows:
        cells = [""] * len(columns)
        places = [column_of(piece, columns, border) for piece in row.pieces]
        for piece, j in zip(row.pieces, places, strict=True):
            cells[j] = f"{cells[j]} {piece.text}" if cells[j] else piece.text
        crowded += len(set(places)) < len(places)
        if above is not None and _joins(above, row, table[-1], cells, border, left):
            for j, (first, second) in enumerate(zip(table[-1], cells, strict=True)):
                is_split_word = first.endswith(HYPHEN) and second[:1].islower()
                table[-1][j] = f"{first}{second}" if is_split_word or not (first and second) else f"{first} {second}"
        else:
            table.append(cells)
        above = row
    if crowded > _MAX_CROWDED * len(rows):
        return []
    for cells in table:
        for j, cell in enumerate(cells):
            leader = cell[len(cell.rstrip(_LEADER)) :]  # dots that lead to the numbers; a single full stop stays
            if leader[:1].isspace() or sum(not character.isspace() for character in leader) >= _MIN_LEADER:
                cells[j] = cell.removesuffix(leader)
    return table


def _joins(above: Row, row: Row, cells_above: Sequence[str], cells: Sequence[str], border: float, left: float) -> bool:
    """Whether a line is a part of the row above."""
    gap, size = row.top - above.bottom, row.size
    if any(cells_above[1:]) and any(cells[1:]) and (row.values or cells[0]):
        return False
    if not any(cells_above[1:]):
        return _continues(above, row, border, left)
    if not cells[0]:
        return gap < 0.3 * size and not row.values
    if gap < -0.3 * size:
        return True
    return gap < 0.8 * size and (cells[0][:1].islower() or cells_above[0].endswith(_OPEN_END))


def _continues(above: Row, row: Row, border: float, left: float) -> bool:
    """Whether the label of a line began on the line above, which has no numbers."""
    if any(piece.kind != "text" or piece.x0 > border for piece in above.pieces):
        return False
    gap, size = row.top - above.bottom, row.size
    first, second = above.pieces[-1], row.pieces[0]
    if first.text.endswith((":", ".")) or gap > 0.9 * size:
        return False
    if second.kind != "text" or second.x0 > border:  # no label: it is on the line above
        return gap < 0.35 * size
    if second.text[:1].islower() or first.text.endswith(_OPEN_END):
        return True
    if first.words[-1].face != second.words[0].face or second.x0 > first.x0 + 0.6 * size:
        return False
    fits = first.x1 + second.words[0].x1 - second.words[0].x0 + 0.3 * size < border - size
    return not fits and first.x1 > left + 0.7 * (border - left)


def _continues_below(above: Row, row: Row, border: float) -> bool:
    """Whether a line below the last numbers is the second line of the label or of other cells."""
    gap = row.top - above.bottom
    if row.values or any(piece.kind != "text" for piece in row.pieces):
        return False
    if row.pieces[0].x0 > border:
        return gap < 0.25 * row.size
    return (
        len(row.pieces) == 1 and row.pieces[0].x1 < border and gap < 0.5 * row.size and row.pieces[0].text[0].islower()
    )


def _is_prose(cells: Sequence[Sequence[str]], columns: Sequence[Column], border: float) -> bool:
    """Whether the cells are lines of text in columns, long paragraphs, or text with numbers in it."""
    letters = [[sum(map(str.isalpha, cell)) for cell in column] for column in zip(*cells, strict=True)]
    labels = [counts for counts, column in zip(letters, columns, strict=True) if column.x0 < border]
    if sum(map(sum, letters)) > 2 * sum(map(sum, labels)):
        return True
    lengths = [
        sum(len(cell) for cell in texts) / len(texts)
        for column in zip(*cells, strict=True)
        if len(texts := [cell for cell in column if any(map(str.isalpha, cell))]) >= 0.5 * len(cells)
    ]
    if len(lengths) > 1:
        return max(lengths) > _PROSE
    return bool(lengths) and max(lengths) > (1.5 if sum(column.numeric for column in columns) == 1 else 9) * _PROSE
