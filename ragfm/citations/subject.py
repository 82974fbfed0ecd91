"""The subject of a question: the names and periods that tell similar documents apart.

A quote that supports a sentence may be about another company or another year. So each name and each period of the
question must be found with the quote: in it, in its headings, its table's header, or the names of its document. In a
table, the column of a number must be that of the period, if the header has it. Periods are years and quarters, in
English or in digits (`FY2018`, `Q2`, `second quarter`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ragfm.citations.text_match import is_unit, matches, terms_of
from ragfm.core.text import sentence_spans

if TYPE_CHECKING:
    from ragfm.core.types import Hit

__all__ = ["Subject", "missing_subject", "subject_of"]

_YEAR = re.compile(r"(?<![\d.,])(?:FY\s?|['’])?((?:19|20)\d\d)(?!\d|[.,]\d)|\bFY\s?['’]?(\d\d)\b")
_ORDINALS = ("first", "second", "third", "fourth")
_QUARTER = re.compile(rf"\bQ([1-4])|(?<!\d)([1-4])Q|\b({'|'.join(_ORDINALS)})[\s-]+quarter", re.IGNORECASE)
_PERIOD_WORD = re.compile(r"(?:FY|[1-4]?Q)\d*", re.IGNORECASE)  # part of a period, and no name
_NAME = re.compile(r"[^\W\d_][\w&.'’-]*")


@dataclass(frozen=True, slots=True)
class Subject:
    """The names of a question by term, and its periods, such as `2018` and `Q2`."""

    names: Mapping[str, str]
    periods: frozenset[str]


def subject_of(question: str) -> Subject:
    """The subject of a question. A capitalised word that opens a sentence is not a name, nor is a unit."""
    names: dict[str, str] = {}
    for start, end in sentence_spans(question):
        words = list(_NAME.finditer(question, start, end))
        for word in words[1:]:
            terms = terms_of(f". {word[0]}")
            if not _PERIOD_WORD.fullmatch(word[0]) and not is_unit(word[0]):
                names |= dict.fromkeys(terms.names, word[0])
    return Subject(names, periods(question))


def periods(text: str) -> frozenset[str]:
    """The years and quarters that a text mentions, as `2018` and `Q2`."""
    years = {match[1] or f"20{match[2]}" for match in _YEAR.finditer(text)}
    quarters = {
        f"Q{match[1] or match[2] or 1 + _ORDINALS.index(match[3].casefold())}" for match in _QUARTER.finditer(text)
    }
    return frozenset(years | quarters)


def missing_subject(subject: Subject, quote: str, header: str, passage: Hit, numbers: Set[str]) -> tuple[str, ...]:
    """The names and periods of a question that are not found with a quote, whose table has the header.

    `numbers` are those of the claim. Prose may refer to a name by a pronoun, so for a sentence a name in its passage
    counts; for a table row it does not.
    """
    text = f"{passage.context}\n{header}\n{quote}"
    around = text if header else f"{text}\n{passage.text}"
    known = terms_of(around).all if subject.names else frozenset[str]()
    missing = [name for term, name in subject.names.items() if not matches(term, known, max_suffix=2)]
    found = periods(text)
    cells, headers = (row.strip().strip("|").split("|") for row in (quote, header))
    if header and len(cells) == len(headers):
        # Of the columns that are for a period of the question, the number must stand in one.
        columns = [at for at, title in enumerate(headers) if subject.periods & periods(title)]
        if columns and not any(terms_of(cells[at]).numbers & numbers for at in columns):
            found -= frozenset().union(*(periods(headers[at]) for at in columns))
    return tuple(dict.fromkeys([*missing, *sorted(subject.periods - found)]))
