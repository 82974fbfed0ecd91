"""Words of a PDF's page to lines, and lines to paragraphs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from statistics import median

from ragfm.parsing.own.pdf.pdf_page import HYPHEN, Word

_WIDE = 0.9  # of the size: a wider gap parts two cells or columns
_BULLET = re.compile(r"[•◦▪▫●○■□‣⁃∙·◆◇►▶➢➤✓✔*\u2013\u2014\uf0b7\uf0a7\uf0d8\x84-](?:\s+|$)")
_NUMBER = re.compile(r"(?:\(?(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{2,5})[.)])\s")
_CJK = re.compile("[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]")
_RTL = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]")


@dataclass(slots=True)
class Line:
    """Words beside each other, in the order of reading."""

    words: list[Word]
    x0: float
    top: float
    x1: float
    bottom: float

    @property
    def size(self) -> float:
        """The size of most of its characters."""
        sizes: Counter[float] = Counter()
        for word in self.words:
            sizes[round(word.size, 1)] += len(word.text)
        return sizes.most_common(1)[0][0]

    @property
    def face(self) -> str:
        """The face that all words have; empty where they differ."""
        faces = {word.face for word in self.words}
        return faces.pop() if len(faces) == 1 else ""

    @property
    def plain(self) -> str:
        """The words alone."""
        return " ".join(word.text for word in self.words)

    @property
    def text(self) -> str:
        """The words, with links as Markdown has them."""
        parts = []
        for link, words in groupby(self.words, key=lambda word: word.link):
            text = " ".join(word.text for word in words)
            shown = text.rstrip("/.,;:)")
            parts.append(text if not link or shown in link else f"[{text}]({link})")
        return " ".join(parts)


@dataclass(slots=True)
class Block:
    """A paragraph, a list's item or a table; `rows` are a table's."""

    text: str
    top: float
    size: float = 0
    bold: bool = False
    lines: int = 1
    item: bool = False
    rows: list[list[str]] = field(default_factory=list)


def line_of(words: Sequence[Word]) -> Line:
    """One line of words that stand beside each other; right to left where most letters are of such a script."""
    backwards = len(_RTL.findall("".join(word.text for word in words))) * 2 > sum(len(word.text) for word in words)
    ordered = sorted(words, key=lambda word: word.x0, reverse=backwards)
    return Line(
        ordered,
        min(word.x0 for word in words),
        min(word.top for word in words),
        max(word.x1 for word in words),
        max(word.bottom for word in words),
    )


def rows_of(words: Iterable[Word]) -> list[list[Word]]:
    """Words by the line on which they stand, from top to bottom."""
    rows: list[list[Word]] = []
    middle = height = 0.0
    for word in sorted(words, key=lambda word: word.top + word.bottom):
        tall = word.bottom - word.top
        # A raised number is less high than its line, an initial much higher: neither tells where the line is.
        reach = 0.5 * min(max(tall, height), 1.6 * min(tall, height))
        if rows and word.middle - middle < reach:
            rows[-1].append(word)
            if tall > height and tall < 1.6 * height:
                middle, height = word.middle, tall
        else:
            rows.append([word])
            middle, height = word.middle, tall
    return rows


def segments(row: Sequence[Word]) -> list[Line]:
    """The parts of a row between wide gaps, from left to right."""
    ordered = sorted(row, key=lambda word: word.x0)
    parts = [[ordered[0]]]
    right = ordered[0].x1
    for word in ordered[1:]:
        if word.x0 - right > _WIDE * max(word.size, parts[-1][-1].size):
            parts.append([])
        parts[-1].append(word)
        right = max(right, word.x1)
    return [line_of(part) for part in parts]


def paragraphs(lines: Sequence[Line]) -> list[Block]:
    """Lines one below the other as paragraphs and items of lists."""
    if not lines:
        return []
    right = max(line.x1 for line in lines)
    gaps = [max(below.top - above.bottom, 0) for above, below in pairwise(lines)]
    usual = min(median(gaps), 1.2 * lines[0].size) if gaps else 0
    groups: list[list[Line]] = []
    for line in lines:
        if groups and _goes_on(groups[-1], line, usual, right):
            groups[-1].append(line)
        else:
            groups.append([line])
    return [_block(group, right) for group in groups]


def _goes_on(group: Sequence[Line], line: Line, usual: float, right: float) -> bool:
    """Whether a line belongs to the paragraph above it."""
    last, size = group[-1], line.size
    if abs(last.size - size) > 0.08 * size or starts_item(line.plain):
        return False
    if last.face != line.face and (_has_room(last, line, right) or last.face == "bold"):
        return False
    if line.top - last.bottom > usual + 0.35 * size:
        return False
    if abs(last.x0 + last.x1 - line.x0 - line.x1) < 4:  # centred
        return True
    if line.x0 > last.x0 + size:
        return len(group) == 1 and starts_item(group[0].plain)
    return line.x0 > last.x0 - size or len(group) == 1


def starts_item(text: str) -> bool:
    """Whether a line starts with the mark of a list's item."""
    return bool(_BULLET.match(text) or _NUMBER.match(text))


def _block(group: Sequence[Line], right: float) -> Block:
    text = ""
    for line, below in pairwise([*group, None]):
        assert line is not None
        text += line.text
        if below is not None:
            text = joined(text, line, below, right)
    text = text.replace(HYPHEN, "-")
    bullet = _BULLET.match(text)
    if bullet:
        text = f"- {text[bullet.end() :]}"
    first = group[0]
    item = bool(bullet or _NUMBER.match(text))
    return Block(text, first.top, first.size, all(line.face == "bold" for line in group), len(group), item)


def joined(text: str, line: Line, below: Line, right: float) -> str:
    """The text with what parts it from the next line: nothing, a space, or the break that its writer made."""
    following = below.words[0]
    if text.endswith(HYPHEN):
        return text[:-1] if following.text[:1].islower() else f"{text[:-1]}-"
    if _has_room(line, below, right):
        return f"{text}\n"
    if _CJK.match(text[-1:]) and _CJK.match(following.text[:1]):
        return text
    return f"{text} "


def _has_room(line: Line, below: Line, right: float) -> bool:
    """Whether the next line's first word would have stood on this line: then its writer broke it."""
    word = below.words[0]
    return line.x1 + (word.x1 - word.x0) + 0.3 * line.size < right - 2 and not _RTL.search(line.plain)
