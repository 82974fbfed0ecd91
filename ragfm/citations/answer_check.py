"""An answer with its citations, compared with the verifier's readings to see whether it answers the question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ragfm.citations.grounding import CitedSentence, cite_sentences, name_unit
from ragfm.citations.support import Analysis, added_terms, analyze, count_matches, find_quotes, terms_of
from ragfm.core.abstention import is_abstention
from ragfm.core.text import MARKER, escape_markers
from ragfm.core.types import Citation

if TYPE_CHECKING:
    from ragfm.citations.verifier import Reading
    from ragfm.core.types import Hit

__all__ = [
    "MIN_LIKELIHOOD",
    "CitedAnswer",
    "best_spans",
    "check_sentences",
    "cite_answer",
    "correct_answer",
    "term_overlap",
    "verifier_signals",
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


@dataclass(frozen=True, slots=True)
class CitedAnswer:
    """The answer to a question, sentence by sentence; without sentences if it is empty or an abstention.

    `output` is the reader's own text; it is `silent` if that is an abstention. `text` may be the verifier's, or have a
    unit; the answer `abstains` if it is an abstention. `readings` are the verifier's.
    """

    output: str
    text: str
    sentences: Sequence[CitedSentence]
    analysis: Analysis
    readings: Sequence[Reading]
    silent: bool
    abstains: bool


def cite_answer(
    question: str, output: str, passages: Sequence[Hit], language: str | None, *, verify: bool, corrects: bool
) -> CitedAnswer:
    """The reader's `output`, cited.

    With `verify`, the verifier reads the passages, and checks the citations; if it `corrects`, its answer replaces the
    output where they differ. `language` is that of the passages, as ISO 639-1.
    """
    readings: list[Reading] = []
    if output and verify:
        from ragfm.citations.verifier import shipped_verifier  # imports numpy

        readings = shipped_verifier().read(question, passages, language)
    text = correct_answer(output, readings) if readings and corrects else output
    silent, abstains, corrected = is_abstention(output), is_abstention(text), text != output
    if not text or abstains:
        return CitedAnswer(output, text, (), analyze(question, (), language), readings, silent, abstains)
    analysis = analyze(question, passages, language)
    sentences = cite_sentences(text, analysis)
    if (named := name_unit(text, sentences, passages)) != text:
        text, sentences = named, cite_sentences(named, analysis)
    if readings:
        sentences = check_sentences(sentences, analysis.question.terms, readings, corrected=corrected)
    return CitedAnswer(output, text, sentences, analysis, readings, silent, abstains)


def check_sentences(
    sentences: Sequence[CitedSentence],
    question_terms: frozenset[str],
    readings: Sequence[Reading],
    *,
    corrected: bool,
) -> list[CitedSentence]:
    """The sentences, with the fault `unclear` for quotes that have their words, but may not say what was asked.

    A quote stays verified if the verifier, which has not seen the answer, finds the answer to the question there, and
    it has half of the question's terms. A `corrected` answer is the verifier's own, so nothing has confirmed it. In an
    answer of several sentences, one that adds many terms to the question is a statement by itself.
    """
    checked: list[CitedSentence] = []
    for sentence in sentences:
        if len(sentences) > 1 and len(added_terms(sentence.terms, question_terms)) >= SELF_CONTAINED:
            checked.append(sentence)
            continue
        verbatim = _verbatim_likelihoods(sentence, readings)
        citations = list[Citation]()
        for citation, quote_terms in zip(sentence.citations, sentence.quote_terms, strict=True):
            reading, start, end = _locate(citation, readings)
            inside = [
                likelihood
                for other, first, last, likelihood in verbatim
                if other is reading and start <= first and last <= end
            ]
            confirmed = (
                not corrected
                and max(inside, default=reading.within(start, end)) >= MIN_LIKELIHOOD
                and count_matches(question_terms, quote_terms) >= MIN_QUESTION_SHARE * len(question_terms)
            )
            if citation.verified and not confirmed:
                citation = replace(citation, verified=False, fault="unclear")
            citations.append(citation)
        checked.append(replace(sentence, citations=tuple(citations)))
    return checked


def verifier_signals(cited: CitedAnswer) -> dict[str, float]:
    """The verifier's signals of an answer; see `confidence`. Empty without its readings."""
    if not cited.readings:
        return {}
    likelihoods = [_MIN_PROBABILITY]
    for sentence in cited.sentences:
        if sentence.claims:
            verbatim = [likelihood for *_, likelihood in _verbatim_likelihoods(sentence, cited.readings)]
            quoted = [
                reading.within(start, end)
                for reading, start, end in (_locate(citation, cited.readings) for citation in sentence.citations)
            ]
            likelihoods.append(max(verbatim, default=0.0) or max(quoted, default=0.0))
    anywhere = min(max(reading.anywhere for reading in cited.readings), 1 - _MIN_PROBABILITY)
    return {
        "anywhere": math.log(max(anywhere, _MIN_PROBABILITY) / (1 - anywhere)),
        "located": math.log(max(likelihoods)),
        "agree": term_overlap(cited.output, best_spans(cited.readings)[0][0]),
        "silent": float(cited.silent),
    }


def _verbatim_likelihoods(
    sentence: CitedSentence, readings: Sequence[Reading]
) -> list[tuple[Reading, int, int, float]]:
    """Where a sentence occurs verbatim, as (reading, start, end), and how likely the answer is there."""
    return [
        (reading, start, end, reading.within(start, end))
        for reading in readings
        for start, end in find_quotes(sentence.plain, reading.passage.text)
    ]


def _locate(citation: Citation, readings: Sequence[Reading]) -> tuple[Reading, int, int]:
    """The reading of a citation's passage, and where its quote is there."""
    reading = next(reading for reading in readings if reading.passage.n == citation.n)
    return reading, citation.start - reading.passage.start, citation.end - reading.passage.start


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
