"""What is said, held against what was asked: how likely it is the answer, by the verifier's readings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ragfm.citations.evidence import places, windows_of
from ragfm.citations.question_match import speaks_of
from ragfm.citations.word_match import words_of
from ragfm.core.text import MARKER, unmarked

if TYPE_CHECKING:
    from ragfm.citations.grounding import Sentence
    from ragfm.citations.verifier import Reading
    from ragfm.core.types import Citation

DOUBT = 0.05
"""Of verified quotes with less likelihood to hold the answer, 8 % were right on the tuning articles; of others 42 %."""
SURE = 0.5
"""How likely the verifier must find an answer, so that its quote is verified: docs/decisions/015-the-verifier.md."""
AGREE = 0.5
"""The share of words from which on two answers are one."""


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
