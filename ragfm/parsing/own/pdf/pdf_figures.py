"""Figures of a PDF page: the boxes of its pictures and of its drawings, such as charts, found by geometry.

1. Images, curves, diagonal lines and filled areas without words are the seeds. Seeds in a table with rules are dropped.
2. Seeds close to each other are one figure; rules and areas that touch it, such as the axes of a chart, extend it.
3. Short lines of text next to it, such as labels of axes, belong to it.

No step takes in a paragraph or a table on which nothing is drawn. A background, a logo and a panel of text are not
figures: a figure does not cover the page, is not small, and most of it is not text.

Figures leave the text of a page as it is without them. A figure has labels, in the place and the order in which they
are read, and its caption.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ragfm.parsing.own.media.picture import recognized_text
from ragfm.parsing.own.pdf.pdf_layout import read_layout
from ragfm.parsing.own.pdf.pdf_lines import Block, Line, rows_of, segments
from ragfm.parsing.own.pdf.pdf_numbers import number_tables
from ragfm.parsing.own.pdf.pdf_page import PageContent
from ragfm.parsing.own.pdf.pdf_tables import ruled_tables
from ragfm.parsing.own.pdf.pdf_types import Box, Figure, Word
from ragfm.parsing.own.pdf.pdf_visibility import render

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

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
_MAX_DRAWN = 0.1  # share of a paragraph or table on which something may be drawn, such as icons
_MAX_SEEDS = 5_000
_MAX_GROWTH = 3.0  # times the width or height: a rule across the page is not part of the one figure that it touches
_TINT = 200  # of 255: areas with lighter colours are a shade behind a text, such as every second row of a table
_MARGIN = 0.12  # share of the page height at the top and the bottom, where logos are
_MIN_TABLE_ROWS = 3


def read_figures(document: PdfDocument, index: int, content: PageContent) -> list[Figure]:
    """The figures of page `index`, counted from 0, from top to bottom. The caller holds the PDFium lock."""
    boxes = find_figures(content)
    if not boxes:
        return []
    figures = []
    page = document[index]
    try:
        for box in boxes:
            image, text = render(page, box), ""
            has_words = any(box.contains(word.center_x, word.center_y) for word in content.words)
            if not has_words and any(box.contains(*inner.center) for inner in content.drawing.images):
                text = recognized_text(image)
            width, height = content.width, content.height
            place = (box.x0 / width, box.top / height, box.x1 / width, box.bottom / height)
            figures.append(Figure(box, place, image, text))
    finally:
        page.close()
    return figures


def place_figures(blocks: Sequence[Block], figures: Sequence[Figure], labels: Sequence[bool]) -> list[tuple[int, int]]:
    """Where the figures of a page stand among its blocks: the start and the end of the labels of each.

    `labels` says which blocks may be labels of a figure. Those within its box that follow each other are its own. A
    figure without any stands where the range is empty: behind the last block above it, or before the first below it.
    """
    places: list[tuple[int, int]] = []
    for figure in figures:
        box = figure.box
        inside = [at for at, block in enumerate(blocks) if labels[at] and box.contains(block.box.x0, block.box.top)]
        inside = [at for at in inside if box.contains(blocks[at].box.x1, blocks[at].box.bottom)]
        inside = [at for at in inside if not any(start <= at < end for start, end in places)]
        runs = [[at for _, at in run] for _, run in groupby(enumerate(inside), lambda one: one[1] - one[0])]
        if runs:
            longest = max(runs, key=len)
            places.append((longest[0], longest[-1] + 1))
            continue
        column = [at for at, block in enumerate(blocks) if block.box.x0 < box.x1 and block.box.x1 > box.x0]
        above = [at + 1 for at in column if blocks[at].box.center[1] < box.center[1]]
        below = [at for at in column if blocks[at].box.center[1] >= box.center[1]]
        at = max(above, default=min(below, default=len(blocks)))
        places.append((at, at))
    return places


def find_figures(content: PageContent) -> list[Box]:
    """The boxes of the figures of a page, from top to bottom."""
    words, drawing, width, height = content.words, content.drawing, content.width, content.height
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
    around = _texts_around(read_layout(content), _array(seeds))
    frames = [*drawing.rules[:_MAX_SEEDS], *(box for box, _ in drawing.fills[:_MAX_SEEDS])]
    frames = [box for box in frames if _area(box) < limit]
    clusters = _merge(_array(seeds), _GAP, around)
    for _ in range(2):  # the axes, then the grid that touches them
        clusters = _extended(clusters, frames, texts, around)
    figures = []
    for box in map(_to_box, _merge(clusters, 0, around)):
        box = _clip(box, page)
        share = _area(box) / max(width * height, 1)
        if min(box.x1 - box.x0, box.bottom - box.top) < MIN_SIDE or not MIN_SHARE <= share <= MAX_SHARE:
            continue
        in_margin = box.bottom < _MARGIN * height or box.top > (1 - _MARGIN) * height
        if not in_margin and _text_share(box, texts) <= _MAX_TEXT and not _is_table(box, words):
            figures.append(_with_labels(box, words, around))
    found = [_clip(_to_box(box), page) for box in _merge(_array(figures), 0, around)]
    return sorted(found, key=lambda box: box.top)


def is_label(block: Block) -> bool:
    """Whether a block of text may be a label: its lines are short."""
    return not block.rows and len(block.text) <= _LABEL_CHARACTERS * block.lines


def _texts_around(blocks: Sequence[Block], seeds: NDArray[np.float64]) -> NDArray[np.float64]:
    """The boxes of paragraphs and tables on which hardly anything is drawn. *Shape:* (n, 4)."""
    boxes = [block.box for block in blocks if not is_label(block) and _area(block.box)]
    return _array([box for box in boxes if _covered(box, seeds) < _MAX_DRAWN])


def _with_labels(box: Box, words: Sequence[Word], around: NDArray[np.float64]) -> Box:
    """A figure with the short lines of text next to it."""
    size = median(word.size for word in words) if words else 0
    outside = [word for word in words if not box.contains(word.center_x, word.center_y)]
    lines = [part for row in rows_of(outside) for part in segments(row)]
    labels = _array([Box(line.x0, line.top, line.x1, line.bottom) for line in lines if _is_label(line, size)])
    for _ in range(_LABEL_ROUNDS):
        grown = box
        for label in labels[_near(labels, box, _LABEL_GAP * size)]:
            larger = _union(grown, label[np.newaxis])
            grown = grown if _takes_text(larger, around) else larger
        if grown == box:
            break
        box = grown
    return box


def _is_label(line: Line, size: float) -> bool:
    """Whether a line may be a label: short, and not a heading."""
    return len(line.plain) <= _LABEL_CHARACTERS and line.size <= 1.1 * size


def _extended(
    clusters: NDArray[np.float64], frames: Iterable[Box], texts: NDArray[np.float64], around: NDArray[np.float64]
) -> NDArray[np.float64]:
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
        allowed = (joins or not (wide or high)) and not _takes_text(larger, around)
        if larger != first and allowed and _text_share(larger, texts) <= _MAX_TEXT:
            clusters = np.vstack([clusters[~touches], [larger]])
    return clusters


def _is_table(box: Box, words: Sequence[Word]) -> bool:
    """Whether most of the rows in a box are those of tables of numbers."""
    rows = rows_of(word for word in words if box.contains(word.center_x, word.center_y))
    numbers = sum(len(table.block.rows) for table in number_tables(rows))
    return numbers >= max(_MIN_TABLE_ROWS, len(rows) / 2)


def _merge(boxes: NDArray[np.float64], gap: float, around: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes in which all that are closer than `gap` to each other are one, unless that takes in a text around.

    *Shape:* (n, 4) -> (m, 4).
    """
    while True:
        clusters: list[Box] = []
        rest = boxes
        while len(rest):
            box, rest = _to_box(rest[0]), rest[1:]
            while (near := _near(rest, box, gap)).any():
                if _takes_text(_union(box, rest[near]), around):  # at least one of them does: join another one
                    at = next((i for i in near.nonzero()[0] if not _takes_text(_union(box, rest[[i]]), around)), None)
                    if at is None:
                        break
                    near = np.arange(len(rest)) == at
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


def _takes_text(box: Box, around: NDArray[np.float64]) -> bool:
    """Whether a box overlaps a text around the figures."""
    return bool(_near(around, box, -_TOUCH).any())


def _covered(box: Box, others: NDArray[np.float64]) -> float:
    """The sum of the shares of a box that others cover."""
    low = np.maximum(others[:, :2], (box.x0, box.top))
    high = np.minimum(others[:, 2:], (box.x1, box.bottom))
    return float(np.prod(np.maximum(high - low, 0), axis=1).sum()) / max(_area(box), 1)


def _text_share(box: Box, texts: NDArray[np.float64]) -> float:
    """The share of a box that words cover."""
    return _covered(box, texts[_inside(texts, box)])


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
