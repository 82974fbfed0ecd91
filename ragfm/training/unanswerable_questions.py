"""Near misses: questions changed in one word, so that the passage that answered them no longer does.

A number, a name or a word is replaced, or the question is negated, as annotators did for SQuAD 2.0 (Rajpurkar et al.
2018).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

_NAME = re.compile(r"(?<=[a-z,] )(?:[A-Z][\w'’.-]*\w)(?: (?:of |the |de )?[A-Z][\w'’.-]*\w)*")
_NUMBER = re.compile(r"(?<![\w.,])\d{1,4}(?![\w]|[.,]\d)")
_PAIRS = """
first last, largest smallest, highest lowest, oldest newest, longest shortest, before after, most least, more fewer,
north south, northern southern, east west, eastern western, began ended, start end, won lost, minimum maximum,
male female, men women, increase decrease, older younger, early late, inside outside, above below, upper lower,
majority minority, import export, win lose, arrive leave, best worst, biggest smallest, earliest latest, same different
"""
_OPPOSITES = {
    one: other
    for pair in _PAIRS.split(",")
    for one, other in (pair.split(), reversed(pair.split()))
    if (one, other) != ("smallest", "biggest")  # the opposite of "smallest" is "largest"
}
_OPPOSITE_WORDS = re.compile(rf"\b(?:{'|'.join(_OPPOSITES)})\b")

_NEGATED_SHARE = 1 / 8
_NEGATIVE_FORMS = {
    **{verb: f"{verb}n't" for verb in "is are was were did does do has have had could would should".split()},
    "can": "can't",
    "will": "won't",
}
_POSITIVE_FORMS = {negative: positive for positive, negative in _NEGATIVE_FORMS.items()}
_NEGATION = re.compile(rf"\b(?:{'|'.join(_POSITIVE_FORMS)})\b| not\b")
_AUXILIARY = re.compile(rf"(?<=\w )(?:{'|'.join(_NEGATIVE_FORMS)})\b")
"""An auxiliary verb that is not the first word: a yes-no question has an answer when negated, too."""


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A changed question.

    - `kind`: `number`, `name`, `opposite` or `negation`.
    - `text`: the changed question.
    - `inserted`: the text that replaces the original; empty if a negation was removed.
    """

    kind: str
    text: str
    inserted: str


def names_in(question: str) -> list[str]:
    """The proper names in a question, except at its beginning, where a common word is capitalised too."""
    return _NAME.findall(question)


def near_misses(question: str, names: Sequence[str], rng: random.Random) -> Iterator[NearMiss]:
    """The question changed in one place, in all ways that the rules know, in random order.

    `names` are the names in other questions; a name is replaced by one with as many words. One question in eight also
    gets its negation, first: nearly all questions can be negated, and a model would learn to spot that.
    """

    def change(kind: str, match: re.Match[str], new: str) -> NearMiss:
        return NearMiss(kind, question[: match.start()] + new + question[match.end() :], new)

    changes = []
    for match in _NUMBER.finditer(question):
        old = int(match[0])
        delta = rng.randint(2, 30 if old > 100 else 9)
        # Not below zero, and a year does not move into the future.
        lower = old > delta and (rng.random() < 0.5 or old + delta > 2030 > old)
        changes.append(change("number", match, str(old - delta if lower else old + delta)))
    for match in _NAME.finditer(question):
        candidates = [name for name in names if name.count(" ") == match[0].count(" ") and name not in question]
        changes += [change("name", match, new) for new in rng.sample(candidates, min(3, len(candidates)))]
    changes += [change("opposite", match, _OPPOSITES[match[0]]) for match in _OPPOSITE_WORDS.finditer(question)]
    rng.shuffle(changes)
    if rng.random() < _NEGATED_SHARE:
        if negated := _NEGATION.search(question):
            yield replace(change("negation", negated, _POSITIVE_FORMS.get(negated[0], "")), inserted="")
        elif verb := _AUXILIARY.search(question):
            yield change("negation", verb, _NEGATIVE_FORMS[verb[0]])
    yield from changes
