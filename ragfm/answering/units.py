"""Units: what can be evidence in a passage, a sentence, list item or table row, with what stands above it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from ragfm.core.table_rows import TableLine, TableRow, line_at, table_lines
from ragfm.core.text import line_range, sentence_spans
from ragfm.core.types import Citation

if TYPE_CHECKING:
    from ragfm.core.types import Hit

_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
_YEAR = re.compile(r"(?<![\d.,])(?:FY\s?|['’])?((?:19|20)\d\d)(?![\d]|[.,]\d)|\bFY\s?['’]?(\d\d)\b")
_ITEM = re.compile(r"[-*+•]\s|\d{1,3}[.)]\s")  # the beginning of a list item
_QUARTER = re.compile(r"\bQ([1-4])(?!\d)|(?<!\d)([1-4])Q", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Unit:
    """A sentence, list item or table row at `start:end` of a numbered passage.

    `context` is what it is read with: the passage's context, then header and section of a row, or the heading in the
    passage and the sentence before, of a list item the one before the list.
    `line` is its line of a table. `words` are those of the text, `all_words` also those of the context. Headings, and a
    table's header, are no evidence.
    """

    hit: Hit
    start: int
    end: int
    context: str
    line: TableLine | None = None
    is_heading: bool = False
    words: frozenset[str] = frozenset()
    all_words: frozenset[str] = frozenset()

    @property
    def text(self) -> str:
        """Its characters in the passage."""
        return self.hit.text[self.start : self.end]

    @property
    def row(self) -> TableRow | None:
        """The row of a table that it is; None for a header and for prose."""
        return self.line.row if self.line and not self.line.is_header else None


def passage_units(hit: Hit, language: str) -> Iterator[Unit]:
    """The units of a passage, in order."""
    spans, lines = sentence_spans(hit.text, language), table_lines(hit.text, hit.context)
    above = cache(words)  # many rows have the same header
    heading = before = introduction = caption = ""
    in_list = False
    for start, end in spans:
        text, line = hit.text[start:end], line_at(lines, start)
        is_heading = text.startswith("#") or (line is not None and line.is_header)
        if line is None:
            is_item = _ITEM.match(text) is not None
            if not (is_item and in_list):
                introduction = before
            in_list = is_item
            context, caption = "\n".join(filter(None, (hit.context, heading, introduction))), text
        else:
            header = f"| {' | '.join(line.row.header)} |" if line.row.header else ""
            context = "\n".join(filter(None, dict.fromkeys((hit.context, heading, caption, line.row.section, header))))
        own = words(text)
        yield Unit(hit, start, end, context, line, is_heading, own, own | above(context))
        before = "" if is_heading else text
        if is_heading and line is None:
            heading = text


def words(text: str) -> frozenset[str]:
    """The words of a text, see `word_list`."""
    return frozenset(word_list(text))


def word_list(text: str) -> list[str]:
    """The words of a text in order, without their capitals; of scripts without spaces, each pair of neighbours."""
    found = list[str]()
    for match in _WORD.finditer(text.casefold()):
        done = 0
        for run in _UNSPACED.finditer(match[0]):
            found.append(match[0][done : run.start()])
            found += [run[0][at : at + 2] for at in range(max(1, len(run[0]) - 1))]
            done = run.end()
        found.append(match[0][done:])
    return [word for word in found if word]


class Rarity:
    """How much the words of a set of units tell: those of few units more than those of many (IDF)."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self._counts = Counter(word for unit in units for word in unit.all_words)
        self._units = len(units)

    def share(self, wanted: Set[str], found: Set[str]) -> float:
        """The share of the wanted words that were found, in [0, 1], weighted by their rarity."""
        weights = {word: math.log(1 + self._units / (1 + self._counts[word])) for word in wanted}
        total = sum(weights.values())
        return sum(weight for word, weight in weights.items() if word in found) / total if total else 0.0


def periods(text: str) -> frozenset[str]:
    """The years and quarters that a text has in digits, as `2018` and `Q2`."""
    years = {match[1] or f"20{match[2]}" for match in _YEAR.finditer(text)}
    return frozenset(years | {f"Q{match[1] or match[2]}" for match in _QUARTER.finditer(text)})


def period_spans(text: str) -> list[tuple[int, int]]:
    """Where a text has its `periods`."""
    return [match.span() for pattern in (_YEAR, _QUARTER) for match in pattern.finditer(text)]


def passage_citation(hit: Hit, start: int, end: int, row: TableRow | None = None) -> Citation:
    """The citation of the words at `start:end` of a numbered passage, not verified and without a place in an answer."""
    assert hit.n is not None
    lines = None
    if hit.lines:
        first, last = line_range(hit.text, start, end)
        lines = first + hit.lines[0] - 1, last + hit.lines[0] - 1
    return Citation(
        n=hit.n,
        uri=hit.uri,
        page=hit.page,
        start=hit.start + start,
        end=hit.start + end,
        quote=hit.text[start:end],
        verified=False,
        name=hit.name,
        lines=lines,
        image=hit.image,
        box=hit.box,
        row=row,
    )
