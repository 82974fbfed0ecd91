"""Details that a share of words doesn't tell: a number's unit, what is opposite, and addresses.

    "30 weeks" – "30 days"    "9 am" – "9 pm"    "30 euros a month" – "a year"    "before 9" – "after 9"

A unit differs where the same number has another one; one that stands with none, as in a table, may have any.
"""

from __future__ import annotations

import re
from itertools import pairwise

from ragfm.citations.word_match import number_of

_UNITS = {
    word: unit
    for unit, *others in (
        line.split()
        for line in """
            second seconds sec secs
            minute minutes min mins
            hour hours h hr hrs
            day days
            week weeks
            month months
            year years yr yrs
            mm millimetre millimetres millimeter millimeters
            cm centimetre centimetres centimeter centimeters
            metre metres meter meters m
            km kilometre kilometres kilometer kilometers
            inch inches
            foot feet ft
            yard yards
            mile miles
            mg milligram milligrams
            gram grams g
            kg kilo kilos kilogram kilograms
            tonne tonnes ton tons
            ml millilitre millilitres milliliter milliliters
            litre litres liter liters l
            dollar dollars $ usd
            euro euros € eur
            pound pounds £ gbp lb lbs
            yen ¥ jpy
            cent cents
            % percent
            am
            pm
            celsius
            fahrenheit
            kb
            mb
            gb
            tb
        """.strip().splitlines()
    )
    for word in (unit, *others)
}
_BEFORE = frozenset("$€£¥")
_PERIODS = frozenset("second minute hour day week month year".split())
_EACH = frozenset("a an per each every /".split())
_NEAR = 2  # words behind a number, of which one may be its unit: "30 working days"
_TOKEN = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+|[^\w\s]")
_HALF_OF_DAY = re.compile(r"\b([ap])\.\s?m\b\.?", re.IGNORECASE)
_OPPOSITES = [
    (re.compile(rf"\b(?:{one})\b", re.IGNORECASE), re.compile(rf"\b(?:{other})\b", re.IGNORECASE))
    for one, other in (
        (r"more|(?:over|above)(?=\W+\d)|at least", r"fewer|less|(?:under|below)(?=\W+\d)|at most|up to"),
        ("before|until", "after|since"),
        ("always|usually|often", "never|rarely|seldom"),
    )
]
_ADDRESS = re.compile(r"[^\s<>()\"“”|]*(?:@|://)[^\s<>()\"“”|]*|(?<!\S)~?(?:/[^\s/]+){2,}")


def differ(claim: str, text: str) -> bool:
    """Whether a text has another unit for one of a claim's numbers, or the opposite of what it says."""
    ours, theirs = _measures(claim), _measures(text)
    if any(not units & theirs[key] for key, units in ours.items() if key in theirs):
        return True
    return any(
        _is_one_of(claim, pair) and _is_one_of(text, pair[::-1])
        for pair in (*_OPPOSITES, *(pair[::-1] for pair in _OPPOSITES))
    )


def addresses(text: str) -> list[str]:
    """Mail addresses, URLs and absolute paths, in lower case."""
    return [match[0].rstrip(".,;:!?'’]").casefold() for match in _ADDRESS.finditer(text)]


def _is_one_of(text: str, pair: tuple[re.Pattern[str], re.Pattern[str]]) -> bool:
    """Whether it has the first of two opposites, and not the second."""
    return bool(pair[0].search(text)) and not pair[1].search(text)


def _measures(text: str) -> dict[tuple[str, str], set[str]]:
    """The units of each number, and the periods that it is for: ("30", "unit"), ("30", "each")."""
    spelled = _HALF_OF_DAY.sub(r"\1m", text).casefold().replace("per cent", "percent")
    tokens = _TOKEN.findall(spelled)
    found: dict[tuple[str, str], set[str]] = {}
    for at, token in enumerate(tokens):
        if not (number := number_of(token)):
            continue
        unit = _UNITS[tokens[at - 1]] if at and tokens[at - 1] in _BEFORE else None
        behind = tokens[at + 1 : at + 4 + _NEAR]
        for near, (word, following) in enumerate(pairwise([*behind, ""]), 1):
            if word in _EACH and _UNITS.get(following) in _PERIODS:
                found.setdefault((number, "each"), set()).add(_UNITS[following])
                break
            if number_of(word) or not (word.isalpha() or word in _UNITS or word in "-/"):
                break
            if near <= _NEAR:
                unit = unit or _UNITS.get(word)
        if unit:
            found.setdefault((number, "unit"), set()).add(unit)
    return found
