"""Tables of numbers, as in financial reports: rows are the lines of the page, columns are where numbers are aligned.

White gutters alone do not show such a table: the wide gap between labels and numbers, or between two periods, looks
like the gutter between two columns of text.

1. Each line is cut into pieces: numbers, with their currency, brackets and percent sign, and text.
2. Lines with numbers, and the few lines of text between them, are a candidate.
3. Numbers with the same right edge, or that overlap, are a column.
4. Lines above the columns are the header; a header over several columns counts for each of them.
5. A label that is broken into lines is joined, and a line without numbers stays a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf
from statistics import median
from typing import NamedTuple

from ragfm.parsing.own.pdf.pdf_lines import Block, line_of
from ragfm.parsing.own.pdf.pdf_tables import gutters, is_contents
from ragfm.parsing.own.pdf.pdf_types import HYPHEN, Box, Word

_CURRENCY = r"(?:[$€£¥₹]|US\$|[AC]\$)"
_OPENING = re.compile(rf"(?:{_CURRENCY}|\(|[-\u2013\u2212])*(?:{_CURRENCY}|\()")
_CLOSING = re.compile(r"\)?(?:%|\)|pts|bps|pp|x)\)?")
# 1,234.5, and as most of Europe writes it: 1.234,5, in Switzerland 1'234.5.
_DIGITS = (
    r"(?:\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}|\d{1,3}(?:['\u2019]\d{3})+(?:[.,]\d+)?"
    r"|\d[\d,]*(?:\.\d+)?|\.\d+)"
)
_NUMBER = re.compile(
    rf"[(<~+]*[-\u2013\u2014\u2212+]?{_CURRENCY}?\(?[-\u2013\u2212]?{_DIGITS}(?:[%x]|bps|pts)?[-\u2212{HYPHEN}]?\)*[%x]?(?:\([a-z\d]{{1,2}}\)|[*†‡⁰¹²³⁴-⁹])*"
)
_PLACEHOLDER = re.compile(rf"{_CURRENCY}?\(?(?:[\u2012-\u2015\u2212-]+|N/?[AM]|n/?[am]|\*{{1,3}})\)?%?\*?")
_FOOTNOTE = re.compile(r"\(?(?:\d|[a-z]{1,3})\)(?:\(?\w\))*|[*†‡]+")
_YEAR = re.compile(r"(?:19|20)\d\d(?:\s?\(\w\)|[*†]|[⁰¹²³⁴-⁹]+)?")
_PERIOD = re.compile(
    r"\b(?:(?:19|20)\d\d|jan|feb|mar|apr|may|june?|july?|aug|sep|oct|nov|dec|q[1-4]|years?|quarters?|months?|weeks?|ended)",
    re.IGNORECASE,
)
_SCALE = re.compile(r"(?:thousand|million|billion|trillion|[kmb]n?)\b", re.IGNORECASE)
_LEADER = " \t.·_…"
_SPACED_LEADER = re.compile(r"(?:\s+[.·_…]+)+\s*$")
_MIN_LEADER = 4  # characters
_OPEN_END = re.compile(
    r"(?:[,\u2013\u2014-]|\b(?:and|or|of|the|to|in|for|by|on|from|with|at|a|an|net|per|other))$", re.I
)

_WORD_GAP = 0.65  # times the font size: a number closer to text belongs to the text
_GROUP_GAP = 0.45  # times the font size: closer numbers are one, such as `10 000` or `8.0 - 15.0`
_CELL_GAP = 0.9  # times the font size: a wider gap separates two texts
_HEADER_GAP = 0.5  # times the font size: separates two headers if it is below the gap of two others
_SIGN_GAP = 9.0  # times the font size: a currency sign may stand this far before its number
_CLOSING_GAP = 2.0  # times the font size: a percent sign or a bracket may stand this far behind its number
_MAX_GAP = 2.6  # times the line height: a wider gap ends a table
_LARGER = 1.1  # times the font size of the table: a heading
_MAX_TEXT_LINES = 12  # without numbers, in a row
_MAX_HEADER_LINES = 7
_MIN_NUMERIC_LINES = 0.15  # share of a table's lines
_MAX_COLUMNS = 60
_MIN_LABELLED = 0.6  # share of the lines with numbers that have a label
_MAX_CROWDED = 0.2  # share of the lines in which two pieces fall into one cell
_PROSE = 45  # characters: longer texts next to each other are prose in columns


class _Piece(NamedTuple):
    """Words that are one cell, or a part of one. `edge` is the right edge of the digits."""

    words: list[Word]
    kind: str  # number, placeholder or text
    text: str
    x0: float
    x1: float
    edge: float

    @property
    def center(self) -> float:
        return (self.x0 + self.x1) / 2


@dataclass(slots=True)
class _Row:
    """A line of the page."""

    pieces: list[_Piece]
    top: float
    bottom: float
    size: float
    values: list[_Piece]
    """Numbers, without years that head columns."""


@dataclass(slots=True)
class _Column:
    """`x0` and `x1` are the edges of its cells."""

    x0: float
    x1: float
    numeric: bool = True


class NumberTable(NamedTuple):
    """Rows `start` to `end` of the lines that were given, and the table that they are."""

    start: int
    end: int
    block: Block


def number_tables(lines: Sequence[Sequence[Word]]) -> Iterator[NumberTable]:
    """Yield the tables of numbers among lines that are ordered from top to bottom."""
    rows = [_row(line) for line in lines]
    start = used = 0
    while start < len(rows):
        if not rows[start].values:
            start += 1
            continue
        end = _end_of_table(rows, start)
        table = _table(rows, used, start, end)
        if table is not None:
            yield table
            used = table.end
            start = max(end, table.end)
        else:
            start += max(1, (end - start) // 8)  # takes linear time, nearly


# --- Lines to pieces ---------------------------------------------------------------------------------------------


def _row(words: Sequence[Word]) -> _Row:
    pieces = list(_pieces(words))
    return _Row(
        pieces,
        min(word.top for word in words),
        max(word.bottom for word in words),
        median(word.size for word in words),
        [] if _is_years(pieces) else [piece for piece in pieces if piece.kind == "number"],
    )


def _is_years(pieces: Sequence[_Piece]) -> bool:
    """Whether the numbers of a line are the years that head columns."""
    numbers = [piece.text for piece in pieces if piece.kind == "number"]
    if not numbers or not all(map(_YEAR.fullmatch, numbers)):
        return False
    if len(numbers) > 1 and all(
        abs(int(a[:4]) - int(b[:4])) == 1 for a, b in pairwise(numbers) if len(a) == len(b) == 4
    ):
        return True
    label = "".join(piece.text for piece in pieces if piece.kind == "text")
    return not label or (len(numbers) > 1 and (label[0] == "(" or bool(_PERIOD.search(label))))


def _kind(text: str) -> str:
    if _NUMBER.fullmatch(text):
        return "number"
    if _PLACEHOLDER.fullmatch(text):
        return "placeholder"
    return "text"


def _pieces(words: Sequence[Word]) -> Iterator[_Piece]:
    """The cells of a line from left to right: a number with its signs, or words without a wide gap between them."""
    groups: list[tuple[str, list[Word]]] = []
    opened: list[Word] = []  # a currency sign or a bracket that waits for its number
    for word in sorted(words, key=lambda word: word.x0):
        kind = _kind(word.text)
        last_kind, last = groups[-1] if groups else ("", [])
        before = opened or last
        gap = (word.x0 - before[-1].x1) / max(word.size, 1) if before else 99.0
        if opened:
            if kind != "text" and gap < _SIGN_GAP:
                groups.append((kind, [*opened, word]))
                opened = []
                continue
            if _OPENING.fullmatch(word.text) and gap < _SIGN_GAP:
                opened.append(word)
                continue
            groups.append(("text", opened))
            last_kind, last = groups[-1]
            opened = []
        if last_kind in ("number", "placeholder") and gap < _CLOSING_GAP and _CLOSING.fullmatch(word.text):
            last.append(word)
        elif _OPENING.fullmatch(word.text) and not (last_kind == "text" and gap < _WORD_GAP):
            opened = [word]
        elif last_kind == "text" and gap < (_CELL_GAP if kind == "text" else _WORD_GAP):
            last.append(word)
        elif last_kind in ("number", "placeholder") and kind == "text" and gap < _WORD_GAP:
            if last_kind == "number" and (_FOOTNOTE.fullmatch(word.text) or _SCALE.fullmatch(word.text)):
                last.append(word)
                continue
            groups[-1] = ("text", last)
            last.append(word)
        elif last_kind == "number" and kind != "text" and gap < _GROUP_GAP:
            last.append(word)
        else:
            groups.append((kind, [word]))
    if opened:
        groups.append(("text", opened))
    if len(groups) == 2 and groups[0][0] == "number" and groups[1][0] == "text":  # a footnote, or an item of a list
        groups = [("text", groups[0][1] + groups[1][1])]
    for kind, group in groups:
        yield _piece(kind, group)


def _piece(kind: str, words: list[Word]) -> _Piece:
    x0, x1 = words[0].x0, max(word.x1 for word in words)
    if kind == "text":
        return _Piece(words, kind, line_of(words).text, x0, x1, x1)
    text, edge = "", x1
    before = ""
    for word in words:
        is_range = before in ("-", "\u2013") and len(text) > 1  # 8.0 - 15.0
        follows_sign = not any(map(str.isalnum, before)) and not is_range
        text += word.text if follows_sign or _CLOSING.fullmatch(word.text) else f" {word.text}"
        if any(map(str.isdigit, word.text)) and not (before and _FOOTNOTE.fullmatch(word.text)):
            behind = len(word.text) - len(word.text.rstrip(f")%*†‡x⁰¹²³⁴⁵⁶⁷⁸⁹-\u2212{HYPHEN}"))
            edge = word.x1 - 0.8 * behind * (word.x1 - word.x0) / len(word.text)
        before = word.text
    return _Piece(words, kind, text, x0, x1, edge)


# --- The extent of a table ---------------------------------------------------------------------------------------


def _end_of_table(rows: Sequence[_Row], start: int) -> int:
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
            aligned = [piece for piece in row.values if any(_aligned(piece, other) for other in (*known, *headers))]
            if not aligned and (len(row.values) > 1 or len(row.pieces) == 1 or len(known) > 1):
                break
            if len(row.pieces) == 1 and (not above.values or row.top - above.bottom > 1.2 * height):
                break  # the number of the page
            end = i + 1
            left = min([left, *(piece.x0 for piece in aligned)])
            right = max(right, *(piece.x1 for piece in row.values))
            known = (known + row.values)[-40:]
            continue
        if _is_years(row.pieces) or _is_header_line(row, left) or row.size > _LARGER * rows[start].size:
            break
        text = row.pieces[0]
        crosses = text.x1 > left + max(0.35 * (right - left), 3 * row.size)
        if crosses and (len(row.pieces) == 1 or text.x1 > right):
            is_section = abs(text.x0 - margin) < 2 * row.size and len(text.text) < 110 and not text.text.endswith(".")
            if not is_section or (i + 1 < len(rows) and not rows[i + 1].values and not text.text.endswith(":")):
                break
    return end


def _aligned(piece: _Piece, other: _Piece) -> bool:
    return abs(piece.edge - other.edge) < 0.6 * piece.words[0].size or (piece.x0 < other.x1 and other.x0 < piece.x1)


def _is_header_line(row: _Row, left: float) -> bool:
    """Whether a line without numbers is above the columns: another header begins."""
    if row.pieces[0].x0 < left - 2 * row.size or all(piece.kind != "text" for piece in row.pieces):
        return False
    return len(row.pieces) > 1 or bool(_PERIOD.search(row.pieces[0].text))


# --- Columns and cells -------------------------------------------------------------------------------------------


def _table(rows: Sequence[_Row], first: int, start: int, end: int) -> NumberTable | None:
    """The table whose lines with numbers begin at `start`; its header is searched for from `first` on."""
    body = rows[start:end]
    numeric = [row for row in body if row.values]
    if len(numeric) < _MIN_NUMERIC_LINES * len(body):
        return None
    columns = _number_columns(numeric)
    size = median(row.size for row in numeric)
    left = min(piece.x0 for row in numeric for piece in row.pieces)
    if len(columns) > 1 and columns[0].x0 < left + 2 * size:  # years or ranks as labels
        del columns[0]
    if not 1 <= len(columns) <= _MAX_COLUMNS or columns[0].x0 < left + 2 * size:
        return None
    border = columns[0].x0 - 0.3 * size
    for row in body:
        _split_numbers_from_labels(row, columns, border)
    columns = sorted([*_text_columns(body, columns, border, left), *columns], key=lambda column: column.x0)

    begin, top = _header_lines(rows, first, start, columns, border, left)
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
    header = _header(rows[begin:top], columns, border)
    of_numbers = [j for j, column in enumerate(columns) if column.numeric]
    if len(of_numbers) == 1:
        gaps = [row.values[0].x0 - row.pieces[0].x1 for row in numeric if len(row.pieces) > 1]
        if (
            len(labelled) < max(3, 0.5 * len(cells))
            or (begin == top and is_contents([piece.text for piece in values]))
            or median(gaps) < 1.5 * size
        ):
            return None
    elif len(labelled) < 2 and not all(header[j] for j in of_numbers):
        return None
    table = [header, *cells]
    used = [j for j in range(len(columns)) if any(row[j] for row in cells)]
    edges = tuple(columns[j].x1 for j in used if columns[j].numeric)
    pieces = [piece for row in rows[begin:end] for piece in row.pieces]
    sides = min(piece.x0 for piece in pieces), max(piece.x1 for piece in pieces)
    box = Box(sides[0], rows[begin].top, sides[1], max(row.bottom for row in rows[begin:end]))
    block = Block("", box, rows=[[row[j] for j in used] for row in table], edges=edges)
    return NumberTable(begin, end, block)


def _number_columns(rows: Sequence[_Row]) -> list[_Column]:
    """Numbers with the same right edge are a column; so are those that overlap and are never on one line."""
    found = sorted(((piece, i) for i, row in enumerate(rows) for piece in row.values), key=lambda entry: entry[0].edge)
    groups = [[found[0]]]
    for before, entry in pairwise(found):
        if entry[0].edge - before[0].edge > 0.4 * entry[0].words[0].size:
            groups.append([])
        groups[-1].append(entry)
    merged = [groups[0]]
    for group in groups[1:]:
        last = merged[-1]
        overlap = min(max(p.x1 for p, _ in last), max(p.x1 for p, _ in group)) - max(
            median(_digits_x0(p) for p, _ in last), median(_digits_x0(p) for p, _ in group)
        )
        if overlap > 0 and not {i for _, i in last} & {i for _, i in group}:
            last += group
        else:
            merged.append(group)
    return [_Column(min(p.x0 for p, _ in group), max(p.x1 for p, _ in group)) for group in merged]


def _digits_x0(piece: _Piece) -> float:
    """The left edge without a currency sign that stands apart."""
    return next((word.x0 for word in piece.words if any(map(str.isdigit, word.text))), piece.x0)


def _split_numbers_from_labels(row: _Row, columns: Sequence[_Column], border: float) -> None:
    """Cut off the numbers at the end of a long label if they are in a column."""
    for i, piece in enumerate(row.pieces):
        if piece.kind != "text" or piece.x0 > border or piece.x1 < border:
            continue
        words = list(piece.words)
        cut: list[_Piece] = []
        while (
            len(words) > 1
            and _kind(words[-1].text) == "number"
            and any(abs(words[-1].x1 - column.x1) < words[-1].size for column in columns)
        ):
            cut.insert(0, _piece("number", [words.pop()]))
        if cut:
            row.pieces[i : i + 1] = [_piece("text", words), *cut]
            row.values = sorted([*row.values, *cut], key=lambda piece: piece.x0)
            return


def _text_columns(rows: Sequence[_Row], columns: Sequence[_Column], border: float, left: float) -> Iterator[_Column]:
    """The column of labels, and columns of text before, between and after those of numbers."""
    least = max(2, 0.25 * len(rows))
    labels = [[piece for piece in row.pieces if piece.center < border] for row in rows]
    starts = [left]
    if sum(len(row) > 1 for row in labels) >= min(least, 3):
        starts += gutters([(piece.x0, piece.x1) for row in labels for piece in row], 0.1, 4, rows=len(rows))
    for x0, x1 in pairwise([*starts, border]):
        yield _Column(x0, x1, numeric=False)
    strays = sorted(
        (
            piece
            for row in rows
            for piece in row.pieces
            if piece.center > border and not any(piece.x0 < column.x1 and column.x0 < piece.x1 for column in columns)
        ),
        key=lambda piece: piece.x0,
    )
    group: list[_Piece] = []
    for piece in [*strays, None]:
        if piece and group and piece.x0 < max(other.x1 for other in group):
            group.append(piece)
            continue
        if len(group) >= least:
            yield _Column(min(p.x0 for p in group), max(p.x1 for p in group), numeric=False)
        group = [piece] if piece else []


def _column_of(piece: _Piece, columns: Sequence[_Column], border: float) -> int:
    """The column that a piece overlaps most, or that is nearest."""
    if piece.x0 < border and piece.kind == "text" and columns[0].x0 - 1 <= piece.x0 <= columns[0].x1:
        return 0
    return max(range(len(columns)), key=lambda j: min(piece.x1, columns[j].x1) - max(piece.x0, columns[j].x0))


def _body(rows: Sequence[_Row], columns: Sequence[_Column], border: float, left: float) -> list[list[str]]:
    """The cells of each row; lines that continue a label or a cell are joined to it.

    Empty if there are more columns than were found: too many cells would have several texts.
    """
    table: list[list[str]] = []
    above: _Row | None = None
    crowded = 0
    for row in rows:
        cells = [""] * len(columns)
        places = [_column_of(piece, columns, border) for piece in row.pieces]
        for piece, j in zip(row.pieces, places, strict=True):
            cells[j] = f"{cells[j]} {piece.text}" if cells[j] else piece.text
        crowded += len(set(places)) < len(places)
        if above is not None and _joins(above, row, table[-1], cells, border, left):
            table[-1] = [_join(first, second) for first, second in zip(table[-1], cells, strict=True)]
        else:
            table.append(cells)
        above = row
    if crowded > _MAX_CROWDED * len(rows):
        return []
    return [[_without_leader(cell) for cell in row] for row in table]


def _without_leader(cell: str) -> str:
    """A cell without the dots that lead to its numbers. A single full stop stays."""
    rest = cell.rstrip(_LEADER)
    leader = cell[len(rest) :]
    is_leader = sum(not character.isspace() for character in leader) >= _MIN_LEADER or leader[:1].isspace()
    return rest if is_leader else _SPACED_LEADER.sub("", cell)  # "etc. . ."


def _join(first: str, second: str) -> str:
    if first.endswith(HYPHEN) and second[:1].islower():
        return first + second
    return f"{first} {second}" if first and second else first or second


def _joins(
    above: _Row, row: _Row, cells_above: Sequence[str], cells: Sequence[str], border: float, left: float
) -> bool:
    """Whether a line is a part of the row above."""
    gap, size = row.top - above.bottom, row.size
    if any(cells_above[1:]) and any(cells[1:]) and (row.values or cells[0]):
        return False
    if not any(cells_above[1:]):
        return _continues(above, row, border, left)
    if not cells[0]:
        return gap < 0.3 * size and not row.values
    if not cells_above[0]:
        return gap < -0.2 * size
    if gap < -0.3 * size:
        return True
    return gap < 0.8 * size and (cells[0][:1].islower() or bool(_OPEN_END.search(cells_above[0])))


def _continues(above: _Row, row: _Row, border: float, left: float) -> bool:
    """Whether the label of a line began on the line above, which has no numbers."""
    if any(piece.kind != "text" or piece.x0 > border for piece in above.pieces):
        return False
    gap, size = row.top - above.bottom, row.size
    first, second = above.pieces[-1], row.pieces[0]
    if first.text.endswith((":", ".")) or gap > 0.9 * size:
        return False
    if second.kind != "text" or second.x0 > border:  # no label: it is on the line above
        return gap < 0.35 * size
    if second.text[:1].islower() or _OPEN_END.search(first.text):
        return True
    if first.words[-1].face != second.words[0].face or second.x0 > first.x0 + 0.6 * size:
        return False
    fits = first.x1 + second.words[0].x1 - second.words[0].x0 + 0.3 * size < border - size
    return not fits and first.x1 > left + 0.7 * (border - left)


def _continues_below(above: _Row, row: _Row, border: float) -> bool:
    """Whether a line below the last numbers is the second line of the label or of other cells."""
    gap = row.top - above.bottom
    if row.values or any(piece.kind != "text" for piece in row.pieces):
        return False
    if row.pieces[0].x0 > border:
        return gap < 0.25 * row.size
    return (
        len(row.pieces) == 1 and row.pieces[0].x1 < border and gap < 0.5 * row.size and row.pieces[0].text[0].islower()
    )


# --- Headers -----------------------------------------------------------------------------------------------------


def _header_lines(
    rows: Sequence[_Row], first: int, start: int, columns: Sequence[_Column], border: float, left: float
) -> tuple[int, int]:
    """Start and end of the header above a table; lines of text may stand between it and the first numbers."""
    begin = end = start
    right = max(column.x1 for column in columns)
    for i in range(start - 1, max(first, start - _MAX_HEADER_LINES - 4) - 1, -1):
        row, below = rows[i], rows[i + 1]
        if row.values or below.top - row.bottom > 2.2 * row.size:
            break
        over = [piece for piece in row.pieces if piece.center > border - row.size]
        if any(piece.kind == "placeholder" for piece in over):
            break
        if not over:  # a section, the unit, or a part of a label
            if i < start - 4 and begin == start:
                break
            if begin < start and len(row.pieces[0].text) > 40:
                break
            continue
        piece = over[0]
        is_caption = (
            len(row.pieces) == 1
            and piece.x0 < border - row.size
            and (abs(piece.center - (left + right) / 2) < abs(piece.center - (border + right) / 2))
        )
        if is_caption or any(piece.x0 < left + 0.3 * (border - left) for piece in over) or len(piece.text) > 80:
            break
        if begin == start:
            end = i + 1
        begin = i
    return (begin, end) if begin < start else (start, start)


def _header(rows: Sequence[_Row], columns: Sequence[_Column], border: float) -> list[str]:
    """The texts above each column, from top to bottom."""
    first = next((j for j, column in enumerate(columns) if column.x1 > border), len(columns))
    texts: list[list[str]] = [[] for _ in columns]
    headers: list[tuple[float, list[_Piece]]] = []  # size, pieces
    for row in rows:
        over = [piece for piece in row.pieces if piece.center > border - row.size]
        above = headers[-1][1] if headers else []
        headers.append((row.size, [part for piece in over for part in _split_below(above, piece, row.size)]))
        for piece in row.pieces[: len(row.pieces) - len(over)]:
            texts[_column_of(piece, columns[:first], border)].append(piece.text)
    spans = [(column.x0, column.x1) for column in columns[first:]]
    if headers and len(headers[-1][1]) == len(spans):  # one for each column
        lowest = headers[-1][1]
        spans = [(min(x0, piece.x0), max(x1, piece.x1)) for (x0, x1), piece in zip(spans, lowest, strict=True)]
    groups = [0] * len(spans)  # columns with the same headers so far
    for size, over in headers:
        found = _spread(over, spans, groups, 0.45 * size)
        for parts, header in zip(texts[first:], found, strict=True):
            if header and header.text not in parts[-1:]:
                parts.append(header.text)
        keys = list(zip(groups, map(id, found), strict=True))
        groups = list(accumulate((before != after for before, after in pairwise(keys)), initial=0))
    return [" ".join(parts) for parts in texts]


def _split_below(above: Sequence[_Piece], piece: _Piece, size: float) -> Iterator[_Piece]:
    """The headers of narrow columns, which are close to each other: cut where the line `above` has two headers."""
    start = 0
    for at, (word, following) in enumerate(pairwise(piece.words), 1):
        middle = (word.x1 + following.x0) / 2
        if following.x0 - word.x1 > _HEADER_GAP * size and any(
            left.x1 - 0.2 * size < middle < right.x0 + 0.2 * size for left, right in pairwise(above)
        ):
            yield _piece("text", piece.words[start:at])
            start = at
    yield _piece("text", piece.words[start:]) if start else piece


def _spread(
    pieces: Sequence[_Piece], spans: Sequence[tuple[float, float]], groups: Sequence[int], penalty: float
) -> list[_Piece | None]:
    """For each column its header: headers are centred over, or aligned with, the columns that they belong to.

    Of all ways to give each header a run of columns of one group, the one with the least misalignment; `penalty` is the
    cost of a column without header, in points.
    """
    width = len(spans)
    # best[j]: cost and choice for the first j columns and the pieces so far.
    best: list[tuple[float, list[_Piece | None]]] = [(j * penalty, [None] * j) for j in range(width + 1)]
    for piece in pieces:
        then: list[tuple[float, list[_Piece | None]]] = [(inf, [])] * (width + 1)
        for j in range(1, width + 1):
            if then[j - 1][1]:
                then[j] = (then[j - 1][0] + penalty, [*then[j - 1][1], None])
            for i in range(j):
                if groups[i] != groups[j - 1]:
                    continue
                x0, x1 = spans[i][0], spans[j - 1][1]
                off = abs(piece.center - (x0 + x1) / 2)
                if i == j - 1:
                    off = min(off, abs(piece.x1 - x1), abs(piece.x0 - x0))
                if best[i][0] + off < then[j][0]:
                    then[j] = (best[i][0] + off, [*best[i][1], *[piece] * (j - i)])
        best = then
    if len(best[width][1]) == width:
        return best[width][1]
    found: list[_Piece | None] = [None] * width  # more headers than columns
    for piece in pieces:
        found[min(range(width), key=lambda j: abs(sum(spans[j]) / 2 - piece.center))] = piece
    return found


# --- Exclude other layouts ---------------------------------------------------------------------------------------


def _is_prose(cells: Sequence[Sequence[str]], columns: Sequence[_Column], border: float) -> bool:
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
