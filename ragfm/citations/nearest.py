"""What the documents say nearest to a question that has no answer: a sentence of each of the best passages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ragfm.citations.grounding import citation_of
from ragfm.citations.support import Window, passage_windows
from ragfm.citations.text_match import count_matches, terms_of
from ragfm.core.text import TABLE_RULE

if TYPE_CHECKING:
    from ragfm.citations.verifier import Reading
    from ragfm.core.types import Citation, Hit

__all__ = ["nearest_sentences"]

_PASSAGES = 3


def _is_heading(window: Window) -> bool:
    """Whether a window begins with a heading, or is a table's header or the rule below it."""
    below = window.hit.text[window.end :].lstrip("\n").partition("\n")[0]
    is_rule = any(row[:1] == "|" and TABLE_RULE.fullmatch(row) for row in (window.text, below))
    return is_rule or window.hit.text.startswith("#", window.start)


def nearest_sentences(question: str, passages: Sequence[Hit], readings: Sequence[Reading]) -> tuple[Citation, ...]:
    """The sentence or table row of each of the first three passages that most likely has the answer.

    That is the one which the verifier finds likeliest, or without `readings` the one that shares most terms with the
    question. Headings and table headers are left out. The citations are not verified, and have no place in an answer.
    """
    terms = terms_of(question).all
    reading_of = {id(reading.passage): reading for reading in readings}
    nearest: list[Citation] = []
    for passage in passages[:_PASSAGES]:
        windows = [window for window in passage_windows(passage) if not _is_heading(window)]
        if not windows or passage.n is None:
            continue
        reading = reading_of.get(id(passage))
        best = max(
            windows,
            key=lambda window: (
                reading.within(window.start, window.end) if reading else 0.0,
                count_matches(terms, window.terms),
            ),
        )
        nearest.append(replace(citation_of(passage, best.start, best.end), verified=False))
    return tuple(nearest)
