"""Pictures in documents: added as figures, with the text that OCR recognizes in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ragfm.parsing.figures import DAMAGE, kept_image, open_image
from ragfm.parsing.own.media.ocr import has_ocr, recognize_words
from ragfm.parsing.own.pdf.pdf_lines import rows_of

if TYPE_CHECKING:
    from ragfm.core.types import Box
    from ragfm.parsing.rendering import MarkdownBuilder

_MIN_LETTERS = 3  # of recognized text; fewer are shapes that resemble letters


def add_picture(
    builder: MarkdownBuilder, data: bytes | None, texts: Sequence[str], name: str, box: Box | None = None
) -> bool:
    """Add an image file as a figure with its caption and alt text, and the text in it.

    Returns False, and adds nothing, if there is no such file, if its format is unknown, and if it is too small.
    """
    kept = kept_image(data) if data else None
    if kept is None:
        return False
    if not builder.has_figure(kept):
        builder.add_figure(kept, [*texts, recognized_text(kept)], name, box)
    return True


def recognized_text(image: bytes) -> str:
    """The text in an image, line by line; empty without the extra `ocr`."""
    if not has_ocr():
        return ""
    import numpy as np

    try:
        words = recognize_words(np.asarray(open_image(image).convert("RGB")), 1)
    except DAMAGE:
        return ""
    text = "\n".join(" ".join(word.text for word in sorted(row, key=lambda word: word.x0)) for row in rows_of(words))
    return text if sum(map(str.isalnum, text)) >= _MIN_LETTERS else ""
