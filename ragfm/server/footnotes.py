"""Citations as words under an answer, for clients that show its text and nothing else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ragfm.core.types import Answer

__all__ = ["footnotes", "without_footnotes"]

_THEY = re.compile(r"\n\nSources:(?:\n\[\d+\] [^\n]*)+\s*\Z")


def footnotes(answer: Answer) -> str:
    """A line for each citation, with its quote; nothing where there is none."""
    lines = dict.fromkeys(
        f"[{c.n}] {_one_line(c.uri)}{f', page {c.page}' if c.page else ''}: “{_one_line(c.quote)}”"
        for c in answer.citations
    )
    return "\n".join(["\n\nSources:", *lines]) if lines else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def without_footnotes(text: str) -> str:
    """An answer that a client sends back, as it was before they were put under it."""
    return _THEY.sub("", text)
