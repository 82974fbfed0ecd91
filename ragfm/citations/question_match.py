"""Whether a quote speaks of what a question asks, by the words of both. It knows English.

A quote that lacks a word of the question is often about something else; one that has them apart, or in another order,
often says who did it of whom it was done to. So people write questions that have no answer (Rajpurkar et al. 2018).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, takewhile

import Stemmer

from ragfm.citations.claim_details import differ
from ragfm.citations.evidence import denied, denies, undenied
from ragfm.citations.word_match import stands_in, word_sequence, words_of

_AUXILIARY = "is|are|was|were|be|been|do|does|did|has|have|had|can|could|may|might|must|shall|should|will|would"
_WORD = rf"(?!(?:{_AUXILIARY})\b)[^\W\d_]\w*(?:-\w+)*"
_THEN = rf"(?=\s+(?:{_AUXILIARY})\b)"
_END = r"(?=\W*$)"
_KIND_OF = r"(?:kind|sort|type)s?\s+of"
_ASKING = re.compile(r"\b(?:by\s+)?(?:what|which|whose|how|who|whom)\b|\bby\s+when\b", re.IGNORECASE)
_COUNT = re.compile(
    rf"\bhow (?:many|much)(?:\s+(?P<counted>{_WORD}(?:\s+{_WORD}){{0,3}}?{_THEN}|{_WORD}{_END})"
    rf"|(?=\s+(?P<acting>{_WORD}))|\b)",
    re.IGNORECASE,
)
"""What is counted: "(How many (days of leave)) do …"; "(How many) (people) died …", which is asked, too."""
_KIND = re.compile(
    rf"(?:by\s+)?(?:what|which|whose|how)\s+(?:{_KIND_OF}\s+)?(?P<kind>(?-i:(?=[a-z])){_WORD})(?:{_THEN}|{_END})"
    rf"|(?:what|which)\s+{_KIND_OF}\b",
    re.IGNORECASE,
)
"""The kind of thing that is asked for: "In (what year) did …". What no auxiliary follows may be a verb instead."""
_POSSESSIVE = re.compile(r"['’]s\b")
_PREFIX = re.compile(r"\bnon\b", re.IGNORECASE)
_ROLES = frozenset({"by", "of"})
_ENDING = 3  # letters
_AGENT = re.compile("(?:er|or|ee)$")
_TURNS = frozenset("by except former near only outside than".split())
"""Words that turn what is said when they stand between two others of it."""
_NEAR = 4  # words behind a number, among which is what it counts
_FEWEST = 2  # words that a quote must have: of one alone much is said


def speaks_of(question: str, said: str, quote: str, known: frozenset[str]) -> bool:
    """Whether a quote has every word of a question, together; those that stand above it alone, `known`, need not.

    Together is: in the question's order, with *by* and *of*, and between two neighbours at most one word more, no name,
    no number, and nothing that turns what is said, unless it was said. What was counted is what is counted there, and
    denied what is denied there. The word for the kind of thing asked for may be missing.
    """
    there, answer = word_sequence(undenied(quote), also=_ROLES), words_of(said).all
    if denies(question) != denied(quote, words_of(question).all | answer) or differ(question, quote):
        return False
    if bool(_PREFIX.search(question)) != bool(_PREFIX.search(quote)):
        return False
    words, counted, kind = _parts(question)
    if not all(any(_same(word, other) for other in _counted(answer, there)) for word in counted):
        return False
    spots = {word: [at for at, other in enumerate(there) if _same(word, other)] for word in words}
    wanted = [word for word, behind in zip(words, [*words[1:], ""], strict=False) if word != "of" or spots.get(behind)]
    if any(not spots[word] and not any(_same(word, other) for other in known) for word in wanted):
        return False
    standing = [word for word in wanted if spots[word]]
    number = sum(word not in _ROLES for word in standing) + len(counted)
    number += any(_same(word, other) for word in kind for other in there)
    ends = _ends([spots[word] for word in standing], _distances(quote, there, answer))
    # "Kern owns the company's car" does not say who owns the company; what is counted may be the company's.
    together = not standing or any(counted or there[at + 1 : at + 2] != ["s"] for at in ends)
    return number >= _FEWEST and together


def _parts(question: str) -> tuple[list[str], frozenset[str], frozenset[str]]:
    """The words of a question in their order, those of what is counted, and those of the kind of thing asked for."""
    count = _COUNT.search(question)
    asking = None if count else _ASKING.search(question)
    kind = _KIND.match(question, asking.start()) if asking else None
    found = count or kind or asking
    rest = f"{question[: found.start()]} {question[found.end() :]}" if found else question
    return (
        word_sequence(undenied(_POSSESSIVE.sub("", rest)), also=_ROLES),
        words_of((count["counted"] or count["acting"] or "") if count else "").all,
        words_of((kind["kind"] or "") if kind else "").all,
    )


def _same(word: str, other: str) -> bool:
    """Whether two words are one with other endings; who does something is another word than what is done."""
    if word == other:
        return True
    if stands_in(word, frozenset({other}), endings=_ENDING):
        shorter, longer = sorted((word, other), key=len)
        return bool(_AGENT.search(shorter)) or not _AGENT.search(longer)
    return _stem(word) == _stem(other) and _is_agent(word) == _is_agent(other)


@lru_cache(maxsize=4096)
def _stem(word: str) -> str:
    return str(Stemmer.Stemmer("english").stemWord(word))  # one of its own: they are not thread-safe


def _is_agent(word: str) -> bool:
    return bool(_AGENT.search(word)) and not _AGENT.search(_stem(word))


def _counted(answer: frozenset[str], there: Sequence[str]) -> frozenset[str]:
    """What the quote has of the answer, and what stands behind that up to the next number."""
    found = answer.intersection(there)
    for at, word in enumerate(there):
        if word in answer:
            found |= set(takewhile(lambda near: not near[-1].isdecimal(), there[at + 1 : at + 1 + _NEAR]))
    return found


def _distances(quote: str, there: Sequence[str], answer: frozenset[str]) -> list[int]:
    """How much stands before each word, so that between two that belong together it may be 1 at most."""
    never = words_of(quote).exact | _TURNS
    costs = (0 if word in answer or word in ("of", "s") else 2 if word in never else 1 for word in there)
    return list(accumulate(costs, initial=0))


def _ends(spots: Sequence[Sequence[int]], before: Sequence[int]) -> Sequence[int]:
    """Where the last word can stand, if each of the others has one of its spots, in order and together."""
    reach = spots[0] if spots else ()
    for some in spots[1:]:
        nearest = [(bisect_left(reach, spot), spot) for spot in some]
        reach = [spot for at, spot in nearest if at and before[spot] - before[reach[at - 1] + 1] <= 1]
    return reach
