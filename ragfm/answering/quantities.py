"""Numbers in text with their sign, scale and unit, and dates, in any language that Unicode's CLDR describes.

The forms of units, currencies, scales ("million", "Mrd.", "万") and months come from the CLDR through Babel; nothing
here is a list of words of one language. Numbers in words, ordinals and negation are left to the judge.

    $36,386 million                36386000000 USD
    30 Arbeitstage im Monat        30
    2 500 km/h                     2500, speed-kilometer-per-hour
    18. Mai 2026                   2026-05-18
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from babel import Locale

_UNITS = """
    area-acre area-hectare area-square-foot area-square-kilometer area-square-meter area-square-mile concentr-percent
    concentr-permille digital-byte digital-gigabit digital-gigabyte digital-kilobyte digital-megabit digital-megabyte
    digital-petabyte digital-terabyte duration-century duration-day duration-decade duration-hour duration-millisecond
    duration-minute duration-month duration-quarter duration-second duration-week duration-year electric-ampere
    electric-ohm electric-volt energy-calorie energy-joule energy-kilocalorie energy-kilojoule energy-kilowatt-hour
    frequency-gigahertz frequency-hertz frequency-kilohertz frequency-megahertz length-centimeter length-foot
    length-inch length-kilometer length-meter length-micrometer length-mile length-millimeter length-nanometer
    length-nautical-mile length-yard mass-gram mass-kilogram mass-microgram mass-milligram mass-ounce mass-pound
    mass-ton mass-tonne power-gigawatt power-horsepower power-kilowatt power-megawatt power-watt pressure-bar
    pressure-hectopascal pressure-kilopascal pressure-pascal speed-kilometer-per-hour speed-knot
    speed-meter-per-second speed-mile-per-hour temperature-celsius temperature-fahrenheit temperature-kelvin
    volume-barrel volume-cubic-foot volume-cubic-meter volume-gallon volume-hectoliter volume-liter volume-milliliter
""".split()
_PERIODS = ("second", "minute", "hour", "day", "week", "month", "quarter", "year")
_CURRENCIES = """
    AED ARS AUD BRL CAD CHF CLP CNY COP CZK DKK EGP EUR GBP HKD HUF IDR ILS INR JPY KRW MXN MYR NGN NOK NZD PHP PKR PLN
    RON RUB SAR SEK SGD THB TRY TWD UAH USD VND ZAR
""".split()
_COUNTS = (2, 1, 0, 3, 5, 11, 100)
"""Numbers that cover all plural categories of any language."""
_SCALES = range(3, 14)  # powers of ten
_SHORT = 3  # characters of a form whose capitals count: `mW` and `MW`
_LONGEST = 40  # characters of a form
_UNSPACED = "\u0e00"  # scripts from here on have no spaces between words
_DISTANCE = 1  # words between a number and its unit: "30 working days"

_DIGITS = re.compile(r"\d+(?:[.,'’]\d+)*")
_SPACED = re.compile(r"(?<![\d.,])\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?:[.,]\d+)?(?!\d)")
_ISO_DATE = re.compile(r"(?<!\d)(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)(?!\d)")
_WORD = re.compile(r"[^\W\d_]+[.’'-]?[^\W\d_]*\s+")
_LETTERS = re.compile(r"[^\W\d_]+")
_NUMBER_BEFORE = re.compile(r"\d[\s\u00a0\u202f-]?$")
_SIGN = re.compile(r"(?<!\d)(?<!\d\s)[^\w\s.,;:|()\[\]/'’\"-](?![\s\u00a0]?\d)|(?<!\d\s)\b[A-Z]{3}\b(?!\s?\d)")
_GAP = re.compile(r"[\s\u00a0\u202f-]{0,2}")
_NUMBER = re.compile(r"[\d.,'’\s\u00a0\u202f]*\d[\d.,'’]*")

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number at `start:end` of a text, with its scale.

    `values` has both readings of a number whose separator may be that of thousands or of decimals. `units` are CLDR's
    names of units, such as `length-meter`, or currency codes; several if a sign stands for several, none without a
    unit. `power` is that of ten of its scale, which the values have. `rate` is the period that it is for: "30 euros per
    hour".
    """

    start: int
    end: int
    values: frozenset[Decimal]
    negative: bool = False
    units: frozenset[str] = frozenset()
    rate: str = ""
    power: int = 0

    def is_stated_by(self, other: Quantity) -> bool:
        """Whether another one has its value, and no unit, rate or sign that contradicts it.

        A number without a unit, as in a table, may have any; and a loss may be written as a positive number.
        """
        return (
            bool(self.values & other.values)
            and (not self.units or not other.units or bool(self.units & other.units))
            and (not self.rate or not other.rate or self.rate == other.rate)
            and (other.negative or not self.negative)
        )


@dataclass(frozen=True, slots=True)
class Date:
    """A day at `start:end` of a text; `year` is 0 if it is not stated."""

    start: int
    end: int
    year: int
    month: int
    day: int

    def states(self, other: Date) -> bool:
        """Whether it is the same day, as far as both say."""
        years = {self.year, other.year} - {0}
        return (self.month, self.day) == (other.month, other.day) and len(years) < 2


@dataclass(frozen=True, slots=True)
class _Forms:
    """How a language writes units, scales and dates. Forms of more than a few letters are in lower case.

    `long_scales` are those of more than a few letters, without a point at the end. `per` is the word in "per hour".
    """

    units: Mapping[str, frozenset[str]]
    before: Mapping[str, frozenset[str]]
    rates: Mapping[str, str]
    scales: Mapping[str, int]
    long_scales: Mapping[str, int]
    months: Mapping[str, int]
    numeric_dates: Sequence[re.Pattern[str]]
    named_dates: Sequence[re.Pattern[str]]
    decimal: str
    group: str
    per: str


def quantities(text: str, language: str | None = None) -> list[Quantity]:
    """The numbers of a text in a language (ISO 639-1; None if unknown), without those of `dates`."""
    text = text.replace("\u00b5", "\u03bc")  # keyboards have the sign, CLDR the letter
    forms, taken = _forms(language), [(date.start, date.end) for date in dates(text, language)]
    found = list[Quantity]()
    numbers = [*_SPACED.finditer(text)] if not forms.group.strip() else []
    spaced = [number.span() for number in numbers]
    numbers += [one for one in _DIGITS.finditer(text) if not any(a <= one.start() < b for a, b in spaced)]
    for number in sorted(numbers, key=re.Match.start):
        start, end = number.span()
        values = _readings(number[0], forms)
        if not values or any(a <= start < b for a, b in taken):
            continue
        before = text[:start].rstrip()
        units = next(
            (forms.before[before[-n:]] for n in range(4, 0, -1) if before[-n:] in forms.before), frozenset[str]()
        )
        sign = before[:-1].rstrip()[-1:] if units else text[start - 1 : start]
        at = start - (2 if units else 1)
        negative = sign in ("-", "−") and not text[max(0, at - 1) : at].rstrip("(|").isalnum()
        negative |= before.rstrip("$€£¥ ").endswith("(") and text[end : end + 1] == ")"

        position = _GAP.match(text, end).end()  # type: ignore[union-attr]
        scale, unit, power = _longest(text, position, forms.scales), _longest(text, position, forms.units), 0
        if scale and (units or not unit or unit[0] < scale[0]):  # "5 m" are metres, "$5 m" are millions
            end, power = scale
            values = frozenset(value.scaleb(power) for value in values)
        position = _GAP.match(text, end).end()  # type: ignore[union-attr]
        for word in range(_DISTANCE + 1):
            if unit := _longest(text, position, forms.units):
                units, end = units or unit[1], unit[0] if word == 0 else end
                position = unit[0]
                break
            step = _WORD.match(text, position)
            if not step or units:
                break
            position = step.end()
        else:
            position = end
        rate = _longest(text, position, forms.rates) or _longest(text, _GAP.match(text, position).end(), forms.rates)  # type: ignore[union-attr]
        found.append(Quantity(start, end, values, negative, units, rate[1] if rate else "", power))
    return found


def scales_in(text: str, language: str | None = None) -> frozenset[int]:
    """The powers of ten of the scales that a text names without a number: 6 for "in millions"."""
    forms = _forms(language).long_scales
    found = {one[0].casefold() for one in _LETTERS.finditer(text) if not _NUMBER_BEFORE.search(text, 0, one.start())}
    return frozenset(forms[form] for word in found for form in (word, word.removesuffix("s")) if form in forms)


def units_in(text: str, language: str | None = None) -> frozenset[str]:
    """The currencies and percent signs that a text has next to no number: `USD` for "(in $ millions)"."""
    forms = _forms(language)
    return frozenset(
        unit for sign in _SIGN.findall(text) for unit in forms.before.get(sign, forms.units.get(sign, frozenset()))
    )


def dates(text: str, language: str | None = None) -> list[Date]:
    """The days that a text names: `2026-05-18`, or day and name of the month in either order."""
    forms = _forms(language)
    in_digits = [one for pattern in forms.numeric_dates for one in pattern.finditer(text)]
    found = [Date(one.start(), one.end(), int(one["year"]), int(one["month"]), int(one["day"])) for one in in_digits]
    for one in (one for pattern in forms.named_dates for one in pattern.finditer(text)):
        day, month = int(one["day"]), forms.months[one["month"].casefold()]
        if 1 <= day <= 31 and not any(date.start < one.end() and one.start() < date.end for date in found):
            found.append(Date(one.start(), one.end(), int(one["year"] or 0), month, day))
    return sorted(found, key=lambda date: date.start)


def _readings(number: str, forms: _Forms) -> frozenset[Decimal]:
    """The values that digits with separators may have; none for a version such as `1.2.3`."""
    digits = re.sub(r"\d", lambda one: str(int(one[0])), number)  # of any script
    separators = re.sub(r"\d", "", digits)
    kinds = set(separators)
    if not kinds:
        return frozenset([Decimal(digits)])
    *whole, last = re.split(r"\D", digits)
    groups = all(len(part) == 3 for part in whole[1:]) and 1 <= len(whole[0]) <= 3 and whole[0] != "0"
    as_thousands = Decimal("".join([*whole, last]))
    as_decimal = Decimal(f"{''.join(whole)}.{last}")
    final = separators[-1]
    if len(kinds) == 2 and separators.count(final) == 1 and groups and final in ".,":
        return frozenset([as_decimal])
    if len(kinds) > 1:
        return frozenset()
    if not (groups and len(last) == 3):
        return frozenset([as_decimal] if final in ".," and len(separators) == 1 else [])
    if len(separators) > 1 or final == forms.group or final not in ".,":
        return frozenset([as_thousands])
    return frozenset([as_decimal] if final == forms.decimal == "." else [as_decimal, as_thousands])


def _longest(text: str, position: int, forms: Mapping[str, Value]) -> tuple[int, Value] | None:
    """The end and the value of the longest form at a position of a text; short forms have their own capitals."""
    for length in range(min(_LONGEST, len(text) - position), 0, -1):
        form = text[position : position + length]
        following = text[position + length : position + length + 1]
        if following.isalpha() and form[-1].isalpha() and form[-1] < _UNSPACED:
            continue
        known = form if form in forms else form.casefold() if len(form) > _SHORT else ""
        if known in forms:
            return position + length, forms[known]
    return None


@cache
def _forms(language: str | None) -> _Forms:
    """The forms of a language; those of English, and international ones, if it is unknown to the CLDR."""
    from babel import Locale
    from babel.dates import get_date_format, get_month_names, get_period_names
    from babel.numbers import (
        format_compact_decimal,
        get_currency_name,
        get_currency_symbol,
        get_decimal_symbol,
        get_group_symbol,
    )
    from babel.units import format_compound_unit, format_unit

    own = _locale(language)
    lengths: tuple[Literal["long"], Literal["short"]] = ("long", "short")
    widths: tuple[Literal["wide"], Literal["abbreviated"]] = ("wide", "abbreviated")
    locales = [own, *map(Locale.parse, ("en", "en_GB"))]  # English units and codes occur in texts of all languages
    units, before = dict[str, frozenset[str]](), dict[str, frozenset[str]]()
    rates, scales, months = dict[str, str](), dict[str, int](), dict[str, int]()

    def add(forms: dict[str, frozenset[str]], form: str, unit: str) -> None:
        form = form.strip()
        key = form.casefold() if len(form) > _SHORT else form
        if key and not key[0].isdigit():
            forms[key] = forms.get(key, frozenset()) | {unit}

    for locale in dict.fromkeys(locales):
        counts = list({locale.plural_form(count): count for count in _COUNTS}.values())
        for unit in _UNITS:
            for count in counts:
                for length in lengths:
                    written = format_unit(count, unit, length, locale=locale)
                    if not (unit == "length-inch" and length == "short"):  # "in" is a word of English
                        add(units, _NUMBER.sub("", written, count=1), unit)
        for period in _PERIODS:
            for length in lengths:
                alone = format_unit(2, "length-kilometer", length, locale=locale)
                per = format_compound_unit(2, "length-kilometer", 1, f"duration-{period}", length, locale=locale) or ""
                if per.startswith(alone.strip()):
                    rate = per.removeprefix(alone.strip()).strip()
                    rates.setdefault(rate.casefold() if len(rate) > _SHORT else rate, period)
        for code in _CURRENCIES:
            symbol = get_currency_symbol(code, locale)
            for form in (code, symbol):
                add(units, form, code)
                before[form] = before.get(form, frozenset()) | {code}
                if symbol[-1:] not in ("", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ."):
                    before[symbol[-1]] = before.get(symbol[-1], frozenset()) | {code}
            for count in counts:
                name = get_currency_name(code, count, locale)
                words = name.split()
                lower = [word for word in words if word[0].islower()]
                noun = words[0] if words[0] in lower else [*words, *lower][-1]
                add(units, name, code)
                add(units, noun.split("-")[-1], code)
        for power in _SCALES:
            for format_type in lengths:
                for count in (1, 2, 5):
                    written = format_compact_decimal(count * 10**power, format_type=format_type, locale=locale)
                    number = _NUMBER.match(written)
                    scale = written[number.end() :].strip() if number else ""
                    if number and scale:
                        shown = int(re.sub(r"\D", "", number[0]))
                        exponent = power - len(str(shown)) + len(str(count))
                        scales.setdefault(scale.casefold() if len(scale) > _SHORT else scale, exponent)
        for context in ("format", "stand-alone"):
            for width in widths:
                for number_of_month, name in get_month_names(width, context, locale).items():
                    if not name[0].isdigit():
                        months.setdefault(name.casefold().rstrip("."), number_of_month)
        for width in widths:
            names = get_period_names(width, "format", locale)
            for half in {"am", "pm"} & names.keys():
                add(units, names[half].lower(), half)
                add(units, names[half].upper(), half)
                add(units, ".".join([*names[half].lower(), ""]), half)
    date = get_date_format("long", own).pattern
    numeric = ""
    if "MMM" not in date and own.language != "en":
        numeric = re.escape(date).replace("y", r"(?P<year>\d{4})")
        numeric = re.sub(r"(?<!\w)M+|(?<=[^\x00-\x7f])M+", r"(?P<month>\\d\\d?)", numeric)
        numeric = re.sub(r"(?<=[^\x00-\x7f])d+", r"(?P<day>\\d\\d?)", numeric)
    numeric_dates = [_ISO_DATE]
    if "<day>" in numeric and "<month>" in numeric:
        numeric_dates.append(re.compile(numeric))
    names_of_months = "|".join(map(re.escape, sorted(months, key=len, reverse=True)))
    year = r"(?:,?\s+(?:[^\W\d]{2}\s+)?(?P<year>\d{4})(?!\d))?"
    day_first = r"(?<!\d)(?P<day>\d\d?)(?:\.|[^\W\d]{2}\b)?\s+(?:[^\W\d]{2}\s+)?"
    named_dates = (
        rf"{day_first}(?P<month>{names_of_months})\b{year}",
        rf"\b(?P<month>{names_of_months})\s+(?P<day>\d\d?)(?!\d)(?:[^\W\d]{{2}}\b)?{year}",
    )
    first_words = Counter(form.split()[0] for form in rates if " " in form)
    return _Forms(
        units,
        before,
        rates,
        scales,
        long_scales={form.rstrip("."): power for form, power in scales.items() if len(form) > _SHORT},
        months=months,
        numeric_dates=numeric_dates,
        named_dates=[re.compile(pattern, re.IGNORECASE) for pattern in named_dates],
        decimal=get_decimal_symbol(own),
        group=get_group_symbol(own),
        per=first_words.most_common(1)[0][0] if first_words else "",
    )


def scale_word(power: int, language: str | None = None) -> str:
    """The word of a language for a power of ten: "million" for 6; empty for 0 or if the language has none."""
    from babel.numbers import format_compact_decimal

    locale = _locale(language)
    written = format_compact_decimal(2 * 10**power, format_type="long", locale=locale) if power else ""
    number = _NUMBER.match(written)
    return written[number.end() :].strip() if number and int(re.sub(r"\D", "", number[0])) == 2 else ""


def with_separators(number: Decimal, language: str | None = None) -> str:
    """A number as a language writes it."""
    from babel.numbers import format_decimal

    return format_decimal(number, locale=_locale(language), decimal_quantization=False)


def _locale(language: str | None) -> Locale:
    """The locale of a language; English if it is unknown to the CLDR."""
    from babel import Locale, UnknownLocaleError

    try:
        return Locale.parse(language or "en")
    except (UnknownLocaleError, ValueError):
        return Locale.parse("en")


def per_word(language: str | None = None) -> str:
    """The word of a language in "per hour"; empty if it has none."""
    return _forms(language).per
