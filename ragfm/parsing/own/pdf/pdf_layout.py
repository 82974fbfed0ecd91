"""The blocks of a PDF's page in the order of reading: tables, columns, paragraphs.

Tables within rules come first. What is left is cut into columns where a white gutter runs down the page between two
bodies of text; what crosses the gutter (a title, a wide figure's caption) parts what stands above from what stands
below. Within a column, rows whose cells stand below each other are a table, all else is paragraphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ragfm.parsing.own.pdf.pdf_lines import Block, Line, line_of, paragraphs, rows_of, segments
from ragfm.parsing.own.pdf.pdf_page import Content, Word
from ragfm.parsing.own.pdf.pdf_tables import aligned_tables, gutters, ruled_tables

_MAX_DEPTH = 6  # columns within columns
_CROSSING = 0.35  # of the rows: so many may reach over a gutter
_TEXT = 25  # characters: shorter segments beside each other are cells
_SIDE_BY_SIDE = 0.7  # of the shorter side: cells stand in the same row, lines of columns only by chance
_GAP = 1.2  # of the size: white space above a line that parts two regions


def read_layout(content: Content) -> list[Block]:
    """All that a reader sees on the page."""
    tables, rest = ruled_tables(content.words, content.drawing.rules)
    blocks = _Region(tables).read(rest)
    blocks += [block for _, block in tables if block not in blocks]
    return blocks + [Block(text, content.height) for text in content.turned]


class _Region:
    """Reads regions of a page; tables that were found before are set in where they stand."""

    def __init__(self, tables: Sequence[tuple[Word, Block]]) -> None:
        # A table takes part as one word of its size, which no line is joined with.
        self._tables = {id(word): block for word, block in tables}
        self._words = [word for word, _ in tables]

    def read(self, words: Sequence[Word]) -> list[Block]:
        return self._region([*words, *self._words], 0)

    def _region(self, words: list[Word], depth: int) -> list[Block]:
        if not words:
            return []
        rows = [segments(row) for row in rows_of(words)]
        cut = _gutter(rows) if depth < _MAX_DEPTH else None
        if cut is not None:
            return self._columns(rows, cut, depth)
        parts = _parts(rows) if depth < _MAX_DEPTH else [rows]
        if len(parts) > 1 and any(_gutter(part) is not None for part in parts):
            return [block for part in parts for block in self._region(_words(part), depth + 1)]
        return self._column(rows)

    def _columns(self, rows: list[list[Line]], cut: float, depth: int) -> list[Block]:
        blocks: list[Block] = []
        left: list[Word] = []
        right: list[Word] = []
        crossing: list[list[Line]] = []
        for row in rows:
            if any(line.x0 < cut < line.x1 for line in row):
                blocks += self._region(left, depth + 1) + self._region(right, depth + 1)
                left, right = [], []
                crossing.append(row)
                continue
            blocks += self._column(crossing)
            crossing = []
            for line in row:
                (left if line.x1 <= cut else right).extend(line.words)
        blocks += self._column(crossing)
        return blocks + self._region(left, depth + 1) + self._region(right, depth + 1)

    def _column(self, rows: Sequence[list[Line]]) -> list[Block]:
        """Rows that are read from top to bottom."""
        blocks: list[Block] = []
        free: list[list[Line]] = []
        for row in rows:
            tables = [self._tables[id(word)] for line in row for word in line.words if id(word) in self._tables]
            if not tables:
                free.append(row)
                continue
            beside = [word for line in row for word in line.words if id(word) not in self._tables]
            blocks += [*_free(free), *tables, *(_free([segments(beside)]) if beside else ())]
            free = []
        return blocks + _free(free)


def _free(rows: Sequence[list[Line]]) -> list[Block]:
    """Tables without rules, and paragraphs."""
    blocks: list[Block] = []
    lines: list[Line] = []
    for found in aligned_tables(rows):
        if isinstance(found, Block):
            blocks += [*paragraphs(lines), found]
            lines = []
        else:
            lines.append(line_of([word for line in found for word in line.words]))
    return blocks + paragraphs(lines)


def _words(rows: Sequence[Sequence[Line]]) -> list[Word]:
    return [word for row in rows for line in row for word in line.words]


def _gutter(rows: Sequence[Sequence[Line]]) -> float | None:
    """Where a white gutter runs between two columns of text; None where there is none."""
    lines = [line for row in rows for line in row]
    if len(lines) < 6:
        return None
    size = median(line.size for line in lines)
    best: tuple[int, float] | None = None
    for x in gutters(lines, 0.25, 0.7 * size):
        left = [line for line in lines if line.x1 <= x]
        right = [line for line in lines if line.x0 >= x]
        crossing = sum(any(line.x0 < x < line.x1 for line in row) for row in rows)
        if min(len(left), len(right)) < 3 or crossing > _CROSSING * len(rows) or _are_cells(rows, x):
            continue
        score = min(len(left), len(right)) - crossing
        if best is None or score > best[0]:
            best = (score, x)
    return best[1] if best else None


def _are_cells(rows: Sequence[Sequence[Line]], x: float) -> bool:
    """Whether what stands left and right of a gutter is a table rather than two columns of text."""
    sides = [([line for line in row if line.x1 <= x], [line for line in row if line.x0 >= x]) for row in rows]
    both = [side for side in sides if all(side)]
    fewer = min(sum(bool(left) for left, _ in sides), sum(bool(right) for _, right in sides))
    if len(both) < _SIDE_BY_SIDE * fewer:
        return False
    left, right = ([line for side in both for line in side[i]] for i in (0, 1))
    return min(_usual_length(left), _usual_length(right)) < _TEXT


def _usual_length(lines: Sequence[Line]) -> float:
    """Characters of the line in which a character stands, on average: short lines weigh little."""
    lengths = [len(line.plain) for line in lines]
    return sum(length * length for length in lengths) / sum(lengths)


def _parts(rows: list[list[Line]]) -> list[list[list[Line]]]:
    """The rows, parted at wide white space."""
    parts = [[rows[0]]]
    bottom = max(line.bottom for line in rows[0])
    for row in rows[1:]:
        if min(line.top for line in row) - bottom > _GAP * row[0].size:
            parts.append([])
        parts[-1].append(row)
        bottom = max(bottom, *(line.bottom for line in row))
    return parts
