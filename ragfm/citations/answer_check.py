"""The answer compared with the verifier's readings, to see whether it answers the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ragfm.citations.question_match import matches_question
from ragfm.citations.support import passage_windows
from ragfm.citations.text_match import find_quotes, terms_of
from ragfm.core.text import MARKER, escape_markers

if TYPE_CHECKING:
    from ragfm.citations.grounding import CitedSentence
    from ragfm.citations.verifier import Reading
    from ragfm.core.types import Citation

__all__ = [
    "MAX_IRRELEVANT",
    "MIN_CERTAIN",
    "answer_likelihood",
    "best_spans",
    "check_citations",
    "correct_answer",
    "quote_likelihood",
    "term_overlap",
]

MAX_IRRELEVANT = 0.05
"""Quotes that are less likely to hold the answer are irrelevant: 8 % of them were right on the tuning articles."""
MIN_CERTAIN = 0.5
"""How likely the verifier must find an answer for its quote to be verified: docs/decisions/015-the-verifier.md."""
MIN_OVERLAP = 0.5
"""The term overlap from which on two answers are the same."""


def answer_likelihood(sentence: CitedSentence, readings: Sequence[Reading]) -> float:
    """How likely a sentence is the answer, in [0, 1]: where it stands verbatim, else where its quotes do."""
    verbatim = [
        reading.within(*span) for reading in readings for span in find_quotes(sentence.plain, reading.passage.text)
    ]
    quotes = [quote_likelihood(citation, readings) for citation in sentence.citations]
    return max(verbatim, default=0.0) or max(quotes, default=0.0)


def quote_likelihood(citation: Citation, readings: Sequence[Reading]) -> float:
    """How likely the answer stands within a quote, in [0, 1]."""
    quote = _located(citation, readings)
    return quote.reading.within(quote.start, quote.end)


def check_citations(question: str, sentence: CitedSentence, readings: Sequence[Reading]) -> CitedSentence:
    """The sentence with `irrelevant` and `uncertain` instead of `verified` for quotes that may not answer the question.

    A quote stays verified if the verifier is certain and the quote is about the subject of the question.
    """
    checked = []
    for citation in sentence.citations:
        if citation.verified:
            quote = _located(citation, readings)
            if quote.reading.within(quote.start, quote.end) < MAX_IRRELEVANT:
                citation = replace(citation, verified=False, fault="irrelevant")
            elif not _is_certain(question, sentence, citation, quote):
                citation = replace(citation, verified=False, fault="uncertain")
        checked.append(citation)
    return replace(sentence, citations=tuple(checked))


def _is_certain(question: str, sentence: CitedSentence, citation: Citation, quote: _Located) -> bool:
    spans = [
        (start, end)
        for start, end in find_quotes(sentence.plain, quote.reading.passage.text)
        if quote.start <= start and end <= quote.end
    ]
    likelihood = max(quote.reading.within(*span) for span in spans or [(quote.start, quote.end)])
    if likelihood < MIN_CERTAIN:
        return False
    windows = [
        window
        for window in passage_windows(quote.reading.passage)
        if quote.start <= window.start and window.end <= quote.end
    ]
    context = frozenset[str]().union(*(window.terms for window in windows))
    return matches_question(question, sentence.plain, citation.quote, context)


@dataclass(frozen=True, slots=True)
class _Located:
    """A quote as a span of the passage that the verifier read."""

    reading: Reading
    start: int
    end: int


def _located(citation: Citation, readings: Sequence[Reading]) -> _Located:
    reading = next(reading for reading in readings if reading.passage.n == citation.n)
    return _Located(reading, citation.start - reading.passage.start, citation.end - reading.passage.start)


def best_spans(readings: Sequence[Reading]) -> list[tuple[str, int | None]]:
    """The most likely answer of each passage and the passage's number, best first.

    Answers that are less than half as likely as the best one are left out.
    """
    best = sorted(((*reading.best, reading.passage) for reading in readings), key=lambda found: -found[0])
    min_likelihood = best[0][0] / 2
    return [
        (passage.text[start:end], passage.n) for likelihood, start, end, passage in best if likelihood >= min_likelihood
    ]


def term_overlap(answer: str, other: str) -> float:
    """The share of the shorter answer's terms that both have (overlap coefficient, Szymkiewicz 1934), in [0, 1]."""
    terms, others = (terms_of(MARKER.sub("", text)).all for text in (answer, other))
    return len(terms & others) / min(len(terms), len(others)) if terms and others else 0.0


def correct_answer(output: str, readings: Sequence[Reading]) -> str:
    """The reader's output if it agrees with a likely answer of a passage, else the likeliest answer with its marker."""
    spans = best_spans(readings)
    best, n = spans[0]
    agrees = not best or any(term_overlap(output, span) >= MIN_OVERLAP for span, _ in spans)
    return output if agrees else f"{escape_markers(best)} [{n}]."
