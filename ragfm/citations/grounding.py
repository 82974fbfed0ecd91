"""Grounding: from a reader's output to citations that can be checked, without generating anything.

`cite` compares each sentence of the answer with the sentences of the passages (see `support`). The best evidence
becomes the quote: a slice of the document, character for character. A bare number in an answer gets the unit and scale
that its quote, table header or caption gives it:

    31        "31 days of leave"                                 31 days
    36,386    "| Cost of sales | 36,386 |" under "$ in millions"  $36,386 million

A citation that is not verified has a fault. `fabricated`: no passage says so. `misattributed`: another passage does.
`stitched`: its parts occur in several places, and nowhere together. `subject`: a name or period of the question is not
found with the quote. Where a verifier reads the passages, it adds `unclear`: the quote may not say what was asked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ragfm.citations.support import (
    Analysis,
    Claim,
    Evidence,
    Subject,
    Terms,
    Window,
    added_terms,
    analyze,
    best_evidence,
    count_matches,
    find_contradiction,
    find_fault,
    find_quotes,
    is_unit,
    terms_of,
)
from ragfm.core.abstention import is_abstention
from ragfm.core.text import MARKER, escape_markers, line_range, sentence_spans
from ragfm.core.types import Citation

if TYPE_CHECKING:
    from ragfm.citations.verifier import Reading
    from ragfm.core.types import Hit

__all__ = [
    "MIN_LIKELIHOOD",
    "CitedAnswer",
    "CitedSentence",
    "best_spans",
    "check_sentences",
    "citation_of",
    "cite",
    "cite_answer",
    "cite_sentences",
    "correct_answer",
    "name_unit",
    "term_overlap",
    "verifier_signals",
    "with_unit",
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


_YES = re.compile(r"\W*yes\b", re.IGNORECASE)
_BARE = re.compile(r"\s*(?P<number>[-−(]?\d+(?:[.,]\d+)*\)?)[\s.]*")
_SCALE = re.compile(
    r"(?:\b(?:in|of)\s+|\()(?P<dollars>[^\W\d]*\s?\$\s?)?(?P<scale>thousand|million|billion)s?\b", re.IGNORECASE
)
_DOLLARS = re.compile(r"\$|\b(?:US\s+)?dollars?\b|\bUSD\b", re.IGNORECASE)
_OWN_SCALE = re.compile(r"per[\s-]+share|%|percent|\bratio\b|\bnumber\b|\bshares\b", re.IGNORECASE)
_SIGNS = "$€£¥"


@dataclass(frozen=True, slots=True)
class CitedSentence:
    """A sentence of the answer with its markers, the white space before it, and a citation for each marker.

    `start` and `end` are its span in the reader's output. `quote_terms` are, for each citation, the terms of the quote
    and of the headings above it. `claims`: the sentence has `terms` that a passage could support, or is a "Yes." that
    is the whole answer. `contradiction` is a quote with another number or name than the one that supports the sentence.
    """

    text: str
    start: int
    end: int
    citations: tuple[Citation, ...]
    quote_terms: tuple[frozenset[str], ...]
    claims: bool
    terms: Terms
    contradiction: Citation | None = None

    @property
    def plain(self) -> str:
        """The sentence without markers."""
        return MARKER.sub("", self.text).strip()

    @property
    def supported(self) -> bool:
        """Whether one of its citations supports it."""
        return any(citation.supports for citation in self.citations)


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


def cite(question: str, output: str, passages: Sequence[Hit], *, subject: Subject | None = None) -> list[CitedSentence]:
    """The reader's output sentence by sentence, with citations; see `cite_sentences` and `analyze`."""
    return cite_sentences(output, analyze(question, passages, subject=subject))


def cite_sentences(output: str, analysis: Analysis) -> list[CitedSentence]:
    """The reader's output sentence by sentence, with citations.

    Markers of passages that were not shown are removed. A sentence that cites no passage that supports it gets the
    marker of one that does, if there is one.
    """
    question, windows, all_windows = analysis.question, analysis.windows, analysis.all_windows
    plain, claims = _split(output, question.terms)
    only_yes = not any(claim.terms.all for claim in claims)
    sentences, done = [], 0
    for claim in claims:
        best = best_evidence(claim, question, all_windows)
        evidence: list[Evidence] = []
        for n in dict.fromkeys(claim.cited):
            found = best_evidence(claim, question, windows.get(n, ()))
            if found and not found.supports:
                found = replace(found, fault=find_fault(claim, analysis, best, found.hit))
            if found:
                evidence.append(found)
        supporting = [found for found in evidence if found.supports]
        if best and best.supports and not supporting:
            evidence.append(best)
            supporting = [best]
        contradicting: Window | None = None
        for found in supporting:
            contradicting = contradicting or find_contradiction(claim, analysis, found)

        quote_terms: list[frozenset[str]] = []
        for found in evidence:
            of_passage = [window for window in all_windows if window.hit is found.hit]
            inside = (one.terms for one in of_passage if found.start <= one.start and one.end <= found.end)
            quote_terms.append(frozenset[str]().union(*inside))
        words_end = len(plain[: claim.end].rstrip(".!?…。！？｡"))
        markers = "".join(f"[{found.hit.n}]" for found in evidence)
        text = f"{plain[done:words_end]}{f' {markers}' if markers else ''}{plain[words_end : claim.end]}"
        sentences.append(
            CitedSentence(
                text,
                *claim.output_span,
                tuple(citation_of(found.hit, found.start, found.end, found) for found in evidence),
                tuple(quote_terms),
                bool(claim.terms.all or (only_yes and _YES.match(claim.text))),
                claim.terms,
                citation_of(contradicting.hit, contradicting.start, contradicting.end) if contradicting else None,
            )
        )
        done = claim.end
    return sentences


def _split(output: str, question_terms: frozenset[str]) -> tuple[str, list[Claim]]:
    """The output without markers, and its sentences with the passages that markers in or right after them name."""
    plain, done = "", 0
    markers: list[tuple[int, int, tuple[int, ...]]] = []  # position in `plain`, length, passages
    for match in MARKER.finditer(output):
        plain += output[done : match.start()]
        markers.append((len(plain), len(match[0]), tuple(int(n) for n in re.findall(r"\d+", match[1]))))
        done = match.end()
    plain += output[done:]
    claims, previous_start = [], 0
    spans = sentence_spans(plain)
    for number, (start, end) in enumerate(spans):
        next_start = spans[number + 1][0] if number + 1 < len(spans) else len(plain) + 1
        cited = tuple(
            n
            for position, _, passages in markers
            if previous_start <= position < next_start and (position > start or not number)
            for n in passages
        )
        output_span = (
            start + sum(length for position, length, _ in markers if position < start),
            end + sum(length for position, length, _ in markers if position <= end),
        )
        terms = terms_of(plain[start:end])
        new_terms = added_terms(terms, question_terms)
        claims.append(Claim(plain[start:end], end, cited, terms, new_terms, output_span))
        previous_start = start + 1
    return plain, claims


def citation_of(hit: Hit, start: int, end: int, evidence: Evidence | None = None) -> Citation:
    """The citation of a numbered passage's words; verified unless the evidence says otherwise."""
    assert hit.n is not None
    lines = None
    if hit.lines:
        first, last = line_range(hit.text, start, end)
        lines = first + hit.lines[0] - 1, last + hit.lines[0] - 1
    return Citation(
        n=hit.n,
        uri=hit.uri,
        page=hit.page,
        start=hit.start + start,
        end=hit.start + end,
        quote=hit.text[start:end],
        verified=evidence is None or (evidence.supports and not evidence.missing),
        fault=evidence.fault if evidence else None,
        missing=evidence.missing if evidence else (),
        name=hit.name,
        lines=lines,
    )


# --- The verifier's readings ----------------------------------------------------------------------------------------


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


# --- Units -------------------------------------------------------------------------------------------------------


def name_unit(text: str, sentences: Sequence[CitedSentence], passages: Sequence[Hit]) -> str:
    """The answer's text, with the unit of its number where a cited quote that supports it names one."""
    for citation in sentences[0].citations if len(sentences) == 1 else ():
        passage = next(passage for passage in passages if passage.n == citation.n)
        if citation.supports:
            plain = sentences[0].plain
            named = with_unit(plain, citation.quote, _above(passage, citation.start - passage.start))
            return f"{named} [{citation.n}]" if named != plain else text
    return text


def _above(passage: Hit, start: int) -> str:
    """What stands above a table row: the passage's context, and the paragraph and the header of its table."""
    lines = passage.text[:start].splitlines()
    table = next((at for at in range(len(lines), 0, -1) if not lines[at - 1].startswith("|")), 0)
    caption = next((line for line in reversed(lines[:table]) if line.strip()), "")
    return "\n".join([passage.context, caption, *lines[table : table + 2]])


def with_unit(answer: str, quote: str, above: str) -> str:
    """The answer, with the unit of its number if it is nothing but a number; else unchanged.

    In prose, the unit stands next to the number: a currency sign, `%`, or a word such as `days` or `million`. In a
    table row, the scale and the currency are in the text `above`, the header and the caption.
    """
    bare = _BARE.fullmatch(answer)
    found = re.search(rf"(?<![\w.,]){re.escape(bare['number'])}(?![\w]|[.,]\d)", quote) if bare else None
    if bare is None or found is None:
        return answer
    number = bare["number"]
    sign = quote[: found.start()].rstrip()[-1:]
    sign = sign if sign in _SIGNS else ""
    after = re.match(r"\s?(%)|[\s-]{1,2}([^\W\d_]+)", quote[found.end() :])
    unit = ""
    if after and (after[1] or is_unit(after[2])):
        unit = after[1] or f" {after[2]}"
    if quote.startswith("|") and not unit:
        label = quote.strip("| ").partition("|")[0]
        scale = _SCALE.search(above)
        if scale and not _OWN_SCALE.search(label):
            unit = f" {scale['scale'].lower()}"
            sign = sign or ("$" if scale["dollars"] or _DOLLARS.search(above) else "")
    return answer.replace(number, f"{sign}{number}{unit}", 1) if sign or unit else answer
