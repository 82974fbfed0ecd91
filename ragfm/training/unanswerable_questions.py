"""Near misses: a question changed in one word, so that the passage that answered it answers it no more.

Number, name, a word for its opposite, or a denial put in or taken out, as the crowd did it for SQuAD 2.0 (Rajpurkar et
al. 2018).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_NAME = re.compile(r"(?<=[a-z,] )(?:[A-Z][\w'’.-]*\w)(?: (?:of |the |de )?[A-Z][\w'’.-]*\w)*")
_NUMBER = re.compile(r"(?<![\w.,])\d{1,4}(?![\w]|[.,]\d)")
_PAIRS = """
first last, largest smallest, highest lowest, oldest newest, longest shortest, before after, most least, more fewer,
north south, northern southern, east west, eastern western, began ended, start end, won lost, minimum maximum,
male female, men women, increase decrease, older younger, early late, inside outside, above below, upper lower,
majority minority, import export, win lose, arrive leave, best worst, biggest smallest, earliest latest, same different
"""
_OPPOSITE = {
    one: other
    for pair in _PAIRS.split(",")
    for one, other in (pair.split(), reversed(pair.split()))
    if (one, other) != ("smallest", "biggest")  # once is enough, and the pair above has it
}
_OPPOSITES = re.compile(rf"\b(?:{'|'.join(_OPPOSITE)})\b")

_DENIED = 1 / 8
_WITHOUT = {"can't": "can", "won't": "will"}
_DENIAL = re.compile(r"\b(?:can't|won't)|(?<=[a-z])n't\b| not\b")
_AUXILIARY = re.compile(r"(?<=\w )(?:is|are|was|were|did|does|do|has|have|had|can|could|will|would|should)\b")
"""Not the first word: a question for yes or no has an answer then, too."""


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A changed question: `kind` is `number`, `name`, `opposite` or `negation`; `put` is what stands there now."""

    kind: str
    text: str
    put: str


def names_in(question: str) -> list[str]:
    """The names in a question, but for one that it begins with, which may be a common word."""
    return _NAME.findall(question)


def near_misses(question: str, names: Sequence[str], chance: random.Random) -> Iterator[NearMiss]:
    """The question changed in one place, in all ways that the rules know, in a random order.

    `names` are those of other questions; one that has as many words takes a name's place. A denial comes first where it
    comes at all, in one question of eight: nearly every question can be denied, and that is easily seen.
    """
    ways = [*_numbers(question, chance), *_names(question, names, chance), *_opposites(question)]
    chance.shuffle(ways)
    if chance.random() < _DENIED:
        yield from _negations(question)
    yield from ways


def _numbers(question: str, chance: random.Random) -> Iterator[NearMiss]:
    for match in _NUMBER.finditer(question):
        old = int(match[0])
        by = chance.randint(2, 30 if old > 100 else 9)
        new = str(old - by if old > by and (chance.random() < 0.5 or old + by > 2030 > old) else old + by)
        yield NearMiss("number", _put(question, match, new), new)


def _names(question: str, names: Sequence[str], chance: random.Random) -> Iterator[NearMiss]:
    for match in _NAME.finditer(question):
        alike = [name for name in names if name.count(" ") == match[0].count(" ") and name not in question]
        for new in chance.sample(alike, min(3, len(alike))):
            yield NearMiss("name", _put(question, match, new), new)


def _opposites(question: str) -> Iterator[NearMiss]:
    for match in _OPPOSITES.finditer(question):
        new = _OPPOSITE[match[0]]
        yield NearMiss("opposite", _put(question, match, new), new)


def _negations(question: str) -> Iterator[NearMiss]:
    if match := _DENIAL.search(question):
        yield NearMiss("negation", _put(question, match, _WITHOUT.get(match[0], "")), "")
    elif match := _AUXILIARY.search(question):
        new = {plain: denied for denied, plain in _WITHOUT.items()}.get(match[0], f"{match[0]}n't")
        yield NearMiss("negation", _put(question, match, new), new)


def _put(question: str, match: re.Match[str], new: str) -> str:
    return question[: match.start()] + new + question[match.end() :]
