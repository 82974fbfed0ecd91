"""Support: which sentence of the passages supports a claim best, whether it does, and what is wrong if it does not.

A quote supports a claim if it has all names and numbers that the claim adds to the question, most of the other terms
that it adds, and a denial exactly where the claim has one. It must not have another unit or the opposite of what the
claim says. Quotations must stand verbatim. A sentence that only repeats the question claims nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from ragfm.citations.text_match import (
    MIN_QUOTE_WORDS,
    Terms,
    addresses,
    denies,
    denies_terms,
    details_differ,
    find_quote,
    matches,
    quotations,
    terms_of,
    without_denials,
)
from ragfm.core.text import sentence_spans

if TYPE_CHECKING:
    from ragfm.core.types import Fault, Hit

__all__ = [
    "Claim",
    "Evidence",
    "QuestionTerms",
    "Window",
    "best_evidence",
    "count_matches",
    "find_fault",
    "new_terms",
    "passage_windows",
]

MIN_SUPPORT = 0.6
"""The share of a claim's new terms that a quote must have."""
MIN_QUESTION_SHARE = 0.2
"""The share of the question's terms that a quote of a short claim must have: a number alone stands in many places."""
MIN_SHARE_OF_BEST = 0.6
"""The same, relative to the sentence that has most of the question's terms."""
SHORT_CLAIM = 2
"""New terms up to which a claim is short."""
ECHO = 0.5
"""A sentence without new terms that has this share of the question's terms only repeats the question."""

_REFERS_BACK = re.compile(r"(?:\w+\W+){0,3}?(?:he|she|it|they|his|her|its|their|this|these|those)\b", re.IGNORECASE)
_TABLE_RULE = re.compile(r"[|:\-\s]+")  # the line below the header of a Markdown table
_NO_TERMS = terms_of("")


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of an answer without its markers; `cited` are the passages that its markers name.

    `end` is where it ends in the answer without markers, `output_span` its span in the reader's output.
    """

    text: str
    end: int
    cited: tuple[int, ...]
    terms: Terms
    output_span: tuple[int, int]

    @property
    def denies(self) -> bool:
        """Whether it has a word of denial."""
        return denies(self.text)


@dataclass(frozen=True, slots=True)
class Window:
    """A sentence of a passage with the terms that it may be read with.

    `terms` and `names` include those of the headings above it and of the table header above a row. A sentence that
    refers back ("She was …") also has those of the sentence before, and then starts there.
    """

    hit: Hit
    start: int
    end: int
    text: str
    terms: frozenset[str]
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class QuestionTerms:
    """A question's terms, whether it denies something, and the largest number of its terms that a sentence has."""

    terms: frozenset[str]
    denies: bool
    best_count: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """A span of a passage, its score as evidence for a claim, whether it supports the claim, and the fault if not."""

    hit: Hit
    start: int
    end: int
    score: float
    supports: bool
    fault: Fault | None = None


def passage_windows(hit: Hit) -> Iterator[Window]:
    """The sentences of a passage."""
    context = terms_of(hit.context)
    previous: tuple[int, Terms] | None = None
    header = _NO_TERMS
    for start, end in sentence_spans(hit.text):
        text = hit.text[start:end]
        own = terms_of(text)
        if not text.startswith("|"):
            header = _NO_TERMS
        elif previous and _TABLE_RULE.fullmatch(text):
            header = previous[1]
        terms = own.all | (context.all - context.numbers) | (header.all - header.numbers)
        names = own.names | context.names | header.names
        yield Window(hit, start, end, text, terms, names)
        if previous and _REFERS_BACK.match(text):
            yield Window(hit, previous[0], end, text, terms | previous[1].names, names | previous[1].names)
        previous = start, own


def count_matches(terms: Set[str], window: Window) -> int:
    """How many of the terms a window has."""
    return sum(matches(term, window.terms) for term in terms)


def new_terms(claim: Claim, question: QuestionTerms) -> frozenset[str]:
    """The terms that a claim adds to the question."""
    exact = claim.terms.exact
    return frozenset(
        term
        for term in claim.terms.all
        if not (term in question.terms if term in exact else matches(term, question.terms))
    )


def best_evidence(claim: Claim, question: QuestionTerms, windows: Sequence[Window]) -> Evidence | None:
    """The window that supports a claim best, or comes closest; None for a claim without terms."""
    if not claim.terms.all:
        return None
    quoted = quotations(claim.text)
    quoting = _windows_with_quotations(quoted, windows) if quoted else windows
    new = new_terms(claim, question)
    evidence = [_weigh(claim, question, new, window) for window in quoting or windows]
    best = max(evidence, key=lambda one: (one.supports, one.score), default=None)
    return replace(best, supports=False) if best and quoted and not quoting else best


def _weigh(claim: Claim, question: QuestionTerms, new: frozenset[str], window: Window) -> Evidence:
    terms = claim.terms
    # A part of the question may still be an answer: it may choose among what the question offers.
    echo = not new and len(terms.all) >= ECHO * len(question.terms)
    new = new or terms.all
    matched = _matched_terms(claim, new, window)
    share = len(matched) / len(new)
    question_matches = count_matches(question.terms, window)
    min_question_matches = max(MIN_QUESTION_SHARE * len(question.terms), MIN_SHARE_OF_BEST * question.best_count)
    known_addresses = addresses(window.text)
    supports = (
        not echo
        and share >= MIN_SUPPORT
        # A number of the question ("Is it 28 days?") need not stand in the quote, unless it is all that is claimed.
        and matched >= new & terms.exact
        and (len(new) > SHORT_CLAIM or question_matches >= min_question_matches)
        and _agrees_on_denial(claim, question, matched, window)
        and not details_differ(claim.text, window.text)
        and all(
            address in known_addresses or terms_of(address).all <= question.terms for address in addresses(claim.text)
        )
    )
    # Terms that the sentence shares with the question break ties: they tell which "28 days" is meant.
    tie_breaker = len(terms.all & window.terms) / len(terms.all) + question_matches / (1 + len(question.terms))
    return Evidence(window.hit, window.start, window.end, 2 * share + tie_breaker, supports)


def _agrees_on_denial(claim: Claim, question: QuestionTerms, matched: frozenset[str], window: Window) -> bool:
    """Whether a window denies exactly what the claim denies.

    If the question denies something, the claim may repeat the denial, so all its terms count; a claim without a denial
    ("Earn much.") may answer such a question either way.
    """
    if question.denies:
        return not claim.denies or denies_terms(window.text, terms_of(without_denials(claim.text)).all)
    return claim.denies == denies_terms(window.text, matched)


def _matched_terms(claim: Claim, new: frozenset[str], window: Window) -> frozenset[str]:
    """The terms of a claim that a window has. A name must be a name there too, unless it opens the claim."""
    names, first = claim.terms.names, claim.terms.first
    return frozenset(
        term
        for term in new
        if (
            matches(term, window.terms if term == first else window.names, max_suffix=2)
            if term in names
            else matches(term, window.terms)
        )
    )


def _windows_with_quotations(quoted: Sequence[str], windows: Sequence[Window]) -> list[Window]:
    """For each passage that has all quotations verbatim, the sentences that they stand in, as one window."""
    quoting = []
    for hit, group in groupby(windows, key=lambda window: window.hit):
        places = [find_quote(quotation, hit.text) for quotation in quoted]
        if all(places):
            inside = [w for w in group if any(at and w.start < at[1] and at[0] < w.end for at in places)]
            quoting.append(
                Window(
                    hit,
                    min(window.start for window in inside),
                    max(window.end for window in inside),
                    " ".join(window.text for window in inside),
                    frozenset[str]().union(*(window.terms for window in inside)),
                    frozenset[str]().union(*(window.names for window in inside)),
                )
            )
    return quoting


def find_fault(
    claim: Claim, question: QuestionTerms, best: Evidence | None, windows: Mapping[int, Sequence[Window]], cited: Hit
) -> Fault:
    """Why the passage `cited` does not support a claim. `best` is the best evidence from all passages."""
    texts = [of_passage[0].hit.text for of_passage in windows.values() if of_passage]
    missing = [quotation for quotation in quotations(claim.text) if not find_quote(quotation, cited.text)]
    if missing:
        if any(all(find_quote(quotation, text) for quotation in missing) for text in texts):
            return "misattributed"
        return "stitched" if all(_is_stitched(quotation, texts) for quotation in missing) else "fabricated"
    if best and best.supports:
        return "misattributed"
    new = new_terms(claim, question)
    matched = [_matched_terms(claim, new, window) for of_passage in windows.values() for window in of_passage]
    anywhere = frozenset[str]().union(*matched)
    in_one_place = any(len(terms) == len(anywhere) for terms in matched)
    return "stitched" if new and anywhere == new and not in_one_place else "fabricated"


def _is_stitched(quotation: str, texts: Sequence[str]) -> bool:
    """Whether a quotation consists of pieces of at least three words that each stand verbatim in a passage."""
    words = quotation.split()
    reachable = {0}
    for end in range(MIN_QUOTE_WORDS, len(words) + 1):
        starts = [start for start in reachable if end - start >= MIN_QUOTE_WORDS]
        if any(find_quote(" ".join(words[start:end]), text) for start in starts for text in texts):
            reachable.add(end)
    return len(words) in reachable
