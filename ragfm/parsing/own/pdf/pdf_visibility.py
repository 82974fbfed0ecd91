"""Whether words of a PDF are seen: the page is painted, and where a word stands something must be to see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pypdfium2 import PdfPage

    from ragfm.parsing.own.pdf.pdf_page import Word

_SCALE = 2.0  # pixels of a point
_LONGEST = 3_000  # pixels of a side
_CONTRAST = 24  # of 255: grey values that differ by less are one
_OVERLAP = 0.25  # of a word's area: so much of another word upon it is what is seen there


def paint(page: PdfPage, scale: float) -> NDArray[np.uint8]:
    """The page as it is shown, in grey. *Shape:* (height, width)."""
    width, height = page.get_size()
    bitmap = page.render(scale=min(scale, _LONGEST / max(width, height, 1)), grayscale=True)
    try:
        pixels: NDArray[np.uint8] = bitmap.to_numpy().copy()
    finally:
        bitmap.close()
    return pixels.reshape(pixels.shape[0], pixels.shape[1])


def unseen(page: PdfPage, doubtful: Sequence[Word], words: Iterable[Word]) -> set[int]:
    """The ids of the doubtful words that are not seen on the page."""
    pixels = paint(page, _SCALE)
    scale = pixels.shape[1] / max(page.get_size()[0], 1)
    sure = set(map(id, words)).difference(map(id, doubtful))
    others = [word for word in words if id(word) in sure]
    return {id(word) for word in doubtful if not _has_contrast(pixels, word, scale) or _is_upon_another(word, others)}


def _has_contrast(pixels: NDArray[np.uint8], word: Word, scale: float) -> bool:
    margin = 0.15 * (word.bottom - word.top)  # a rule or another line may touch the box
    rows = slice(max(int((word.top + margin) * scale), 0), int((word.bottom - margin) * scale) + 1)
    part = pixels[rows, max(int(word.x0 * scale), 0) : int(word.x1 * scale) + 1]
    return bool(part.size) and int(part.max()) - int(part.min()) >= _CONTRAST


def _is_upon_another(word: Word, others: Iterable[Word]) -> bool:
    area = (word.x1 - word.x0) * (word.bottom - word.top)
    for other in others:
        width = min(word.x1, other.x1) - max(word.x0, other.x0)
        height = min(word.bottom, other.bottom) - max(word.top, other.top)
        if width > 0 and height > 0 and width * height > _OVERLAP * area:
            return True
    return False
