"""Text that is put together block by block, with marks for what the blocks are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

from ragfm.core.types import Mark, Scalar
from ragfm.parsing.heartbeat import step

_MAX_PADDING = 100  # cells; one long row must not blow up all others
_SURROGATES = re.compile("[\0\ud800-\udfff]")  # no text in UTF-8 can hold them, and SQLite ends a text at NUL


class Parsed(NamedTuple):
    """What a parser makes of a document."""

    text: str
    marks: tuple[Mark, ...] = ()
    metadata: Mapping[str, Scalar] = {}


class Rendering:
    """Blocks of text with blank lines between them; marks are recorded on the way, never guessed from the text."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length = 0
        self._tight = False
        self._marks: list[Mark] = []
        self._page: tuple[int, int] | None = None  # number, start
        self._next_page: int | None = None

    @property
    def length(self) -> int:
        """How many characters there are."""
        return self._length

    def block(self, text: str, *, tight: bool = False) -> int:
        """Add a block and give its start. Between two `tight` blocks (list items) stands no blank line."""
        step()
        separator = "" if not self._length else "\n" if tight and self._tight else "\n\n"
        start = self._length + len(separator)
        if self._next_page is not None:
            self._close_page()
            self._page, self._next_page = (self._next_page, start), None
        self._parts += (separator, text)
        self._length = start + len(text)
        self._tight = tight
        return start

    def page(self, number: int) -> None:
        """Blocks added from now on stand on this page."""
        if self._page is None or self._page[0] != number:
            self._next_page = number

    def heading(self, level: int, words: str) -> None:
        """Add a heading; `level` is 1 for the outermost."""
        self._marked("heading", f"{'#' * level} {words}", words, level)

    def table(
        self, rows: Sequence[Sequence[str]], header_rows: int = 1, *, places: Mapping[int, str] | None = None
    ) -> None:
        """Add a table as Markdown; its first rows are the header. `places` are those of some rows, by number."""
        lines = table_lines(rows)
        start = self._marked("table", "\n".join(lines), "\n".join(lines[: header_rows + 1]))
        if places:
            starts = [start, *(start + end for end in accumulate(len(line) + 1 for line in lines))]
            del starts[1]  # the rule below the header has no row of its own
            bounds = [*sorted(places), len(rows)]
            for row, following in pairwise(bounds):
                self._marks.append(Mark("place", starts[row], starts[following] - 1, places[row]))

    def place(self, value: str, start: int) -> None:
        """What was added from `start` on stands at a place of the format's own."""
        self._marks.append(Mark("place", start, self._length, value))

    def append(self, parsed: Parsed) -> None:
        """Add a text that has marks of its own."""
        if parsed.text:
            start = self.block(parsed.text)
            self._marks += [replace(mark, start=mark.start + start, end=mark.end + start) for mark in parsed.marks]

    def code(self, text: str, language: str = "") -> None:
        """Add code in a fence that is longer than any in the code itself."""
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        self._marked("code", f"{fence}{language}\n{text}\n{fence}", language)

    def finish(self, metadata: Mapping[str, Scalar] | None = None) -> Parsed:
        """Text, marks in order of start (the wider one first), and metadata."""
        self._close_page()
        marks = sorted(self._marks, key=lambda mark: (mark.start, -mark.end))
        return Parsed("".join(self._parts), tuple(marks), metadata or {})

    def _marked(self, kind: Literal["heading", "table", "code"], text: str, value: str, level: int = 0) -> int:
        start = self.block(text)
        self._marks.append(Mark(kind, start, self._length, value, level))
        return start

    def _close_page(self) -> None:
        if self._page is not None:
            number, start = self._page
            self._marks.append(Mark("page", start, self._length, str(number)))


def table_lines(rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table, line by line: header row, separator, the other rows; shorter rows are filled up."""
    rows = list(rows)
    width = max(map(len, rows))
    lines = [_line(row, width) for row in rows]
    lines.insert(1, f"|{' --- |' * width}")
    return lines


def _line(row: Sequence[str], width: int) -> str:
    line = " | ".join(row)
    # Most rows need no repair: a count of the separators says so at a fraction of the price.
    if line.count("|") != len(row) - 1 or "\n" in line or "  " in line or line[:1] == " " or line[-1:] == " ":
        line = " | ".join([" ".join(cell.split()).replace("|", "\\|") for cell in row])
    return f"| {line} |{'  |' * min(width - len(row), _MAX_PADDING)}"


def clean(text: str) -> str:
    """The text without NUL and lone surrogates, which no stored text can hold; each becomes U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)
