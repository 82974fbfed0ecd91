"""Plain text, character for character."""

from __future__ import annotations

from ragfm.parsing.rendering import ParsedText


def read_text(text: str, name: str) -> ParsedText:
    """Return the text unchanged."""
    return ParsedText(text)
