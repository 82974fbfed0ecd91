"""Contradictions: a passage that gives another number or name than the quote that supports an answer.

They are found by form: two sentences that share most of their terms and differ in a number or a name say different
things about the same subject. Terms that the quote shares with the question ("How many people does Cirrus seat?") are
the subject: the other sentence must have all of them. Sentences that differ in wording as well are not noticed.
"""

from __future__ import annotations

from ragfm.citations.support import Analysis, Claim, Evidence, Window
from ragfm.citations.text_match import count_matches, matches, terms_of
from ragfm.core.text import escape_markers
from ragfm.core.types import Contradiction

__all__ = ["describe_contradiction", "find_contradiction"]

MIN_SIMILARITY = 0.7
"""The share of the quote's other terms that a sentence must have to be about the same subject."""
_MAX_QUOTE = 300  # characters


def find_contradiction(claim: Claim, analysis: Analysis, evidence: Evidence) -> Window | None:
    """The sentence of another passage that contradicts a claim most clearly, given the evidence that supports it."""
    answer = claim.new_terms & claim.terms.exact
    quote = terms_of(evidence.hit.text[evidence.start : evidence.end])
    rest = quote.all - quote.exact
    if not answer or len(rest) < 2:
        return None
    known = quote.all | terms_of(evidence.hit.context).all
    subject = {term for term in known if matches(term, analysis.question.terms)} - answer
    compares_numbers = bool(answer & quote.numbers)
    best: tuple[float, Window | None] = (0.0, None)
    for n, of_passage in analysis.windows.items():
        for window in of_passage if n != evidence.hit.n else ():
            own = terms_of(window.text)
            alternatives = (own.numbers if compares_numbers else own.names) - quote.all
            similarity = count_matches(rest, own.all) / len(rest)
            same_subject = count_matches(subject, window.terms) == len(subject)
            if alternatives and similarity >= MIN_SIMILARITY and same_subject and not answer & window.terms:
                best = max(best, (similarity, window), key=lambda candidate: candidate[0])
    return best[1]


def describe_contradiction(contradiction: Contradiction) -> str:
    """The line that tells a user of a contradiction: `But [2] says otherwise: “…”`."""
    quote = escape_markers(" ".join(contradiction.quote.split()))
    ending = f": “{quote}”" if len(quote) <= _MAX_QUOTE else "."
    return f"But [{contradiction.n}] says otherwise{ending}"
