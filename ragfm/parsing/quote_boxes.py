"""Where on a page a quote of a document's text stands.

Only letters and digits are compared, so line breaks, hyphens, ligatures, table borders and bullets do not matter. A
quote that is found in no order of the page's words, or whose place is ambiguous, has no box.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import takewhile

from ragfm.parsing.own.pdf.pdf_lines import box_around, rows_of
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
    before, quote, after = letters_of(text[:start]), letters_of(text[start:end]), letters_of(text[end:])
    if not quote:
        return []
    whole, own = before + quote + after, len(before)

    def context(letters: str, at: int) -> tuple[str, str]:
        """What stands before and after the quote, each from the quote on."""
        until = at + len(quote)
        return letters[max(0, at - _CONTEXT) : at][::-1], letters[until : until + _CONTEXT]

    # The same words elsewhere in the text have another place on the page.
    others = [context(whole, at) for at in _occurrences(whole, quote) if at != own]
    starts_token, ends_token = not text[start - 1 : start].isalnum(), not text[end : end + 1].isalnum()
    rows = [word for row in rows_of(words) for word in sorted(row, key=lambda word: word.x0)]
    for order in (words, rows):
        letters, owners, token_starts = _stream(order)
        places = sorted(
            (_agreement(context(letters, at), context(whole, own)), at)
            for at in _occurrences(letters, quote)
            if (at in token_starts or not starts_token) and (at + len(quote) in token_starts or not ends_token)
        )
        if not places:
            continue
        best, at = places[-1]
        rivals = [lower for lower, _ in places[:-1]] + [_agreement(context(letters, at), other) for other in others]
        if best < max(rivals, default=-_MIN_LEAD) + _MIN_LEAD:
            continue
        boxes: list[Box] = []
        for word in (order[i] for i in dict.fromkeys(owners[at : at + len(quote)])):
            box = Box(word.x0, word.top, word.x1, word.bottom)
            if boxes:  # joined with the last one on the same line
                overlap = min(box.bottom, boxes[-1].bottom) - max(box.top, boxes[-1].top)
                if overlap > _SAME_LINE * min(box.bottom - box.top, boxes[-1].bottom - boxes[-1].top):
                    boxes[-1] = box_around([boxes[-1], box])
                    continue
            boxes.append(box)
        return boxes
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


def _agreement(first: tuple[str, str], second: tuple[str, str]) -> int:
    """The number of characters that two contexts have in common, from the quote on."""
    pairs = zip(first, second, strict=True)
    return sum(1 for pair in pairs for _ in takewhile(lambda two: two[0] == two[1], zip(*pair, strict=False)))


def _occurrences(letters: str, quote: str) -> Iterator[int]:
    at = letters.find(quote)
    while at >= 0:
        yield at
        at = letters.find(quote, at + 1)
