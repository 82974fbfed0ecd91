"""Follow-ups in English, by rules.

    a part of a question      "And for parents?" goes into the place of its like in the question before
    a question word           "For how long?" goes before it, or after it
    an ordinal                "the second one" is the second of what the last answer lists
    a pronoun                 "When does it open?" where the question before is about one thing, that one
    what else leans on it     "Is it allowed on Fridays?" is asked after the question before

All else stands alone as it is, so that a change of topic carries nothing along.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ragfm.generation.followups.list_items import nth_item
from ragfm.generation.followups.noun_phrases import (
    AUXILIARIES,
    COPULAS,
    DETERMINERS,
    PREPOSITIONS,
    QUESTIONS,
    SUBJECTS,
    SUBORDINATORS,
    Phrase,
    is_time_phrase,
    noun_phrases,
    split_words,
)

__all__ = ["Turn", "rewrite_with_rules"]


class Turn(NamedTuple):
    """A question, in its stand-alone form, and its answer."""

    question: str
    answer: str


_ENGLISH = frozenset(
    "the what how which who where when why is are does do did can may must should my i you we to of and".split()
)
_LONGEST = 300  # characters of a question that another is built on: one may fit an embedder's window, two may not
_FEW = 7  # words that a part of a question has at most

_OPENING = re.compile(
    r"(?:(?:and|but|or|so|ok(?:ay)?|well|thanks|thank you|now|also|hm+|right|then)\b[\s,.!…]*)+", re.IGNORECASE
)
_ABOUT = re.compile(r"(?:what|how)\s+(?:about|of)\s+|what\s+(?=if\b)|same\s+(?:question\s+)?(?=for\b)", re.IGNORECASE)
_ASKS = re.compile(
    r"(?:(?:up to|\w+)\s+)?(?:why|when|where|who|whom|which|what|how)(?:\s+[\w'-]+){0,3}[?.! ]*$|says who\W*$",
    re.IGNORECASE,
)
_MORE = re.compile(
    r"\b(?:(?:who|what|where|when|which|how|any\w+|some\w+|no\w+) else\b|(?:the )?others?\W*$|another one\b|the rest\b"
    r"|the same\b|(?:too|also|as well|instead|otherwise|then|either|neither|both|more|less)\W*$"
    r"|(?:tell me|explain|details?|go on|an example|such as|are you sure|really)\W*$|(?:more|further) details?\b"
    r"|(?:tell me|say|know) more\b|of (?:them|those|these)\b|for (?:example|instance)\W*$)",
    re.IGNORECASE,
)
_EXPLETIVE = re.compile(
    r"\b(?:is|was|be|isn't) it (?:\w+ ){0,3}(?:to|that|if|when|whether|for \w+ to)\b|\bit (?:is|was) \w+ (?:to|that)\b"
    r"|\bit (?:take|takes|cost|costs) .*\bto\b|\b(?:raining|snowing|what time is it|what (?:day|date) is it)\b",
    re.IGNORECASE,
)
_ACTION = re.compile(r"\b(?:is|was|be) it (?:\w+ly )?(?:allowed|permitted|possible|forbidden|ok|okay|legal|necessary"
                     r"|required|worth|true|free|safe|enough)\b", re.IGNORECASE)  # fmt: skip
_THAT = re.compile(
    r"\b(?:is|was|does|do|did|can|will|for|about|with|of|after|before|than|like|by|from|why|on|in|notice|mean)"
    r" (?:that|this|these|those)"
    r"(?=\W*$| (?:is|are|was|mean|work|apply|happen|too|also|then|before|after|in|on|at|to|for"
    r"|true|allowed|possible|paid|free)\b)|^(?:that|this|these|those)\b",
    re.IGNORECASE,
)
_THERE = re.compile(
    r"(?<!\bis )(?<!\bare )(?<!\bwas )(?<!\bwere )(?<!\bbe )\bthere\b(?! (?:is|are|was|were)\b)", re.IGNORECASE
)
_ONE = re.compile(
    r"\b(?:ones?)\b(?=\W*$| (?:is|are|was|has|have|do|does|can|of|for|in|on|at|to|with)\b)", re.IGNORECASE
)
_PERSONS = re.compile(r"\b(?:he|she|him|his|her|hers)\b", re.IGNORECASE)
_THINGS = re.compile(r"\b(?:it|its|they|them|their|theirs)\b", re.IGNORECASE)
_NAME = re.compile(r"\b[A-Z][\w'’-]+(?: (?:van|von|de|der|da|di|la|le|al|bin)\b)*(?: [A-Z][\w'’-]+)+")
_PEOPLE = re.compile(
    r"\b(?:staff|people|parents?|children|child|m[ae]n|wom[ae]n|visitors?|guests?|employees?|students?|pensioners?"
    r"|members?|newcomers?|volunteers?|interns?|trainees?|managers?|contractors?|customers?|users?|observers?|teachers?"
    r"|doctors?|nurses?|workers?|residents?|households?|patients?|adults?|teenagers?|others)$",
    re.IGNORECASE,
)


def rewrite_with_rules(question: str, before: Sequence[Turn]) -> str:
    """The question as it stands alone; unchanged where it does so, or where no rule knows better."""
    last = before[-1].question
    plain = _OPENING.sub("", question.strip(), count=1) if _OPENING.match(question.strip()) else question.strip()
    if not plain or len(last) > _LONGEST or _ENGLISH.isdisjoint(word.text for word in split_words(last)):
        return question
    opened = plain != question.strip()
    about = _ABOUT.match(plain)
    rest = plain[about.end() :] if about else plain
    rest, resolved = nth_item(rest, [turn.answer for turn in before])
    if resolved is False:  # an ordinal, and nothing that is counted
        return _after(last, question)
    if about or opened or resolved or _opens_a_part(rest):
        part = _part(rest)
        if part:
            return _filled(last, part) or (f"What about {part}?" if resolved else question)
    if _ASKS.match(rest) and _is_elliptic(rest):
        return _asked(last, rest)
    return _with_antecedents(rest, before, changed=bool(resolved), opened=opened) or question


def _after(last: str, question: str) -> str:
    """A question after the one that it leans on; of a longer chain, the first and the last are kept."""
    sentences = re.findall(r"[^?]+\?", last)
    kept = f"{sentences[0].strip()} {sentences[-1].strip()}" if len(sentences) > 2 else last.strip()
    if kept[-1] not in "?.!":
        kept += "?"
    added = question.strip()
    return f"{kept} {added[0].upper()}{added[1:]}"


# --- Parts of questions ------------------------------------------------------------------------------------------


def _opens_a_part(text: str) -> bool:
    """Whether a text without "and" or "what about" is only a part of a question, as "For parents?" is."""
    words = split_words(text)
    return words[0].text in PREPOSITIONS | {"if"} and not any(word.text in QUESTIONS for word in words)


def _part(text: str) -> str | None:
    """The text without its mark, where it has no verb, or is a clause that begins with "if" or the like."""
    words = [word for word in split_words(text) if word.text[0].isalnum()]
    plain = text.strip().rstrip("?.! ")
    if not words or len(words) > 2 * _FEW:
        return None
    clause = words[0].text in SUBORDINATORS and not (len(words) > 1 and words[1].text in AUXILIARIES)
    verbless = len(words) <= _FEW and not any(
        word.text in AUXILIARIES | QUESTIONS | SUBJECTS - {"people", "one"} for word in words
    )
    return plain if clause or (verbless and words[0].text not in ("tell", "show", "explain", "list", "give")) else None


def _filled(last: str, part: str) -> str | None:
    """The question before with the part in its place; None where it has none, and the part says enough."""
    body = last.strip().rstrip("?.! ")
    first = split_words(part)[0].text
    if _THINGS.search(part) or _PERSONS.search(part) or _THAT.search(part):
        return _after(last, f"{part}?")
    if first in PREPOSITIONS or first in SUBORDINATORS:
        place = _clause(body, first) if first in SUBORDINATORS else _like(body, part, first)
        return f"{body[: place[0]]}{part}{body[place[1] :]}?" if place else f"{body} {part}?"
    phrases = noun_phrases(body)
    if is_time_phrase(part):
        return _at_time(body, part)
    if found := _slot(phrases, part):
        return f"{body[: found.start]}{part}{body[found.end :]}?"
    return f"{body} for {part}?" if _PEOPLE.search(part) else None


def _clause(body: str, first: str) -> tuple[int, int] | None:
    match = re.search(rf"\b{first}\b.*$", body[1:], re.IGNORECASE)
    return (match.start() + 1, match.end() + 1) if match else None


def _like(body: str, part: str, preposition: str) -> tuple[int, int] | None:
    """Where a question has a phrase of the same preposition, or for a time one that says when."""
    for start, end in reversed(_prepositional(body)):
        text = body[start:end]
        same = text.split()[0].lower() == preposition
        if is_time_phrase(part) == is_time_phrase(text) and (same or is_time_phrase(part)):
            return start, end
    return None


def _prepositional(body: str) -> list[tuple[int, int]]:
    """Phrases that begin with a preposition, up to the next one or a verb."""
    words, spans = split_words(body), []
    stops = PREPOSITIONS | SUBORDINATORS | AUXILIARIES
    for at, word in enumerate(words):
        if word.text in PREPOSITIONS - {"of"} and at + 1 < len(words):
            until = next((n for n in range(at + 1, len(words)) if words[n].text in stops - {"of"}
                          or not words[n].text[0].isalnum()), len(words))  # fmt: skip
            if until > at + 1:
                spans.append((word.start, words[until - 1].end))
    return spans


def _at_time(body: str, part: str) -> str:
    preposition = "on" if re.search(r"days?\b|weekend", part, re.IGNORECASE) else "in"
    phrase = f"{preposition} {part}"
    place = _like(body, phrase, preposition)
    return f"{body[: place[0]]}{phrase}{body[place[1] :]}?" if place else f"{body} {phrase}?"


def _slot(phrases: Sequence[Phrase], part: str) -> Phrase | None:
    """The phrase that a new one replaces: of the same last word, a name for a name, people for people, or the last."""
    new = next(iter(noun_phrases(f"x {part}"[2:])), None)
    heads = [phrase for phrase in phrases if new and phrase.head == new.head]
    if heads:
        return heads[-1]
    if len(phrases) == 1 and phrases[0].before == "many" and new and new.text == part and part.endswith("s"):
        return phrases[0]  # "How many rooms are there?" "And beds?"
    free = [
        phrase for phrase in phrases if not phrase.asked and phrase.before != "of" and not is_time_phrase(phrase.text)
    ]
    people = [phrase for phrase in free if _PEOPLE.search(phrase.text)]
    names = [phrase for phrase in free if phrase.name]
    if _PEOPLE.search(part):
        return people[-1] if people else None
    if all(word.capital for word in split_words(part) if word.text not in DETERMINERS) and names:
        return names[-1]
    others = [phrase for phrase in free if phrase not in people and phrase not in names] or free
    return others[-1] if others else None


# --- Question words ----------------------------------------------------------------------------------------------


def _is_elliptic(text: str) -> bool:
    """Whether a question has no verb, as "For how long?" and "How many people?"."""
    words = [word for word in split_words(text) if word.text[0].isalnum()]
    at = next((n for n, word in enumerate(words) if word.text in QUESTIONS), 0)
    verbs = AUXILIARIES | SUBJECTS
    return (at <= 2 and all(word.text in PREPOSITIONS | {"up", "to", "says"} for word in words[:at])
            and not any(word.text in verbs for word in words[at:]) and len(words) <= _FEW
            and not noun_phrases(" ".join(word.text for word in words[at + 3 :])))  # fmt: skip


def _asked(last: str, text: str) -> str:
    """The question before, with another question word."""
    body, asks = last.strip().rstrip("?.! "), text.strip().rstrip("?.! ")
    words, new = split_words(body), split_words(asks)
    adverb = not any(word.text in ("why", "who", "whom", "which", "many", "much") for word in new) or (
        new[0].text in PREPOSITIONS
    )
    if adverb and "?" not in body and words[0].text in AUXILIARIES:  # "Can I borrow a bicycle?" "For how long?"
        return f"{asks[0].upper()}{asks[1:]} {body[0].lower()}{body[1:]}?"
    adverbial = len(words) > 2 and words[0].text in ("where", "when", "how") and words[1].text in AUXILIARIES
    if adverb and "?" not in body and adverbial:
        return f"{asks[0].upper()}{asks[1:]} {body[words[1].start :]}?"
    return _after(last, f"{asks}?")


# --- Pronouns ----------------------------------------------------------------------------------------------------


def _with_antecedents(text: str, before: Sequence[Turn], *, changed: bool, opened: bool) -> str | None:
    """A whole question with nouns for its pronouns, or after the one before; None where it leans on nothing."""
    last = before[-1].question
    if _ACTION.search(text) and not _EXPLETIVE.search(text):
        return _after(last, text)
    persons, things = _PERSONS.search(text), _THINGS.search(text)
    if persons:
        name = _person(before[-1])
        return _replaced(_PERSONS, text, name) if name else _after(last, text)
    if things and not (_EXPLETIVE.search(text) and things[0].lower() == "it"):
        thing = _thing(last, plural=things[0].lower().startswith("the"))
        return _replaced(_THINGS, text, thing) if thing and not _THAT.search(text) else _after(last, text)
    if _THAT.search(text) or _THERE.search(text) or _ONE.search(text) or _MORE.search(text):
        return _after(last, text)
    if opened and not noun_phrases(text):  # "And until when do I have to apply?"
        return _after(last, text)
    return text if changed else None


def _person(last: Turn) -> str | None:
    """Whom the last turn was about: who was asked for by a description, or is named in the answer."""
    if described := re.match(r"who(?:'s|\s+is|\s+are|\s+was)\s+(.+?)\W*$", last.question.strip(), re.IGNORECASE):
        return described[1]
    named = [phrase.text for phrase in noun_phrases(last.question) if phrase.name and " " in phrase.text]
    return named[-1] if named else (found[0] if (found := _NAME.search(last.answer)) else None)


def _thing(last: str, *, plural: bool) -> str | None:
    """What a question is about, where that is one thing, or one kind of things."""
    phrases = noun_phrases(last)
    described = re.match(r"(?:what|where)(?:'s|\s+is|\s+are)\s+", last.strip(), re.IGNORECASE)
    if not (described and phrases and phrases[0].start == described.end()):
        phrases = [phrase for phrase in phrases if not is_time_phrase(phrase.text)]
        if len(phrases) != 1 or "?" in last.strip()[:-1]:
            return None
    one = phrases[0]
    several = one.text.lower().endswith("s") or bool(_PEOPLE.search(one.text))
    return one.text if several == plural or (plural and one.before in ("who", "whom")) else None


def _replaced(pronouns: re.Pattern[str], text: str, noun: str) -> str:
    """The text with a noun for each of its pronouns."""

    def put(match: re.Match[str]) -> str:
        following = split_words(text[match.end() :])
        own = match[0].lower() in ("its", "their", "his") or (
            match[0].lower() == "her" and following and following[0].text[0].isalnum()
            and following[0].text not in PREPOSITIONS | COPULAS
        )  # fmt: skip
        if not own:
            return noun
        return f"{noun}'" if noun.endswith("s") else f"{noun}'s"

    replaced = pronouns.sub(put, text)
    return replaced[0].upper() + replaced[1:]
