"""Text of pictures, by rapidocr, whose models come with its package."""

from __future__ import annotations

import threading
from functools import cache
from importlib.util import find_spec
from statistics import median
from typing import TYPE_CHECKING, Any

from ragfm.parsing import heartbeat
from ragfm.parsing.own.pdf.pdf_page import Word

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HINT = "Run `pip install 'ragfm[ocr]'` to have it read."
_LOCK = threading.Lock()  # the models are run for one picture at a time
_SURE = 0.5  # of 1: what is recognised with less is left out
_LINE = 1.25  # times the size of its type, a line's height
_ONE_SIZE = (0.7, 1.4)  # of the usual height: lines within are of one size, whatever their letters are


def has_ocr() -> bool:
    """Whether the extra `ocr` is installed."""
    return find_spec("rapidocr") is not None and find_spec("onnxruntime") is not None


def read_words(pixels: NDArray[np.uint8], scale: float) -> list[Word]:
    """The words of a picture; `scale` is the number of its pixels in a point. *Shape:* (height, width[, 3])."""
    heartbeat.running_model()
    with _LOCK:
        found = _engine()(pixels)
    heartbeat.step()
    if found.txts is None or found.boxes is None:
        return []
    lines = []
    for text, score, corners in zip(found.txts, found.scores, found.boxes, strict=True):
        if score >= _SURE and text.strip():
            xs, ys = ([float(value) / scale for value in values] for values in zip(*corners, strict=True))
            lines.append((text.split(), min(xs), min(ys), max(xs), max(ys)))
    usual = median(bottom - top for _, _, top, _, bottom in lines) if lines else 0.0
    words: list[Word] = []
    for texts, x0, top, x1, bottom in lines:
        height = bottom - top
        size = (usual if _ONE_SIZE[0] * usual <= height <= _ONE_SIZE[1] * usual else height) / _LINE
        step = (x1 - x0) / max(len(" ".join(texts)), 1)
        for text in texts:  # where a word stands within its line is told by the letters before it
            words.append(Word(text, x0, top, x0 + step * len(text), bottom, size))
            x0 += step * (len(text) + 1)
    return words


@cache
def _engine() -> Any:
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "error"})
