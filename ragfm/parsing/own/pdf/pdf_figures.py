"""Figures of a PDF page: the boxes of its pictures and of its drawings, such as charts, found by geometry.

1. Images, curves, diagonal lines and filled areas without words are the seeds. Seeds in a table with rules are dropped.
2. Seeds close to each other are one figure; rules and areas that touch it, such as the axes of a chart, extend it.
3. Short lines of text next to it, such as labels of axes, belong to it.

A background, a logo and a panel of text are not figures: a figure does not cover the page, is not small, and most of it
is not text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

from ragfm.parsing.own.pdf.pdf_drawing import Drawing
from ragfm.parsing.own.pdf.pdf_lines import Line, rows_of, segments
from ragfm.parsing.own.pdf.pdf_numbers import number_tables
from ragfm.parsing.own.pdf.pdf_tables import ruled_tables
from ragfm.parsing.own.pdf.pdf_types import Box, Word

MIN_SIDE = 36.0
"""Points of the shorter side of a figure: half an inch."""
MIN_SHARE, MAX_SHARE = 0.01, 0.85
"""Share of the page that a figure covers, at least and at most."""
_GAP = 8.0  # points between two seeds of a figure
_TOUCH = 3.0  # points between a figure and a rule that extends it
_MAX_TEXT = 0.3  # share of a figure that words cover
_LABEL_CHARACTERS = 24  # of a line of text next to a figure that belongs to it
_LABEL_GAP = 1.2  # times the font size
_LABEL_ROUNDS = 3  # lines of labels on each side
_MAX_SEEDS = 5_000
_MAX_GROWTH = 3.0  # times the width or height: a rule across the page is not part of the one figure that it touches
_TINT = 200  # of 255: areas with lighter colours are a shade behind a text, such as every second row of a table
_MARGIN = 0.12  # share of the page height at the top and the bottom, where logos are
_MIN_TABLE_ROWS = 3


def find_figures(words: Sequence[Word], drawing: Drawing, width: float, height: float) -> list[Box]:
    """The boxes of the figures of a page, from top to bottom; they do not overlap."""
    page = Box(0, 0, width, height)
    limit = MAX_SHARE * width * height
    texts = _array(list(map(_box_of, words)))
    tables = _array([_box_of(table.placeholder) for table in ruled_tables(words, drawing.rules)])
    drawn = [box for box in drawing.shapes[:_MAX_SEEDS] if not _around(tables, *box.center).any()]
    coloured = [box for box, colour in drawing.fills[:_MAX_SEEDS] if min(colour) < _TINT]
    empty = [box for box in coloured if not (_inside(texts, box).any() or _around(tables, *box.center).any())]
    seeds = [_clip(box, page) for box in [*drawing.images, *drawn, *empty]]
    seeds = [box for box in seeds if 0 < _area(box) < limit]
    if not seeds:
        return []
    frames = [*drawing.rules[:_MAX_SEEDS], *(box for box, _ in drawing.fills[:_MAX_SEEDS])]
    frames = [box for box in frames if _area(box) < limit]
    clusters = _merge(_array(seeds), _GAP)
    for _ in range(2):  # the axes, then the grid that touches them
        clusters = _extended(clusters, frames, texts)
    figures = []
    for box in map(_to_box, _merge(clusters, 0)):
        box = _clip(box, page)
        share = _area(box) / max(width * height, 1)
        if min(box.x1 - box.x0, box.bottom - box.top) < MIN_SIDE or not MIN_SHARE <= share <= MAX_SHARE:
            continue
        in_margin = box.bottom < _MARGIN * height or box.top > (1 - _MARGIN) * height
        if not in_margin and _text_share(box, texts) <= _MAX_TEXT and not _is_table(box, words):
            figures.append(_with_labels(box, words))
    found = [_clip(_to_box(box), page) for box in _merge(_array(figures), 0)]
    return sorted(found, key=lambda box: box.top)


def text_in(box: Box, words: Iterable[Word]) -> str:
    """The words in a box, line by line."""
    inside = [word for word in words if box.contains(word.center_x, word.center_y)]
    return "\n".join("  ".join(part.plain for part in segments(row)) for row in rows_of(inside))


def _with_labels(box: Box, words: Sequence[Word]) -> Box:
    """A figure with the short lines of text next to it."""
    size = median(word.size for word in words) if words else 0
    outside = [word for word in words if not box.contains(word.center_x, word.center_y)]
    lines = [part for row in rows_of(outside) for part in segments(row)]
    labels = [Box(line.x0, line.top, line.x1, line.bottom) for line in lines if _is_label(line, size)]
    for _ in range(_LABEL_ROUNDS):
        near = _array(labels)
        near = near[_near(near, box, _LABEL_GAP * size)]
        if (grown := _union(box, near)) == box:
            break
        box = grown
    return box


def _is_label(line: Line, size: float) -> bool:
    """Whether a line may be a label: short, and not a heading."""
    return len(line.plain) <= _LABEL_CHARACTERS and line.size <= 1.1 * size


def _extended(clusters: NDArray[np.float64], frames: Iterable[Box], texts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Figures with the rules and areas that touch them, without any that would add a text. *Shape:* (n, 4)."""
    for frame in frames:
        touches = _near(clusters, frame, _TOUCH)
        count = int(touches.sum())
        if not count:
            continue
        larger, first = _union(frame, clusters[touches]), _to_box(clusters[touches][0])
        wide = larger.x1 - larger.x0 > _MAX_GROWTH * (first.x1 - first.x0)
        high = larger.bottom - larger.top > _MAX_GROWTH * (first.bottom - first.top)
        joins = count > 1 or _union(frame, _array([first])) == frame
        if larger != first and (joins or not (wide or high)) and _text_share(larger, texts) <= _MAX_TEXT:
            clusters = np.vstack([clusters[~touches], [larger]])
    return clusters


def _is_table(box: Box, words: Sequence[Word]) -> bool:
    """Whether most of the rows in a box are those of tables of numbers."""
    rows = rows_of(word for word in words if box.contains(word.center_x, word.center_y))
    numbers = sum(len(table.block.rows) for table in number_tables(rows))
    return numbers >= max(_MIN_TABLE_ROWS, len(rows) / 2)


def _merge(boxes: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Boxes in which all that are closer than `gap` to each other are one. *Shape:* (n, 4) -> (m, 4)."""
    while True:
        clusters: list[Box] = []
        rest = boxes
        while len(rest):
            box, rest = _to_box(rest[0]), rest[1:]
            while (near := _near(rest, box, gap)).any():
                box, rest = _union(box, rest[near]), rest[~near]
            clusters.append(box)
        if len(clusters) == len(boxes):
            return boxes
        boxes = _array(clusters)  # one that has grown may be close to an earlier one


def _array(boxes: Sequence[Box]) -> NDArray[np.float64]:
    """Boxes as rows. *Shape:* (n, 4)."""
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _to_box(row: NDArray[np.float64]) -> Box:
    return Box(*row.tolist())


def _near(boxes: NDArray[np.float64], box: Box, gap: float) -> NDArray[np.bool_]:
    x0, top, x1, bottom = boxes.T
    across = (x0 <= box.x1 + gap) & (x1 >= box.x0 - gap)
    near: NDArray[np.bool_] = across & (top <= box.bottom + gap) & (bottom >= box.top - gap)
    return near


def _around(boxes: NDArray[np.float64], x: float, y: float) -> NDArray[np.bool_]:
    """Which boxes contain a point."""
    return _near(boxes, Box(x, y, x, y), 0)


def _inside(boxes: NDArray[np.float64], box: Box) -> NDArray[np.bool_]:
    """Which boxes have their centre in another one."""
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    inside: NDArray[np.bool_] = (box.x0 <= x) & (x <= box.x1) & (box.top <= y) & (y <= box.bottom)
    return inside


def _text_share(box: Box, texts: NDArray[np.float64]) -> float:
    """The share of a box that words cover."""
    inside = texts[_inside(texts, box)]
    low = np.maximum(inside[:, :2], (box.x0, box.top))
    high = np.minimum(inside[:, 2:], (box.x1, box.bottom))
    return float(np.prod(np.maximum(high - low, 0), axis=1).sum()) / max(_area(box), 1)


def _union(box: Box, others: NDArray[np.float64]) -> Box:
    """The smallest box around a box and others."""
    both = np.vstack([_array([box]), others])
    return Box(*both[:, :2].min(axis=0).tolist(), *both[:, 2:].max(axis=0).tolist())


def _clip(box: Box, page: Box) -> Box:
    x0, top = max(box.x0, page.x0), max(box.top, page.top)
    return Box(x0, top, max(min(box.x1, page.x1), x0), max(min(box.bottom, page.bottom), top))


def _area(box: Box) -> float:
    return (box.x1 - box.x0) * (box.bottom - box.top)


def _box_of(word: Word) -> Box:
    return Box(word.x0, word.top, word.x1, word.bottom)
