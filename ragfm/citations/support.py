"""Support: which sentence of the passages supports a claim best, whether it suffices, and its fault if it does not.

A quote supports a claim if it has all names and numbers that the claim adds to the question, most of the other terms
that it adds, and a negation exactly where the claim has one. It must not have a different unit or say the opposite of
the claim. Quotations must occur verbatim. A sentence that only repeats the question claims nothing.

A quote that supports a sentence may be about another company or another year. So each name, number and period of the
question, its subject, must be found with the quote: in it, in its headings, its table's header, or the names of its
document. If the question has a negation, the quote must have one. The closest mention counts: a quote about 2022 in a
report of 2023 is not about 2023, and neither is a number in the column 2022. Periods are years and quarters, in English
or in digits (`FY2018`, `Q2`, `second quarter`). If the question names a column of a table, the number must stand there.

A passage contradicts a claim if one of its sentences shares most terms with the quote and differs in a number or a
name. Terms that the quote shares with the question ("How many people does Cirrus seat?") are the subject: the other
sentence must have all of them. A comparison of periods ("2022 with 2021") is not contradicted by one of others.
Sentences that differ in wording as well are not noticed.

Texts are compared by their terms. A term is a word without its ending, in lower case, or a number in digits. A name or
number must be the same in both, other words may differ in their ending. Lists of words are English.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from ragfm.core.table_rows import TableLine, TableRow, cell_at, line_at, table_lines
from ragfm.core.text import IDENTIFIER, complete_pairs, is_english, sentence_spans

if TYPE_CHECKING:
    from ragfm.citations.verifier import Reading
    from ragfm.core.types import Fault, Hit

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
_POINTS = re.compile(r"-?[1-9]\d{0,2}(?:(?:\.\d{3})+,\d+|(?:\.\d{3}){2,})")  # as thousands separators
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
_CAMEL_CASE = re.compile(r"\b[^\W\d]*[a-z][A-Z]\w*")
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

    Numbers become digits with their sign and without thousands separators. An identifier is a name, besides the words
    that it consists of. Chinese characters and hiragana have no spaces between words: each pair of neighbours is a
    term.
    """
    terms, names, numbers, first = set[str](), set[str](), set[str](), ""
    for position, word, term, capitalised in _content_words(text):
        terms.add(term)
        first = first if position else term
        if _is_number(term) or word in _MAGNITUDES:
            numbers.add(term)
        elif capitalised:
            names.add(term)
    identifiers = _identifiers(text)
    terms.update(identifiers)
    names.update(identifiers)
    return Terms(frozenset(terms), frozenset(names), frozenset(numbers), first)


def _identifiers(text: str) -> dict[str, str]:
    """The identifiers in a text by their terms."""
    return {_term(match[0].casefold()): match[0] for match in IDENTIFIER.finditer(text)}


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


def matching_terms(terms: Set[str], known: Set[str], whole: Set[str] = frozenset()) -> frozenset[str]:
    """The terms that match one of `known`; those in `whole` must be equal."""
    return frozenset(term for term in terms if (term in known if term in whole else matches(term, known)))


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
    for match in _WORD.finditer(_join_words(text)):
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
        elif total > value:  # the 万 of 一亿二千万 does not multiply the 亿
            total, section, digit = total + (section + digit or 1) * value, 0, 0
        else:
            total, section, digit = (total + section + digit or 1) * value, 0, 0
    return total + section + digit


def _term(word: str) -> str:
    if word in _NUMBER_WORDS:
        return _NUMBER_WORDS[word]
    if _is_number(word):
        number = _MINUS.sub("-", unicodedata.normalize("NFKC", word))  # full-width digits, too
        if _POINTS.fullmatch(number):
            return number.replace(".", "").replace(",", ".")
        return number.replace(",", "" if _THOUSANDS.fullmatch(number) else ".")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _is_number(word: str) -> bool:
    return word[-1].isdecimal()


# --- Denials -----------------------------------------------------------------------------------------------------

_CLAUSE = re.compile(r"[,;:()—–]|\s-\s")
_DENIAL = re.compile(
    r"\b(?:not(?!\s+only)|(?!no\.\s?(?:\d|of\b)|(?-i:(?<=\w\s)No\s\d))no|never|none|nobody|nothing|neither|nor|without|cannot|can['’]t|won['’]t)\b|n['’]t\b",
    re.IGNORECASE,
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
            μg µg mcg microgram micrograms
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
            franc francs chf
            rupee rupees ₹ inr
            yuan cny rmb
            sek
            nok
            dkk
            pln
            cad
            aud
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
            kw
            mw
            gw
            kwh
            mwh
            gwh
        """.strip().splitlines()
    )
    for word in (unit, *aliases)
}
_BEFORE = frozenset("$€£¥₹")
_PERIODS = frozenset("second minute hour day week month year".split())
_PER = frozenset("a an per each every /".split())
_UNIT_DISTANCE = 2  # words after a number among which its unit may stand: "30 working days"
_MEASURE_TOKEN = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+|[^\w\s]")
_MERIDIEM = re.compile(r"\b([ap])\.\s?m\b\.?", re.IGNORECASE)
_PARTS = re.compile(r"\b(?:(per)\s(?=cent\b)|(non)[-\u2011](?=[^\W\d_]))", re.IGNORECASE)
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()
_ORDINAL = re.compile(rf"(?<!per\s)\b(?:(\d{{1,4}})(?:st|nd|rd|th)|{'|'.join(_ORDINALS)})\b", re.IGNORECASE)
_OPPOSITES = [
    (re.compile(rf"\b(?:{one})\b", re.IGNORECASE), re.compile(rf"\b(?:{other})\b", re.IGNORECASE))
    for one, other in (
        (r"more|(?:over|above)(?=\W+\d)|at least", r"fewer|less|(?:under|below)(?=\W+\d)|at most|up to"),
        ("before|until", "after|since"),
        ("always|usually|often", "never|rarely|seldom"),
        (r"increas\w*|rose|risen|grew|grown", r"decreas\w*|declin\w*|fell|fallen|shrank|shrunk"),
        ("maximum", "minimum"),
        ("highest|largest", "lowest|smallest"),
        ("allowed|permitted", "forbidden|prohibited"),
        ("enabled?", "disabled?"),
        ("mandatory|compulsory|obligatory", "optional|voluntary"),
    )
]
_ADDRESS = re.compile(r"[^\s<>()\"“”|]*(?:@|://)[^\s<>()\"“”|]*|(?<!\S)~?(?:/[^\s/]+){2,}")


def details_differ(claim: str, text: str) -> bool:
    """Whether a text has a different unit for one of a claim's numbers, or says the opposite of the claim.

        "30 weeks" – "30 days"    "9 am" – "9 pm"    "30 euros a month" – "a year"    "before 9" – "after 9"
        "the first floor" – "the second floor"

    A number without a unit, as in a table, may have any.
    """
    claimed, stated = _measures(claim), _measures(text)
    if any(not units & stated[key] for key, units in claimed.items() if key in stated):
        return True
    first, second = _ordinals(claim), _ordinals(text)
    if not (first <= second or second <= first):
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
    """Email addresses, URLs and absolute paths, in lower case."""
    return [match[0].rstrip(".,;:!?'’]").casefold() for match in _ADDRESS.finditer(text)]


def _join_words(text: str) -> str:
    """The text with `9 am` for `9 a.m.`, `percent` for `per cent`, and `nonrefundable` for `non-refundable`."""
    return _PARTS.sub(r"\1\2", _MERIDIEM.sub(r"\1m", text))


def _ordinals(text: str) -> set[int]:
    """The numbers of `first` to `tenth` and `1st`, `2nd` and so on."""
    found = _ORDINAL.finditer(text)
    return {int(one[1]) if one[1] else 1 + _ORDINALS.index(one[0].casefold()) for one in found}


def _has_only_first(text: str, pair: tuple[re.Pattern[str], re.Pattern[str]]) -> bool:
    return bool(pair[0].search(text)) and not pair[1].search(text)


def _measures(text: str) -> dict[tuple[str, str], set[str]]:
    """The units of each number, keyed by ("30", "unit"), and the periods that it is for, keyed by ("30", "each")."""
    tokens = _MEASURE_TOKEN.findall(_join_words(text).casefold())
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
"""Minimum number of words of a quotation; fewer words in quotation marks are a name or a term."""
_QUOTED = re.compile("|".join(f"{a}([^{a}{b}\n]+){b}" for a, b in ('""', "“”", "«»", "„“")))
_ELLIPSIS = re.compile(r"\s*\[?(?:…|\.\.\.)\]?\s*")
_NON_JOINER = re.compile("(?<=[\\[<])\u200c")  # which the prompt puts into markers and control tokens of documents


def quotations(text: str) -> list[str]:
    """The quotations of a text, split at ellipses."""
    quoted = [next(filter(None, match.groups())) for match in _QUOTED.finditer(text)]
    quoted = [quotation for quotation in quoted if len(quotation.split()) >= MIN_QUOTE_WORDS]
    return [part for quotation in quoted for part in _ELLIPSIS.split(quotation) if part.strip()]


def find_quote(quotation: str, text: str) -> tuple[int, int] | None:
    """The first place where a quotation occurs, as (start, end); see `find_quotes`."""
    return next(find_quotes(quotation, text), None)


def find_quotes(quotation: str, text: str) -> Iterator[tuple[int, int]]:
    """All places where a quotation occurs, as (start, end).

    White space, the case of the first letter and the form of apostrophes may differ.
    """
    words = quotation.strip().strip(".,;:!?").split()
    if words:
        first, *rest = (re.sub("['’]", "['’]", _NON_JOINER.sub("", re.escape(word))) for word in words)
        pattern = "".join([rf"(?<!\w)(?i:{first})", *(rf"\s+{word}" for word in rest), r"(?!\w)"])
        yield from (match.span() for match in re.finditer(pattern, text))


# --- Evidence ----------------------------------------------------------------------------------------------------

MIN_SUPPORT = 0.6
"""The share of a claim's new terms that a quote must have."""
MIN_QUESTION_SHARE = 0.2
"""The share of the question's terms that a quote of a short claim must have: a number alone occurs in many places."""
MIN_SHARE_OF_BEST = 0.6
"""The same, relative to the sentence that has most of the question's terms."""
SHORT_CLAIM = 2
"""Maximum number of new terms of a short claim."""
ECHO = 0.5
"""A sentence without new terms that has this share of the question's terms only repeats the question."""
MIN_SIMILARITY = 0.7
"""The share of the quote's other terms that a sentence must have to contradict it: to be about the same subject."""

_REFERS_BACK = re.compile(r"(?:\w+\W+){0,3}?(?:he|she|it|they|his|her|its|their|this|these|those)\b", re.IGNORECASE)
_YEAR = re.compile(r"(?<![\d.,])(?:FY\s?|['’])?((?:19|20)\d\d)(?![\ds]|[.,]\d)|\bFY\s?['’]?(\d\d)\b")
_QUARTER = re.compile(rf"\bQ([1-4])(?!\d)|(?<!\d)([1-4])Q|\b({'|'.join(_ORDINALS[:4])})[\s-]+quarter", re.IGNORECASE)
_DECIMAL = re.compile(r"\d+(?:\.\d+)?")
_RANGE = re.compile(rf"(?<![\d.,])({_DECIMAL.pattern})\s*(?:to|[-–])\s*({_DECIMAL.pattern})(?!\d|[.,]\d)")
_NOT_A_NAME = re.compile(r"(?:FY|[1-4]?Q)\d*|No\.?\d*", re.IGNORECASE)  # part of a period, or `No. 5`
_NAME = re.compile(r"[^\W\d_][\w&.'’-]*")
_MAX_ABBREVIATION = 5  # letters
_NO_TERMS = terms_of("")
_NO = {"no"}  # an answer that any sentence with a "no" would seem to support


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of an answer without its markers; `cited` are the passages that its markers name.

    `new_terms` are those that it adds to the question. `end` is where it ends in the answer without markers,
    `output_span` its span in the reader's output.
    """

    text: str
    end: int
    cited: tuple[int, ...]
    terms: Terms
    new_terms: frozenset[str]
    output_span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Window:
    """A sentence of a passage with the terms that it may be read with.

    `own` are the terms of its text. `terms` and `names` include those of the headings above it and of the table header
    above a row. A sentence that refers back ("She was …") also has those of the sentence before, and then starts there.
    `question_terms` are the terms of the question that match one of `terms`. `passage_terms` are those of the whole
    passage. `line` is the line of a table that it is in. `is_heading`: it is a heading, a table's header or the rule
    below that, which is not evidence.
    """

    hit: Hit
    start: int
    end: int
    text: str
    own: Terms
    terms: frozenset[str]
    names: frozenset[str]
    question_terms: frozenset[str]
    passage_terms: frozenset[str]
    line: TableLine | None = None
    is_heading: bool = False

    @property
    def row(self) -> TableRow | None:
        """The row of a table that it is in, if the table has a header."""
        return self.line.row if self.line and self.line.row.header else None

    @property
    def above(self) -> str:
        """The context of the passage, and the section of a row."""
        section = self.line.row.section if self.line else ""
        return f"{self.hit.context}\n{section}" if section else self.hit.context


@dataclass(frozen=True, slots=True)
class Subject:
    """The names and numbers of a question by term, its periods, such as `2018` and `Q2`, and its negation, if any."""

    names: Mapping[str, str]
    numbers: Mapping[str, str]
    periods: frozenset[str]
    negation: str


@dataclass(frozen=True, slots=True)
class QuestionTerms:
    """A question's terms, subject and negation, and the highest number of its terms in one sentence."""

    terms: frozenset[str]
    denies: bool
    best_count: int
    subject: Subject


@dataclass(frozen=True, slots=True)
class Evidence:
    """A span of a passage, its score as evidence for a claim, whether it supports the claim, and a fault.

    `missing` are the names, numbers, periods and the negation of the question that are not found with it, and the title
    of the column that it asks for if the claim's number stands in a different one, which is the fault `subject`. `row`
    is the table row that it is, with the likeliest cell.
    """

    hit: Hit
    start: int
    end: int
    score: float
    supports: bool
    missing: tuple[str, ...] = ()
    fault: Fault | None = None
    row: TableRow | None = None

    @property
    def quote(self) -> str:
        """The words of the passage."""
        return self.hit.text[self.start : self.end]

    @property
    def verified(self) -> bool:
        """Whether it supports the claim and has no fault."""
        return self.supports and self.fault is None


@dataclass(frozen=True, slots=True)
class Analysis:
    """A question and the windows of each passage, by its number. `language` is that of the passages."""

    question: QuestionTerms
    windows: Mapping[int, Sequence[Window]]
    language: str = "en"

    @property
    def all_windows(self) -> list[Window]:
        """The windows of all passages."""
        return [window for of_passage in self.windows.values() for window in of_passage]


def analyze(
    question: str, passages: Sequence[Hit], language: str | None = None, *, subject: Subject | None = None
) -> Analysis:
    """Split passages into windows, and find the terms of the question in them. Unnumbered passages are ignored.

    `language` is that of the passages, as ISO 639-1. The `subject` is by default that of the question.
    """
    terms, denying = terms_of(question).all, denies(question)
    own_language = language or "en"
    whole = {_term(match[0].casefold()) for match in _CAMEL_CASE.finditer(question)}
    windows = {hit.n: list(_passage_windows(hit, terms, whole, own_language)) for hit in passages if hit.n is not None}
    counts = [len(window.question_terms) for of_passage in windows.values() for window in of_passage]
    subject = subject or subject_of(question, language)
    return Analysis(QuestionTerms(terms, denying, max(counts, default=0), subject), windows, own_language)


def nearest_window(analysis: Analysis) -> Window | None:
    """The sentence or table row that has most of the question's terms, in the best passage; None if none has any."""
    windows = [window for window in analysis.all_windows if window.question_terms and not window.is_heading]
    return max(windows, key=lambda window: len(window.question_terms), default=None)


def _passage_windows(hit: Hit, question_terms: Set[str], whole: Set[str], language: str) -> Iterator[Window]:
    """The sentences of a passage. `whole` are the terms of the question that are identifiers, which have no endings."""
    context = terms_of(hit.context)
    previous: tuple[int, Terms] | None = None
    lines = table_lines(hit.text, hit.context)
    terms_above = cache(terms_of)  # many rows have the same header
    caption = _NO_TERMS
    passage_terms = context.all | terms_of(hit.text).all
    for start, end in sentence_spans(hit.text, language):
        text = hit.text[start:end]
        own = terms_of(text)
        header, section, scales = _NO_TERMS, _NO_TERMS, frozenset[str]()
        line = line_at(lines, start)
        if line is None:
            caption = own
        else:
            header, section = terms_above(" | ".join(line.row.header)), terms_above(line.row.section)
            scales = caption.magnitudes | header.magnitudes | context.magnitudes  # "in millions" holds for its numbers
        terms = own.all | scales
        names = own.names
        for above in (context, header, section):
            terms |= above.all - above.numbers
            names |= above.names
        is_heading = text.startswith("#") or (line is not None and line.is_header)
        asked = matching_terms(question_terms, terms, whole)
        yield Window(hit, start, end, text, own, terms, names, asked, passage_terms, line, is_heading)
        if previous and _REFERS_BACK.match(text):
            terms, names = terms | previous[1].names, names | previous[1].names
            asked = matching_terms(question_terms, terms, whole)
            yield Window(hit, previous[0], end, text, own, terms, names, asked, passage_terms)
        previous = start, own


def best_evidence(claim: Claim, question: QuestionTerms, windows: Sequence[Window]) -> Evidence | None:
    """The window that supports a claim best, or comes closest; None for a claim without terms, or a bare "No."."""
    terms, new = claim.terms, claim.new_terms
    if not terms.all or terms.all == _NO:
        return None
    quoted = quotations(claim.text)
    quoting = _windows_with_quotations(quoted, windows) if quoted else []

    # A part of the question may still be an answer: it may choose among what the question offers.
    echo = not new and len(terms.all) >= ECHO * len(question.terms)
    new = new or terms.all
    min_question_matches = max(MIN_QUESTION_SHARE * len(question.terms), MIN_SHARE_OF_BEST * question.best_count)
    claimed_addresses = addresses(claim.text)
    claim_denies = denies(claim.text)
    undenied_terms = terms_of(without_denials(claim.text)).all if question.denies else frozenset[str]()

    best: Evidence | None = None
    best_window: Window | None = None
    for window in quoting or windows:
        if window.is_heading:
            continue
        matched = _matched_terms(claim, new, window)
        share = len(matched) / len(new)
        # A number of the question ("Is it 28 days?") need not occur in the quote, unless it is all that is claimed.
        supports = not echo and share >= MIN_SUPPORT and matched >= new & terms.exact
        if supports:  # headings alone are not evidence
            supports = any(matches(term, window.own.all) for term in matched)
        if supports and len(new) <= SHORT_CLAIM:
            supports = len(window.question_terms) >= min_question_matches
        if supports and question.denies:
            # The claim may repeat the negation, so all its terms count; without one ("Earn much.") it may answer
            # such a question either way.
            supports = not claim_denies or denies_terms(window.text, undenied_terms)
        elif supports:
            supports = claim_denies == denies_terms(window.text, matched)
        if supports and claimed_addresses:
            known = addresses(window.text)
            supports = all(one in known or terms_of(one).all <= question.terms for one in claimed_addresses)
        supports = supports and not details_differ(claim.text, window.text)
        # Terms that the sentence shares with the question break ties: they tell which "28 days" is meant.
        tie_breaker = len(terms.all & window.terms) / len(terms.all)
        tie_breaker += len(window.question_terms) / (1 + len(question.terms))
        missing: tuple[str, ...] = ()
        if supports:
            missing = missing_subject(
                question.subject,
                window.hit.text[window.start : window.end],
                row=window.row,
                context=window.above,
                passage_terms=window.passage_terms,
                numbers=claim.terms.numbers,
            )
        if supports and window.row:
            row = window.row
            answers = [at for at, cell in enumerate(row.cells) if terms_of(cell).numbers & new & terms.numbers]
            other = named_column(question.terms, row, answers) if answers else None
            if other is not None and not any(name in row.header[other] for name in missing):  # its period may be
                missing += (row.header[other],)
        fault: Fault | None = "subject" if missing else None
        evidence = Evidence(window.hit, window.start, window.end, 2 * share + tie_breaker, supports, missing, fault)
        if best is None or _rank(evidence) > _rank(best):
            best, best_window = evidence, window
    if best is None or best_window is None:
        return None
    best = replace(best, row=row_with_answer(best_window, question.terms, answer_terms=new))
    return replace(best, supports=False) if quoted and not quoting else best


def _rank(evidence: Evidence) -> tuple[bool, int, float]:
    return evidence.supports, -len(evidence.missing), evidence.score


def _matched_terms(claim: Claim, new: frozenset[str], window: Window) -> frozenset[str]:
    """The terms of a claim that a window has. A name must be a name there too, unless it opens the claim.

    The unit of a number may have another form: `30 euros` for `€30`.
    """
    names, first = claim.terms.names, claim.terms.first
    units = set[str]()
    if not _UNITS.keys().isdisjoint(new):
        stated = _measures(window.text)
        units = {unit for key, claimed in _measures(claim.text).items() for unit in claimed & stated.get(key, set())}
    return frozenset(
        term
        for term in new
        if _UNITS.get(term) in units
        or (
            matches(term, window.terms if term == first else window.names, max_suffix=2)
            if term in names
            else matches(term, window.terms)
        )
    )


def _windows_with_quotations(quoted: Sequence[str], windows: Sequence[Window]) -> list[Window]:
    """For each passage that has all quotations verbatim, the sentences that they occur in, as one window."""
    quoting = []
    for hit, group in groupby(windows, key=lambda window: window.hit):
        places = [find_quote(quotation, hit.text) for quotation in quoted]
        if all(places):
            inside = [w for w in group if any(at and w.start < at[1] and at[0] < w.end for at in places)]
            quoting.append(
                Window(
                    hit,
                    min(window.start for window in inside),
                    max(window.end for window in inside),
                    text := " ".join(window.text for window in inside),
                    terms_of(text),
                    frozenset[str]().union(*(window.terms for window in inside)),
                    frozenset[str]().union(*(window.names for window in inside)),
                    frozenset[str]().union(*(window.question_terms for window in inside)),
                    inside[0].passage_terms,
                    inside[0].line,
                )
            )
    return quoting


def find_fault(claim: Claim, analysis: Analysis, best: Evidence | None, cited: Hit) -> Fault:
    """Why the passage `cited` does not support a claim. `best` is the best evidence from all passages."""
    texts = [of_passage[0].hit.text for of_passage in analysis.windows.values() if of_passage]
    missing = [quotation for quotation in quotations(claim.text) if not find_quote(quotation, cited.text)]
    if missing:
        if any(all(find_quote(quotation, text) for quotation in missing) for text in texts):
            return "misattributed"
        return "stitched" if all(_is_stitched(quotation, texts) for quotation in missing) else "fabricated"
    if best and best.supports:
        return "misattributed"
    new = claim.new_terms
    matched = [_matched_terms(claim, new, window) for window in analysis.all_windows]
    anywhere = frozenset[str]().union(*matched)
    in_one_place = any(len(terms) == len(anywhere) for terms in matched)
    return "stitched" if new and anywhere == new and not in_one_place else "fabricated"


def _is_stitched(quotation: str, texts: Sequence[str]) -> bool:
    """Whether a quotation consists of pieces of at least three words that each occur verbatim in a passage."""
    words = quotation.split()
    reachable = {0}
    for end in range(MIN_QUOTE_WORDS, len(words) + 1):
        starts = [start for start in reachable if end - start >= MIN_QUOTE_WORDS]
        if any(find_quote(" ".join(words[start:end]), text) for start in starts for text in texts):
            reachable.add(end)
    return len(words) in reachable


def differ(values: Set[str], others: Set[str]) -> bool:
    """Whether each of two sets has a value that the other lacks."""
    return not (values <= others or others <= values)


def about_other_periods(text: str, other: str, answer: Set[str], subject: Subject) -> bool:
    """Whether two sentences with different periods may both be true of a question about `subject`.

    They may if it asks about a period, or if one of them compares several. If the `answer` is a period, they may not.
    """
    stated, of_other = periods(text), periods(other)
    compares = max(len(stated), len(of_other)) > 1
    return not answer & stated and differ(stated, of_other) and (compares or bool(subject.periods))


# --- The subject of a question -----------------------------------------------------------------------------------


def subject_of(question: str, language: str | None = None) -> Subject:
    """The subject of a question about texts in a language (ISO 639-1, None if unknown).

    Names are identifiers and capitalised words, these in English only: other languages capitalise other words, too. A
    word that opens a sentence is not a name, nor is a unit, nor any word of a question in capitals. The numbers are
    those that are not part of a period.
    """
    names = _identifiers(question)
    has_names = is_english(question, language) and not question.isupper()
    for start, end in sentence_spans(question) if has_names else ():
        for word in list(_NAME.finditer(question, start, end))[1:]:
            if not _NOT_A_NAME.fullmatch(word[0]) and not is_unit(word[0]):
                names |= dict.fromkeys(terms_of(f". {word[0]}").names, word[0])
    rest = _QUARTER.sub(" ", _YEAR.sub(" ", question))
    numbers = {term: word for word in _tokens(rest) for term in terms_of(word).numbers}
    negation = _DENIAL.search(question)
    return Subject(names, numbers, periods(question), negation[0] if negation else "")


def periods(text: str) -> frozenset[str]:
    """The years and quarters that a text mentions, as `2018` and `Q2`."""
    years = {match[1] or f"20{match[2]}" for match in _YEAR.finditer(text)}
    quarters = {
        f"Q{match[1] or match[2] or 1 + _ORDINALS.index(match[3].casefold())}" for match in _QUARTER.finditer(text)
    }
    return frozenset(years | quarters)


def missing_subject(
    subject: Subject, quote: str, *, row: TableRow | None, context: str, passage_terms: Set[str], numbers: Set[str]
) -> tuple[str, ...]:
    """The parts of a question's subject that are not found with a quote: names, numbers, periods, and a negation.

    `row` is the table row that the quote is, `context` the text above the passage, `numbers` those of the claim. Prose
    may refer to a name by a pronoun, so for a sentence, but not for a row, a name that is among the `passage_terms`
    counts.
    """
    missing = []
    header = " | ".join(row.header) if row else ""
    if subject.names or subject.numbers:
        text = f"{context}\n{header}\n{quote}"
        near = terms_of(text).all
        known = near | (frozenset() if row else passage_terms)
        missing = [
            name
            for term, name in subject.names.items()
            if not matches(term, known, max_suffix=2) and not _spelled_out(name, text)
        ]
        ranges = [(float(match[1]), float(match[2])) for match in _RANGE.finditer(text)]
        for term, number in subject.numbers.items():
            value = float(term) if _DECIMAL.fullmatch(term) else math.nan
            if term not in near and not any(low <= value <= high for low, high in ranges):
                missing.append(number)
    if subject.negation and not denies(quote):
        missing.append(subject.negation)
    if not subject.periods:
        return tuple(dict.fromkeys(missing))

    # The periods of the quote and of the column that its number is in; if they name none, those of the context.
    stated = periods(quote)
    columns = [at for at, cell in enumerate(row.cells) if terms_of(cell).numbers & numbers] if row else []
    if row and columns and len(row.cells) == len(row.header):
        stated |= periods(" ".join(row.header[at] for at in columns))
    else:
        stated |= periods(header)
    found: set[str] = set()
    for is_year in (True, False):
        own = {period for period in stated if period.isdigit() == is_year}
        found |= own or {period for period in periods(context) if period.isdigit() == is_year}
    # "the 2000 employees" is not a period if the quote has the number.
    absent = subject.periods - found - terms_of(quote).numbers
    return tuple(dict.fromkeys([*missing, *sorted(absent)]))


# --- Cells of tables -------------------------------------------------------------------------------------------------


def best_spans(readings: Sequence[Reading], analysis: Analysis) -> list[tuple[str, int | None, float]]:
    """The most likely answer of each passage, the passage's number, and the likelihood, best first.

    Answers that are less than half as likely as the best one are left out. The verifier knows little of tables: an
    answer from a row without the subject of the question gives way to the best one from rows that have it, and of the
    row, the cell counts whose title the question has.
    """
    question, spans = analysis.question, list[tuple[str, int | None, float]]()
    for reading in readings:
        likelihood, start, end = reading.best
        rows = [one for one in analysis.windows.get(reading.passage.n or 0, ()) if one.row and not one.is_heading]
        row = next((one for one in rows if one.start <= start and end <= one.end), None)
        if row is not None and missing_in(row, question.subject):
            found = [
                (*reading.best_within(one.start, one.end), one) for one in rows if not missing_in(one, question.subject)
            ]
            if found:
                likelihood, start, end, row = max(found, key=lambda one: one[0])
        start, end = complete_pairs(reading.passage.text, start, end)
        text = reading.passage.text[start:end]
        line = row.line if row else None
        if line and (at := cell_at(reading.passage.text[line.start : line.end], start - line.start)):
            column = named_column(question.terms, line.row, [at])
            text = line.row.cells[column] if column is not None and line.row.cells[column] else text
        spans.append((text, reading.passage.n, likelihood))
    spans.sort(key=lambda one: -one[2])
    return [one for one in spans if one[2] >= spans[0][2] / 2]


def missing_in(window: Window, subject: Subject, numbers: Set[str] = frozenset()) -> tuple[str, ...]:
    """The names, numbers and periods of a question that a sentence or row, with what is above it, does not have.

    `numbers` are those of the answer.
    """
    return missing_subject(
        replace(subject, negation=""),
        window.text,
        row=window.row,
        context=window.above,
        passage_terms=window.passage_terms,
        numbers=numbers,
    )


def named_column(question_terms: Set[str], row: TableRow, answers: Sequence[int]) -> int | None:
    """The column that a question asks for if it is none of those in which its answer stands.

    It is the one whose title has the most terms of the question, and of those the shortest title. Terms of the row's
    label and titles of cells that the question names do not count: they choose the row. None if the titles have no
    terms of the question, if several columns are equally likely, or if the title of an answer has a term that the
    column's lacks.
    """
    if len(row.cells) != len(row.header):
        return None
    asked = question_terms - matching_terms(question_terms, terms_of(row.cells[0]).all)
    named = [(matching_terms(asked, own), len(own)) for own in (terms_of(title).all for title in row.header)]
    for at in (0, *_named_cells(question_terms, row)):
        named[at] = frozenset(), 0
    ranks = [(-len(terms), length - len(terms)) for terms, length in named]
    best = min(range(len(ranks)), key=ranks.__getitem__)
    if not named[best][0] or ranks.count(ranks[best]) > 1 or any(not named[at][0] < named[best][0] for at in answers):
        return None
    return best


def row_with_answer(
    window: Window, question_terms: Set[str], *, answer_terms: Set[str] = frozenset(), position: int | None = None
) -> TableRow | None:
    """The table row that a window is in, with its likeliest cell; its label has the cells that the question names.

    The likeliest cell is the one with most of the `answer_terms`. Without them, it is in the column that the question
    asks for, or else at a `position` of the passage.
    """
    line = window.line
    if line is None or line.is_header or window.end > line.end:
        return None
    row = line.row
    shares = [len(matching_terms(answer_terms, terms_of(cell).all)) for cell in row.cells]
    likely = [at for at, share in enumerate(shares) if share and share == max(shares)]
    if position is not None:
        likely = [cell_at(window.hit.text[line.start : line.end], position - line.start)]
    asked = named_column(question_terms, row, [] if answer_terms else likely)
    column = likely[0] if len(likely) == 1 and (answer_terms or asked is None) else asked
    if answer_terms and column not in likely:
        column = None
    named = [row.titled(at) for at in _named_cells(question_terms, row) if at not in (0, column)]
    return replace(row, column=column, label=", ".join([row.label, *named]))


def _named_cells(question_terms: Set[str], row: TableRow) -> list[int]:
    """The cells of which a question has all terms."""
    terms = [terms_of(cell).all for cell in row.cells]
    return [at for at, own in enumerate(terms) if own and matching_terms(own, question_terms) == own]


def _spelled_out(name: str, text: str) -> bool:
    """Whether a text has the words that an abbreviation stands for: `CFO` for "chief financial officer"."""
    if not (name.isupper() and name.isalpha() and 2 <= len(name) <= _MAX_ABBREVIATION):
        return False
    return name.casefold() in "".join(word[0] for word in re.findall(r"\w+", text)).casefold()


# --- Contradictions ----------------------------------------------------------------------------------------------


def find_contradiction(claim: Claim, analysis: Analysis, evidence: Evidence) -> Evidence | None:
    """The sentence in a different passage that contradicts a claim most clearly, given the evidence for the claim."""
    answer = claim.new_terms & claim.terms.exact
    quote = terms_of(evidence.quote)
    rest = quote.all - quote.exact
    if not answer or len(rest) < 2:
        return None
    known = quote.all | terms_of(evidence.hit.context).all
    subject = {term for term in known if matches(term, analysis.question.terms)} - answer
    compares_numbers = bool(answer & quote.numbers)
    best: Evidence | None = None
    for n, of_passage in analysis.windows.items():
        for window in of_passage if n != evidence.hit.n else ():
            alternatives = (window.own.numbers if compares_numbers else window.own.names) - quote.all
            similarity = len(matching_terms(rest, window.own.all)) / len(rest)
            same_subject = all(matches(term, window.terms) for term in subject)
            contradicts = alternatives and similarity >= MIN_SIMILARITY and same_subject and not answer & window.terms
            if contradicts and about_other_periods(evidence.quote, window.text, answer, analysis.question.subject):
                continue
            if contradicts and (best is None or similarity > best.score):
                row = row_with_answer(window, analysis.question.terms, answer_terms=alternatives)
                best = Evidence(window.hit, window.start, window.end, similarity, supports=False, row=row)
    return best
