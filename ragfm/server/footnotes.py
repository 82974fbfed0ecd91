"""Citations and contradictions as lines below an answer's text, for clients that show only the text."""

from __future__ import annotations

import re

from ragfm.core.text import displayed_name
from ragfm.core.types import Answer, Citation, Contradiction

_ADDED_LINES = re.compile(
    r"(?:\n\nBut \[\d+\] says otherwise[^\n]*(?:\nBut \[\d+\] says otherwise[^\n]*)*)?"
    r"(?:\n\nSources:(?:\n\[\d+\] [^\n]*)+)?\Z"
)


def footnotes(answer: Answer) -> str:
    """The heading `Sources:` and a line with the quote for each citation and contradiction; empty if there is none."""
    quoted = (answer.quote,) if answer.quote else ()
    sources: tuple[Citation | Contradiction, ...] = (*answer.citations, *quoted, *answer.contradictions)
    lines = []
    for source in sources:
        page = f", page {source.page}" if source.page else ""
        page += f", {source.date}" if source.date else ""
        name = displayed_name(" ".join((source.name or source.uri).split()))
        lines.append(f"[{source.n}] {name}{page}: {source.displayed}")
    return "\n".join(["\n\nSources:", *dict.fromkeys(lines)]) if lines else ""


def without_footnotes(text: str) -> str:
    """The answer's own text, from a text that a client sends back."""
    return _ADDED_LINES.sub("", text.rstrip())
