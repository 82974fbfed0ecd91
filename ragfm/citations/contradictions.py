"""Contradictions: a passage that has another number or name where the quote has the answer's.

Found by form: two sentences that share most of their words and differ in a number, or in a name, say different things
of the same. Where they have few words in common, or differ in other words, nothing is noticed. What the quote shares
with the question ("How many people does Cirrus seat?") is what is spoken of: the other sentence must have all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ragfm.citations.evidence import Asked, Claim, Evidence, Window, common_words, new_words
from ragfm.citations.word_match import stands_in, words_of
from ragfm.core.text import unmarked
from ragfm.core.types import Contradiction

_LONGEST_QUOTE = 300  # characters
ALIKE = 0.7
"""The share of the quote's other words that a sentence must have to speak of the same."""


def against(claim: Claim, asked: Asked, evidence: Evidence, windows: Mapping[int, Sequence[Window]]) -> Window | None:
    """The sentence of another passage that contradicts a claim most plainly, given what supports it."""
    answer = new_words(claim, asked) & claim.words.exact
    quote = words_of(evidence.hit.text[evidence.start : evidence.end])
    rest = quote.all - quote.exact
    if not answer or len(rest) < 2:
        return None
    known = quote.all | words_of(evidence.hit.context).all
    subject = {word for word in known if stands_in(word, asked.words)} - answer
    numbers = bool(answer & quote.numbers)
    found = []
    for n, some in windows.items():
        for window in some if n != evidence.hit.n else ():
            its = words_of(window.text)
            others = (its.numbers if numbers else its.names) - quote.all
            alike = sum(stands_in(word, its.all) for word in rest) / len(rest)
            same = common_words(subject, window) == len(subject)
            if others and alike >= ALIKE and same and not answer & window.words:
                found.append((alike, window))
    return max(found, key=lambda item: item[0], default=(0.0, None))[1]


def describe_contradiction(contradiction: Contradiction) -> str:
    """The line that tells a user of a contradiction: `But [2] says otherwise: “…”`."""
    quote = unmarked(" ".join(contradiction.quote.split()))
    ending = f": “{quote}”" if len(quote) <= _LONGEST_QUOTE else "."
    return f"But [{contradiction.n}] says otherwise{ending}"
