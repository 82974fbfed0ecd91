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
    tables = [_box_of(table.placeholder) for table in ruled_tables(words, drawing.rules)]
    drawn = [box for box in drawing.shapes if not _in_any(box, tables)]
    coloured = [box for box, colour in drawing.fills if min(colour) < _TINT]
    empty = [box for box in coloured if not _in_any(box, tables) and not any(box.contains(*_center(w)) for w in words)]
    seeds = [box for box in (_clip(box, page) for box in [*drawing.images, *drawn, *empty]) if _area(box)]
    seeds = [box for box in seeds if _area(box) < MAX_SHARE * _area(page)][:_MAX_SEEDS]
    if not seeds:
        return []
    clusters = _merge(seeds, _GAP)
    frames = [*drawing.rules, *(box for box, _ in drawing.fills)]
    frames = [box for box in frames if _area(box) < MAX_SHARE * _area(page)][:_MAX_SEEDS]
    for _ in range(2):  # the axes, then the grid that touches them
        clusters = _extended(clusters, frames, words)
    figures = []
    for box in _merge(clusters, 0):
        box = _clip(box, page)
        share = _area(box) / max(_area(page), 1)
        if min(box.x1 - box.x0, box.bottom - box.top) < MIN_SIDE or not MIN_SHARE <= share <= MAX_SHARE:
            continue
        if box.bottom < _MARGIN * height or box.top > (1 - _MARGIN) * height or _is_text(box, words):
            continue
        figures.append(_with_labels(box, words))
    return sorted((_clip(box, page) for box in _merge(figures, 0)), key=lambda box: box.top)


def text_in(box: Box, words: Iterable[Word]) -> str:
    """The words in a box, line by line."""
    inside = [word for word in words if box.contains(*_center(word))]
    return "\n".join("  ".join(part.plain for part in segments(row)) for row in rows_of(inside))


def _with_labels(box: Box, words: Sequence[Word]) -> Box:
    """A figure with the short lines of text next to it."""
    size = median(word.size for word in words) if words else 0
    outside = [word for word in words if not box.contains(*_center(word))]
    lines = [part for row in rows_of(outside) for part in segments(row)]
    labels = [Box(line.x0, line.top, line.x1, line.bottom) for line in lines if _is_label(line, size)]
    for _ in range(_LABEL_ROUNDS):
        grown = box
        for label in labels:
            if _near(box, label, _LABEL_GAP * size):
                grown = _union(grown, label)
        if grown == box:
            break
        box = grown
    return box


def _is_label(line: Line, size: float) -> bool:
    """Whether a line may be a label: short, and not a heading."""
    return len(line.plain) <= _LABEL_CHARACTERS and line.size <= 1.1 * size


def _extended(clusters: Sequence[Box], frames: Iterable[Box], words: Sequence[Word]) -> list[Box]:
    """Figures with the rules and areas that touch them, without any that would add a text."""
    found = list(clusters)
    for frame in frames:
        touching = [box for box in found if _near(box, frame, _TOUCH)]
        larger = frame
        for box in touching:
            larger = _union(larger, box)
        if not touching or larger in touching:
            continue
        box = touching[0]
        wide = larger.x1 - larger.x0 > _MAX_GROWTH * (box.x1 - box.x0)
        high = larger.bottom - larger.top > _MAX_GROWTH * (box.bottom - box.top)
        joins = len(touching) > 1 or _contains(frame, box)
        if (joins or not (wide or high)) and _text_share(larger, words) <= _MAX_TEXT:
            found = [*(box for box in found if box not in touching), larger]
    return found


def _is_text(box: Box, words: Sequence[Word]) -> bool:
    """Whether most of what is in a box is a text or a table of numbers."""
    rows = rows_of(word for word in words if box.contains(*_center(word)))
    numbers = sum(len(table.block.rows) for table in number_tables(rows))
    return numbers >= max(_MIN_TABLE_ROWS, len(rows) / 2) or _text_share(box, words) > _MAX_TEXT


def _text_share(box: Box, words: Iterable[Word]) -> float:
    """The share of a box that words cover."""
    covered = sum(_area(_clip(_box_of(word), box)) for word in words if box.contains(*_center(word)))
    return covered / max(_area(box), 1)


def _merge(boxes: Iterable[Box], gap: float) -> list[Box]:
    """Boxes in which all that are closer than `gap` to each other are one."""
    clusters: list[Box] = []
    for box in boxes:
        merged = True
        while merged:
            merged = False
            for at, other in enumerate(clusters):
                if _near(box, other, gap):
                    box, merged = _union(box, clusters.pop(at)), True
                    break
        clusters.append(box)
    return clusters


def _near(one: Box, other: Box, gap: float) -> bool:
    across = one.x0 - gap <= other.x1 and other.x0 - gap <= one.x1
    return across and one.top - gap <= other.bottom and other.top - gap <= one.bottom


def _contains(box: Box, inner: Box) -> bool:
    return box.x0 <= inner.x0 and box.top <= inner.top and inner.x1 <= box.x1 and inner.bottom <= box.bottom


def _union(one: Box, other: Box) -> Box:
    x0, top = min(one.x0, other.x0), min(one.top, other.top)
    return Box(x0, top, max(one.x1, other.x1), max(one.bottom, other.bottom))


def _clip(box: Box, page: Box) -> Box:
    x0, top = max(box.x0, page.x0), max(box.top, page.top)
    return Box(x0, top, max(min(box.x1, page.x1), x0), max(min(box.bottom, page.bottom), top))


def _area(box: Box) -> float:
    return (box.x1 - box.x0) * (box.bottom - box.top)


def _box_of(word: Word) -> Box:
    return Box(word.x0, word.top, word.x1, word.bottom)


def _center(word: Word) -> tuple[float, float]:
    return word.center_x, word.center_y


def _in_any(box: Box, others: Sequence[Box]) -> bool:
    return any(other.contains(*box.center) for other in others)
