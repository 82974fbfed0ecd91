"""Figures of a PDF page: its pictures, which many programs cut into strips. Drawings are part of page images only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragfm.parsing.own.media.picture import recognized_text
from ragfm.parsing.own.pdf.pdf_lines import box_around
from ragfm.parsing.own.pdf.pdf_margins import in_margin
from ragfm.parsing.own.pdf.pdf_page import PageContent
from ragfm.parsing.own.pdf.pdf_types import Box, Figure
from ragfm.parsing.own.pdf.pdf_visibility import render

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

_MIN_SIDE = 36.0  # points of the shorter side of a figure: half an inch
_MIN_SHARE, _MAX_SHARE = 0.01, 0.85  # of the page
_GAP = 8.0  # points between two strips of a picture
_MAX_JOINED = 1.3  # times the areas of two images: the box around parts of one picture
_MAX_TEXT = 0.3  # share of a figure that words cover: more is a background
_MAX_IMAGES = 1_000  # of a page


def read_figures(document: PdfDocument, index: int, content: PageContent) -> list[Figure]:
    """The figures of page `index`, counted from 0, from top to bottom. The caller holds the PDFium lock."""
    width, height = content.width, content.height
    area = max(width * height, 1)
    pictures: list[Box] = []
    for image in content.drawing.images[:_MAX_IMAGES]:
        x0, top = max(image.x0, 0), max(image.top, 0)
        box = Box(x0, top, max(min(image.x1, width), x0), max(min(image.bottom, height), top))
        if not 0 < box.area < _MAX_SHARE * area:
            continue
        while (strip := next((other for other in pictures if _is_strip(box, other)), None)) is not None:
            pictures.remove(strip)
            box = box_around([box, strip])
        pictures.append(box)
    boxes = []
    for box in sorted(pictures, key=lambda box: box.top):
        is_small = min(box.x1 - box.x0, box.bottom - box.top) < _MIN_SIDE or box.area < _MIN_SHARE * area
        words = [word for word in content.words if box.contains(word.center_x, word.center_y)]
        covered = sum((word.x1 - word.x0) * (word.bottom - word.top) for word in words)
        if not (in_margin(box, height) or is_small or box.area > _MAX_SHARE * area or covered > _MAX_TEXT * box.area):
            boxes.append((box, bool(words)))
    if not boxes:
        return []
    page = document[index]
    try:
        images = [render(page, box) for box, _ in boxes]
    finally:
        page.close()
    return [
        Figure(
            box,
            (box.x0 / width, box.top / height, box.x1 / width, box.bottom / height),
            image,
            "" if has_words else recognized_text(image),
        )
        for (box, has_words), image in zip(boxes, images, strict=True)
    ]


def _is_strip(first: Box, second: Box) -> bool:
    """Whether two images are parts of one picture: close to each other, with little else in the box around both."""
    across = first.x0 <= second.x1 + _GAP and second.x0 <= first.x1 + _GAP
    is_close = across and first.top <= second.bottom + _GAP and second.top <= first.bottom + _GAP
    return is_close and box_around([first, second]).area <= _MAX_JOINED * (first.area + second.area)
