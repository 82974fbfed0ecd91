"""Grounding: from a reader's output to citations that can be checked, without another model call.

`cite` compares each sentence of the answer with the sentences of the passages (see `support`). The best evidence
becomes the quote: a slice of the document, character for character. `compose` puts the sentences together again, with
their markers, citations and contradictions.

A citation that is not verified has a fault. `fabricated`: no passage says so. `misattributed`: another passage does.
`stitched`: its parts stand in several places, and nowhere together. The verifier adds two (see `answer_check`):
`irrelevant`: the quote says so, but hardly answers the question; `uncertain`: it may not answer the question.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ragfm.citations.contradictions import find_contradiction
from ragfm.citations.support import (
    Claim,
    Evidence,
    QuestionTerms,
    Window,
    best_evidence,
    count_matches,
    find_fault,
    passage_windows,
)
from ragfm.citations.text_match import denies, terms_of
from ragfm.core.text import MARKER, sentence_spans
from ragfm.core.types import Citation, Contradiction

if TYPE_CHECKING:
    from ragfm.core.types import Hit

__all__ = ["CitedSentence", "ComposedAnswer", "cite", "compose", "ground"]

_YES = re.compile(r"\W*yes\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CitedSentence:
    """A sentence of the answer with its markers, the white space before it, and a citation for each marker.

    `start` and `end` are its span in the reader's output. `claims`: it has terms that a passage could support, or is a
    "Yes." that is the whole answer. `contradiction` is a quote with another number or name than the one that supports
    the sentence.
    """

    text: str
    start: int
    end: int
    citations: tuple[Citation, ...]
    claims: bool
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
class ComposedAnswer:
    """An answer's text with its citations in the order of their markers.

    `unsupported` are the spans of sentences that no passage supports. `output_spans` has, for each citation, the
    span of its sentence in the reader's output.
    """

    text: str = ""
    citations: tuple[Citation, ...] = ()
    contradictions: tuple[Contradiction, ...] = ()
    unsupported: tuple[tuple[int, int], ...] = ()
    output_spans: tuple[tuple[int, int], ...] = ()


def ground(question: str, output: str, passages: Sequence[Hit]) -> tuple[str, tuple[Citation, ...]]:
    """The answer's text with corrected markers, and a citation for each marker, in their order."""
    answer = compose(cite(question, output, passages))
    return answer.text, answer.citations


def cite(question: str, output: str, passages: Sequence[Hit]) -> list[CitedSentence]:
    """The reader's output sentence by sentence, with citations.

    Markers of passages that were not shown are removed. A sentence that cites no passage that supports it gets the
    marker of one that does, if there is one.
    """
    windows = {hit.n: list(passage_windows(hit)) for hit in passages if hit.n is not None}
    all_windows = [window for of_passage in windows.values() for window in of_passage]
    terms = terms_of(question).all
    best_count = max((count_matches(terms, window) for window in all_windows), default=0)
    asked = QuestionTerms(terms, denies(question), best_count)
    plain, claims = _split(output)
    only_yes = not any(claim.terms.all for claim in claims)
    sentences, done = [], 0
    for claim in claims:
        best = best_evidence(claim, asked, all_windows)
        evidence: list[Evidence] = []
        for n in dict.fromkeys(claim.cited):
            found = best_evidence(claim, asked, windows.get(n, ()))
            if found and not found.supports:
                found = replace(found, fault=find_fault(claim, asked, best, windows, found.hit))
            if found:
                evidence.append(found)
        supporting = [found for found in evidence if found.supports]
        if best and best.supports and not supporting:
            evidence.append(best)
            supporting = [best]
        contradicting: Window | None = None
        for found in supporting:
            contradicting = contradicting or find_contradiction(claim, asked, found, windows)

        words_end = len(plain[: claim.end].rstrip(".!?…。！？｡"))
        markers = "".join(f"[{found.hit.n}]" for found in evidence)
        text = f"{plain[done:words_end]}{f' {markers}' if markers else ''}{plain[words_end : claim.end]}"
        sentences.append(
            CitedSentence(
                text,
                *claim.output_span,
                tuple(_citation(found.hit, found.start, found.end, found) for found in evidence),
                bool(claim.terms.all or (only_yes and _YES.match(claim.text))),
                _citation(contradicting.hit, contradicting.start, contradicting.end) if contradicting else None,
            )
        )
        done = claim.end
    return sentences


def _split(output: str) -> tuple[str, list[Claim]]:
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
        claims.append(Claim(plain[start:end], end, cited, terms_of(plain[start:end]), output_span))
        previous_start = start + 1
    return plain, claims


def compose(sentences: Sequence[CitedSentence], *, strict: bool = False, contradictions: bool = True) -> ComposedAnswer:
    """Put cited sentences together. `strict` leaves out sentences that no passage supports."""
    text = ""
    citations, contradicting = list[Citation](), list[Contradiction]()
    unsupported, output_spans = list[tuple[int, int]](), list[tuple[int, int]]()
    for sentence in sentences:
        if strict and sentence.claims and not sentence.supported:
            continue
        words = sentence.text.lstrip()
        white_space = sentence.text[: len(sentence.text) - len(words)] if text else ""
        text += white_space
        start, end = len(text), len(text) + len(words)
        text += words
        if sentence.claims and not sentence.supported:
            unsupported.append((start, end))
        citations += [replace(citation, answer_start=start, answer_end=end) for citation in sentence.citations]
        output_spans += [(sentence.start, sentence.end)] * len(sentence.citations)
        quote = sentence.contradiction
        known = {(one.n, one.start, one.end) for one in citations if one.verified}
        known |= {(one.n, one.start, one.end) for one in contradicting}
        if contradictions and quote and (quote.n, quote.start, quote.end) not in known:
            contradicting.append(
                Contradiction(quote.n, quote.uri, quote.page, quote.start, quote.end, quote.quote, start, end)
            )
    return ComposedAnswer(text, tuple(citations), tuple(contradicting), tuple(unsupported), tuple(output_spans))


def _citation(hit: Hit, start: int, end: int, evidence: Evidence | None = None) -> Citation:
    assert hit.n is not None
    return Citation(
        n=hit.n,
        uri=hit.uri,
        page=hit.page,
        start=hit.start + start,
        end=hit.start + end,
        quote=hit.text[start:end],
        verified=evidence is None or evidence.supports,
        fault=evidence.fault if evidence else None,
    )
