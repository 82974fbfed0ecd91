"""What is said, held against what was asked: how likely it is the answer, by the verifier's readings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import Stemmer

from ragfm.ground.details import differ
from ragfm.ground.evidence import denies, places, undenied, windows_of
from ragfm.ground.words import stands_in, word_sequence, words_of
from ragfm.text import MARKER, unmarked

if TYPE_CHECKING:
    from ragfm.ground import Sentence
    from ragfm.types import Citation
    from ragfm.verifier import Reading

DOUBT = 0.05
"""Of verified quotes with less likelihood to hold the answer, 8 % were right on the tuning articles; of others 42 %."""
SURE = 0.5
"""How likely the verifier must find an answer, so that its quote is verified: docs/decisions/015-the-verifier.md."""
AGREE = 0.5
"""The share of words from which on two answers are one."""
_NOUN = r"[a-z][\w-]*"  # in lower case, since a name is no kind
_ENDS = (
    r"(?=\s+(?:is|are|was|were|be|been|do|does|did|has|have|had|can|could|may|might|must|shall|should|will|would)\b"
    r"|\W*$)"
)
_COUNT = re.compile(rf"(?i:\bhow many)(?:\s+(?P<asked>{_NOUN}(?:\s+{_NOUN})??){_ENDS}|(?=\s+(?P<acting>{_NOUN})))")
"""What is counted: "(How many (natural reserves)) are …"; "(How many) (people) died …", which is asked, too."""
_KIND = re.compile(
    rf"(?i:\b(?:what|which))\s+(?:kind|sort|type)s?\s+of\b|(?i:\b(?:what|which|whose|how))\s+{_NOUN}{_ENDS}"
)
"""The kind of thing that is asked for: "In (what year) did …". What no auxiliary follows may be a verb instead."""
_PREFIX = re.compile(r"\bnon\b", re.IGNORECASE)
_ROLES = frozenset({"by", "of"})
_NEAR = 3  # words behind a number, among which is what it counts
_FEWEST = 2  # words that a question must have: of one alone much is said
_POSSESSIVE = re.compile(r"['’]s\b")


def located(sentence: Sentence, readings: Sequence[Reading]) -> float:
    """How likely a sentence is the answer, in [0, 1]: where it stands word by word, else where its quotes do."""
    found = [reading.within(*span) for reading in readings for span in places(sentence.plain, reading.passage.text)]
    return max(found, default=0.0) or max((held(one, readings) for one in sentence.citations), default=0.0)


def held(citation: Citation, readings: Sequence[Reading]) -> float:
    """How likely the answer stands within a quote, in [0, 1]."""
    reading, start, end = _of(citation, readings)
    return reading.within(start, end)


def _of(citation: Citation, readings: Sequence[Reading]) -> tuple[Reading, int, int]:
    """The reading of a citation's passage, and the quote's characters in the passage."""
    reading = next(reading for reading in readings if reading.passage.n == citation.n)
    return reading, citation.start - reading.passage.start, citation.end - reading.passage.start


def _within(sentence: Sentence, reading: Reading, start: int, end: int) -> float:
    """How likely a sentence is the answer where a quote has it word by word, else how likely the quote holds one."""
    there = [span for span in places(sentence.plain, reading.passage.text) if start <= span[0] and span[1] <= end]
    return max(reading.within(*span) for span in there or [(start, end)])


def doubted(question: str, sentence: Sentence, readings: Sequence[Reading]) -> Sentence:
    """The sentence without trust in quotes that hardly hold what was asked for, or perhaps not."""

    def judged(citation: Citation) -> Citation:
        if not citation.verified:
            return citation
        if held(citation, readings) < DOUBT:
            return replace(citation, verified=False, fault="irrelevant")
        reading, start, end = _of(citation, readings)
        inside = [window for window in windows_of(reading.passage) if start <= window.start and window.end <= end]
        known = frozenset[str]().union(*(window.words for window in inside))
        sure = _within(sentence, reading, start, end) >= SURE
        if sure and speaks_of(question, sentence.plain, citation.quote, known):
            return citation
        return replace(citation, verified=False, fault="uncertain")

    return replace(sentence, citations=tuple(map(judged, sentence.citations)))


def speaks_of(question: str, said: str, quote: str, known: frozenset[str]) -> bool:
    """Whether a quote has every word of a question, together; those above it, which are `known`, may be anywhere.

    Together is: in the question's order, with *by* and *of*, and between two neighbours at most one word more, no name
    and no number, unless it was said. What was counted is what is counted there, and denied what is denied there. A
    quote that lacks a word is often about something else, and one that has them apart or in another order often says
    who did it of whom it was done to: so people write questions that have no answer (Rajpurkar et al. 2018).
    """
    if _denials(question) != _denials(quote) or differ(question, quote):
        return False
    stem = Stemmer.Stemmer("english").stemWord

    def same(word: str, other: str) -> bool:
        return stands_in(word, frozenset({other}), endings=3) or stem(word) == stem(other)

    there, answer = word_sequence(undenied(quote), also=_ROLES), words_of(said).all
    count = _COUNT.search(question)
    counted = words_of((count["asked"] or count["acting"]) if count else "").all
    behind = {word for at, word in enumerate(there) if not answer.isdisjoint(there[max(0, at - _NEAR) : at])}
    if not all(any(same(word, other) for other in behind | answer) for word in counted):
        return False
    wanted = word_sequence(undenied(_POSSESSIVE.sub("", _KIND.sub("", _COUNT.sub("", question)))), also=_ROLES)
    found = {word: [at for at, other in enumerate(there) if same(word, other)] for word in wanted}
    if any(not found[word] and not any(same(word, other) for other in known) for word in wanted):
        return False
    run = _tightest([found[word] for word in wanted if found[word]])
    between = [[word for word in there[a + 1 : b] if word not in answer | _ROLES] for a, b in pairwise(run)]
    exact = words_of(quote).exact
    return len(counted | set(run)) >= _FEWEST and all(len(some) <= 1 and exact.isdisjoint(some) for some in between)


def _denials(text: str) -> tuple[bool, bool]:
    """Whether it denies something, and whether a word of it has *non* before it."""
    return denies(text), bool(_PREFIX.search(text))


def _tightest(found: Sequence[Sequence[int]]) -> list[int]:
    """Of each word one of its places, all in order, and as near to one another as can be; none if there are no such."""
    runs = []
    for start in found[0] if found else ():
        run = [start]
        for spots in found[1:]:
            run += [spot for spot in spots if spot > run[-1]][:1]
        if len(run) == len(found):
            runs.append(run)
    return min(runs, key=lambda run: run[-1] - run[0], default=[])


def likeliest(readings: Sequence[Reading]) -> list[tuple[str, int | None]]:
    """What is most likely the answer: the best words of each passage, and its number, best first.

    Words that are less than half as likely as the best ones are not among them.
    """
    best = sorted(((*reading.best, reading.passage) for reading in readings), key=lambda found: -found[0])
    return [(passage.text[start:end], passage.n) for chance, start, end, passage in best if chance >= best[0][0] / 2]


def agreement(said: str, other: str) -> float:
    """The share of their words that two answers have in common, of the shorter one's (Szymkiewicz 1934); in [0, 1]."""
    ours, theirs = (words_of(MARKER.sub("", text)).all for text in (said, other))
    return len(ours & theirs) / min(len(ours), len(theirs)) if ours and theirs else 0.0


def corrected(said: str, readings: Sequence[Reading]) -> str:
    """The reader's words where they agree with likely ones of a passage; else the likeliest, with their number."""
    likely = likeliest(readings)
    words, n = likely[0]
    agreed = not words or any(agreement(said, other) >= AGREE for other, _ in likely)
    return said if agreed else f"{unmarked(words)} [{n}]."
