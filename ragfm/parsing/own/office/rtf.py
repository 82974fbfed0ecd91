"""RTF: the text of its paragraphs; table cells are separated by `|`."""

from __future__ import annotations

import re

from ragfm.core.errors import MissingExtraError, ParseError
from ragfm.parsing.rendering import ParsedText, clean


def read_rtf(data: bytes, name: str) -> ParsedText:
    """Return one block per paragraph. Raises ParseError, MissingExtraError."""
    try:
        from striprtf.striprtf import rtf_to_text
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "RTF needs the module 'striprtf', which is not installed.", "Run `pip install 'ragfm[documents]'`."
        ) from error
    try:
        text: str = rtf_to_text(data.decode("latin-1"), errors="replace")
    except (ValueError, LookupError, RecursionError, AttributeError, TypeError) as error:
        raise ParseError(f"{name} is a damaged RTF: {type(error).__name__}: {error}") from error
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return ParsedText(clean(re.sub(r"\n{3,}", "\n\n", "\n\n".join(filter(None, lines)))))
