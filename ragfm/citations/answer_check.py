"""The answer compared with the verifier's readings, to see whether it answers the question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ragfm.citations.text_match import added_terms, count_matches, find_quotes, terms_of
from ragfm.core.abstention import is_abstention
from ragfm.core.text import MARKER, escape_markers
from ragfm.core.types import Citation

if TYPE_CHECKING:
    from ragfm.citations.grounding import CitedSentence
    from ragfm.citations.verifier import Reading
    from ragfm.core.types import Hit

__all__ = [
    "MIN_LIKELIHOOD",
    "best_spans",
    "check_answer",
    "correct_answer",
    "read_with_verifier",
    "term_overlap",
]

MIN_LIKELIHOOD = 0.4
"""How likely the verifier must find the answer in a quote for it to be verified: docs/decisions/033-three-states.md."""
MIN_QUESTION_SHARE = 0.5
"""The share of the question's terms that a verified quote has, with its headings and table header."""
SELF_CONTAINED = 4
"""New terms from which on a sentence of a longer answer states something by itself, whatever the question is."""
MIN_OVERLAP = 0.5
"""The term overlap from which on two answers are the same."""
_MIN_PROBABILITY = 1e-6


def read_with_verifier(question: str, passages: Sequence[Hit], language: str | None) -> list[Reading]:
    """The verifier's reading of each passage; none if it does not know the language of the question or the texts."""
    from ragfm.citations.verifier import shipped_verifier  # imports numpy

    return shipped_verifier().read(question, passages, language)


def check_answer(
    question: str, output: str, sentences: Sequence[CitedSentence], readings: Sequence[Reading], *, corrected: bool
) -> tuple[list[CitedSentence], dict[str, float]]:
    """Check an answer against the verifier's readings; `output` is the reader's own text.

    Returns the sentences, with the fault `unclear` for quotes that have the words of a sentence, but may not say what
    was asked, and the verifier's signals (see `confidence`). A quote stays verified if the verifier, which has not seen
    the answer, finds the answer to the question there, and it has half of the question's terms. A `corrected` answer is
    the verifier's own, so nothing has confirmed it. In an answer of several sentences, one that adds many terms to the
    question is a statement by itself.
    """
    terms = terms_of(question).all
    checked: list[CitedSentence] = []
    likelihoods = [0.0]
    for sentence in sentences:
        # Where the sentence occurs verbatim, as (reading, start, end), and how likely the answer occurs in its quotes.
        verbatim = [
            (reading, start, end)
            for reading in readings
            for start, end in find_quotes(sentence.plain, reading.passage.text)
        ]
        is_statement = len(sentences) > 1 and len(added_terms(sentence.terms, terms)) >= SELF_CONTAINED
        citations, quotes = list[Citation](), [0.0]
        for citation, quote_terms in zip(sentence.citations, sentence.quote_terms, strict=True):
            reading = next(reading for reading in readings if reading.passage.n == citation.n)
            start, end = citation.start - reading.passage.start, citation.end - reading.passage.start
            quotes.append(reading.within(start, end))
            if citation.verified and not is_statement:
                inside = [
                    reading.within(first, last)
                    for other, first, last in verbatim
                    if other is reading and start <= first and last <= end
                ]
                confirmed = (
                    not corrected
                    and max(inside, default=quotes[-1]) >= MIN_LIKELIHOOD
                    and count_matches(terms, quote_terms) >= MIN_QUESTION_SHARE * len(terms)
                )
                if not confirmed:
                    citation = replace(citation, verified=False, fault="unclear")
            citations.append(citation)
        if sentence.claims:
            best_verbatim = max((reading.within(start, end) for reading, start, end in verbatim), default=0.0)
            likelihoods.append(best_verbatim or max(quotes))
        checked.append(replace(sentence, citations=tuple(citations)))
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
    agrees = not best or any(_agrees(output, span) for span, _ in spans)
    return output if agrees else f"{escape_markers(best)} [{n}]."


def _agrees(answer: str, span: str) -> bool:
    """Whether two answers share half of their terms, and the numbers of the first are in the second: 2 is not 22."""
    numbers = terms_of(MARKER.sub("", answer)).numbers
    return term_overlap(answer, span) >= MIN_OVERLAP and numbers <= terms_of(span).numbers
