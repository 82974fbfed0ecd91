"""Filters over metadata: `year >= 2024 and (team = hr or not status in (draft, "in review"))`.

    filter     = any
    any        = all ("or" all)*
    all        = term ("and" term)*
    term       = "not" term | "(" any ")" | key operator value | key "in" "(" value ("," value)* ")"
    operator   = "=" | "!=" | "<" | "<=" | ">" | ">="
    value      = a word, or any text in "double" or 'single' quotes; a quote inside is doubled

Keys are metadata keys, and `uri`, `source` and `media_type`. Numbers of up to fifteen digits compare as numbers. Other
values compare as text, by their first 200 characters, so ISO dates compare as dates. A document without the key meets
no comparison, not even `!=`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import sqlalchemy as sa

from ragfm.core.errors import FilterError
from ragfm.store.tables import MAX_COMPARED_CHARACTERS, as_number, documents, groups, sources, tags

Condition: TypeAlias = sa.ColumnElement[bool]

RESERVED_KEYS = ("uri", "source", "media_type")
"""Keys that mean the document itself: metadata with these names cannot be filtered."""
_TOKEN = re.compile(
    r"""\s*(?:(?P<sign>!=|<=|>=|[=<>(),])|"(?P<double>(?:[^"]|"")*)"|'(?P<single>(?:[^']|'')*)'|(?P<word>[^\s=!<>(),"']+))"""
)
_MAX_CHARACTERS = 10_000
_MAX_DEPTH = 50  # of nested parentheses and `not`; SQLite allows a depth of 1,000 for the whole statement
_MAX_COMPARISONS = 500
_OPERATORS: dict[str, Callable[[Any, Any], Condition]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def parse_filter(text: str) -> Condition:
    """Parse a filter into a condition on `documents`. Values become bound parameters, never SQL. Raises FilterError."""
    if not text.isprintable() or len(text) > _MAX_CHARACTERS:
        raise FilterError(
            f"The filter has characters that cannot be printed, or more than {_MAX_CHARACTERS} characters."
        )
    parser = _Parser(text)
    condition = parser.any()
    if parser.token[0] != "end":
        raise parser.error("`and`, `or` or the end")
    return condition


def quote_value(value: str) -> str:
    """Quote any value for use in a filter."""
    doubled = value.replace('"', '""')
    return f'"{doubled}"'


def visible_to(names: frozenset[str]) -> Condition:
    """The condition that a document is visible to at least one of the groups, or to everybody."""
    ids = sa.select(groups.c.document_id).where(groups.c.name.in_(sorted(names)))
    return sa.or_(documents.c.restricted.is_(False), documents.c.id.in_(ids))


class _Parser:
    """A recursive-descent parser. `token` is the next token, as (kind, value)."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._start = self._end = 0  # of the token
        self._depth = self._values = 0
        self.token = ("end", "")
        self._advance()

    def any(self) -> Condition:
        conditions = [self._all()]
        while self._take("word", "or"):
            conditions.append(self._all())
        return sa.or_(*conditions)

    def error(self, expected: str) -> FilterError:
        kind, value = self.token
        actual = "the end" if kind == "end" else repr(value)
        return FilterError(
            f"The filter {self._text!r} cannot be read at character {self._start + 1}: expected {expected}, "
            f"not {actual}.",
            "Example: 'year >= 2024 and team in (hr, legal)'.",
        )

    def _all(self) -> Condition:
        conditions = [self._term()]
        while self._take("word", "and"):
            conditions.append(self._term())
        return sa.and_(*conditions)

    def _term(self) -> Condition:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self.error(f"at most {_MAX_DEPTH} levels")
        if self._take("word", "not"):
            condition = sa.not_(self._term())
        elif self._take("sign", "("):
            condition = self.any()
            self._expect(")")
        else:
            condition = self._comparison()
        self._depth -= 1
        return condition

    def _comparison(self) -> Condition:
        key = self._value("a key")
        if self._take("word", "in"):
            self._expect("(")
            values = [self._value("a value")]
            while self._take("sign", ","):
                values.append(self._value("a value"))
            self._expect(")")
            return sa.or_(*(_compare(key, "=", value) for value in values))
        kind, sign = self.token
        if kind != "sign" or sign not in _OPERATORS:
            raise self.error("one of = != < <= > >= in")
        self._advance()
        return _compare(key, sign, self._value("a value"))

    def _value(self, expected: str) -> str:
        self._values += 1
        if self._values > 2 * _MAX_COMPARISONS:  # a key and a value each
            raise self.error(f"at most {_MAX_COMPARISONS} comparisons")
        kind, value = self.token
        if kind not in ("word", "quoted"):
            raise self.error(expected)
        self._advance()
        return value

    def _take(self, kind: str, value: str) -> bool:
        if self.token[0] != kind or self.token[1].lower() != value:
            return False
        self._advance()
        return True

    def _expect(self, sign: str) -> None:
        if not self._take("sign", sign):
            raise self.error(f"`{sign}`")

    def _advance(self) -> None:
        self._start = self._end
        if not self._text[self._end :].strip():
            self.token = ("end", "")
            return
        match = _TOKEN.match(self._text, self._end)
        if match is None:
            self.token = ("unreadable", self._text[self._end :].strip()[:10])
            return
        self._end = match.end()
        kind = str(match.lastgroup)
        if kind in ("single", "double"):
            sign = "'" if kind == "single" else '"'
            self.token = ("quoted", match[kind].replace(2 * sign, sign))
        else:
            self.token = (kind, match[kind])


def _compare(key: str, sign: str, value: str) -> Condition:
    compare = _OPERATORS[sign]
    if key in ("uri", "media_type"):
        return compare(documents.c[key], value)
    if key == "source":
        return documents.c.source_id.in_(sa.select(sources.c.id).where(compare(sources.c.name, value)))
    number = as_number(value)
    matches = compare(tags.c.text, value[:MAX_COMPARED_CHARACTERS])
    if number is not None:
        matches = sa.or_(compare(tags.c.number, number), sa.and_(tags.c.number.is_(None), matches))
    return documents.c.id.in_(sa.select(tags.c.document_id).where(tags.c.key == key, matches))
