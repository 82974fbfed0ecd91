"""Cells of a table of numbers: the numbers of a line, with their currency, brackets and percent sign, and its texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from ragfm.parsing.own.pdf.pdf_lines import line_of
from ragfm.parsing.own.pdf.pdf_types import HYPHEN, Word

_CURRENCY = r"(?:[$€£¥₹]|US\$|[AC]\$)"
_OPENING = re.compile(rf"(?:{_CURRENCY}|\(|[-\u2013\u2212])*(?:{_CURRENCY}|\()")
_CLOSING = re.compile(r"\)?(?:%|\)|pts|bps|pp|x)\)?")
# 1,234.5, and as most of Europe writes it: 1.234,5, in Switzerland 1'234.5.
_DIGITS = (
    r"(?:\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}|\d{1,3}(?:['\u2019]\d{3})+(?:[.,]\d+)?"
    r"|\d[\d,]*(?:\.\d+)?|\.\d+)"
)
_NUMBER = re.compile(
    rf"[(<~+]*[-\u2013\u2014\u2212+]?{_CURRENCY}?\(?[-\u2013\u2212]?{_DIGITS}(?:[%x]|bps|pts)?[-\u2212{HYPHEN}]?\)*[%x]?(?:\([a-z\d]{{1,2}}\)|[*†‡⁰¹²³⁴-⁹])*"
)
_PLACEHOLDER = re.compile(rf"{_CURRENCY}?\(?(?:[\u2012-\u2015\u2212-]+|N/?[AM]|n/?[am]|\*{{1,3}})\)?%?\*?")
_FOOTNOTE = re.compile(r"\(?(?:\d|[a-z]{1,3})\)(?:\(?\w\))*|[*†‡]+")
_YEAR = re.compile(r"(?:19|20)\d\d(?:\s?\(\w\)|[*†]|[⁰¹²³⁴-⁹]+)?")
PERIOD = re.compile(r"\b(?:(?:19|20)\d\d|[qQ][1-4])")
"""A part of a header that names a period."""
_WORD_GAP = 0.65  # times the font size: a number closer to text belongs to the text
_GROUP_GAP = 0.45  # times the font size: closer numbers are one, such as `10 000` or `8.0 - 15.0`
_CELL_GAP = 0.9  # times the font size: a wider gap separates two texts
_SIGN_GAP = 9.0  # times the font size: a currency sign may stand this far before its number
_CLOSING_GAP = 2.0  # times the font size: a percent sign or a bracket may stand this far behind its number


class Piece(NamedTuple):
    """Words that are one cell, or a part of one. `edge` is the right edge of the digits."""

    words: list[Word]
    kind: str  # number, placeholder or text
    text: str
    x0: float
    x1: float
    edge: float

    @property
    def center(self) -> float:
        """Horizontal middle."""
        return (self.x0 + self.x1) / 2


@dataclass(slots=True)
class Row:
    """A line of the page."""

    pieces: list[Piece]
    top: float
    bottom: float
    size: float
    values: list[Piece]
    """Numbers, without years that head columns."""


def read_row(words: Sequence[Word]) -> Row:
    """The cells of a line from left to right: a number with its signs, or words without a wide gap between them."""
    groups: list[tuple[str, list[Word]]] = []
    opened: list[Word] = []  # a currency sign or a bracket that waits for its number
    for word in sorted(words, key=lambda word: word.x0):
        kind = kind_of(word.text)
        last_kind, last = groups[-1] if groups else ("", [])
        before = opened or last
        gap = (word.x0 - before[-1].x1) / max(word.size, 1) if before else 99.0
        if opened:
            if kind != "text" and gap < _SIGN_GAP:
                groups.append((kind, [*opened, word]))
                opened = []
                continue
            groups.append(("text", opened))
            last_kind, last = groups[-1]
            opened = []
        if last_kind in ("number", "placeholder") and gap < _CLOSING_GAP and _CLOSING.fullmatch(word.text):
            last.append(word)
        elif _OPENING.fullmatch(word.text) and not (last_kind == "text" and gap < _WORD_GAP):
            opened = [word]
        elif last_kind == "text" and gap < (_CELL_GAP if kind == "text" else _WORD_GAP):
            last.append(word)
        elif last_kind in ("number", "placeholder") and kind == "text" and gap < _WORD_GAP:
            if last_kind == "number" and _FOOTNOTE.fullmatch(word.text):
                last.append(word)
                continue
            groups[-1] = ("text", last)
            last.append(word)
        elif last_kind == "number" and kind != "text" and gap < _GROUP_GAP:
            last.append(word)
        else:
            groups.append((kind, [word]))
    if opened:
        groups.append(("text", opened))
    if len(groups) == 2 and groups[0][0] == "number" and groups[1][0] == "text":  # a footnote, or an item of a list
        groups = [("text", groups[0][1] + groups[1][1])]
    pieces = [piece_of(kind, group) for kind, group in groups]
    return Row(
        pieces,
        min(word.top for word in words),
        max(word.bottom for word in words),
        median(word.size for word in words),
        [] if is_years(pieces) else [piece for piece in pieces if piece.kind == "number"],
    )


def is_years(pieces: Sequence[Piece]) -> bool:
    """Whether the numbers of a line are the years that head columns."""
    numbers = [piece.text for piece in pieces if piece.kind == "number"]
    if not numbers or not all(map(_YEAR.fullmatch, numbers)):
        return False
    if len(numbers) > 1 and all(
        abs(int(a[:4]) - int(b[:4])) == 1 for a, b in pairwise(numbers) if len(a) == len(b) == 4
    ):
        return True
    label = "".join(piece.text for piece in pieces if piece.kind == "text")
    return not label or (len(numbers) > 1 and (label[0] == "(" or bool(PERIOD.search(label))))


def kind_of(text: str) -> str:
    """`number`, `placeholder` (a dash in place of a number) or `text`."""
    if _NUMBER.fullmatch(text):
        return "number"
    if _PLACEHOLDER.fullmatch(text):
        return "placeholder"
    return "text"


def piece_of(kind: str, words: list[Word]) -> Piece:
    """A cell, or a part of one, with its text in one line."""
    x0, x1 = words[0].x0, max(word.x1 for word in words)
    if kind == "text":
        return Piece(words, kind, line_of(words).text, x0, x1, x1)
    text, edge = "", x1
    before = ""
    for word in words:
        follows_sign = not any(map(str.isalnum, before))
        text += word.text if follows_sign or _CLOSING.fullmatch(word.text) else f" {word.text}"
        if any(map(str.isdigit, word.text)) and not (before and _FOOTNOTE.fullmatch(word.text)):
            behind = len(word.text) - len(word.text.rstrip(f")%*†‡x⁰¹²³⁴⁵⁶⁷⁸⁹-\u2212{HYPHEN}"))
            edge = word.x1 - 0.8 * behind * (word.x1 - word.x0) / len(word.text)
        before = word.text
    return Piece(words, kind, text, x0, x1, edge)
