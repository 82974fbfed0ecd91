"""The noun phrases of an English question, by word lists: enough to replace one by another.

A parser would be as large as the smallest reader. Words that are in no list count as nouns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


PREPOSITIONS = _set(
    "about above across after against along among around at before behind below beside between beyond by despite down "
    "during except for from in inside into near of off on onto outside over past per since through to towards under "
    "until till up upon via with within without"
)
SUBORDINATORS = _set("if unless when while once because although whether that")
COPULAS = _set("am is are was were be been being isn't aren't wasn't weren't")
AUXILIARIES = COPULAS | _set(
    "do does did don't doesn't didn't have has had can could may might must shall should will would can't cannot "
    "couldn't mustn't shouldn't won't wouldn't"
)
SUBJECTS = _set("i you we they he she it one everybody everyone somebody someone anybody anyone nobody people")
PRONOUNS = SUBJECTS | _set("me us them him her there myself itself themselves")
DETERMINERS = _set("the a an my our your his its their this these those each every some any no all both another")
QUESTIONS = _set("what which who whom whose when where why how")
_OTHER_FUNCTION_WORDS = _set(
    "and or but nor so than as not n't also too else please only exactly still already ever often"
)
_FUNCTION = PREPOSITIONS | SUBORDINATORS | AUXILIARIES | PRONOUNS | QUESTIONS | _OTHER_FUNCTION_WORDS
_VERBS = _set(
    "apply arrive ask become begin belong book borrow break bring call carry change charge choose claim close come "
    "contain cook cost count cover decide depart drive eat end enter expire fall fill find finish fit fly get give go "
    "grow hand happen help hold join keep know lapse last lead learn leave lend live look lose make mean meet need "
    "offer open order park pay play post print publish put reach read receive renew rent repair report reserve return "
    "ride run sail say seat see sell send serve share show sign sit sleep smoke speak stand start stay stop store "
    "study swap swim take teach tell travel use visit wait walk want wash wear weigh work write"
)
_PREDICATES = _set(
    "open closed free allowed available built done given held hung kept late lent made paid possible ready sent set "
    "shut sold taken told written dangerous"
)
_TIME = re.compile(
    r"\b(?:(?:mon|tues|wednes|thurs|fri|satur|sun)days?|week(?:end|day)s?|january|february|march|april|june|july|august|"
    r"september|october|november|december|spring|summer|autumn|winter|mornings?|afternoons?|evenings?|nights?|noon|"
    r"midnight|holidays?|today|tomorrow|yesterday|\d{1,2}:\d\d|(?:19|20)\d\d|(?:in|next|last|this) (?:year|month|week)|"
    r"in may)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[\w'’-]+(?:[.,:/]\w+)*|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Word:
    """A word or punctuation mark in lower case, its span, and whether it is capitalised."""

    text: str
    start: int
    end: int
    capital: bool


@dataclass(frozen=True, slots=True)
class Phrase:
    """A noun phrase and its span. `before` is the preceding word in lower case.

    `asked`: the question asks how many or which of them there are. `name`: all its words are capitalised.
    """

    text: str
    start: int
    end: int
    before: str
    asked: bool
    name: bool

    @property
    def head(self) -> str:
        """The last word, in the singular."""
        last = self.text.split()[-1].lower()
        return last[:-1] if len(last) > 3 and last.endswith("s") and not last.endswith("ss") else last


def split_words(text: str) -> list[Word]:
    """The words and punctuation marks of a text."""
    return [
        Word(match[0].replace("’", "'").lower(), *match.span(), match[0][0].isupper()) for match in _WORD.finditer(text)
    ]


def is_time_phrase(text: str) -> bool:
    """Whether a phrase is about time."""
    return bool(_TIME.search(text))


def noun_phrases(text: str) -> list[Phrase]:
    """The noun phrases of a question, in order."""
    words, phrases = split_words(text), list[Phrase]()
    first: int | None = None  # of the words of the present phrase
    for at, word in enumerate([*words, Word("", 0, 0, False)]):
        kind = _kind(words, at, first) if word.text else "other"
        if first is not None and kind != "noun":
            end, before = at, words[first - 1].text if first else ""
            content = [one for one in words[first:end] if one.text not in DETERMINERS]
            # The last word may be a verb that is in no list: "does the sauna heat".
            verb_follows = word.text in _VERBS | _PREDICATES
            if before in AUXILIARIES - COPULAS and not verb_follows and len(content) > 1 and not words[at - 1].capital:
                end -= 1
                content.pop()
            if content:
                start, stop = words[first].start, words[end - 1].end
                asked = before in ("many", "much", "which", "what", "whose")
                capitals = first > 0 and all(one.capital for one in content)
                name = capitals and not is_time_phrase(text[start:stop])
                phrases.append(Phrase(text[start:stop], start, stop, before, asked, name))
            first = None
        if kind == "determiner" or (kind == "noun" and first is None):
            first = at
    return phrases


def _kind(words: Sequence[Word], at: int, first: int | None) -> Literal["noun", "determiner", "other"]:
    """The kind of a word, after a run that started at `first`."""
    word, before = words[at], words[at - 1].text if at else ""
    if word.text == "many" or word.text == "much" or not word.text[0].isalnum():
        return "other"
    following = words[at + 1].text if at + 1 < len(words) else "?"
    if word.text in DETERMINERS or (word.text == "her" and following not in _FUNCTION and following[0].isalnum()):
        return "determiner"
    if word.text in _FUNCTION:
        return "other"
    if before in SUBJECTS or (before == "to" and not word.capital):
        return "other"  # a verb
    if before in COPULAS and at > 1 and words[at - 2].text in SUBJECTS:
        return "other"  # "I am ill"
    if first is not None and before not in DETERMINERS and not word.capital:
        participle = word.text.endswith("ed") and any(w.text in COPULAS for w in words[:first])
        if word.text in _VERBS or word.text in _PREDICATES or participle:
            return "other"
    return "noun"
