"""The blocks of a PDF page in reading order: tables, columns, paragraphs.

1. Tables with rules are taken out, then tables of numbers.
2. The rest is cut into columns where a white gutter runs down the page between two bodies of text. A row that crosses
   the gutter (a title, the caption of a wide figure) separates the columns above it from those below.
3. Within a column, rows with aligned cells become tables, everything else paragraphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TypeAlias

from ragfm.parsing.own.pdf.pdf_drawing import Drawing
from ragfm.parsing.own.pdf.pdf_lines import Block, Line, line_of, paragraphs, rows_of, segments
from ragfm.parsing.own.pdf.pdf_numbers import number_tables
from ragfm.parsing.own.pdf.pdf_page import PageContent
from ragfm.parsing.own.pdf.pdf_tables import RuledTable, aligned_tables, gutters, ruled_tables
from ragfm.parsing.own.pdf.pdf_types import Box, Word

_MAX_DEPTH = 6  # columns within columns
_MIN_PROSE_LINE = 25  # characters; shorter segments next to each other are cells
_MIN_PAIRED = 0.7  # share of the shorter side: cells stand in the same row, lines of columns only by chance
_MIN_REGION_GAP = 1.2  # times the font size: white space that separates two regions

Tables: TypeAlias = Mapping[int, Block]
"""Tables with rules by the id of the word that is their placeholder."""


def read_layout(content: PageContent) -> list[Block]:
    """Return everything visible on the page, in reading order; text in other directions comes last."""
    tables: list[RuledTable] = []
    words = content.words
    ruled = ruled_tables(words, content.drawing.rules)
    torn = [table.placeholder for table in ruled if table.is_torn]
    for table in ruled:
        box = table.placeholder
        if any(box.top < other.bottom and other.top < box.bottom for other in torn):
            # Lines below sums and shaded rows are not a grid: does the position of the numbers show a table instead?
            level = [word for word in words if box.top <= word.center_y <= box.bottom]
            found = sum(len(block.rows) for _, _, block in number_tables(rows_of(level)))
            labelled = sum(any(map(str.isalpha, "".join(row))) for row in table.block.rows)
            if 2 * max(found, len(table.block.rows) - labelled) > len(table.block.rows):
                continue
        tables.append(table)
    inside = {id(word) for table in tables for word in table.words}
    words = [word for word in words if id(word) not in inside]
    placed = {id(table.placeholder): table.block for table in tables}
    blocks = _read_region([*words, *(table.placeholder for table in tables)], placed)
    blocks += [table.block for table in tables if table.block not in blocks]
    nowhere = Box(0, content.height, content.width, content.height)
    for degrees, words in content.turned.items():
        is_main = len(words) > len(content.words)  # a landscape table; otherwise labels of axes and notes in the margin
        turned_rules = [content.turned_box(rule, degrees) for rule in content.drawing.rules] if is_main else []
        size = (content.width, content.height) if degrees == 180 else (content.height, content.width)
        for block in read_layout(PageContent(*size, words, drawing=Drawing(turned_rules))):
            block = replace(block, box=nowhere)
            blocks.append(block if is_main else replace(block, size=0, bold=False))
    return blocks + [Block(content.slanted, nowhere)] * bool(content.slanted)


def _read_region(words: list[Word], tables: Tables, depth: int = 0, *, whole: bool = False) -> list[Block]:
    """Read a region; `whole` if it is a part of one without gutter, so that a gutter runs through a block only.

    A ruled table is one placeholder word in its region, replaced when it is reached.
    """
    if not words:
        return []
    lines = rows_of(words)
    rows = [segments(line) for line in lines]
    if depth >= _MAX_DEPTH:
        return _read_column(rows, tables)
    gutter = _find_gutter(rows)
    blocks: list[Block] = []
    if found := list(number_tables(lines)):
        end = 0
        for start, table_end, block in found:
            above = [word for line in lines[end:start] for word in line]
            blocks += [*_read_region(above, tables, depth + 1, whole=gutter is None), block]
            end = table_end
        below = [word for line in lines[end:] for word in line]
        return blocks + _read_region(below, tables, depth + 1, whole=gutter is None)
    regions = [[rows[0]]]  # between wide white space
    bottom = max(line.bottom for line in rows[0])
    for row in rows[1:]:
        if min(line.top for line in row) - bottom > _MIN_REGION_GAP * row[0].size:
            regions.append([])
        regions[-1].append(row)
        bottom = max(bottom, *(line.bottom for line in row))
    if gutter is not None and not (whole and len(regions) > 1):
        left: list[Word] = []
        right: list[Word] = []
        crossing: list[list[Line]] = []
        for row in rows:
            if any(line.x0 < gutter < line.x1 for line in row):
                blocks += _read_region(left, tables, depth + 1) + _read_region(right, tables, depth + 1)
                left, right = [], []
                crossing.append(row)
                continue
            blocks += _read_column(crossing, tables)
            crossing = []
            for line in row:
                (left if line.x1 <= gutter else right).extend(line.words)
        blocks += _read_column(crossing, tables)
        return blocks + _read_region(left, tables, depth + 1) + _read_region(right, tables, depth + 1)
    if len(regions) == 1 or all(_find_gutter(region) is None for region in regions):
        return _read_column(rows, tables)
    for region in regions:
        blocks += _read_region([word for row in region for line in row for word in line.words], tables, depth + 1)
    return blocks


def _read_column(rows: Sequence[list[Line]], tables: Tables) -> list[Block]:
    """Read rows from top to bottom."""
    blocks: list[Block] = []
    text_rows: list[list[Line]] = []
    for row in rows:
        words = [word for line in row for word in line.words]
        next_to_table = [word for word in words if id(word) not in tables]
        if len(next_to_table) == len(words):
            text_rows.append(row)
            continue
        blocks += [*_read_text(text_rows), *(tables[id(word)] for word in words if id(word) in tables)]
        text_rows = []
        if next_to_table:
            blocks += _read_text([segments(next_to_table)])
    return blocks + _read_text(text_rows)


def _read_text(rows: Sequence[list[Line]]) -> list[Block]:
    """Tables without rules, and paragraphs."""
    blocks: list[Block] = []
    lines: list[Line] = []
    for item in aligned_tables(rows):
        if isinstance(item, Block):
            blocks += [*paragraphs(lines), item]
            lines = []
        else:
            lines.append(line_of([word for line in item for word in line.words]))
    return blocks + paragraphs(lines)


def _find_gutter(rows: Sequence[Sequence[Line]]) -> float | None:
    """The x of the white gutter between two columns of text; None without one."""
    lines = [line for row in rows for line in row]
    if len(lines) < 6:
        return None
    size = median(line.size for line in lines)
    best: tuple[int, float] | None = None
    for x in gutters([(line.x0, line.x1) for line in lines], 0.25, 0.7 * size):
        left = [line for line in lines if line.x1 <= x]
        right = [line for line in lines if line.x0 >= x]
        crossing = sum(any(line.x0 < x < line.x1 for line in row) for row in rows)
        if min(len(left), len(right)) < 3 or _is_table(rows, x):
            continue
        score = min(len(left), len(right)) - crossing
        if best is None or score > best[0]:
            best = (score, x)
    return best[1] if best else None


def _is_table(rows: Sequence[Sequence[Line]], x: float) -> bool:
    """Whether the text left and right of a gutter is a table rather than two columns of prose."""
    sides = [([line for line in row if line.x1 <= x], [line for line in row if line.x0 >= x]) for row in rows]
    paired = [(left, right) for left, right in sides if left and right]
    shorter_side = min(sum(bool(left) for left, _ in sides), sum(bool(right) for _, right in sides))
    if len(paired) < _MIN_PAIRED * shorter_side:
        return False
    left_lines = [line for left, _ in paired for line in left]
    right_lines = [line for _, right in paired for line in right]
    return min(_mean_line_length(left_lines), _mean_line_length(right_lines)) < _MIN_PROSE_LINE


def _mean_line_length(lines: Sequence[Line]) -> float:
    """Mean length, in characters, of the line that a character is in: short lines weigh little."""
    lengths = [len(line.plain) for line in lines]
    return sum(length * length for length in lengths) / sum(lengths)
