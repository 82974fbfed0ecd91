"""Words of a PDF page to lines, and lines to paragraphs; words that are split at the end of a line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from statistics import median

from ragfm.parsing.own.pdf.pdf_types import HYPHEN, Box, Word

_MIN_CELL_GAP = 0.9  # times the font size: a wider gap separates cells or columns
_BULLET = re.compile(r"[•◦▪▫●○■□‣⁃∙·◆◇►▶➢➤✓✔*\u2013\u2014\uf0b7\uf0a7\uf0d8\x84-](?:\s+|$)")
_NUMBER = re.compile(r"(?:\(?(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{2,5})[.)])\s")
_SECTION = re.compile(r"\d{1,3}(?:\.\d{1,3})+\.?\s+[^\W\d]")  # the next line of such a title is below its first word
# An address at the end of a line, and the word with which it goes on: "mia@qa." "debian.org".
_CUT_ADDRESS = re.compile(r"(?:\w://|\bwww\.|\w@)\S*[./_=&?#-]$")
_REST_OF_ADDRESS = re.compile(r"[a-z0-9]\S*[./_=&?#-]\w", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")
_SPLIT_WORD = re.compile(rf"([^\W_]+(?:-[^\W_]+)*){HYPHEN}(?=([^\W_]+(?:-[^\W_]+)*))")
_CJK = re.compile("[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]")
_RTL = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]")
_LTR = re.compile(r"[^\W\d_\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]")


@dataclass(slots=True)
class Line:
    """Words next to each other, in reading order."""

    words: list[Word]
    x0: float
    top: float
    x1: float
    bottom: float

    @property
    def size(self) -> float:
        """The font size of most characters."""
        sizes: Counter[float] = Counter()
        for word in self.words:
            sizes[round(word.size, 1)] += len(word.text)
        return sizes.most_common(1)[0][0]

    @property
    def face(self) -> str:
        """The face of all words; empty where they differ."""
        faces = {word.face for word in self.words}
        return faces.pop() if len(faces) == 1 else ""

    @property
    def plain(self) -> str:
        """The words without links."""
        return " ".join(word.text for word in self.words)

    @property
    def text(self) -> str:
        """The words, with links in Markdown syntax."""
        parts = []
        for link, words in groupby(self.words, key=lambda word: word.link):
            text = " ".join(word.text for word in words)
            shows_link = text.rstrip("/.,;:)") in link
            parts.append(text if not link or shows_link else f"[{text}]({link})")
        return " ".join(parts)


@dataclass(slots=True)
class Block:
    """A paragraph, a list item, or a table if it has `rows`."""

    text: str
    box: Box
    size: float = 0
    bold: bool = False
    lines: int = 1
    is_item: bool = False
    rows: list[list[str]] = field(default_factory=list)
    edges: tuple[float, ...] = ()
    """The right edges of a table's columns of numbers."""


def line_of(words: Sequence[Word]) -> Line:
    """One line of adjacent words, ordered from right to left if most letters are of such a script.

    The runs of words whose script has the other direction are reversed, as in Unicode's algorithm. Numbers in a line
    from right to left belong to such a run only next to words, or if they begin with a plus on the left, as in
    "+49 30 12345". "5 - 10" is displayed as "10 - 5".
    """
    text = "".join(word.text for word in words)
    rtl_letters = len(_RTL.findall(text))
    right_to_left = rtl_letters > len(_LTR.findall(text))
    ordered = sorted(words, key=lambda word: word.x0, reverse=right_to_left)
    if not rtl_letters:
        return Line(ordered, *box_around(words))
    along, against, ends = (_RTL, _LTR, re.compile(r"\w")) if right_to_left else (_LTR, _RTL, _RTL)
    displayed: list[Word] = []
    for is_along, group in groupby(ordered, key=lambda word: along.search(word.text) is not None):
        run = list(group)
        is_number = right_to_left and run[-1].text.startswith("+")
        if not is_along and (is_number or any(against.search(word.text) for word in run)):
            # Bullets, numbers of list items and punctuation around the run keep their places.
            inner = [i for i, word in enumerate(run) if ends.search(word.text) and not _NUMBER.match(f"{word.text} ")]
            if inner:
                run[inner[0] : inner[-1] + 1] = run[inner[0] : inner[-1] + 1][::-1]
        displayed += run
    return Line(displayed, *box_around(words))


def rows_of(words: Iterable[Word]) -> list[list[Word]]:
    """Words grouped by the line on which they stand, from top to bottom."""
    rows: list[list[Word]] = []
    row_center = row_height = 0.0
    for word in sorted(words, key=lambda word: word.top + word.bottom):
        height = word.bottom - word.top
        # A superscript is lower than its line and an initial much higher: neither shows where the line is.
        reach = 0.5 * min(max(height, row_height), 1.6 * min(height, row_height))
        if rows and word.center_y - row_center < reach:
            rows[-1].append(word)
            if height > row_height and height < 1.6 * row_height:
                row_center, row_height = word.center_y, height
        else:
            rows.append([word])
            row_center, row_height = word.center_y, height
    return rows


def segments(row: Sequence[Word]) -> list[Line]:
    """The parts of a row between wide gaps, from left to right."""
    ordered = sorted(row, key=lambda word: word.x0)
    parts = [[ordered[0]]]
    right = ordered[0].x1
    for word in ordered[1:]:
        if word.x0 - right > _MIN_CELL_GAP * max(word.size, parts[-1][-1].size):
            parts.append([])
        parts[-1].append(word)
        right = max(right, word.x1)
    return [line_of(part) for part in parts]


def paragraphs(lines: Sequence[Line]) -> list[Block]:
    """Group lines, ordered from top to bottom, into paragraphs and list items."""
    if not lines:
        return []
    right = max(line.x1 for line in lines)
    gaps = [max(below.top - above.bottom, 0) for above, below in pairwise(lines)]
    usual_gap = min(median(gaps), 1.2 * lines[0].size) if gaps else 0
    groups: list[list[Line]] = []
    for line in lines:
        if groups and _continues_paragraph(groups[-1], line, usual_gap, right):
            groups[-1].append(line)
        else:
            groups.append([line])
    blocks = []
    for group in groups:
        text = group[0].text
        for line, below in pairwise(group):
            first_word = below.words[0].text
            last_word = line.words[-1].text.replace(HYPHEN, "-")
            in_address = _CUT_ADDRESS.search(last_word) and _REST_OF_ADDRESS.match(below.text)
            if text.endswith(HYPHEN):
                text = text if first_word[:1].islower() and not in_address else f"{text[:-1]}-"
            elif in_address:
                pass
            elif _ends_early(line, below, right):
                text += "\n"  # the author broke the line
            elif not (_CJK.match(text[-1:]) and _CJK.match(first_word[:1])):
                text += " "
            text += below.text
        bullet = _BULLET.match(text)
        if bullet:
            text = f"- {text[bullet.end() :]}"
        is_bold = all(line.face == "bold" for line in group)
        is_item = bool(bullet or _NUMBER.match(text))
        blocks.append(Block(text, box_around(group), group[0].size, is_bold, len(group), is_item))
    return blocks


def box_around(parts: Sequence[Box | Word | Line]) -> Box:
    """The smallest box around parts of a page."""
    x0, top = min(part.x0 for part in parts), min(part.top for part in parts)
    return Box(x0, top, max(part.x1 for part in parts), max(part.bottom for part in parts))


def _continues_paragraph(group: Sequence[Line], line: Line, usual_gap: float, right: float) -> bool:
    last, size = group[-1], line.size
    if abs(last.size - size) > 0.08 * size or _starts_item(line.plain):
        return False
    if last.face != line.face and (_ends_early(last, line, right) or last.face == "bold"):
        return False
    if line.top - last.bottom > usual_gap + 0.35 * size:
        return False
    if abs(last.x0 + last.x1 - line.x0 - line.x1) < 4:  # centred
        return True
    if line.x0 > last.x0 + size:
        return len(group) == 1 and bool(_starts_item(group[0].plain) or _SECTION.match(group[0].plain))
    return line.x0 > last.x0 - size or len(group) == 1


def _starts_item(text: str) -> bool:
    return bool(_BULLET.match(text) or _NUMBER.match(text))


def _ends_early(line: Line, below: Line, right: float) -> bool:
    """Whether the first word of the next line would have fitted on this line, so the author broke it."""
    word = below.words[0]
    return line.x1 + (word.x1 - word.x0) + 0.3 * line.size < right - 2 and not _RTL.search(line.plain)


def resolve_hyphens(blocks: Iterable[Block]) -> None:
    """Keep or drop the hyphen of each split word, in place: "long-term", but "reader".

    The more frequent spelling in the rest of the document decides. Other words follow the majority of those decided,
    since some programs split words into syllables and others only at hyphens; without a majority, the hyphen goes.
    """
    blocks = list(blocks)
    texts = [text for block in blocks for text in (block.text, *(cell for row in block.rows for cell in row))]
    split = {(one[1], one[2]) for text in texts if HYPHEN in text for one in _SPLIT_WORD.finditer(text)}
    if not split:
        return
    words = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    votes = {}
    for first, second in split:
        kept, dropped = words[f"{first}-{second}".lower()], words[f"{first}{second}".lower()]
        votes[first, second] = (kept > dropped) - (kept < dropped)
    usual = "-" if sum(votes.values()) > 0 else ""
    spelling = {-1: "", 0: usual, 1: "-"}

    def resolve(text: str) -> str:
        if HYPHEN in text:
            text = _SPLIT_WORD.sub(lambda one: one[1] + spelling[votes[one[1], one[2]]], text)
        return text.replace(HYPHEN, "-")

    for block in blocks:
        block.text = resolve(block.text)
        block.rows = [[resolve(cell) for cell in row] for row in block.rows]
