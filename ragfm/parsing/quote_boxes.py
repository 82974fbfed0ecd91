"""Where on a page a quote of a document's text stands.

Only letters and digits are compared, so line breaks, hyphens, ligatures, table borders and bullets do not matter. A
quote that is found in no order of the page's words, or whose place is ambiguous, has no box.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import takewhile

from ragfm.parsing.own.pdf.pdf_lines import rows_of
from ragfm.parsing.own.pdf.pdf_types import Box, Word

_LINK_TARGET = re.compile(r"\]\([^()\s]*(?:\([^()\s]*\)[^()\s]*)*\)")  # in Markdown; a page shows only the link's text
_CONTEXT = 200  # characters before and after a quote that tell its place from others with the same words
_MIN_LEAD = 4  # characters by which the context of the right place is longer than that of any other place
_SAME_LINE = 0.5  # share of the lower height


def find_quote(words: Sequence[Word], text: str, start: int, end: int) -> list[Box]:
    """The boxes of `text[start:end]`, one for each line; empty if its place is not certain.

    `text` is the text of the page, as parsed; `words` are all words of the page, in the order of the file.
    """
    text = _LINK_TARGET.sub(lambda target: " " * len(target[0]), text)
    quote = letters_of(text[start:end])
    if not quote:
        return []
    before, after = letters_of(text[:start])[-_CONTEXT:], letters_of(text[end:])[:_CONTEXT]
    starts_token, ends_token = not text[start - 1 : start].isalnum(), not text[end : end + 1].isalnum()
    rows = [word for row in rows_of(words) for word in sorted(row, key=lambda word: word.x0)]
    for order in (words, rows):
        letters, owners, token_starts = _stream(order)
        places: list[tuple[int, int]] = []  # length of the context that agrees, and position
        for at in _occurrences(letters, quote):
            until = at + len(quote)
            if (starts_token and at not in token_starts) or (ends_token and until not in token_starts):
                continue
            context = _common_start(before[::-1], letters[max(0, at - _CONTEXT) : at][::-1])
            context += _common_start(after, letters[until : until + _CONTEXT])
            places.append((context, at))
        places.sort(reverse=True)
        if len(places) == 1 or (places and places[0][0] >= places[1][0] + _MIN_LEAD):
            at = places[0][1]
            return _line_boxes([order[i] for i in dict.fromkeys(owners[at : at + len(quote)])])
    return []


def letters_of(text: str) -> str:
    """Letters and digits in one form: case, ligatures and widths are folded."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def _stream(words: Sequence[Word]) -> tuple[str, list[int], set[int]]:
    """The letters of words, the index of each letter's word, and the positions at which a token starts or all end."""
    letters: list[str] = []
    owners: list[int] = []
    token_starts: set[int] = set()
    for index, word in enumerate(words):
        inside = False
        for character in unicodedata.normalize("NFKC", word.text).casefold():
            if not character.isalnum():
                inside = False
                continue
            if not inside:
                token_starts.add(len(letters))
            inside = True
            letters.append(character)
            owners.append(index)
    token_starts.add(len(letters))
    return "".join(letters), owners, token_starts


def _common_start(first: str, second: str) -> int:
    """The number of characters with which both begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _occurrences(letters: str, quote: str) -> Iterator[int]:
    at = letters.find(quote)
    while at >= 0:
        yield at
        at = letters.find(quote, at + 1)


def _line_boxes(words: Sequence[Word]) -> list[Box]:
    """The boxes of words in reading order, joined where they follow each other on a line."""
    boxes: list[Box] = []
    for word in words:
        box = Box(word.x0, word.top, word.x1, word.bottom)
        if boxes:
            last = boxes[-1]
            overlap = min(box.bottom, last.bottom) - max(box.top, last.top)
            if overlap > _SAME_LINE * min(box.bottom - box.top, last.bottom - last.top):
                low, high = min(last.top, box.top), max(last.bottom, box.bottom)
                boxes[-1] = Box(min(last.x0, box.x0), low, max(last.x1, box.x1), high)
                continue
        boxes.append(box)
    return boxes
