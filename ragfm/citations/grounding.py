"""Grounding: from a reader's output to citations that can be checked, without generating anything.

`cite` compares each sentence of the answer with the sentences of the passages (see `support`). The best evidence
becomes the quote: a slice of the document, character for character. A bare number in an answer gets the unit and scale
that its quote, table header or caption gives it:

    31        "31 days of leave"                                 31 days
    36,386    "| Cost of sales | 36,386 |" under "$ in millions"  $36,386 million

A citation that is not verified has a fault. `fabricated`: no passage says so. `misattributed`: another passage does.
`stitched`: its parts occur in several places, and nowhere together. `subject`: a name or period of the question is not
found with the quote. The verifier adds `unclear`: the quote may not say what was asked (see `answer_check`).
"""

from __future__ import annotations

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
    find_contradiction,
    find_fault,
    is_unit,
    terms_of,
)
from ragfm.core.text import MARKER, line_range, sentence_spans
from ragfm.core.types import Citation

if TYPE_CHECKING:
    from ragfm.core.types import Hit

__all__ = ["CitedSentence", "citation_of", "cite", "cite_sentences", "name_unit", "with_unit"]

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
