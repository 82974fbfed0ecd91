"""Make English follow-up questions stand alone by rules.

    swap            "And in 2023?", "What about Amcor?", "And for parents?" replace the only phrase of the same kind
    question word   "For how long?" goes before a question that starts with an auxiliary verb
    pronoun         "How much does it cost?" is about the subject of a plain question such as "When is lunch served?"
    both            any other question that depends on the earlier one is appended to it, and both are searched

The first three apply only where they are certain: after "How many aircraft did Boeing deliver to Ryanair?", "And
Airbus?" could replace either name, so it is appended. A question without a sign of dependence is not changed, so a
change of topic carries nothing over. The search finds as much if all are appended, but a small reader answers the first
of two questions; docs/decisions/010-follow-ups-by-rules.md has the figures.
"""

from __future__ import annotations

import re

from ragfm.core.text import MONTHS

_MAX_LENGTH = 300  # characters of the earlier question: two long questions may exceed an embedder's window
_MAX_PHRASE_WORDS = 7
_PREPOSITIONS = (
    "about above across after against along among around at before behind below beside between beyond by despite "
    "during except for from in inside into near of off on onto outside over past per since through to towards under "
    "until up with within without"
).split()

# --- Signs that a question depends on the earlier one ------------------------------------------------------------

_ENGLISH = re.compile(
    r"\b(?:the|what|how|which|who|where|when|why|is|are|does|do|did|can|may|must|should|my|you|we|to|of|and)\b",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"(?:(?:and|but|or|so|ok(?:ay)?|well|thanks|thank you|now|also|hm+|right|then)\b[\s,.!…]*)+", re.IGNORECASE
)
_ABOUT = re.compile(r"(?:what|how)\s+(?:about|of)\s+|what\s+(?=if\b)|same\s+(?:question\s+)?(?=for\b)", re.IGNORECASE)
_AFTER_OPENING = re.compile(  # "And does Boeing?", "And if I am ill?", "And until when …?"
    r"if\b|\w+ (?:when|what|which|whom|how)\b"
    r"|(?:is|are|was|were|do|does|did|has|have|can|will)\s+(?!there\b)\S+(?:\s+\S+)?\W*$",
    re.IGNORECASE,
)
_SHORT_QUESTION = re.compile(  # "Why?", "For how long?", "Up to what wind?"
    r"(?:(?:up to|\w+)\s+)?(?:why|when|where|who|whom|which|what|how)(?:\s+(?!(?:is|are|was|were|do|does|did|can|may"
    r"|must|will|have|has|i|you|we|the|my)\b)[\w'-]+){0,3}[?.! ]*$",
    re.IGNORECASE,
)
_VERB_OR_QUESTION = re.compile(
    r"\b(?:am|is|are|was|were|be|been|do|does|did|have|has|had|can|could|(?-i:may)|might|must|shall|should|will|would"
    r"|\w+n't|what|which|who|whom|whose|when|where|why|how|i|you|we|they|he|she|it|tell|show|explain|list|give)\b",
    re.IGNORECASE,
)
_REFERENCE = re.compile(
    r"""\b(?: (?:he|she|him|his|her|hers|it|its|they|them|their|theirs)\b
    | (?:is|was|does|do|did|can|will|for|about|with|of|after|before|than|like|by|from|why|on|in|notice|mean)
      \ (?:that|this|these|those)(?=\W*$|\ (?:is|are|was|mean|work|apply|happen|too|to|for|in|on|at|true)\b)
    | (?<!is\ )(?<!are\ )(?<!was\ )(?<!were\ )(?<!be\ )there\b(?!\ (?:is|are|was|were)\b)
    | (?:which|first|second|third|last|latter|former)\ ones?\b
    | ones?\b(?=\W*$|\ (?:is|are|was|has|have|do|does|can|of|for|in|on|at|to|with)\b)
    | (?:others?|too|instead|more|details?|first|second|third|last|latter|former)\W*$ )
    | ^(?:that|this|these|those)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_EXPLETIVE = re.compile(
    r"\b(?:is|was|be|isn't) it (?:\w+ ){0,3}(?:to|that|if|when|whether|for \w+ to)\b|\bit (?:is|was) \w+ (?:to|that)\b"
    r"|\bit (?:take|takes|cost|costs) .*\bto\b|\b(?:raining|snowing|what time is it|what (?:day|date) is it)\b",
    re.IGNORECASE,
)
_PERSONS = re.compile(r"\b(?:he|she|him|his|her|hers)\b", re.IGNORECASE)
_THINGS = re.compile(r"\b(?:it|its|they|them|their|theirs)\b", re.IGNORECASE)

# --- Plain questions ---------------------------------------------------------------------------------------------

_AUXILIARY = "(?:is|are|was|were|do|does|did|can|could|may|might|must|should|will|would|has|have|had)"
_ADVERBIAL = re.compile(r"(?:when|where|how|how (?:long|often|soon|far|early|late))$", re.IGNORECASE)
_INVERTED = re.compile(rf"(?:(?:where|when|how) )?({_AUXILIARY}\b.*)$", re.IGNORECASE)
_PLAIN_QUESTION = re.compile(
    rf"(?P<asking>what|where|when|who|why|how(?: \w+)?) (?P<auxiliary>{_AUXILIARY})"
    r" (?P<determiner>(?:the|our|my|your) )?(?P<words>[\w'-]+(?: [\w'-]+){0,2})$",
    re.IGNORECASE,
)
_COPULAS = ("is", "are", "was", "were")
_PARTICIPLE = re.compile(
    r"\w+(?:ed|en)$|(?:made|held|kept|sold|paid|sent|built|shut|lent|found|lost|cut|run|done|known|shown|drawn)$"
)

# --- Phrases that can be swapped ---------------------------------------------------------------------------------

_PERIODS = {  # one unit each: a new quarter replaces a quarter and leaves the year
    "year": re.compile(r"(?:\bFY ?|\bfiscal (?:year )?|\b)(?:19|20)\d\d\b", re.IGNORECASE),
    "half": re.compile(r"\bH[12]\b|\b(?:first|second) half\b", re.IGNORECASE),
    "quarter": re.compile(r"\bQ[1-4]\b|\b(?:first|second|third|fourth|last) quarter\b", re.IGNORECASE),
    "month": re.compile(rf"(?<=.)\b(?:{'|'.join(MONTHS)})\b"),  # "May I …?" is not a month
    "weekday": re.compile(r"\b(?:(?:mon|tues|wednes|thurs|fri|satur|sun)days?|week(?:day|end)s?)\b", re.IGNORECASE),
    "season": re.compile(r"\b(?:spring|summer|autumn|winter)\b", re.IGNORECASE),
    "relative": re.compile(r"\b(?:this|last|next|the same) (?:year|quarter|month|week)\b", re.IGNORECASE),
}
_BEFORE_PERIODS = ("in", "on", "at", "during")
_BETWEEN_PERIODS = re.compile(r"(?:\b(?:in|on|at|of|for|during|the)\b|[\s,?.!])*", re.IGNORECASE)
_CAPITALISED = r"\d*[A-Z][\w&.-]*\w|\d+[A-Z]|[A-HJ-Z]"
_NAME = re.compile(
    rf"(?<![\w'’&-])(?:{_CAPITALISED})(?: (?:(?:van|von|de|der|da|di|la|le|al|bin|&) )*(?:{_CAPITALISED}))*"
)
_ACRONYM = re.compile(r"[A-Z]{2,}$")
_PHRASE = re.compile(  # a preposition and the words up to the next one
    rf"\b(?P<preposition>{'|'.join(_PREPOSITIONS)})\b"
    rf"(?: (?!(?:{'|'.join(word for word in _PREPOSITIONS if word != 'of')})\b)[^\s?]+)+",
    re.IGNORECASE,
)


def rewrite_in_english(question: str, previous: str, answer: str) -> str:
    """The stand-alone form of a question, given the earlier one in its own stand-alone form, and its answer."""
    previous, asked = previous.strip(), question.strip()
    opening = _OPENING.match(asked)
    rest = asked[opening.end() :] if opening else asked
    about = _ABOUT.match(rest)
    rest = rest[about.end() :] if about else rest
    phrase = rest.rstrip("?.! ")
    if not phrase or len(previous) > _MAX_LENGTH or not _ENGLISH.search(previous):
        return question

    is_phrase = len(phrase.split()) <= _MAX_PHRASE_WORDS and not _VERB_OR_QUESTION.search(phrase)
    new_topic = not (opening or about) and _NAME.fullmatch(phrase) and not _is_period(phrase)  # "Parental Leave"
    rewritten: str | None = None
    if is_phrase and not new_topic and not _REFERENCE.search(phrase):
        rewritten = _swap(previous, phrase)
    if not rewritten and _SHORT_QUESTION.match(rest):
        rewritten = _ask_again(previous, phrase)
    if rewritten := rewritten or _replace_pronoun(rest, previous, answer):
        return rewritten

    depends = (
        about
        or (is_phrase and (opening or rest.endswith("?")))
        or (opening and _AFTER_OPENING.match(rest))
        or _SHORT_QUESTION.match(rest)
        or _REFERENCE.search(_EXPLETIVE.sub(" ", rest))
    )
    if not depends:
        return question
    sentences = re.findall(r"[^?]+\?", previous)  # of a longer chain, the first and the last question are kept
    kept = f"{sentences[0].strip()} {sentences[-1].strip()}" if len(sentences) > 2 else previous
    return f"{kept}{'' if kept[-1] in '?.!' else '?'} {asked[0].upper()}{asked[1:]}"


def _swap(previous: str, fragment: str) -> str | None:
    """The previous question with the fragment in place of the only phrase of its kind; None if that is not certain."""
    body = previous.rstrip("?.! ")
    if "?" in body:
        return None

    new_periods = [(unit, match) for unit, pattern in _PERIODS.items() for match in pattern.finditer(f" {fragment}")]
    old_periods = {unit: found for unit, pattern in _PERIODS.items() if (found := list(pattern.finditer(body)))}
    preposition = fragment.partition(" ")[0].lower()
    if preposition not in _PREPOSITIONS:
        preposition = ""
    if new_periods:
        around = f" {fragment}"
        for _, match in new_periods:
            around = around.replace(match[0], " ", 1)
        if not _BETWEEN_PERIODS.fullmatch(around):
            return None
        if not old_periods:
            return f"{body} {fragment}?" if preposition else None
        if any(len(old_periods.get(unit, ())) != 1 for unit, _ in new_periods):
            return None
        if len({unit for unit, _ in new_periods}) < len(new_periods):
            return None
        for unit, match in new_periods:
            old = _PERIODS[unit].search(body)
            assert old
            new = re.sub(r"\d{4}", match[0], old[0]) if match[0].isdigit() else match[0]
            before = body[: old.start()]
            if preposition in _BEFORE_PERIODS:  # "on weekdays" becomes "at weekends"
                before = re.sub(rf" (?:{'|'.join(_BEFORE_PERIODS)}) $", f" {preposition} ", before)
            body = before + new + body[old.end() :]
        return f"{body}?"

    name = fragment[len(preposition) :].strip()
    possessive = re.search(r"['’]s?$", name)
    name = name[: possessive.start()] if possessive else name
    names = [match for match in _NAME.finditer(body, body.find(" ") + 1) if not _is_period(match[0])]
    if _NAME.fullmatch(name):
        places = (
            [match for match in names if body[: match.start()].endswith(f" {preposition} ")] if preposition else names
        )
        if possessive:
            places = [match for match in places if re.match(r"['’]", body[match.end() :])]
        if not names and preposition:
            return f"{body} {fragment}?"
        if len(places) != 1 or bool(_ACRONYM.match(places[0][0])) != bool(_ACRONYM.match(name)):
            return None
        if re.search(r"\b(?:the|an?|which|what)\s$", body[: places[0].start()], re.IGNORECASE):
            return None  # "the EBITDA" is not a name
        return f"{body[: places[0].start()]}{name}{body[places[0].end() :]}?"
    if preposition:
        phrases = [match for match in _PHRASE.finditer(body) if match["preposition"].lower() == preposition]
        if not phrases:
            return f"{body} {fragment}?"
        if len(phrases) == 1:
            return f"{body[: phrases[0].start()]}{fragment}{body[phrases[0].end() :]}?"
    return None


def _ask_again(previous: str, asking: str) -> str | None:
    """The previous question with another question word, for "When?" and "Within what time?"; None for others."""
    inverted = _INVERTED.match(previous.rstrip("?.! "))
    adverbial = _ADVERBIAL.match(asking) or asking.partition(" ")[0].lower() in _PREPOSITIONS
    if not inverted or not adverbial or "?" in inverted[1]:
        return None
    return f"{asking[0].upper()}{asking[1:]} {inverted[1][0].lower()}{inverted[1][1:]}?"


def _replace_pronoun(question: str, previous: str, answer: str) -> str | None:
    """A question with its pronoun replaced by the thing or person that the last turn is about; None if not certain."""
    pronouns = _PERSONS if _PERSONS.search(question) else _THINGS
    found = pronouns.search(question)
    if not found or _EXPLETIVE.search(question) or _REFERENCE.search(pronouns.sub("x", question)):
        return None
    plain = _PLAIN_QUESTION.match(previous.rstrip("?.! "))
    noun: str | None = None
    if plain and not any(
        word.lower() in _PREPOSITIONS or _VERB_OR_QUESTION.match(word) for word in plain["words"].split()
    ):
        words, asking = plain["words"].split(), plain["asking"].lower()
        if plain["auxiliary"].lower() not in _COPULAS or _PARTICIPLE.match(words[-1]) or words[-1] == "open":
            words.pop()
        elif not plain["determiner"] or (len(words) > 1 and asking not in ("what", "where", "who")):
            words.clear()  # "When is the sauna hot?"
        noun = f"{plain['determiner'] or ''}{' '.join(words)}" if words else None
        if noun and pronouns is _THINGS:
            plural = noun.endswith("s") and not noun.endswith("ss")
            noun = noun if plural == found[0].lower().startswith("the") else None
        elif asking != "who":
            noun = None
    if pronouns is _PERSONS and noun is None:
        people = {name for name in _NAME.findall(f"x {previous} {answer}") if " " in name}
        noun = people.pop() if len(people) == 1 else None
    if noun is None:
        return None

    def put(match: re.Match[str]) -> str:
        following = question[match.end() :].split()
        next_word = following[0].strip("?.,!").lower() if following else ""
        possessive = match[0].lower() in ("its", "their", "his") or (
            match[0].lower() == "her" and next_word and next_word not in (*_PREPOSITIONS, *_COPULAS)
        )
        return f"{noun}'s" if possessive and not noun.endswith("s") else f"{noun}'" if possessive else noun

    replaced = pronouns.sub(put, question)
    return replaced[0].upper() + replaced[1:]


def _is_period(text: str) -> bool:
    return any(pattern.fullmatch(text) or pattern.fullmatch(f" {text}", 1) for pattern in _PERIODS.values())
