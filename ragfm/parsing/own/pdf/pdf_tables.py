"""Tables of a PDF's page: those that rules make, and those whose cells only stand below each other."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

from ragfm.parsing.own.pdf.pdf_drawing import Box
from ragfm.parsing.own.pdf.pdf_lines import Block, Line, line_of, rows_of
from ragfm.parsing.own.pdf.pdf_page import HYPHEN, Word

_NEAR = 3.0  # points: rules so near to each other meet
_MAX_RULES = 3_000
_FULL = 0.4  # of the cells that must have text
_EVEN = 0.7  # of the cells of a row within rules must have text on each line, to make these rows
_SHORT = 25  # characters of a cell's line on average, to make these rows
_LONG = 250  # characters of a cell on average: such a thing is no table
_CLOSE = 0.25  # of the size: what stands closer below a cell is its second line
_BIN = 2.0  # points
_MAX_CELL = 45  # characters of a cell on average, without rules
_FAR = 2.2  # of the line's height: rows that are farther apart are not of one table
_MARKER = re.compile(r"(?:\W|\(?\w{1,3}[.)])$")


# --- Tables within rules -----------------------------------------------------------------------------------------


def ruled_tables(words: list[Word], rules: Sequence[Box]) -> tuple[list[tuple[Word, Block]], list[Word]]:
    """The tables, each with a word that stands for its place, and the words outside of them."""
    found: list[tuple[Word, Block]] = []
    if not 4 <= len(rules) <= _MAX_RULES:
        return found, words
    for grid in _grids(rules):
        inside = [word for word in words if grid.holds(word)]
        rows = grid.rows(inside)
        cells = [cell for row in rows for cell in row]
        filled = sum(map(bool, cells))
        if len(rows) < 2 or len(rows[0]) < 2 or filled < max(_FULL * len(cells), 3):
            continue
        if sum(map(len, cells)) > _LONG * filled:  # a frame around columns of text
            continue
        taken = set(map(id, inside))
        words = [word for word in words if id(word) not in taken]
        place = Word("\ufffc", grid.xs[0], grid.ys[0], grid.xs[-1], grid.ys[-1], 1)
        found.append((place, Block("", grid.ys[0], rows=rows)))
    return found, words


class _Grid:
    """A table's rules: where columns and rows part, and which cells have none between them."""

    def __init__(self, across: Sequence[Box], down: Sequence[Box]) -> None:
        self._across, self._down = across, down
        # Many a table is open at its sides: there it ends where the rules end.
        rules = [*across, *down]
        ends = (min(rule.x0 for rule in rules), max(rule.x1 for rule in rules))
        self.xs = _places([*((rule.x0 + rule.x1) / 2 for rule in down), *ends])
        ends = (min(rule.top for rule in rules), max(rule.bottom for rule in rules))
        self.ys = _places([*((rule.top + rule.bottom) / 2 for rule in across), *ends])

    def holds(self, word: Word) -> bool:
        x = (word.x0 + word.x1) / 2
        return self.xs[0] <= x <= self.xs[-1] and self.ys[0] <= word.middle <= self.ys[-1]

    def rows(self, words: Sequence[Word]) -> list[list[str]]:
        """The cells' texts; a cell over several columns or rows has its text in the first of them."""
        height, width = len(self.ys) - 1, len(self.xs) - 1
        owner = self._owners(height, width)
        cells: dict[tuple[int, int], list[Word]] = {}
        for word in words:
            row = min(bisect_right(self.ys, word.middle) - 1, height - 1)
            column = min(bisect_right(self.xs, (word.x0 + word.x1) / 2) - 1, width - 1)
            cells.setdefault(owner[row][column], []).append(word)
        rows = []
        for i in range(height):
            rows += _lines_of_row([cells.get((i, j), []) for j in range(width)])
        rows = [row for row in rows if any(row)]
        used = [j for j in range(width) if any(row[j] for row in rows)]
        return [[row[j] for j in used] for row in rows]

    def _owners(self, height: int, width: int) -> list[list[tuple[int, int]]]:
        """For each place the cell that it belongs to."""
        owner = [[(i, j) for j in range(width)] for i in range(height)]
        for i, (top, bottom) in enumerate(pairwise(self.ys)):
            for j, (left, right) in enumerate(pairwise(self.xs)):
                x, y = (left + right) / 2, (top + bottom) / 2
                if j and not any(
                    abs(rule.x0 - left) < _NEAR and rule.top - 1 <= y <= rule.bottom + 1 for rule in self._down
                ):
                    owner[i][j] = owner[i][j - 1]
                elif i and not any(
                    abs(rule.top - top) < _NEAR and rule.x0 - 1 <= x <= rule.x1 + 1 for rule in self._across
                ):
                    owner[i][j] = owner[i - 1][j]
        return owner


def _lines_of_row(cells: Sequence[Sequence[Word]]) -> list[list[str]]:
    """A row within rules; as rows of their own its lines, where most cells have text on each of them."""
    lines = rows_of([word for cell in cells for word in cell])
    filled = sum(map(bool, cells))
    if len(lines) >= 3 and filled >= 2:
        column = {id(word): j for j, cell in enumerate(cells) for word in cell}
        split: list[list[list[Word]]] = []
        for line in lines:
            split.append([[] for _ in cells])
            for word in line:
                split[-1][column[id(word)]].append(word)
        rows = [[cell_text(cell) for cell in row] for row in split]
        texts = [text for row in rows for text in row if text]
        if len(texts) >= _EVEN * filled * len(lines) and sum(map(len, texts)) <= _SHORT * len(texts):
            return rows
    return [[cell_text(cell) for cell in cells]]


def _grids(rules: Sequence[Box]) -> list[_Grid]:
    """Rules that meet, as grids of at least two columns and two rows."""
    across = [rule for rule in rules if rule.x1 - rule.x0 >= rule.bottom - rule.top and rule.x1 - rule.x0 > 6]
    down = [rule for rule in rules if rule.x1 - rule.x0 < rule.bottom - rule.top and rule.bottom - rule.top > 4]
    grids = []
    across, down = _joined(across), _turned(_joined(_turned(down)))
    for group in _groups(across, down):
        level = [rule for rule in group if rule.x1 - rule.x0 >= rule.bottom - rule.top]
        grid = _Grid(level, [rule for rule in group if rule.x1 - rule.x0 < rule.bottom - rule.top])
        if len(grid.xs) >= 3 and len(grid.ys) >= 3 and len(grid.xs) * len(grid.ys) < 10_000:
            grids.append(grid)
    return grids


def _joined(rules: Sequence[Box]) -> list[Box]:
    """Level rules on one height that touch each other as one: many programs draw one side of a cell at a time."""
    joined: list[Box] = []
    for rule in sorted(rules, key=lambda rule: (round(rule.top), rule.x0)):
        last = joined[-1] if joined else None
        if last is not None and abs(last.top - rule.top) < 1 and rule.x0 <= last.x1 + _NEAR:
            joined[-1] = Box(last.x0, last.top, max(last.x1, rule.x1), max(last.bottom, rule.bottom))
        else:
            joined.append(rule)
    return joined


def _turned(rules: Sequence[Box]) -> list[Box]:
    """Level rules for upright ones, and back."""
    return [Box(rule.top, rule.x0, rule.bottom, rule.x1) for rule in rules]


def _groups(across: Sequence[Box], down: Sequence[Box]) -> list[list[Box]]:
    """Rules that are connected by crossing or touching each other."""
    across, down = list(dict.fromkeys(across)), list(dict.fromkeys(down))
    rules = [*across, *down]
    parent = list(range(len(rules)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, flat in enumerate(across):
        for j, upright in enumerate(down, len(across)):
            if (
                flat.x0 - _NEAR <= upright.x0 <= flat.x1 + _NEAR
                and upright.top - _NEAR <= flat.top <= upright.bottom + _NEAR
            ):
                parent[root(i)] = root(j)
    groups: dict[int, list[Box]] = {}
    for i, rule in enumerate(rules):
        groups.setdefault(root(i), []).append(rule)
    return [group for group in groups.values() if len(group) >= 4]


def _places(values: Sequence[float]) -> list[float]:
    """The values in order, those that are near to each other as one."""
    places: list[float] = []
    for value in sorted(values):
        if not places or value - places[-1] > _NEAR:
            places.append(value)
    return places


def cell_text(words: Sequence[Word]) -> str:
    """A cell's lines as one."""
    text = ""
    for row in rows_of(words):
        line = line_of(row)
        if text.endswith(HYPHEN) and line.words[0].text[:1].islower():
            text = text[:-1] + line.text
        else:
            text = f"{text} {line.text}" if text else line.text
    return text.replace(HYPHEN, "-")


# --- Tables without rules ----------------------------------------------------------------------------------------


def aligned_tables(rows: Sequence[list[Line]]) -> Iterator[list[Line] | Block]:
    """The rows, with those of a table as one block."""
    start = 0
    while start < len(rows):
        end = _run(rows, start)
        table = _table(rows[start:end]) if end - start >= 2 else None
        if table is not None:
            yield table
            start = end
        else:
            yield rows[start]
            start += 1


def _run(rows: Sequence[list[Line]], start: int) -> int:
    """Where the rows end that might be a table from `start` on; a row of one cell may stand between others."""
    if len(rows[start]) < 2:
        return start
    end = start + 1
    alone = 0
    for i in range(start + 1, len(rows)):
        height = rows[i][0].bottom - rows[i][0].top
        if min(line.top for line in rows[i]) - max(line.bottom for line in rows[i - 1]) > _FAR * height:
            break
        if len(rows[i]) >= 2:
            end, alone = i + 1, 0
        else:
            alone += 1
            if alone > 2:
                break
    while end < len(rows) and len(rows[end]) == 1 and _is_second_line(rows[end][0], rows[end - 1]):
        end += 1
    return end


def _is_second_line(line: Line, above: Sequence[Line]) -> bool:
    """Whether a line goes on with the last cells of the row above."""
    close = line.top - max(cell.bottom for cell in above) < _CLOSE * line.size
    return close and any(abs(line.x0 - cell.x0) < line.size for cell in above[1:] or above)


def _table(rows: Sequence[list[Line]]) -> Block | None:
    many = [row for row in rows if len(row) >= 2]
    if len(many) < 0.5 * len(rows) or len(many) < 2:
        return None
    lines = [line for row in many for line in row]
    spare = 1 / len(many) if len(many) >= 4 else 0
    cuts = gutters(lines, max(spare, 0.1), 2 * _BIN, rows=len(many))
    width = len(cuts) + 1
    if width < 2 or (width == 2 and len(many) < 3):
        return None
    table: list[list[list[Line]]] = []
    bottom = 0.0
    for row in rows:
        cells: list[list[Line]] = [[] for _ in range(width)]
        for line in row:
            if sum(line.x0 < cut < line.x1 for cut in cuts) > 1 and len(row) == 1:
                return None  # a line of text runs through
            cells[bisect_right(cuts, (line.x0 + line.x1) / 2)].append(line)
        # What stands close below, without a first cell, are second lines of cells.
        close = min(line.top for line in row) - bottom < _CLOSE * row[0].size
        if table and not cells[0] and close and sum(map(bool, cells)) <= width / 2:
            for before, more in zip(table[-1], cells, strict=True):
                before += more
        else:
            table.append(cells)
        bottom = max(line.bottom for line in row)
    texts = [[" ".join(line.text for line in cell).replace(HYPHEN, "-") for cell in cells] for cells in table]
    return Block("", rows[0][0].top, rows=texts) if _is_table(texts) else None


def _is_table(texts: Sequence[Sequence[str]]) -> bool:
    cells = [cell for row in texts for cell in row]
    filled = [cell for cell in cells if cell]
    if len(texts) < 2 or len(filled) < 0.5 * len(cells):
        return False
    if all(_MARKER.match(row[0]) for row in texts if row[0]):  # a list whose marks stand apart
        return False
    return sum(map(len, filled)) <= _MAX_CELL * len(filled)


def gutters(lines: Sequence[Line], share: float, least: float, rows: int = 0) -> list[float]:
    """Middles of the upright stretches that few lines cross; `share` is of what most places are crossed by."""
    left = min(line.x0 for line in lines)
    count = int((max(line.x1 for line in lines) - left) / _BIN) + 2
    steps = [0] * (count + 1)
    for line in lines:
        steps[int((line.x0 - left) / _BIN)] += 1
        steps[int((line.x1 - left) / _BIN) + 1] -= 1
    covered = []
    total = 0
    for step in steps:
        total += step
        covered.append(total)
    limit = share * (rows or max(covered))
    found, begin = [], None
    for i, lines_here in enumerate(covered[:count]):
        if lines_here <= limit:
            begin = i if begin is None else begin
            continue
        if begin is not None and begin > 0 and (i - begin) * _BIN >= least:
            least_crossed = min(covered[begin:i])
            clear = [k for k in range(begin, i) if covered[k] == least_crossed]
            found.append(left + (clear[len(clear) // 2] + 0.5) * _BIN)
        begin = None
    return found
