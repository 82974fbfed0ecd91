"""Text in images, recognized by rapidocr, whose models come in its package."""

from __future__ import annotations

import threading
from functools import cache
from importlib.util import find_spec
from statistics import median
from typing import TYPE_CHECKING, Any

from ragfm.parsing import heartbeat
from ragfm.parsing.own.pdf.pdf_types import Word

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OCR_HINT = "Run `pip install -e '.[ocr]'` in ragfm's source folder."
_LOCK = threading.Lock()  # the models process one image at a time
_MIN_SCORE = 0.5  # of 1; text recognized with a lower score is dropped
_LINE_HEIGHT = 1.25  # times the font size
_SAME_SIZE = (0.7, 1.4)  # times the median height: lines within are treated as one font size, whatever their letters


def has_ocr() -> bool:
    """Whether the extra `ocr` is installed."""
    return find_spec("rapidocr") is not None and find_spec("onnxruntime") is not None


def recognize_words(pixels: NDArray[np.uint8], scale: float) -> list[Word]:
    """Return the words in an image. *Shape:* (height, width[, 3]); `scale` is the number of pixels per point."""
    heartbeat.announce("model")
    with _LOCK:
        output = _engine()(pixels)
    heartbeat.beat()
    if output.txts is None or output.boxes is None:
        return []
    lines = []
    for text, score, corners in zip(output.txts, output.scores, output.boxes, strict=True):
        if score >= _MIN_SCORE and text.strip():
            xs, ys = ([float(value) / scale for value in values] for values in zip(*corners, strict=True))
            lines.append((text.split(), min(xs), min(ys), max(xs), max(ys)))
    median_height = median(bottom - top for _, _, top, _, bottom in lines) if lines else 0.0
    words: list[Word] = []
    for texts, x0, top, x1, bottom in lines:
        height = bottom - top
        if _SAME_SIZE[0] * median_height <= height <= _SAME_SIZE[1] * median_height:
            height = median_height
        size = height / _LINE_HEIGHT
        # Only the line has a box; each word's position follows from the number of characters before it.
        character_width = (x1 - x0) / max(len(" ".join(texts)), 1)
        for text in texts:
            words.append(Word(text, x0, top, x0 + character_width * len(text), bottom, size))
            x0 += character_width * (len(text) + 1)
    return words


@cache
def _engine() -> Any:
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "error"})
