"""The answer compared with the verifier's readings, to see whether it answers the question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ragfm.citations.text_match import find_quotes, matches_question, terms_of
from ragfm.core.abstention import is_abstention
from ragfm.core.text import MARKER, escape_markers
from ragfm.core.types import Citation

if TYPE_CHECKING:
    from ragfm.citations.grounding import CitedSentence
    from ragfm.citations.verifier import Reading
    from ragfm.core.types import Hit

__all__ = [
    "MAX_IRRELEVANT",
    "MIN_CERTAIN",
    "best_spans",
    "check_answer",
    "correct_answer",
    "read_with_verifier",
    "term_overlap",
]

MAX_IRRELEVANT = 0.05
"""Quotes that are less likely to hold the answer are irrelevant: 8 % of them were right on the tuning articles."""
MIN_CERTAIN = 0.5
"""How likely the verifier must find an answer for its quote to be verified: docs/decisions/015-the-verifier.md."""
MIN_OVERLAP = 0.5
"""The term overlap from which on two answers are the same."""
_MIN_PROBABILITY = 1e-6


def read_with_verifier(question: str, passages: Sequence[Hit], language: str | None) -> list[Reading]:
    """The verifier's reading of each passage; none if it does not know the language of the question or the texts."""
    from ragfm.citations.verifier import shipped_verifier  # imports numpy

    return shipped_verifier().read(question, passages, language)


def check_answer(
    question: str, output: str, sentences: Sequence[CitedSentence], readings: Sequence[Reading]
) -> tuple[list[CitedSentence], dict[str, float]]:
    """Check an answer against the verifier's readings; `output` is the reader's own text.

    Returns the sentences with `irrelevant` and `uncertain` instead of `verified` for quotes that may not answer the
    question, and the verifier's signals (see `confidence`). A quote stays verified if the verifier is certain and the
    quote is about the subject of the question. Of several sentences, some may say more than the question asks: they
    stay as they are.
    """
    checked = list(sentences)
    likelihoods = [0.0]
    for sentence in sentences:
        # Where the sentence occurs verbatim, as (reading, start, end), and how likely the answer occurs in its quotes.
        verbatim = [
            (reading, start, end)
            for reading in readings
            for start, end in find_quotes(sentence.plain, reading.passage.text)
        ]
        citations, quotes = list[Citation](), [0.0]
        for citation, quote_terms in zip(sentence.citations, sentence.quote_terms, strict=True):
            reading = next(reading for reading in readings if reading.passage.n == citation.n)
            start, end = citation.start - reading.passage.start, citation.end - reading.passage.start
            quotes.append(reading.within(start, end))
            if citation.verified:
                inside = [
                    reading.within(first, last)
                    for other, first, last in verbatim
                    if other is reading and start <= first and last <= end
                ]
                likelihood = max(inside, default=quotes[-1])
                if quotes[-1] < MAX_IRRELEVANT:
                    citation = replace(citation, verified=False, fault="irrelevant")
                elif likelihood < MIN_CERTAIN or not matches_question(
                    question, sentence.plain, citation.quote, quote_terms
                ):
                    citation = replace(citation, verified=False, fault="uncertain")
            citations.append(citation)
        if sentence.claims:
            best_verbatim = max((reading.within(start, end) for reading, start, end in verbatim), default=0.0)
            likelihoods.append(best_verbatim or max(quotes))
        if len(sentences) == 1:
            checked = [replace(sentence, citations=tuple(citations))]
    anywhere = min(max(reading.anywhere for reading in readings), 1 - _MIN_PROBABILITY)
    signals = {
        "anywhere": math.log(max(anywhere, _MIN_PROBABILITY) / (1 - anywhere)),
        "located": math.log(max(_MIN_PROBABILITY, *likelihoods)),
        "agree": term_overlap(output, best_spans(readings)[0][0]),
        "silent": float(is_abstention(output)),
    }
    return checked, signals


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
