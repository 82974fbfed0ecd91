"""Whether a quote is about the subject of a question, by the terms of both. English only.

A quote that lacks a term of the question is often about something else. A quote that has them far apart, or in another
order, often swaps subject and object. Questions without an answer are written that way (Rajpurkar et al. 2018).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, takewhile

import Stemmer

from ragfm.citations.text_match import (
    denies,
    denies_terms,
    details_differ,
    matches,
    term_sequence,
    terms_of,
    without_denials,
)

__all__ = ["matches_question"]

_AUXILIARY = "is|are|was|were|be|been|do|does|did|has|have|had|can|could|may|might|must|shall|should|will|would"
_WORD = rf"(?!(?:{_AUXILIARY})\b)[^\W\d_]\w*(?:-\w+)*"
_BEFORE_AUXILIARY = rf"(?=\s+(?:{_AUXILIARY})\b)"
_END = r"(?=\W*$)"
_KIND_OF = r"(?:kind|sort|type)s?\s+of"
_QUESTION_WORD = re.compile(r"\b(?:by\s+)?(?:what|which|whose|how|who|whom)\b|\bby\s+when\b", re.IGNORECASE)
_COUNT = re.compile(
    rf"\bhow (?:many|much)(?:\s+(?P<counted>{_WORD}(?:\s+{_WORD}){{0,3}}?{_BEFORE_AUXILIARY}|{_WORD}{_END})"
    rf"|(?=\s+(?P<acting>{_WORD}))|\b)",
    re.IGNORECASE,
)
"""The counted noun: "(How many (days of leave)) do …"; "(How many) (people) died …", where it is the subject, too."""
_KIND = re.compile(
    rf"(?:by\s+)?(?:what|which|whose|how)\s+(?:{_KIND_OF}\s+)?(?P<kind>(?-i:(?=[a-z])){_WORD})(?:{_BEFORE_AUXILIARY}|{_END})"
    rf"|(?:what|which)\s+{_KIND_OF}\b",
    re.IGNORECASE,
)
"""The kind of thing asked for: "In (what year) did …". A word that no auxiliary follows may be a verb instead."""
_POSSESSIVE = re.compile(r"['’]s\b")
_NEGATING_PREFIX = re.compile(r"\bnon\b", re.IGNORECASE)
_PREPOSITIONS = frozenset({"by", "of"})
_MAX_SUFFIX = 3  # letters
_AGENT_SUFFIX = re.compile("(?:er|or|ee)$")
_SHIFTING = frozenset("by except former near only outside than".split())
"""Words that change the meaning if they stand between two others of a phrase."""
_COUNTED_DISTANCE = 4  # words after a number among which the counted noun stands
_MIN_TERMS = 2  # terms of the question that a quote must have


def matches_question(question: str, answer: str, quote: str, context: frozenset[str]) -> bool:
    """Whether a quote has all terms of a question, close together and in the question's order.

    Terms that only `context` has (headings, table header) may be missing from the quote. Between two neighbours there
    may be one more word, but no name, number or word that changes the meaning, unless the answer has it. The counted
    noun must be counted in the quote too, and a denial must stand in both. The word for the kind of thing asked for
    may be missing.
    """
    quoted, answered = term_sequence(without_denials(quote), keep=_PREPOSITIONS), terms_of(answer).all
    if denies(question) != denies_terms(quote, terms_of(question).all | answered) or details_differ(question, quote):
        return False
    if bool(_NEGATING_PREFIX.search(question)) != bool(_NEGATING_PREFIX.search(quote)):
        return False

    asked, counted, kind = _question_parts(question)
    if counted:
        # The terms of the answer in the quote, and those that follow them up to the next number.
        count_terms = set(answered.intersection(quoted))
        for at, term in enumerate(quoted):
            if term in answered:
                following = quoted[at + 1 : at + 1 + _COUNTED_DISTANCE]
                count_terms.update(takewhile(lambda near: not near[-1].isdecimal(), following))
        if not all(any(_same_word(term, other) for other in count_terms) for term in counted):
            return False

    positions = {term: [at for at, other in enumerate(quoted) if _same_word(term, other)] for term in asked}
    required = [
        term
        for term, following in zip(asked, [*asked[1:], ""], strict=False)
        if term != "of" or positions.get(following)
    ]
    if any(not positions[term] and not any(_same_word(term, other) for other in context) for term in required):
        return False
    present = [term for term in required if positions[term]]
    count = sum(term not in _PREPOSITIONS for term in present) + len(counted)
    count += any(_same_word(term, other) for term in kind for other in quoted)
    if count < _MIN_TERMS:
        return False
    # "Kern owns the company's car" does not say who owns the company; a counted noun may belong to the company.
    ends = _phrase_ends([positions[term] for term in present], _gap_costs(quote, quoted, answered))
    return not present or any(counted or quoted[at + 1 : at + 2] != ["s"] for at in ends)


def _question_parts(question: str) -> tuple[list[str], frozenset[str], frozenset[str]]:
    """A question's terms in order, those of the counted noun, and those of the kind of thing asked for."""
    count = _COUNT.search(question)
    question_word = None if count else _QUESTION_WORD.search(question)
    kind = _KIND.match(question, question_word.start()) if question_word else None
    asking = count or kind or question_word
    rest = f"{question[: asking.start()]} {question[asking.end() :]}" if asking else question
    return (
        term_sequence(without_denials(_POSSESSIVE.sub("", rest)), keep=_PREPOSITIONS),
        terms_of((count["counted"] or count["acting"] or "") if count else "").all,
        terms_of((kind["kind"] or "") if kind else "").all,
    )


def _same_word(term: str, other: str) -> bool:
    """Whether two terms are forms of one word. An agent ("insurer") is not what is done ("insured")."""
    if term == other:
        return True
    if matches(term, {other}, max_suffix=_MAX_SUFFIX):
        shorter, longer = sorted((term, other), key=len)
        return bool(_AGENT_SUFFIX.search(shorter)) or not _AGENT_SUFFIX.search(longer)
    return _stem(term) == _stem(other) and _is_agent(term) == _is_agent(other)


@lru_cache(maxsize=4096)
def _stem(term: str) -> str:
    return str(Stemmer.Stemmer("english").stemWord(term))  # stemmers are not thread-safe


def _is_agent(term: str) -> bool:
    return bool(_AGENT_SUFFIX.search(term)) and not _AGENT_SUFFIX.search(_stem(term))


def _gap_costs(quote: str, quoted: Sequence[str], answered: frozenset[str]) -> list[int]:
    """The cumulated cost of the terms before each position; between neighbours of a phrase it may be 1."""
    forbidden = terms_of(quote).exact | _SHIFTING
    costs = (0 if term in answered or term in ("of", "s") else 2 if term in forbidden else 1 for term in quoted)
    return list(accumulate(costs, initial=0))


def _phrase_ends(positions: Sequence[Sequence[int]], cost_before: Sequence[int]) -> Sequence[int]:
    """The positions where a phrase can end that has one position of each term, in order and close together."""
    reachable = positions[0] if positions else ()
    for candidates in positions[1:]:
        nearest = [(bisect_left(reachable, position), position) for position in candidates]
        reachable = [
            position
            for at, position in nearest
            if at and cost_before[position] - cost_before[reachable[at - 1] + 1] <= 1
        ]
    return reachable
