"""The subject of a question: the names and periods that tell similar documents apart.

A quote that supports a sentence may be about another company or another year. So each name and each period of the
question must be found with the quote: in it, in its headings, its table's header, or the names of its document. What is
closer counts: a quote about 2022 in a report of 2023 is not about 2023, and neither is a number in the column 2022.
Periods are years and quarters, in English or in digits (`FY2018`, `Q2`, `second quarter`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass

from ragfm.citations.text_match import is_unit, matches, terms_of
from ragfm.core.text import is_english, sentence_spans

_YEAR = re.compile(r"(?<![\d.,])(?:FY\s?|['’])?((?:19|20)\d\d)(?![\ds]|[.,]\d)|\bFY\s?['’]?(\d\d)\b")
_ORDINALS = ("first", "second", "third", "fourth")
_QUARTER = re.compile(rf"\bQ([1-4])(?!\d)|(?<!\d)([1-4])Q|\b({'|'.join(_ORDINALS)})[\s-]+quarter", re.IGNORECASE)
_PERIOD_WORD = re.compile(r"(?:FY|[1-4]?Q)\d*", re.IGNORECASE)  # part of a period, and no name
_NAME = re.compile(r"[^\W\d_][\w&.'’-]*")
_MAX_ABBREVIATION = 5  # letters


@dataclass(frozen=True, slots=True)
class Subject:
    """The names of a question by term, and its periods, such as `2018` and `Q2`."""

    names: Mapping[str, str]
    periods: frozenset[str]


def subject_of(question: str, language: str | None = None) -> Subject:
    """The subject of a question about texts in a language (ISO 639-1, None if unknown).

    Names are capitalised words, in English only: other languages capitalise other words, too. A word that opens a
    sentence is not a name, nor is a unit.
    """
    names: dict[str, str] = {}
    for start, end in sentence_spans(question) if is_english(question, language) else ():
        for word in list(_NAME.finditer(question, start, end))[1:]:
            if not _PERIOD_WORD.fullmatch(word[0]) and not is_unit(word[0]):
                names |= dict.fromkeys(terms_of(f". {word[0]}").names, word[0])
    return Subject(names, periods(question))


def periods(text: str) -> frozenset[str]:
    """The years and quarters that a text mentions, as `2018` and `Q2`."""
    years = {match[1] or f"20{match[2]}" for match in _YEAR.finditer(text)}
    quarters = {
        f"Q{match[1] or match[2] or 1 + _ORDINALS.index(match[3].casefold())}" for match in _QUARTER.finditer(text)
    }
    return frozenset(years | quarters)


def missing_subject(
    subject: Subject, quote: str, *, header: str, context: str, passage_terms: Set[str], numbers: Set[str]
) -> tuple[str, ...]:
    """The names and periods of a question that are not found with a quote; the question's spelling is kept.

    `header` is that of the table that the quote is a row of, `context` what stands above the passage, `numbers` those
    of the claim. Prose may refer to a name by a pronoun, so for a sentence, but not for a row, a name that is among the
    `passage_terms` counts.
    """
    missing = []
    if subject.names:
        text = f"{context}\n{header}\n{quote}"
        known = terms_of(text).all | (frozenset() if header else passage_terms)
        missing = [
            name
            for term, name in subject.names.items()
            if not matches(term, known, max_suffix=2) and not _spelled_out(name, text)
        ]
    if not subject.periods:
        return tuple(dict.fromkeys(missing))

    # The periods of the quote and of the column that its number stands in; if they name none, those of the context.
    near = periods(quote)
    cells, titles = (row.strip().strip("|").split("|") for row in (quote, header))
    columns = [at for at, cell in enumerate(cells) if terms_of(cell).numbers & numbers] if header else []
    if columns and len(cells) == len(titles):
        near |= periods(" ".join(titles[at] for at in columns))
    elif header:
        near |= periods(header)
    found: set[str] = set()
    for is_year in (True, False):
        own = {period for period in near if period.isdigit() == is_year}
        found |= own or {period for period in periods(context) if period.isdigit() == is_year}
    # "the 2000 employees" is no period, if the quote has the number.
    absent = subject.periods - found - terms_of(quote).numbers
    return tuple(dict.fromkeys([*missing, *sorted(absent)]))


def _spelled_out(name: str, text: str) -> bool:
    """Whether a text has the words that an abbreviation stands for: `CFO` for "chief financial officer"."""
    if not (name.isupper() and name.isalpha() and 2 <= len(name) <= _MAX_ABBREVIATION):
        return False
    return name.casefold() in "".join(word[0] for word in re.findall(r"\w+", text)).casefold()
