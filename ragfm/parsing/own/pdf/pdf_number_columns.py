"""Columns of a table of numbers, and their headers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf
from statistics import median

from ragfm.parsing.own.pdf.pdf_number_cells import Piece, Row, kind_of, piece_of
from ragfm.parsing.own.pdf.pdf_tables import gutters

_HEADER_GAP = 0.5  # times the font size: separates two headers if it is below the gap of two others
_MAX_HEADER_LINES = 7
_MAX_COLUMNS = 60


@dataclass(slots=True)
class Column:
    """`x0` and `x1` are the edges of its cells."""

    x0: float
    x1: float
    numeric: bool = True


def find_columns(body: Sequence[Row], numeric: Sequence[Row]) -> tuple[list[Column], float, float] | None:
    """The columns of the lines of a table, the border between labels and numbers, and the left edge of the labels.

    `numeric` are the lines with numbers. Cuts off numbers at the end of long labels, in place. None if there are no
    columns of numbers, or too many.
    """
    columns = _number_columns(numeric)
    size = median(row.size for row in numeric)
    left = min(piece.x0 for row in numeric for piece in row.pieces)
    if len(columns) > 1 and columns[0].x0 < left + 2 * size:  # years or ranks as labels
        del columns[0]
    if not 1 <= len(columns) <= _MAX_COLUMNS or columns[0].x0 < left + 2 * size:
        return None
    border = columns[0].x0 - 0.3 * size
    for row in body:  # cut off the numbers at the end of a long label if they are in a column
        for i, piece in enumerate(row.pieces):
            if piece.kind != "text" or piece.x0 > border or piece.x1 < border:
                continue
            words = list(piece.words)
            cut: list[Piece] = []
            while (
                len(words) > 1
                and kind_of(words[-1].text) == "number"
                and any(abs(words[-1].x1 - column.x1) < words[-1].size for column in columns)
            ):
                cut.insert(0, piece_of("number", [words.pop()]))
            if cut:
                row.pieces[i : i + 1] = [piece_of("text", words), *cut]
                row.values = sorted([*row.values, *cut], key=lambda piece: piece.x0)
                break
    columns = sorted([*_text_columns(body, columns, border, left), *columns], key=lambda column: column.x0)
    return columns, border, left


def _number_columns(rows: Sequence[Row]) -> list[Column]:
    """Numbers with the same right edge are a column; so are those that overlap and are never on one line."""

    def digits_x0(entry: tuple[Piece, int]) -> float:  # without a currency sign that stands apart
        piece, _ = entry
        return next((word.x0 for word in piece.words if any(map(str.isdigit, word.text))), piece.x0)

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
            median(map(digits_x0, last)), median(map(digits_x0, group))
        )
        if overlap > 0 and not {i for _, i in last} & {i for _, i in group}:
            last += group
        else:
            merged.append(group)
    return [Column(min(p.x0 for p, _ in group), max(p.x1 for p, _ in group)) for group in merged]


def _text_columns(rows: Sequence[Row], columns: Sequence[Column], border: float, left: float) -> Iterator[Column]:
    """The column of labels, and columns of text before, between and after those of numbers."""
    minimum = max(2, 0.25 * len(rows))
    labels = [[piece for piece in row.pieces if piece.center < border] for row in rows]
    starts = [left]
    if sum(len(row) > 1 for row in labels) >= min(minimum, 3):
        starts += gutters([(piece.x0, piece.x1) for row in labels for piece in row], 0.1, 4, rows=len(rows))
    for x0, x1 in pairwise([*starts, border]):
        yield Column(x0, x1, numeric=False)
    strays = sorted(
        (
            piece
            for row in rows
            for piece in row.pieces
            if piece.center > border and not any(piece.x0 < column.x1 and column.x0 < piece.x1 for column in columns)
        ),
        key=lambda piece: piece.x0,
    )
    group: list[Piece] = []
    for piece in [*strays, None]:
        if piece and group and piece.x0 < max(other.x1 for other in group):
            group.append(piece)
            continue
        if len(group) >= minimum:
            yield Column(min(p.x0 for p in group), max(p.x1 for p in group), numeric=False)
        group = [piece] if piece else []


def column_of(piece: Piece, columns: Sequence[Column], border: float) -> int:
    """The column that a piece overlaps most, or that is nearest."""
    if piece.x0 < border and piece.kind == "text" and columns[0].x0 - 1 <= piece.x0 <= columns[0].x1:
        return 0
    return max(range(len(columns)), key=lambda j: min(piece.x1, columns[j].x1) - max(piece.x0, columns[j].x0))


def header_lines(
    rows: Sequence[Row], first: int, start: int, columns: Sequence[Column], border: float, left: float
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


def column_headers(rows: Sequence[Row], columns: Sequence[Column], border: float) -> list[str]:
    """The texts above each column, from top to bottom."""
    first = next((j for j, column in enumerate(columns) if column.x1 > border), len(columns))
    texts: list[list[str]] = [[] for _ in columns]
    headers: list[tuple[float, list[Piece]]] = []  # size, pieces
    for row in rows:
        over = [piece for piece in row.pieces if piece.center > border - row.size]
        above = headers[-1][1] if headers else []
        headers.append((row.size, [part for piece in over for part in _split_below(above, piece, row.size)]))
        for piece in row.pieces[: len(row.pieces) - len(over)]:
            texts[column_of(piece, columns[:first], border)].append(piece.text)
    spans = [(column.x0, column.x1) for column in columns[first:]]
    if headers and len(headers[-1][1]) == len(spans):  # one for each column
        lowest = headers[-1][1]
        spans = [(min(x0, piece.x0), max(x1, piece.x1)) for (x0, x1), piece in zip(spans, lowest, strict=True)]
    groups = [0] * len(spans)  # columns with the same headers so far
    for size, over in headers:
        found = _assign_headers(over, spans, groups, 0.45 * size)
        for parts, header in zip(texts[first:], found, strict=True):
            if header and header.text not in parts[-1:]:
                parts.append(header.text)
        keys = list(zip(groups, map(id, found), strict=True))
        groups = list(accumulate((before != after for before, after in pairwise(keys)), initial=0))
    return [" ".join(parts) for parts in texts]


def _split_below(above: Sequence[Piece], piece: Piece, size: float) -> Iterator[Piece]:
    """The headers of narrow columns, which are close to each other: cut where the line `above` has two headers."""
    start = 0
    for at, (word, following) in enumerate(pairwise(piece.words), 1):
        middle = (word.x1 + following.x0) / 2
        if following.x0 - word.x1 > _HEADER_GAP * size and any(
            left.x1 - 0.2 * size < middle < right.x0 + 0.2 * size for left, right in pairwise(above)
        ):
            yield piece_of("text", piece.words[start:at])
            start = at
    yield piece_of("text", piece.words[start:]) if start else piece


def _assign_headers(
    pieces: Sequence[Piece], spans: Sequence[tuple[float, float]], groups: Sequence[int], penalty: float
) -> list[Piece | None]:
    """For each column its header: headers are centred over, or aligned with, the columns that they belong to.

    Of all ways to give each header a run of columns of one group, the one with the least misalignment; `penalty` is the
    cost of a column without header, in points.
    """
    width = len(spans)
    # best[j]: cost and choice for the first j columns and the pieces so far.
    best: list[tuple[float, list[Piece | None]]] = [(j * penalty, [None] * j) for j in range(width + 1)]
    for piece in pieces:
        extended: list[tuple[float, list[Piece | None]]] = [(inf, [])] * (width + 1)
        for j in range(1, width + 1):
            if extended[j - 1][1]:
                extended[j] = (extended[j - 1][0] + penalty, [*extended[j - 1][1], None])
            for i in range(j):
                if groups[i] != groups[j - 1]:
                    continue
                x0, x1 = spans[i][0], spans[j - 1][1]
                off = abs(piece.center - (x0 + x1) / 2)
                if i == j - 1:
                    off = min(off, abs(piece.x1 - x1), abs(piece.x0 - x0))
                if best[i][0] + off < extended[j][0]:
                    extended[j] = (best[i][0] + off, [*best[i][1], *[piece] * (j - i)])
        best = extended
    if len(best[width][1]) == width:
        return best[width][1]
    found: list[Piece | None] = [None] * width  # more headers than columns
    for piece in pieces:
        found[min(range(width), key=lambda j: abs(sum(spans[j]) / 2 - piece.center))] = piece
    return found
