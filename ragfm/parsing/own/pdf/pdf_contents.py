"""Tables of contents: rows of a title and a page number."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

from ragfm.parsing.own.pdf.pdf_lines import line_of, rows_of
from ragfm.parsing.own.pdf.pdf_page import PageContent
from ragfm.parsing.own.pdf.pdf_types import Word

_PAGE = re.compile(r"(?P<leader>[.·…_\s]+)(?P<page>\d{1,4}|[ivxlc]{1,7})$")
_PAGE_ENDS = frozenset("0123456789ivxlc")
_LEADERS = ".·…_"
_MIN_LEADER = 3  # characters
_MIN_GAP = 2.0  # times the font size, before a page number without a leader
_MIN_ENTRIES = 3  # on the first page
_MAX_BETWEEN = 2  # rows between two entries: the first lines of a long title, or the title of a part
_MAX_DESCENDING = 0.1  # share of entries with a lower number than the one before
_MIN_FOUND_SHARE = 0.4  # of entries whose title is on the page with that number; measured: below 0.34, or above 0.47
_MAX_HEADING_WORDS = 3
_COLUMN_REACH = 40.0  # points: a title above the column of numbers may begin that much further left
_LABEL = re.compile(r"^(?:[^\W\d]{1,12}\.?\s+)?[\dA-Z]{1,3}(?:\.\d{1,3})*[.):]?\s+(?=\w)")


class _Entry(NamedTuple):
    row: int
    titles: frozenset[str]
    page: int
    """0 for a Roman numeral."""
    has_leader: bool


def drop_contents(pages: Sequence[PageContent]) -> None:
    """Remove tables of contents, and the heading of each.

    Recognised by rows that end with page numbers, and by titles that stand on the pages with these numbers. Nothing is
    lost, since the titles stay where they are headings.
    """
    rows_by_page = [rows_of(page.words) for page in pages]
    entries_by_page = [_entries(rows) for rows in rows_by_page]
    if not any(len(entries) >= _MIN_ENTRIES for entries in entries_by_page):
        return

    places: defaultdict[str, set[int]] = defaultdict(set)  # pages by title
    for index, (rows, entries) in enumerate(zip(rows_by_page, entries_by_page, strict=True)):
        listed = {entry.row for entry in entries}
        for at, row in enumerate(rows):
            if at not in listed:
                for title in _titles(line_of(row).plain):
                    places[title].add(index)

    last, distance = 0, None  # the last entry's number, and its distance, if the page before ends with contents
    for page, rows, entries in zip(pages, rows_by_page, entries_by_page, strict=True):
        goes_on = distance is not None and bool(entries) and entries[0].page >= last
        distance = _distance(entries, places, len(pages), distance if goes_on else None)
        if distance is not None:
            start = entries[0].row
            if goes_on and start <= _MAX_BETWEEN:
                start = 0
            else:
                numbers = min(max(word.x0 for word in rows[entry.row]) for entry in entries) - _COLUMN_REACH
                if start and all(word.x0 > numbers for word in rows[start - 1]):  # "Page", above the numbers
                    start -= 1
                if start and len(rows[start - 1]) <= _MAX_HEADING_WORDS:  # a short heading directly above
                    titles = {title for entry in entries for title in entry.titles}
                    start -= titles.isdisjoint(_titles(line_of(rows[start - 1]).plain))
            dropped = {id(word) for row in rows[start : entries[-1].row + 1] for word in row}
            page.words = [word for word in page.words if id(word) not in dropped]
            last = entries[-1].page


def _entries(rows: Sequence[Sequence[Word]]) -> Sequence[_Entry]:
    """The rows that end with a page number, after dots or a wide gap; most of them that follow each other closely."""
    found: list[_Entry] = []
    for at, row in enumerate(rows):
        if _PAGE_ENDS.isdisjoint(word.text[-1] for word in row):
            continue
        line = line_of(row)
        match = _PAGE.search(line.plain)
        if match is None or not match.start():
            continue
        has_leader = sum(map(_LEADERS.__contains__, match["leader"])) >= _MIN_LEADER
        if not has_leader:
            if len(row) == 1:
                continue
            before, last = line.words[-2:]
            gap = max(last.x0 - before.x1, before.x0 - last.x1)  # the second one from right to left
            if gap <= _MIN_GAP * last.size:
                continue
        number = int(match["page"]) if match["page"].isdecimal() else 0
        found.append(_Entry(at, frozenset(_titles(line.plain[: match.start()])), number, has_leader))
    starts = [at for at in range(len(found)) if not at or found[at].row - found[at - 1].row > _MAX_BETWEEN + 1]
    return max((found[start:end] for start, end in pairwise([*starts, len(found)])), key=len, default=[])


def _distance(entries: Sequence[_Entry], places: Mapping[str, set[int]], count: int, known: int | None) -> int | None:
    """The distance from page numbers to the indexes of the pages with these titles; None if this is no contents.

    Of the entries that refer to the `count` pages at hand, enough have the same distance. It is the `known` one if the
    contents began on an earlier page.
    """
    descending = sum(after.page < before.page for before, after in pairwise(entries))
    if not entries or descending > _MAX_DESCENDING * len(entries):
        return None
    referring = [entry for entry in entries if 0 < entry.page <= count]
    distances: Counter[int] = Counter()
    for entry in referring:
        found = {index for title in entry.titles for index in places.get(title, ())}
        distances.update({index - entry.page for index in found})
    if known is not None and distances[known] >= _MIN_FOUND_SHARE * len(referring):
        return known if referring or all(entry.has_leader for entry in entries) else None
    distance, most = max(distances.items(), key=itemgetter(1), default=(0, 0))
    return distance if most >= max(_MIN_ENTRIES, _MIN_FOUND_SHARE * len(referring)) else None


def _titles(text: str) -> set[str]:
    """A title with and without its number, as letters and digits only; empty without letters."""
    forms = ("".join(filter(str.isalnum, form)).casefold() for form in (text, _LABEL.sub("", text)))
    return {form for form in forms if any(map(str.isalpha, form))}
