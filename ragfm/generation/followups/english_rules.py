"""Rewrite English follow-up questions by rules.

    fragment          "And for parents?" replaces the similar phrase of the previous question
    question word     "For how long?" goes before the previous question, or after it
    ordinal           "the second one" is the second item of the last answer's list
    pronoun           "When does it open?" is about the thing that the previous question is about
    other reference   "Is it allowed on Fridays?" is appended to the previous question

Everything else stands alone and is not changed, so a change of topic carries nothing along.
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


class Turn(NamedTuple):
    """A question in its stand-alone form, and its answer."""

    question: str
    answer: str


_ENGLISH = frozenset(
    "the what how which who where when why is are does do did can may must should my i you we to of and".split()
)
_MAX_LENGTH = 300  # characters of the previous question: two long questions may exceed an embedder's window
_MAX_FRAGMENT_WORDS = 7  # words

_OPENING = re.compile(
    r"(?:(?:and|but|or|so|ok(?:ay)?|well|thanks|thank you|now|also|hm+|right|then)\b[\s,.!…]*)+", re.IGNORECASE
)
_ABOUT = re.compile(r"(?:what|how)\s+(?:about|of)\s+|what\s+(?=if\b)|same\s+(?:question\s+)?(?=for\b)", re.IGNORECASE)
_QUESTION_FRAGMENT = re.compile(
    r"(?:(?:up to|\w+)\s+)?(?:why|when|where|who|whom|which|what|how)(?:\s+[\w'-]+){0,3}[?.! ]*$|says who\W*$",
    re.IGNORECASE,
)
_REFERS_TO_PREVIOUS = re.compile(
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
_ABOUT_ACTION = re.compile(
    r"\b(?:is|was|be) it (?:\w+ly )?(?:allowed|permitted|possible|forbidden|ok|okay|legal|necessary|required|worth|true"
    r"|free|safe|enough)\b",
    re.IGNORECASE,
)
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


def rewrite_with_rules(question: str, turns: Sequence[Turn]) -> str:
    """The stand-alone form of a question; unchanged if it stands alone, or if no rule applies."""
    previous = turns[-1].question
    plain = _OPENING.sub("", question.strip(), count=1) if _OPENING.match(question.strip()) else question.strip()
    if not plain or len(previous) > _MAX_LENGTH or _ENGLISH.isdisjoint(word.text for word in split_words(previous)):
        return question
    opened = plain != question.strip()
    about = _ABOUT.match(plain)
    rest = plain[about.end() :] if about else plain
    rest, resolved = nth_item(rest, [turn.answer for turn in turns])
    if resolved is False:  # an ordinal without a list
        return _append_question(previous, question)
    words = [word.text for word in split_words(rest)]
    # "For parents?" is a fragment even without "and" or "what about".
    if about or opened or resolved or (words[0] in PREPOSITIONS | {"if"} and QUESTIONS.isdisjoint(words)):
        fragment = _fragment(rest)
        if fragment:
            return _substitute(previous, fragment) or (f"What about {fragment}?" if resolved else question)
    if _QUESTION_FRAGMENT.match(rest) and (asked := _with_question_word(previous, rest)):
        return asked
    return _resolve_pronouns(rest, turns, changed=bool(resolved), opened=opened) or question


def _append_question(previous: str, question: str) -> str:
    """Append a question to the previous one; of a longer chain, the first and the last question are kept."""
    sentences = re.findall(r"[^?]+\?", previous)
    kept = f"{sentences[0].strip()} {sentences[-1].strip()}" if len(sentences) > 2 else previous.strip()
    if kept[-1] not in "?.!":
        kept += "?"
    added = question.strip()
    return f"{kept} {added[0].upper()}{added[1:]}"


# --- Fragments of questions ------------------------------------------------------------------------------------------


def _fragment(text: str) -> str | None:
    """The text without punctuation if it has no verb, or is a clause that starts with a subordinator such as "if"."""
    words = [word for word in split_words(text) if word.text[0].isalnum()]
    plain = text.strip().rstrip("?.! ")
    if not words or len(words) > 2 * _MAX_FRAGMENT_WORDS:
        return None
    clause = words[0].text in SUBORDINATORS and not (len(words) > 1 and words[1].text in AUXILIARIES)
    verbless = len(words) <= _MAX_FRAGMENT_WORDS and not any(
        word.text in AUXILIARIES | QUESTIONS | SUBJECTS - {"people", "one"} for word in words
    )
    return plain if clause or (verbless and words[0].text not in ("tell", "show", "explain", "list", "give")) else None


def _substitute(previous: str, fragment: str) -> str | None:
    """The previous question with the fragment in place of a similar phrase; None if there is none."""
    body = previous.strip().rstrip("?.! ")
    first = split_words(fragment)[0].text
    if _THINGS.search(fragment) or _PERSONS.search(fragment) or _THAT.search(fragment):
        return _append_question(previous, f"{fragment}?")
    if first in SUBORDINATORS:
        clause = re.search(rf"\b{first}\b.*$", body[1:], re.IGNORECASE)
        return f"{body[: clause.start() + 1]}{fragment}{body[clause.end() + 1 :]}?" if clause else f"{body} {fragment}?"
    if first not in PREPOSITIONS and is_time_phrase(fragment):
        first = "on" if re.search(r"days?\b|weekend", fragment, re.IGNORECASE) else "in"
        fragment = f"{first} {fragment}"
    if first in PREPOSITIONS:
        # The last phrase with the same preposition, or the last time phrase if the fragment is one. A phrase starts
        # with a preposition and ends before the next one or a verb.
        words, timed, place = split_words(body), is_time_phrase(fragment), (len(body), len(body))
        stops = (PREPOSITIONS | SUBORDINATORS | AUXILIARIES) - {"of"}
        for at, word in enumerate(words):
            if word.text not in PREPOSITIONS - {"of"}:
                continue
            until = at + 1
            while until < len(words) and words[until].text[0].isalnum() and words[until].text not in stops:
                until += 1
            if until > at + 1:
                start, end = word.start, words[until - 1].end
                if is_time_phrase(body[start:end]) == timed and (timed or word.text == first):
                    place = start, end
        before = body[: place[0]] if place[0] < len(body) else f"{body} "
        return f"{before}{fragment}{body[place[1] :]}?"
    if found := _replaceable_phrase(noun_phrases(body), fragment):
        return f"{body[: found.start]}{fragment}{body[found.end :]}?"
    return f"{body} for {fragment}?" if _PEOPLE.search(fragment) else None


def _replaceable_phrase(phrases: Sequence[Phrase], fragment: str) -> Phrase | None:
    """The phrase that a new one replaces: same head noun, name for name, people for people, or else the last."""
    new = next(iter(noun_phrases(f"x {fragment}"[2:])), None)
    heads = [phrase for phrase in phrases if new and phrase.head == new.head]
    if heads:
        return heads[-1]
    if len(phrases) == 1 and phrases[0].before == "many" and new and new.text == fragment and fragment.endswith("s"):
        return phrases[0]  # "How many rooms are there?" "And beds?"
    free = [
        phrase for phrase in phrases if not phrase.asked and phrase.before != "of" and not is_time_phrase(phrase.text)
    ]
    people = [phrase for phrase in free if _PEOPLE.search(phrase.text)]
    names = [phrase for phrase in free if phrase.name]
    if _PEOPLE.search(fragment):
        return people[-1] if people else None
    if all(word.capital for word in split_words(fragment) if word.text not in DETERMINERS) and names:
        return names[-1]
    others = [phrase for phrase in free if phrase not in people and phrase not in names] or free
    return others[-1] if others else None


# --- Question words ----------------------------------------------------------------------------------------------


def _with_question_word(previous: str, text: str) -> str | None:
    """The previous question with another question word; None if the text has a verb, unlike "For how long?"."""
    content = [word.text for word in split_words(text) if word.text[0].isalnum()]
    at = next((n for n, word in enumerate(content) if word in QUESTIONS), 0)
    elliptic = (
        at <= 2
        and (PREPOSITIONS | {"up", "to", "says"}).issuperset(content[:at])
        and (AUXILIARIES | SUBJECTS).isdisjoint(content[at:])
        and len(content) <= _MAX_FRAGMENT_WORDS
        and not noun_phrases(" ".join(content[at + 3 :]))
    )
    if not elliptic:
        return None
    body, asking = previous.strip().rstrip("?.! "), text.strip().rstrip("?.! ")
    words, new = split_words(body), split_words(asking)
    adverb = not any(word.text in ("why", "who", "whom", "which", "many", "much") for word in new) or (
        new[0].text in PREPOSITIONS
    )
    if adverb and "?" not in body:
        if words[0].text in AUXILIARIES:  # "Can I borrow a bicycle?" "For how long?"
            return f"{asking[0].upper()}{asking[1:]} {body[0].lower()}{body[1:]}?"
        if len(words) > 2 and words[0].text in ("where", "when", "how") and words[1].text in AUXILIARIES:
            return f"{asking[0].upper()}{asking[1:]} {body[words[1].start :]}?"
    return _append_question(previous, f"{asking}?")


# --- Pronouns ----------------------------------------------------------------------------------------------------


def _resolve_pronouns(text: str, turns: Sequence[Turn], *, changed: bool, opened: bool) -> str | None:
    """A question with its pronouns replaced, or appended to the previous one; None if it refers to nothing."""
    previous = turns[-1].question
    if _ABOUT_ACTION.search(text) and not _EXPLETIVE.search(text):
        return _append_question(previous, text)
    persons, things = _PERSONS.search(text), _THINGS.search(text)
    if persons:
        # The person whom the question describes, or a name in the question or its answer.
        described = re.match(r"who(?:'s|\s+is|\s+are|\s+was)\s+(.+?)\W*$", previous.strip(), re.IGNORECASE)
        named = [phrase.text for phrase in noun_phrases(previous) if phrase.name and " " in phrase.text]
        answered = _NAME.search(turns[-1].answer)
        name = described[1] if described else named[-1] if named else answered[0] if answered else None
        return _replace_pronouns(_PERSONS, text, name) if name else _append_question(previous, text)
    if things and not (_EXPLETIVE.search(text) and things[0].lower() == "it"):
        thing = _find_thing(previous, plural=things[0].lower().startswith("the"))
        return (
            _replace_pronouns(_THINGS, text, thing)
            if thing and not _THAT.search(text)
            else _append_question(previous, text)
        )
    if _THAT.search(text) or _THERE.search(text) or _ONE.search(text) or _REFERS_TO_PREVIOUS.search(text):
        return _append_question(previous, text)
    if opened and not noun_phrases(text):  # "And until when do I have to apply?"
        return _append_question(previous, text)
    return text if changed else None


def _find_thing(previous: str, *, plural: bool) -> str | None:
    """The thing, or kind of things, that a question is about, if there is exactly one."""
    phrases = noun_phrases(previous)
    described = re.match(r"(?:what|where)(?:'s|\s+is|\s+are)\s+", previous.strip(), re.IGNORECASE)
    if not (described and phrases and phrases[0].start == described.end()):
        phrases = [phrase for phrase in phrases if not is_time_phrase(phrase.text)]
        if len(phrases) != 1 or "?" in previous.strip()[:-1]:
            return None
    one = phrases[0]
    several = one.text.lower().endswith("s") or bool(_PEOPLE.search(one.text))
    return one.text if several == plural or (plural and one.before in ("who", "whom")) else None


def _replace_pronouns(pronouns: re.Pattern[str], text: str, noun: str) -> str:
    def put(match: re.Match[str]) -> str:
        following = split_words(text[match.end() :])
        pronoun = match[0].lower()
        possessive = pronoun in ("its", "their", "his")
        if pronoun == "her" and following:
            possessive = following[0].text[0].isalnum() and following[0].text not in PREPOSITIONS | COPULAS
        if not possessive:
            return noun
        return f"{noun}'" if noun.endswith("s") else f"{noun}'s"

    replaced = pronouns.sub(put, text)
    return replaced[0].upper() + replaced[1:]
