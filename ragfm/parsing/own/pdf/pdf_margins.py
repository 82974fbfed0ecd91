"""Page numbers and running titles in the margins of pages."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import TypeAlias

from ragfm.parsing.own.pdf.pdf_lines import line_of, rows_of
from ragfm.parsing.own.pdf.pdf_page import PageContent
from ragfm.parsing.own.pdf.pdf_types import Box, Word

_MARGIN = 0.12  # share of the page height, at the top and the bottom
_MIN_GAP = 0.7  # times the row height: white space between a running title and the text
_MIN_GAP_BELOW = 3.0  # times the row height: between the text and a page number below it, outside of the margin
_MAX_TITLE_ROWS = 3
_MIN_PAGES = 3  # pages on which a line must repeat
_MIN_SHARE = 0.3  # of the pages on which it must
_MIN_DENSITY = 0.5  # share of pages with a number that counts them, between the first and the last such page
_PAGE_NUMBER = re.compile(r"(\D{0,8}?)(\d{1,4})(\D{0,3})")
_COUNT = re.compile(r"(\d{1,4})|[ivxlc]{1,7}|[IVXLC]{1,7}")
_MIN_COUNT_GAP = 2.0  # times the font size, between a running title and the number next to it
_MAX_COUNT_SIZE = 1.1  # times the usual font size
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}

Rows: TypeAlias = dict[str, list[tuple[int, list[Word]]]]
"""Rows of words with the index of their page, by a key."""


def drop_running_titles(pages: Sequence[PageContent], known: set[str], first: int) -> None:
    """Remove page numbers and running titles from the margins.

    A running title repeats, or changes with the section and has the number of the page next to it. The first occurrence
    of one that repeats and has letters stays.

    `known` are the running titles of the pages before; those of these pages are added. The first page has the index
    `first`.
    """
    by_title, by_number = _rows_in_margins(pages, first)
    dropped: dict[int, set[int]] = {}  # page: ids of words
    kept: set[int] = set()  # ids of words
    for title, rows in by_title.items():
        if title in known or len({index for index, _ in rows}) >= max(_MIN_PAGES, _MIN_SHARE * len(pages)):
            keeps_first = title not in known and any(map(str.isalpha, title.partition(" = ")[0]))
            kept.update(id(word) for _, row in rows[:keeps_first] for word in row)
            for index, row in rows[keeps_first:]:
                dropped.setdefault(index, set()).update(map(id, row))
            known.add(title)
    for distance, rows in by_number.items():
        indexes = {index for index, _ in rows}
        counts = len(indexes) >= max(_MIN_PAGES, _MIN_DENSITY * (max(indexes) - min(indexes) + 1))
        if counts or distance in known:
            for index, row in rows:
                dropped.setdefault(index, set()).update(id(word) for word in row if id(word) not in kept)
            known.add(distance)
    for index, words in dropped.items():
        pages[index].words = [word for word in pages[index].words if id(word) not in words]


def _rows_in_margins(pages: Sequence[PageContent], first: int) -> tuple[Rows, Rows]:
    """Rows that may be running titles, by their text without numbers, and by the distance of a number to the page."""
    by_title: Rows = {}
    by_number: Rows = {}
    sizes = [median(word.size for word in page.words) if page.words else 0.0 for page in pages]
    usual_size = median(filter(None, sizes)) if any(sizes) else 0.0
    for index, (page, size) in enumerate(zip(pages, sizes, strict=True)):
        margins = [*_margin_rows(page.words, page.height), *_margin_rows(page.words, page.height, bottom=True)]
        for row in margins:
            by_title.setdefault(re.sub(r"\d+", "#", line_of(row).plain), []).append((index, row))
        # On a page that ends early, the page number may stand directly below the text: it counts the pages.
        if page.words:
            lowest = max(page.words, key=lambda word: word.bottom)
            row = [word for word in page.words if word is lowest or word.bottom > lowest.center_y]
            if found := _PAGE_NUMBER.fullmatch(line_of(row).plain):
                title = f"{found[1]}#{found[3]} = page {int(found[2]) - index - first:+}"
                by_title.setdefault(title, []).append((index, row))
            top = min(word.top for word in row)
            end = max((word.bottom for word in page.words if word.bottom < lowest.center_y), default=0.0)
            if top - end > _MIN_GAP_BELOW * (lowest.bottom - lowest.top):
                margins.append(row)
        for row in margins:
            if max(word.size for word in row) <= _MAX_COUNT_SIZE * max(size, usual_size):  # no "1  Introduction"
                for style, number in _outer_numbers(row):
                    by_number.setdefault(f"{style} {number - index - first:+}", []).append((index, row))
    return by_title, by_number


def _outer_numbers(row: Sequence[Word]) -> list[tuple[str, int]]:
    """The numbers that stand apart at the ends of a row, each with its style, `decimal` or `roman`."""
    words = sorted(row, key=lambda word: word.x0)
    numbers = []
    for outer, inner in [(words[0], words[1]), (words[-1], words[-2])] if len(words) > 1 else [(words[0], None)]:
        found = _COUNT.fullmatch(outer.text)
        gap = max(inner.x0 - outer.x1, outer.x0 - inner.x1) if inner else math.inf
        if found is None or gap <= _MIN_COUNT_GAP * outer.size:
            continue
        if found[1]:
            numbers.append(("decimal", int(found[1])))
        else:
            values = [_ROMAN[digit] for digit in outer.text.lower()]
            pairs = zip(values, [*values[1:], 0], strict=True)
            numbers.append(("roman", sum(-value if value < after else value for value, after in pairs)))
    return numbers


def _margin_rows(words: Sequence[Word], height: float, *, bottom: bool = False) -> list[list[Word]]:
    """The rows in the top or bottom margin of a page that white space separates from the rest."""
    margin = _MARGIN * height
    rows = rows_of(word for word in words if (word.top > height - 2 * margin if bottom else word.bottom < 2 * margin))
    if bottom:
        rows.reverse()
    for count, (outer, inner) in enumerate(pairwise(rows), 1):
        row_height = max(word.bottom - word.top for word in outer)
        upper, lower = (inner, outer) if bottom else (outer, inner)
        if min(word.top for word in lower) - max(word.bottom for word in upper) > _MIN_GAP * row_height:
            return rows[:count] if in_margin(outer[0], height) and count <= _MAX_TITLE_ROWS else []
    return rows if len(rows) == 1 and in_margin(rows[0][0], height) else []


def in_margin(word: Word | Box, height: float) -> bool:
    """Whether a word or picture is at the top or the bottom of a page, where running titles and logos are."""
    return word.bottom < _MARGIN * height or word.top > (1 - _MARGIN) * height
