r"""Filters over metadata: `year >= 2024 and (team = hr or not status in (draft, "in review"))`.

    filter     = any
    any        = all ("or" all)*
    all        = term ("and" term)*
    term       = "not" term | "(" any ")" | key operator value | key ["not"] "in" "(" value ("," value)* ")"
    operator   = "=" | "!=" | "<" | "<=" | ">" | ">=" | ["not"] "like"
    value      = a word, or any text in "double" or 'single' quotes; a quote inside is doubled

Keys are metadata keys, and `uri`, `source` and `media_type`. Decimal numbers, and integers of up to fifteen
digits, compare as numbers. Other values compare as text, by their first 200 characters, so ISO dates compare as dates.
The pattern of `like` must match the whole text: `%` stands for any characters, `_` for one, and `\` before one of these
three for itself; the case of ASCII letters does not matter, nor does that of `true` and `false`. A document without the
key meets no comparison, not even `!=`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import sqlalchemy as sa

from ragfm.core.errors import FilterError
from ragfm.store.tables import MAX_COMPARED_CHARACTERS, as_number, documents, groups, sources, tags

if TYPE_CHECKING:
    from ragfm.store.catalog import Catalog

Condition: TypeAlias = sa.ColumnElement[bool]

RESERVED_KEYS = ("uri", "source", "media_type")
"""Keys that mean the document itself: metadata with these names cannot be filtered."""
_TOKEN = re.compile(
    r"""\s*(?:(?P<sign>!=|<=|>=|[=<>(),])|"(?P<double>(?:[^"]|"")*)"|'(?P<single>(?:[^']|'')*)'|(?P<word>[^\s=!<>(),"']+))"""
)
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")  # spaces and joiners of all scripts are allowed
_MAX_CHARACTERS = 10_000
_MAX_DEPTH = 50  # of nested parentheses and `not`; SQLite allows a depth of 1,000 for the whole statement
_MAX_COMPARISONS = 500
_MAX_LISTED_KEYS = 20  # in the error for an unknown key
_ESCAPE = "\\"  # in patterns of `like`
_OPERATORS: dict[str, Callable[[Any, Any], Condition]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    # `ilike` is SQLite's LIKE, and the form of PostgreSQL's that ignores case.
    "like": lambda column, pattern: column.ilike(pattern, escape=_ESCAPE),
    "not like": lambda column, pattern: column.not_ilike(pattern, escape=_ESCAPE),
}


class Filter(NamedTuple):
    """A condition on `documents`, and the metadata keys that it compares."""

    condition: Condition
    keys: frozenset[str]


def parse_filter(text: str) -> Filter:
    """Parse a filter. Values become bound parameters, never SQL. Raises FilterError."""
    if _UNPRINTABLE.search(text) or len(text) > _MAX_CHARACTERS:
        raise FilterError(
            f"The filter has characters that cannot be printed, or more than {_MAX_CHARACTERS} characters."
        )
    parser = _Parser(text)
    condition = parser.any()
    if parser.token[0] != "end":
        raise parser.error("`and`, `or` or the end")
    return Filter(condition, frozenset(parser.keys.difference(RESERVED_KEYS)))


def check_keys(keys: Iterable[str], catalog: Catalog, *visible: Condition) -> None:
    """Raise FilterError for a key that no live document has, if there are documents; it names the keys that exist.

    Only documents that meet the conditions `visible` count: the error must not reveal the others.
    """
    live = sa.and_(documents.c.died.is_(None), *visible)
    used = sa.select(tags.c.key).join(documents, documents.c.id == tags.c.document_id).where(live)
    with catalog.read() as connection:
        for key in sorted(keys):
            is_used = connection.execute(used.where(tags.c.key == key).limit(1)).first()
            if is_used or not connection.execute(sa.select(documents.c.id).where(live).limit(1)).first():
                continue
            known = list(dict.fromkeys([*sorted(connection.execute(used.distinct()).scalars()), *RESERVED_KEYS]))
            close = get_close_matches(key.lower(), {name.lower() for name in known}, n=5)
            ordered = [name for match in close for name in known if name.lower() == match]
            ordered += [name for name in known if name not in ordered]
            more = f" and {len(ordered) - _MAX_LISTED_KEYS} more" if len(ordered) > _MAX_LISTED_KEYS else ""
            raise FilterError(
                f"The filter compares {key!r}, but no document has that key.",
                f"Keys: {', '.join(ordered[:_MAX_LISTED_KEYS])}{more}.",
            )


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
        self.keys: set[str] = set()
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
        self.keys.add(key)
        negated = self._take("word", "not")
        if self._take("word", "in"):
            self._expect("(")
            values = [self._value("a value")]
            while self._take("sign", ","):
                values.append(self._value("a value"))
            self._expect(")")
            if negated:
                return sa.and_(*(_compare(key, "!=", value) for value in values))
            return sa.or_(*(_compare(key, "=", value) for value in values))
        if self._take("word", "like"):
            if self.token[1].replace(2 * _ESCAPE, "").endswith(_ESCAPE):
                raise self.error(f"a character after the last {_ESCAPE} of the pattern")
            return _compare(key, "not like" if negated else "like", self._value("a pattern"))
        kind, sign = self.token
        if negated or kind != "sign" or sign not in _OPERATORS:
            raise self.error("`in` or `like`" if negated else "one of = != < <= > >= in like")
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
    if sign.endswith("like"):
        number, matches = None, compare(tags.c.text, value)
    else:
        number, matches = as_number(value), compare(tags.c.text, value[:MAX_COMPARED_CHARACTERS])
        if sign in ("=", "!=") and value.lower() in ("true", "false"):  # `True` in Python, `true` in the catalog
            matches = compare(sa.func.lower(tags.c.text), value.lower())
    if number is not None:
        matches = sa.or_(compare(tags.c.number, number), sa.and_(tags.c.number.is_(None), matches))
    return documents.c.id.in_(sa.select(tags.c.document_id).where(tags.c.key == key, matches))
