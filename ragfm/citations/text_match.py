"""Text matching without a model: terms, numbers with their units, negations, and verbatim quotes.

A term is a word without its ending, in lower case, or a number in digits. Two texts are compared by the terms that
they share; a name or number must be the same, other words may differ in their ending. Lists of words are English.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Set
from dataclasses import dataclass
from itertools import pairwise

__all__ = [
    "Terms",
    "added_terms",
    "addresses",
    "count_matches",
    "denies",
    "denies_terms",
    "details_differ",
    "find_quote",
    "find_quotes",
    "is_unit",
    "matches",
    "quotations",
    "terms_of",
    "without_denials",
]

# --- Terms -------------------------------------------------------------------------------------------------------

_HAN, _HIRAGANA, _KATAKANA = "々〆㐀-䶿一-鿿豈-\ufaff\U00020000-\U0003ffff", "ぁ-ゖゝゞ", "ァ-ヺー-ヿ"
_HAN_DIGITS = "〇零一二三四五六七八九十百千万萬亿億"
_WORD = re.compile(
    r"(?:(?<![^\s(\[{|=:<>≤≥≈~*\"“„«])[-−]|\b[Mm]inus\s+)?\d+(?:[.,:]\d+)*"  # the hyphen of a range is not a sign
    rf"|(?P<numeral>[{_HAN_DIGITS}]+)"
    rf"|(?P<unspaced>(?:(?![{_HAN_DIGITS}的是在了吗呢嗎])[{_HAN}])+|[{_HIRAGANA}]+)"  # stop words are left out
    rf"|[{_KATAKANA}]+"
    rf"|[^\W\d_{_HAN}{_HIRAGANA}{_KATAKANA}]+"
)
_MINUS = re.compile(r"[-−]|minus\s+")
_THOUSANDS = re.compile(r"-?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_STOP_WORDS = frozenset(
    """
    a according an and are as at based be been but by can did do does for from get gets go goes got had has have how i
    if in into is it its may more must my of on or our passage passages per shall should so than that the their them
    then there these they this to up was we were what when where which who will with would you your yes
    は が を に の で と も へ や か です でし ます まし した すか あり にあ があ
    """.split()
)
_NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        "zero _ two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen twenty".split()
    )
} | {word: str(10 * number) for number, word in enumerate("thirty forty fifty sixty seventy eighty ninety".split(), 3)}
_MONTHS_AND_NAMES = ("may", "will")  # stop words, unless they are capitalised within a sentence
_MAGNITUDES = frozenset("dozen half hundred thousand million billion trillion".split())


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of a text. `names` and `numbers` are subsets of `all`; `first` is the first term of the text.

    The first word of a sentence has a capital letter anyway, so `first` may be a name or not.
    """

    all: frozenset[str]
    names: frozenset[str]
    numbers: frozenset[str]
    first: str

    @property
    def exact(self) -> frozenset[str]:
        """Names and numbers: a quote must have each of them."""
        return self.names | self.numbers

    @property
    def magnitudes(self) -> frozenset[str]:
        """Words such as `million`."""
        return self.all & _MAGNITUDES


def terms_of(text: str) -> Terms:
    """The terms of a text, without stop words.

    Numbers become digits with their sign and without thousands separators. Chinese characters and hiragana have no
    spaces between words: each pair of neighbours is a term.
    """
    terms, names, numbers, first = set[str](), set[str](), set[str](), ""
    for position, word, term, capitalised in _content_words(text):
        terms.add(term)
        first = first if position else term
        if _is_number(term) or word in _MAGNITUDES:
            numbers.add(term)
        elif capitalised:
            names.add(term)
    return Terms(frozenset(terms), frozenset(names), frozenset(numbers), first)


def matches(term: str, terms: Set[str], *, max_suffix: int | None = None) -> bool:
    """Whether `terms` has a term, or the same word with another ending.

    Numbers and words of fewer than five letters must be equal. With `max_suffix`, the endings differ by no more than
    that many letters.
    """
    if term in terms or _is_number(term) or len(term) < 5:
        return term in terms
    if max_suffix is not None:
        return any(
            abs(len(term) - len(other)) <= max_suffix and (term.startswith(other) or other.startswith(term))
            for other in terms
        )
    stem = term[: max(5, len(term) - 3)]
    return any(other.startswith(stem) for other in terms)


def count_matches(terms: Set[str], known: Set[str]) -> int:
    """How many of the terms match one of `known`."""
    return sum(matches(term, known) for term in terms)


def added_terms(terms: Terms, known: Set[str]) -> frozenset[str]:
    """The terms that are not among `known`. Names and numbers must be equal, other words may differ in their ending."""
    exact = terms.exact
    return frozenset(term for term in terms.all if not (term in known if term in exact else matches(term, known)))


def _content_words(text: str) -> Iterator[tuple[int, str, str, bool]]:
    """Each word that is not a stop word: its position, lower-case form, term, and whether it is capitalised."""
    for position, token in enumerate(_tokens(text)):
        word, capitalised = token.casefold(), token[0].isupper()
        is_name = word in _MONTHS_AND_NAMES and capitalised and position
        if word not in _STOP_WORDS or is_name:
            yield position, word, _term(word), capitalised


def _tokens(text: str) -> Iterator[str]:
    for match in _WORD.finditer(text):
        run = match["unspaced"]
        if match["numeral"]:
            yield str(_han_number(match["numeral"]))
        elif run and len(run) > 1:
            yield from (run[at : at + 2] for at in range(len(run) - 1))
        else:
            yield match[0]


def _han_number(numeral: str) -> int:
    """The value of a number in Chinese characters: 三百五十 is 350, 二〇二四 is 2024."""
    values = [int(unicodedata.numeric(character)) for character in numeral]
    if max(values) < 10:
        return int("".join(map(str, values)))
    total = section = digit = 0  # the sum, its part below ten thousand, and the digit before a multiplier
    for value in values:
        if value < 10:
            digit = value
        elif value < 10_000:
            section, digit = section + (digit or 1) * value, 0
        else:
            total, section, digit = (total + section + digit or 1) * value, 0, 0
    return total + section + digit


def _term(word: str) -> str:
    if word in _NUMBER_WORDS:
        return _NUMBER_WORDS[word]
    if _is_number(word):
        number = _MINUS.sub("-", unicodedata.normalize("NFKC", word))  # full-width digits, too
        return number.replace(",", "" if _THOUSANDS.fullmatch(number) else ".")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _is_number(word: str) -> bool:
    return word[-1].isdecimal()


# --- Denials -----------------------------------------------------------------------------------------------------

_CLAUSE = re.compile(r"[,;:()—–]|\s-\s")
_DENIAL = re.compile(
    r"\b(?:not|no|never|none|nobody|nothing|neither|nor|without|cannot|can['’]t|won['’]t)\b|n['’]t\b", re.IGNORECASE
)


def denies(text: str) -> bool:
    """Whether a text has a negation."""
    return bool(_DENIAL.search(text))


def without_denials(text: str) -> str:
    """The text without its negations."""
    return _DENIAL.sub(" ", text)


def denies_terms(text: str, terms: frozenset[str]) -> bool:
    """Whether a clause that has some of the terms has a negation."""
    return any(denies(clause) and not terms.isdisjoint(terms_of(clause).all) for clause in _CLAUSE.split(text))


# --- Units, opposites, addresses ---------------------------------------------------------------------------------

_UNITS = {
    word: unit
    for unit, *aliases in (
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
    for word in (unit, *aliases)
}
_BEFORE = frozenset("$€£¥")
_PERIODS = frozenset("second minute hour day week month year".split())
_PER = frozenset("a an per each every /".split())
_UNIT_DISTANCE = 2  # words after a number among which its unit may stand: "30 working days"
_MEASURE_TOKEN = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+|[^\w\s]")
_MERIDIEM = re.compile(r"\b([ap])\.\s?m\b\.?", re.IGNORECASE)
_OPPOSITES = [
    (re.compile(rf"\b(?:{one})\b", re.IGNORECASE), re.compile(rf"\b(?:{other})\b", re.IGNORECASE))
    for one, other in (
        (r"more|(?:over|above)(?=\W+\d)|at least", r"fewer|less|(?:under|below)(?=\W+\d)|at most|up to"),
        ("before|until", "after|since"),
        ("always|usually|often", "never|rarely|seldom"),
    )
]
_ADDRESS = re.compile(r"[^\s<>()\"“”|]*(?:@|://)[^\s<>()\"“”|]*|(?<!\S)~?(?:/[^\s/]+){2,}")


def details_differ(claim: str, text: str) -> bool:
    """Whether a text has another unit for one of a claim's numbers, or the opposite of what the claim says.

        "30 weeks" – "30 days"    "9 am" – "9 pm"    "30 euros a month" – "a year"    "before 9" – "after 9"

    A number without a unit, as in a table, may have any.
    """
    claimed, stated = _measures(claim), _measures(text)
    if any(not units & stated[key] for key, units in claimed.items() if key in stated):
        return True
    return any(
        _has_only_first(claim, pair) and _has_only_first(text, pair[::-1])
        for pair in (*_OPPOSITES, *(pair[::-1] for pair in _OPPOSITES))
    )


def is_unit(word: str) -> bool:
    """Whether a word or sign is a unit, such as `days`, `%` or `USD`, or a magnitude such as `million`."""
    word = word.casefold()
    return word in _UNITS or word.removesuffix("s") in _MAGNITUDES


def addresses(text: str) -> list[str]:
    """Mail addresses, URLs and absolute paths, in lower case."""
    return [match[0].rstrip(".,;:!?'’]").casefold() for match in _ADDRESS.finditer(text)]


def _has_only_first(text: str, pair: tuple[re.Pattern[str], re.Pattern[str]]) -> bool:
    return bool(pair[0].search(text)) and not pair[1].search(text)


def _measures(text: str) -> dict[tuple[str, str], set[str]]:
    """The units of each number, keyed by ("30", "unit"), and the periods that it is for, keyed by ("30", "each")."""
    normalized = _MERIDIEM.sub(r"\1m", text).casefold().replace("per cent", "percent")
    tokens = _MEASURE_TOKEN.findall(normalized)
    measures: dict[tuple[str, str], set[str]] = {}
    for at, token in enumerate(tokens):
        if not _is_number(number := _term(token)):
            continue
        unit = _UNITS[tokens[at - 1]] if at and tokens[at - 1] in _BEFORE else None
        following = tokens[at + 1 : at + 4 + _UNIT_DISTANCE]
        for distance, (word, next_word) in enumerate(pairwise([*following, ""]), 1):
            if word in _PER and _UNITS.get(next_word) in _PERIODS:
                measures.setdefault((number, "each"), set()).add(_UNITS[next_word])
                break
            if _is_number(_term(word)) or not (word.isalpha() or word in _UNITS or word in "-/"):
                break
            if distance <= _UNIT_DISTANCE:
                unit = unit or _UNITS.get(word)
        if unit:
            measures.setdefault((number, "unit"), set()).add(unit)
    return measures


# --- Quotes ------------------------------------------------------------------------------------------------------

MIN_QUOTE_WORDS = 3
"""Fewer words in quotation marks are a name or a term, not a quotation."""
_QUOTED = re.compile("|".join(f"{a}([^{a}{b}\n]+){b}" for a, b in ('""', "“”", "«»", "„“")))
_ELLIPSIS = re.compile(r"\s*\[?(?:…|\.\.\.)\]?\s*")
_NON_JOINER = re.compile("(?<=[\\[<])\u200c")  # which the prompt puts into markers and control tokens of documents


def quotations(text: str) -> list[str]:
    """The quotations of a text, split at ellipses."""
    quoted = [next(filter(None, match.groups())) for match in _QUOTED.finditer(text)]
    quoted = [quotation for quotation in quoted if len(quotation.split()) >= MIN_QUOTE_WORDS]
    return [part for quotation in quoted for part in _ELLIPSIS.split(quotation) if part.strip()]


def find_quote(quotation: str, text: str) -> tuple[int, int] | None:
    """The first place where a quotation stands, as (start, end); see `find_quotes`."""
    return next(find_quotes(quotation, text), None)


def find_quotes(quotation: str, text: str) -> Iterator[tuple[int, int]]:
    """All places where a quotation stands, as (start, end).

    White space, the case of the first letter and the form of apostrophes may differ.
    """
    words = quotation.strip().strip(".,;:!?").split()
    if words:
        first, *rest = (re.sub("['’]", "['’]", _NON_JOINER.sub("", re.escape(word))) for word in words)
        pattern = "".join([rf"(?<!\w)(?i:{first})", *(rf"\s+{word}" for word in rest), r"(?!\w)"])
        yield from (match.span() for match in re.finditer(pattern, text))
