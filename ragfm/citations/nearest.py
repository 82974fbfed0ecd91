"""What the documents say nearest to a question: the sentence or table row of a passage that most likely answers it.

With a small or unsure reader, users see such a quote next to the answer or in its place; without an answer, one of each
of the best passages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ragfm.citations.grounding import citation_of
from ragfm.citations.support import passage_windows
from ragfm.citations.text_match import count_matches, terms_of
from ragfm.core.text import MARKER, escape_markers

if TYPE_CHECKING:
    from ragfm.citations.verifier import Reading
    from ragfm.core.types import AnswerStatus, Citation, Hit

__all__ = ["nearest_sentences", "select_quote", "shown_text"]

_TERMS_WEIGHT = 0.5
"""The best sentence has the answer for 90 of 123 questions over seven sets whose passages have it with a weight of 0.3
to 1, for 85 without the terms, and for 83 by the terms alone."""


def nearest_sentences(
    question: str, passages: Sequence[Hit], readings: Sequence[Reading]
) -> list[tuple[float, Citation]]:
    """The sentence or table row of each passage that most likely has the answer, with its score.

    The score is the share of the question's terms that the sentence has and, with `readings`, how likely the verifier
    finds the answer in it. Headings and table headers are left out. The citations are not verified, and have no place
    in an answer.
    """
    terms = terms_of(question).all
    reading_of = {id(reading.passage): reading for reading in readings}
    nearest: list[tuple[float, Citation]] = []
    for passage in passages:
        reading = reading_of.get(id(passage))
        scored = [
            (
                _TERMS_WEIGHT * count_matches(terms, window.terms) / max(len(terms), 1)
                + (reading.within(window.start, window.end) if reading else 0.0),
                window,
            )
            for window in passage_windows(passage)
            if not window.is_heading
        ]
        if scored and passage.n is not None:
            score, best = max(scored, key=lambda one: one[0])
            nearest.append((score, replace(citation_of(passage, best.start, best.end), verified=False)))
    return nearest


def select_quote(
    status: AnswerStatus, citations: Sequence[Citation], nearest: Sequence[tuple[float, Citation]]
) -> Citation | None:
    """The quote to show with an answer: the evidence of a sure one, else the sentence that most likely has it."""
    supporting = next((citation for citation in citations if citation.supports), None)
    if status == "answered" and supporting:
        return supporting
    return max(nearest, key=lambda one: one[0])[1] if nearest else supporting


def shown_text(text: str, status: AnswerStatus, quote: Citation | None, *, small: bool) -> str:
    """What a user should read of an answer: its text, and the quote with its marker.

    An unsure answer of a `small` reader is replaced by the quote.
    """
    if status == "not_found":
        return text
    says = ""
    if quote:
        words = escape_markers(" ".join(quote.quote.split()))
        if small and status == "unsure":
            return f"I am not sure. The documents say: “{words}” [{quote.n}]"
        if words.rstrip(".") not in MARKER.sub("", text):
            says = f"The documents say: “{words}” [{quote.n}]"
    doubt = "I am not sure of this." if status == "unsure" else ""
    below = " ".join(filter(None, (doubt, says)))
    return f"{text}\n\n{below}" if below else text
