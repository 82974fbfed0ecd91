"""Whether words of a PDF are visible: the page is rasterized, and a visible word has contrast in its box."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pypdfium2.raw as pdfium

from ragfm.parsing.figures import MAX_SIDE, encoded
from ragfm.parsing.own.pdf.pdf_types import Box, Word

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pypdfium2 import PdfPage

_SCALE = 2.0  # pixels per point
_FIGURE_SCALE = 2.5  # pixels per point: 180 dpi
_MAX_SIDE = 3_000  # pixels
_MIN_CONTRAST = 24  # of 255: grey values that differ by less look the same
_MAX_OVERLAP = 0.25  # share of a word's area; where another word covers more, the other word is what is visible


def rasterize(page: PdfPage, scale: float) -> NDArray[np.uint8]:
    """The page as it is displayed, in grey, with `scale` pixels per point. *Shape:* (height, width)."""
    width, height = page.get_size()
    bitmap = page.render(scale=min(scale, _MAX_SIDE / max(width, height, 1)), grayscale=True)
    try:
        pixels: NDArray[np.uint8] = bitmap.to_numpy().copy()
    finally:
        bitmap.close()
    return pixels.reshape(pixels.shape[0], pixels.shape[1])


def render(page: PdfPage, box: Box) -> bytes:
    """A part of the page as it is displayed, in colour, as an image that is kept as a figure."""
    width, height = page.get_size()
    scale = min(_FIGURE_SCALE, MAX_SIDE / max(box.x1 - box.x0, box.bottom - box.top, 1))
    bitmap = page.render(scale=scale, crop=(box.x0, height - box.bottom, width - box.x1, box.top))
    try:
        return encoded(bitmap.to_pil())
    finally:
        bitmap.close()


def find_invisible(page: PdfPage, suspects: Sequence[Word], words: Iterable[Word]) -> set[int]:
    """Return the `id` of each suspect word that is not visible; `words` are all words of the page."""
    pixels = rasterize(page, _SCALE)
    scale = pixels.shape[1] / max(page.get_size()[0], 1)
    suspect_ids = set(map(id, suspects))
    visible = [word for word in words if id(word) not in suspect_ids]
    invisible: set[int] = set()
    for word in suspects:
        margin = 0.15 * (word.bottom - word.top)  # a rule or another line may touch the box
        rows = slice(max(int((word.top + margin) * scale), 0), int((word.bottom - margin) * scale) + 1)
        part = pixels[rows, max(int(word.x0 * scale), 0) : int(word.x1 * scale) + 1]
        if not part.size or int(part.max()) - int(part.min()) < _MIN_CONTRAST:
            invisible.add(id(word))
            continue
        area = (word.x1 - word.x0) * (word.bottom - word.top)
        for other in visible:
            width = min(word.x1, other.x1) - max(word.x0, other.x0)
            height = min(word.bottom, other.bottom) - max(word.top, other.top)
            if width > 0 and height > 0 and width * height > _MAX_OVERLAP * area:
                invisible.add(id(word))
                break
    return invisible


def find_switched_off(page: PdfPage, layers: Mapping[str, Sequence[Any]], words: Mapping[str, list[Word]]) -> set[int]:
    """Return the `id` of each word of a layer without which the page looks the same in the word's box.

    `layers` has the text objects of each layer, `words` the words whose visibility depends on it.
    """
    pixels = rasterize(page, _SCALE)
    scale = pixels.shape[1] / max(page.get_size()[0], 1)
    invisible: set[int] = set()
    for name, layer_words in words.items():
        for item in layers[name]:
            pdfium.FPDFPageObj_SetIsActive(item, False)
        without = rasterize(page, _SCALE)
        for item in layers[name]:
            pdfium.FPDFPageObj_SetIsActive(item, True)
        for word in layer_words:
            rows = slice(max(int(word.top * scale), 0), int(word.bottom * scale) + 1)
            columns = slice(max(int(word.x0 * scale), 0), int(word.x1 * scale) + 1)
            if (pixels[rows, columns] == without[rows, columns]).all():
                invisible.add(id(word))
    return invisible
