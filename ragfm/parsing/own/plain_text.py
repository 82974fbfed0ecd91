"""Plain text, character for character."""

from __future__ import annotations

from ragfm.parsing.rendering import Parsed


def read_text(text: str, name: str) -> Parsed:
    """The text as it is."""
    return Parsed(text)
