"""Grounding: from a reader's output to citations that can be checked, without another model call.

`cite` compares each sentence of the answer with the sentences of the passages (see `support`). The best evidence
becomes the quote: a slice of the document, character for character.

A citation that is not verified has a fault. `fabricated`: no passage says so. `misattributed`: another passage does.
`stitched`: its parts occur in several places, and nowhere together. `subject`: a name or period of the question is not
found with the quote (see `subject`). The verifier adds `unclear`: the quote may not say what was asked (see
`answer_check`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ragfm.citations.contradictions import find_contradiction
from ragfm.citations.subject import Subject
from ragfm.citations.support import Analysis, Claim, Evidence, Window, analyze, best_evidence, find_fault
from ragfm.citations.text_match import Terms, added_terms, terms_of
from ragfm.core.text import MARKER, line_range, sentence_spans
from ragfm.core.types import Citation

if TYPE_CHECKING:
    from ragfm.core.types import Hit

__all__ = ["CitedSentence", "citation_of", "cite", "cite_sentences"]

_YES = re.compile(r"\W*yes\b", re.IGNORECASE)


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
