"""Page numbers and running titles in the margins of pages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from ragfm.parsing.own.pdf.pdf_lines import line_of, rows_of
from ragfm.parsing.own.pdf.pdf_page import PageContent
from ragfm.parsing.own.pdf.pdf_types import Word

_MARGIN = 0.12  # share of the page height, at the top and the bottom
_MIN_GAP = 0.7  # times the row height: white space between a running title and the text
_MAX_TITLE_ROWS = 3
_MIN_PAGES = 3  # pages on which a line must repeat
_PAGE_NUMBER = re.compile(r"(\D{0,8}?)(\d{1,4})(\D{0,3})")


def drop_running_titles(pages: Sequence[PageContent], known: set[str], first: int) -> None:
    """Remove page numbers and lines that repeat in the margins; the first occurrence of a line with letters stays.

    `known` are the running titles of the pages before; those of these pages are added. The first page has the index
    `first`.
    """
    rows_by_title: dict[str, list[tuple[int, list[Word]]]] = {}
    for number, page in enumerate(pages):
        for row in [*_margin_rows(page.words, page.height), *_margin_rows(page.words, page.height, bottom=True)]:
            title = re.sub(r"\d+", "#", line_of(row).plain)
            rows_by_title.setdefault(title, []).append((number, row))
        # On a page that ends early, the page number may stand directly below the text: it counts the pages.
        if page.words:
            lowest = max(page.words, key=lambda word: word.bottom)
            row = [word for word in page.words if word is lowest or word.bottom > lowest.center_y]
            if found := _PAGE_NUMBER.fullmatch(line_of(row).plain):
                title = f"{found[1]}#{found[3]} = page {int(found[2]) - number - first:+}"
                rows_by_title.setdefault(title, []).append((number, row))
    dropped: dict[int, set[int]] = {}  # page: ids of words
    for title, rows in rows_by_title.items():
        if title in known or len({number for number, _ in rows}) >= max(_MIN_PAGES, 0.3 * len(pages)):
            keeps_first = title not in known and any(map(str.isalpha, title.partition(" = ")[0]))
            for number, row in rows[keeps_first:]:
                dropped.setdefault(number, set()).update(map(id, row))
            known.add(title)
    for number, words in dropped.items():
        pages[number].words = [word for word in pages[number].words if id(word) not in words]


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
            return rows[:count] if _in_margin(outer[0], height) and count <= _MAX_TITLE_ROWS else []
    return rows if len(rows) == 1 and _in_margin(rows[0][0], height) else []


def _in_margin(word: Word, height: float) -> bool:
    return word.bottom < _MARGIN * height or word.top > (1 - _MARGIN) * height
