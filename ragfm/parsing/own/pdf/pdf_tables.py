"""Tables on a PDF page: those drawn with rules, and those whose cells are only aligned."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from ragfm.parsing.own.pdf.pdf_lines import Block, Line, box_around, line_of, rows_of
from ragfm.parsing.own.pdf.pdf_types import HYPHEN, Box, Word

_BIN = 2.0  # points: resolution of the search for gutters

# Tables with rules.
_TOUCH = 3.0  # points: rules this close to each other meet
_MAX_RULES = 3_000
_MAX_BORDERS = 10_000  # of columns times those of rows
_MIN_FILLED = 0.4  # share of the cells that have text
_MAX_RULED_CELL = 250  # characters per cell on average; longer text is columns of prose in a frame
_MIN_FILLED_LINES = 0.7  # share of a row's cells that have text on each line, to split the row into its lines
_SIGN = re.compile(r"[$€£%()]+")
_NUMBERS = re.compile(r"(?<!\S)[$(]*\d[\d,.]*[%)]*(?!\S)")
_MAX_SPLIT_CELL = 25  # characters of a cell's line on average, to split a row into its lines

# Tables without rules.
_MAX_ALIGNED_CELL = 45  # characters per cell on average
_MAX_ROW_GAP = 2.2  # times the line height: rows farther apart belong to different tables
_MAX_LINE_GAP = 0.25  # times the font size: a line closer below a cell continues the cell
_MARKER = re.compile(r"(?:\W|\(?\w{1,3}[.)])$")


class RuledTable(NamedTuple):
    """A table with rules: `placeholder` has its position and size, `words` are those in it."""

    placeholder: Word
    block: Block
    words: list[Word]

    @property
    def is_torn(self) -> bool:
        """Whether the rules seem to cut through rows: a number without label, several in a cell, or a sign alone."""
        for row in self.block.rows:
            filled = [cell for cell in row if cell]
            if any(_SIGN.fullmatch(cell) or len(_NUMBERS.findall(cell)) > 1 for cell in filled[1:]):
                return True
            if filled and not any(map(str.isalpha, filled[0])) and any(map(str.isdigit, "".join(filled))):
                return True
        return False


def ruled_tables(words: Sequence[Word], rules: Sequence[Box]) -> list[RuledTable]:
    """Return the tables that are drawn with rules."""
    tables: list[RuledTable] = []
    if not 4 <= len(rules) <= _MAX_RULES:
        return tables
    taken: set[int] = set()
    for horizontal, vertical in _grids(rules):
        # The borders of rows and columns. Many tables have no rules at their sides: they end where the others end.
        box = box_around([*horizontal, *vertical])
        xs = _distinct([*((rule.x0 + rule.x1) / 2 for rule in vertical), box.x0, box.x1])
        ys = _distinct([*((rule.top + rule.bottom) / 2 for rule in horizontal), box.top, box.bottom])
        if min(len(xs), len(ys)) < 3 or len(xs) * len(ys) >= _MAX_BORDERS:
            continue
        box = Box(xs[0], ys[0], xs[-1], ys[-1])
        inside = [word for word in words if box.contains(word.center_x, word.center_y) and id(word) not in taken]
        rows = _grid_rows(inside, xs, ys, horizontal, vertical)
        cells = [cell for row in rows for cell in row]
        filled = sum(map(bool, cells))
        if len(rows) < 2 or len(rows[0]) < 2 or filled < max(_MIN_FILLED * len(cells), 3):
            continue
        if sum(map(len, cells)) > _MAX_RULED_CELL * filled:
            continue
        taken.update(map(id, inside))
        tables.append(RuledTable(Word("\ufffc", *box, 1), Block("", box, rows=rows), inside))
    return tables


def _grid_rows(
    words: Sequence[Word], xs: Sequence[float], ys: Sequence[float], horizontal: Sequence[Box], vertical: Sequence[Box]
) -> list[list[str]]:
    """The text of each cell; a cell that spans columns or rows has its text in the first of them."""
    height, width = len(ys) - 1, len(xs) - 1
    # For each position in the grid, the position of the first cell that no rule separates from it.
    owners = [[(i, j) for j in range(width)] for i in range(height)]
    for i, (top, bottom) in enumerate(pairwise(ys)):
        for j, (left, right) in enumerate(pairwise(xs)):
            x, y = (left + right) / 2, (top + bottom) / 2
            if j and not any(
                abs(rule.x0 - left) < _TOUCH and rule.top - 1 <= y <= rule.bottom + 1 for rule in vertical
            ):
                owners[i][j] = owners[i][j - 1]
            elif i and not any(abs(rule.top - top) < _TOUCH and rule.x0 - 1 <= x <= rule.x1 + 1 for rule in horizontal):
                owners[i][j] = owners[i - 1][j]
    cells: dict[tuple[int, int], list[Word]] = {}
    for word in words:
        row = min(bisect_right(ys, word.center_y) - 1, height - 1)
        column = min(bisect_right(xs, word.center_x) - 1, width - 1)
        cells.setdefault(owners[row][column], []).append(word)
    rows = []
    for i in range(height):
        rows += _split_row([cells.get((i, j), []) for j in range(width)])
    rows = [row for row in rows if any(row)]
    used_columns = [j for j in range(width) if any(row[j] for row in rows)]
    return [[row[j] for j in used_columns] for row in rows]


def _split_row(cells: Sequence[Sequence[Word]]) -> list[list[str]]:
    """A row between rules as one row, or as one row per line where most cells have text on each line."""
    lines = rows_of([word for cell in cells for word in cell])
    filled = sum(map(bool, cells))
    if len(lines) >= 3 and filled >= 2:
        column_of = {id(word): j for j, cell in enumerate(cells) for word in cell}
        split: list[list[list[Word]]] = []
        for line in lines:
            split.append([[] for _ in cells])
            for word in line:
                split[-1][column_of[id(word)]].append(word)
        rows = [[_cell_text(cell) for cell in row] for row in split]
        texts = [text for row in rows for text in row if text]
        is_regular = len(texts) >= _MIN_FILLED_LINES * filled * len(lines)
        if is_regular and sum(map(len, texts)) <= _MAX_SPLIT_CELL * len(texts):
            return rows
    return [[_cell_text(cell) for cell in cells]]


def _cell_text(words: Sequence[Word]) -> str:
    """The lines of a cell as one line."""
    text = ""
    for row in rows_of(words):
        line = line_of(row)
        if text.endswith(HYPHEN) and line.words[0].text[:1].islower():
            text += line.text
        else:
            text = f"{text} {line.text}" if text else line.text
    return text


def _grids(rules: Sequence[Box]) -> Iterator[tuple[list[Box], list[Box]]]:
    """The horizontal and the vertical rules of each grid: at least four that are connected."""
    horizontal = [rule for rule in rules if _is_horizontal(rule) and rule.x1 - rule.x0 > 6]
    vertical = [rule for rule in rules if not _is_horizontal(rule) and rule.bottom - rule.top > 4]
    horizontal = list(dict.fromkeys(_merge_touching(horizontal)))
    vertical = list(dict.fromkeys(_transpose(_merge_touching(_transpose(vertical)))))
    # Rules that cross or touch each other belong to one grid (union-find).
    merged = [*horizontal, *vertical]
    parent = list(range(len(merged)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, across in enumerate(horizontal):
        for j, down in enumerate(vertical, len(horizontal)):
            if (
                across.x0 - _TOUCH <= down.x0 <= across.x1 + _TOUCH
                and down.top - _TOUCH <= across.top <= down.bottom + _TOUCH
            ):
                parent[root(i)] = root(j)
    groups: dict[int, list[Box]] = {}
    for i, rule in enumerate(merged):
        groups.setdefault(root(i), []).append(rule)
    for group in groups.values():
        if len(group) >= 4:
            yield [rule for rule in group if _is_horizontal(rule)], [rule for rule in group if not _is_horizontal(rule)]


def _is_horizontal(rule: Box) -> bool:
    return rule.x1 - rule.x0 >= rule.bottom - rule.top


def _merge_touching(rules: Sequence[Box]) -> list[Box]:
    """Merge horizontal rules that touch at the same height: many programs draw the sides of each cell separately."""
    merged: list[Box] = []
    for rule in sorted(rules, key=lambda rule: (round(rule.top), rule.x0)):
        last = merged[-1] if merged else None
        if last is not None and abs(last.top - rule.top) < 1 and rule.x0 <= last.x1 + _TOUCH:
            merged[-1] = Box(last.x0, last.top, max(last.x1, rule.x1), max(last.bottom, rule.bottom))
        else:
            merged.append(rule)
    return merged


def _transpose(rules: Sequence[Box]) -> list[Box]:
    return [Box(rule.top, rule.x0, rule.bottom, rule.x1) for rule in rules]


def _distinct(values: Sequence[float]) -> list[float]:
    """The values in order, without those that are too close to the one before."""
    distinct: list[float] = []
    for value in sorted(values):
        if not distinct or value - distinct[-1] > _TOUCH:
            distinct.append(value)
    return distinct


def aligned_tables(rows: Sequence[list[Line]]) -> Iterator[list[Line] | Block]:
    """Yield the rows in order, with the rows of each table combined into one block."""
    start = 0
    while start < len(rows):
        end = _end_of_candidate(rows, start)
        table = _aligned_table(rows[start:end]) if end - start >= 2 else None
        if table is not None:
            yield table
            start = end
        else:
            yield rows[start]
            start += 1


def _end_of_candidate(rows: Sequence[list[Line]], start: int) -> int:
    """The end of the rows that might be a table from `start` on; up to two rows of one cell may be in between."""
    if len(rows[start]) < 2:
        return start
    end = start + 1
    single_cells = 0
    for i in range(start + 1, len(rows)):
        height = rows[i][0].bottom - rows[i][0].top
        if min(line.top for line in rows[i]) - max(line.bottom for line in rows[i - 1]) > _MAX_ROW_GAP * height:
            break
        if len(rows[i]) >= 2:
            end, single_cells = i + 1, 0
        else:
            single_cells += 1
            if single_cells > 2:
                break
    while end < len(rows) and len(rows[end]) == 1:  # the second line of one of the last cells in the row above
        line, above = rows[end][0], rows[end - 1]
        is_close = line.top - max(cell.bottom for cell in above) < _MAX_LINE_GAP * line.size
        if not is_close or not any(abs(line.x0 - cell.x0) < line.size for cell in above[1:] or above):
            break
        end += 1
    return end


def _aligned_table(rows: Sequence[list[Line]]) -> Block | None:
    multi_cell = [row for row in rows if len(row) >= 2]
    if len(multi_cell) < 0.5 * len(rows) or len(multi_cell) < 2:
        return None
    spans = [(line.x0, line.x1) for row in multi_cell for line in row]
    tolerance = 1 / len(multi_cell) if len(multi_cell) >= 4 else 0
    borders = gutters(spans, max(tolerance, 0.1), 2 * _BIN, rows=len(multi_cell))
    width = len(borders) + 1
    if width < 2 or (width == 2 and len(multi_cell) < 3):
        return None

    table: list[list[list[Line]]] = []
    bottom = 0.0
    for row in rows:
        cells: list[list[Line]] = [[] for _ in range(width)]
        for line in row:
            if sum(line.x0 < border < line.x1 for border in borders) > 1 and len(row) == 1:
                return None  # a line of prose runs across the columns
            cells[bisect_right(borders, (line.x0 + line.x1) / 2)].append(line)
        # Lines close below the row above, with no first cell, are the second lines of its cells.
        is_close = min(line.top for line in row) - bottom < _MAX_LINE_GAP * row[0].size
        if table and not cells[0] and is_close and sum(map(bool, cells)) <= width / 2:
            for above, below in zip(table[-1], cells, strict=True):
                above += below
        else:
            table.append(cells)
        bottom = max(line.bottom for line in row)

    texts = [[" ".join(line.text for line in cell) for cell in cells] for cells in table]
    filled = [cell for cells in texts for cell in cells if cell]
    if len(texts) < 2 or len(filled) < 0.5 * len(texts) * width:
        return None
    if all(_MARKER.match(cells[0]) for cells in texts if cells[0]):  # a list whose markers stand apart
        return None
    if sum(map(len, filled)) > _MAX_ALIGNED_CELL * len(filled):
        return None
    box = box_around([line for row in rows for line in row])
    is_titled = all(any(map(str.isalpha, "".join(cells[:-1]))) for cells in texts)
    if width <= 3 and is_titled and is_contents([cells[-1] for cells in texts if cells[-1]]):
        contents = "\n".join(" ".join(filter(None, cells)) for cells in texts)
        return Block(contents, box, rows[0][0].size, lines=len(texts))
    return Block("", box, rows=texts)


def is_contents(numbers: Sequence[str]) -> bool:
    """Whether the numbers at the end of lines are page numbers: short, and in ascending order."""
    if not all(number.isdecimal() and len(number) <= 4 for number in numbers):
        return False
    return all(int(before) <= int(after) for before, after in pairwise(numbers))


def gutters(spans: Sequence[tuple[float, float]], max_share: float, min_width: float, rows: int = 0) -> list[float]:
    """Return the middles of vertical gaps that few spans of x cross.

    `max_share` is the share of `rows` that may cross a gap; without `rows`, of the largest number of spans at any x.
    """
    left = min(x0 for x0, _ in spans)
    count = int((max(x1 for _, x1 in spans) - left) / _BIN) + 2
    steps = [0] * (count + 1)
    for x0, x1 in spans:
        steps[int((x0 - left) / _BIN)] += 1
        steps[int((x1 - left) / _BIN) + 1] -= 1
    crossings = []  # number of spans at each bin
    total = 0
    for step in steps:
        total += step
        crossings.append(total)
    limit = max_share * (rows or max(crossings))
    middles, begin = [], None
    for i, crossing in enumerate(crossings[:count]):
        if crossing <= limit:
            begin = i if begin is None else begin
            continue
        if begin is not None and begin > 0 and (i - begin) * _BIN >= min_width:
            fewest = min(crossings[begin:i])
            clearest = [k for k in range(begin, i) if crossings[k] == fewest]
            middles.append(left + (clearest[len(clearest) // 2] + 0.5) * _BIN)
        begin = None
    return middles
