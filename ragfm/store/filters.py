"""Filters over metadata: `year >= 2024 and (team = hr or not status in (draft, "in review"))`.

    filter     = any
    any        = all ("or" all)*
    all        = term ("and" term)*
    term       = "not" term | "(" any ")" | key operator value | key "in" "(" value ("," value)* ")"
    operator   = "=" | "!=" | "<" | "<=" | ">" | ">="
    value      = a word, or anything in "double" or 'single' quotes, the sign itself twice

Keys are those of the metadata, and `uri`, `source` and `media_type`. Numbers of up to fifteen digits compare as
numbers, all else as text by its first 200 characters, so ISO dates compare as dates. A document without the key meets
no comparison, not even `!=`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import sqlalchemy as sa

from ragfm.core.errors import FilterError
from ragfm.store.tables import COMPARED, as_number, documents, groups, sources, tags

Condition: TypeAlias = sa.ColumnElement[bool]

_TOKEN = re.compile(
    r"""\s*(?:(?P<sign>!=|<=|>=|[=<>(),])|"(?P<double>(?:[^"]|"")*)"|'(?P<single>(?:[^']|'')*)'|(?P<word>[^\s=!<>(),"']+))"""
)
OWN_KEYS = ("uri", "source", "media_type")
"""Keys that mean the document itself, so that no metadata of these names is found by a filter."""
_LONGEST = 10_000
_DEEPEST = 50  # parentheses and `not` within each other; SQLite takes a depth of 1,000 in all
_MOST = 500  # comparisons
_COMPARE: dict[str, Callable[[Any, Any], Condition]] = {
    "=": lambda column, value: column == value,
    "!=": lambda column, value: column != value,
    "<": lambda column, value: column < value,
    "<=": lambda column, value: column <= value,
    ">": lambda column, value: column > value,
    ">=": lambda column, value: column >= value,
}


def parse_filter(text: str) -> Condition:
    """A filter as a condition on `documents`; values are bound parameters, never SQL text. Raises FilterError."""
    if not text.isprintable() or len(text) > _LONGEST:
        raise FilterError(f"The filter has signs that can't be printed, or more than {_LONGEST} characters.")
    parser = _Parser(text)
    condition = parser.any()
    if parser.token[0] != "end":
        raise parser.error("`and`, `or` or the end")
    return condition


def quoted(value: str) -> str:
    """A value as it stands in a filter, whatever signs it has."""
    doubled = value.replace('"', '""')
    return f'"{doubled}"'


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._end = 0
        self._depth = self._comparisons = 0
        self.token = ("end", "")
        self._advance()

    def any(self) -> Condition:
        conditions = [self._all()]
        while self._take("word", "or"):
            conditions.append(self._all())
        return sa.or_(*conditions)

    def error(self, expected: str) -> FilterError:
        kind, value = self.token
        found = "the end" if kind == "end" else repr(value)
        where = f"character {self._start + 1}"
        return FilterError(
            f"The filter {self._text!r} can't be read at {where}: expected {expected}, not {found}.",
            "Example: 'year >= 2024 and team in (hr, legal)'.",
        )

    def _all(self) -> Condition:
        conditions = [self._term()]
        while self._take("word", "and"):
            conditions.append(self._term())
        return sa.and_(*conditions)

    def _term(self) -> Condition:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self.error(f"at most {_DEEPEST} levels")
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
            return sa.or_(*(_comparison(key, "=", value) for value in values))
        kind, operator = self.token
        if kind != "sign" or operator not in _COMPARE:
            raise self.error("one of = != < <= > >= in")
        self._advance()
        return _comparison(key, operator, self._value("a value"))

    def _value(self, expected: str) -> str:
        self._comparisons += 1
        if self._comparisons > 2 * _MOST:
            raise self.error(f"at most {_MOST} comparisons")
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
        sign = {"single": "'", "double": '"'}.get(kind)
        self.token = ("quoted", match[kind].replace(2 * sign, sign)) if sign else (kind, match[kind])


def _comparison(key: str, operator: str, value: str) -> Condition:
    compare = _COMPARE[operator]
    if key in ("uri", "media_type"):
        return compare(documents.c[key], value)
    if key == "source":
        return documents.c.source_id.in_(sa.select(sources.c.id).where(compare(sources.c.name, value)))
    number = as_number(value)
    meets = compare(tags.c.text, value[:COMPARED])
    if number is not None:
        meets = sa.or_(compare(tags.c.number, number), sa.and_(tags.c.number.is_(None), meets))
    return documents.c.id.in_(sa.select(tags.c.document_id).where(tags.c.key == key, meets))


def may_see(names: frozenset[str]) -> Condition:
    """Documents that are open to all, or allowed to one of the groups."""
    mine = sa.select(groups.c.document_id).where(groups.c.name.in_(sorted(names)))
    return sa.or_(documents.c.restricted.is_(False), documents.c.id.in_(mine))
