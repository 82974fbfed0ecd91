"""Build Markdown-like text block by block, with a mark for the kind of each block."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

from ragfm.core.text import sentence_spans
from ragfm.core.types import Box, Mark, Scalar, image_key
from ragfm.parsing import heartbeat
from ragfm.parsing.figures import MAX_IMAGES, WHOLE_PAGE
from ragfm.parsing.table_layout import MAX_CAPTION_LINES, caption_lines, scale_of, shared_scale

_MAX_CAPTION = 200  # characters that stay with each part of a long figure
_MAX_HIDDEN = 1_000  # characters of hidden text in the metadata
_MAX_PADDING = 100  # cells, so that one long row does not multiply the size of all others
SUPERSCRIPTS = str.maketrans("0123456789-\u2212", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁻")
_EXPONENT = re.compile(r"[-\u2212]?\d+(?:,\s?\d+)*")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # UTF-8 cannot encode surrogates, and SQLite ends a text at NUL


class ParsedText(NamedTuple):
    """The output of a parser; `images` are those of the figures, as in `Document`."""

    text: str
    marks: tuple[Mark, ...] = ()
    metadata: Mapping[str, Scalar] = {}
    images: Mapping[str, bytes] = {}

    def with_title(self, *, only_with_metadata: bool = False) -> ParsedText:
        """Add the first heading of level 1 to the metadata as `title`, unless there is a title already.

        HTML, DOCX and OpenDocument use `only_with_metadata`: a document without metadata gets no title. To change that,
        increase the version of the parsers, since the title is part of what is embedded.
        """
        title = next((mark.value for mark in self.marks if mark.level == 1), "")
        if not title or "title" in self.metadata or (only_with_metadata and not self.metadata):
            return self
        return self._replace(metadata={**self.metadata, "title": title})


class MarkdownBuilder:
    """Blocks of text with blank lines between them. Marks are recorded with the blocks, never guessed from the text."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self.length = 0  # characters so far
        self._last_is_tight = False
        self._marks: list[Mark] = []
        self._images: dict[str, bytes] = {}
        self._above: deque[str] = deque(maxlen=MAX_CAPTION_LINES)  # the last paragraphs, if nothing else follows them
        self._page: tuple[int, int] | None = None  # number, start
        self._next_page: int | None = None

    def add_block(self, text: str, *, tight: bool = False, continues: bool = False) -> int:
        """Add a block and return its start.

        No blank line separates two `tight` blocks (list items), or a block from one that `continues` its sentence. That
        sentence is on the page on which it begins.
        """
        heartbeat.beat()
        separator = "" if not self.length else "\n" if continues or (tight and self._last_is_tight) else "\n\n"
        start = self.length + len(separator)
        ends, begins = self.length, start
        if continues and self._next_page is not None:
            (_, first), *others = sentence_spans(text)
            ends, begins = start + first, start + others[0][0] if others else start + len(text)
        if self._next_page is not None and begins < start + len(text):
            self._end_page(ends)
            self._page, self._next_page = (self._next_page, begins), None
        self._parts += (separator, text)
        self.length = start + len(text)
        self._last_is_tight = tight
        if tight:
            self._above.clear()
        else:
            self._above.append(text)
        return start

    def start_page(self, number: int) -> None:
        """Blocks added from now on are on this page."""
        if self._page is None or self._page[0] != number:
            self._next_page = number

    def add_heading(self, level: int, text: str) -> None:
        """Add a heading; level 1 is the outermost."""
        self._add_marked("heading", f"{'#' * level} {text}", text, level)

    def end_section(self, level: int) -> None:
        """Blocks added from now on are no longer below headings of this level or of deeper ones."""
        self._marks.append(Mark("heading", self.length, self.length, "", level))

    def add_table(
        self,
        rows: Sequence[Sequence[str]],
        *,
        titles: Sequence[str] = (),
        caption: Sequence[str] | None = None,
        places: Mapping[int, str] | None = None,
    ) -> None:
        """Add a Markdown table; the first row is its header.

        `titles` are lines that belong to the table, and are added above it. `caption` are the lines of the text above
        that are about it, by default short paragraphs; it is part of the mark, as titles and header are. `places` maps
        row numbers to the places (such as `Sheet1!A5`) of these rows.
        """
        caption = [*(caption_lines(self._above) if caption is None else caption), *titles]
        for title in titles:
            self.add_block(title)
        if (scale := shared_scale(rows[0])) and not any(map(scale_of, caption)):
            caption.append(scale)
        lines = table_lines(rows)
        header = lines[:2] if any(rows[0]) else []
        start = self._add_marked("table", "\n".join(lines), "\n".join([*caption, *header]))
        if places:
            starts = [start, *(start + end for end in accumulate(len(line) + 1 for line in lines))]
            del starts[1]  # the separator line below the header is not a row
            bounds = [*sorted(places), len(rows)]
            for row, next_row in pairwise(bounds):
                self._marks.append(Mark("place", starts[row], starts[next_row] - 1, places[row]))

    def add_place(self, value: str, start: int) -> None:
        """Mark the text from `start` to the current end as being at a place of the source format."""
        self._marks.append(Mark("place", start, self.length, value))

    def add_parsed(self, parsed: ParsedText) -> None:
        """Add a text that has marks of its own; its metadata is ignored."""
        if parsed.text:
            start = self.add_block(parsed.text)
            self._images.update(parsed.images)
            self._marks += [replace(mark, start=mark.start + start, end=mark.end + start) for mark in parsed.marks]

    def add_code(self, text: str, language: str = "") -> None:
        """Add code in a fence, unless it is blank."""
        if code := fenced(text, language):
            self._add_marked("code", code, language)

    def has_figure(self, image: bytes) -> bool:
        """Whether an image was added before."""
        return image_key(image) in self._images

    def add_figure(self, image: bytes, texts: Sequence[str], name: str, box: Box | None = None) -> None:
        """Add a figure with its caption, alt text and recognized text, of which any may be empty or repeated.

        `image` is as `figures.kept_image` returns it, `name` stands for it where there is no text. An image that the
        document has already is not added again.
        """
        known: list[str] = []
        for text in texts:
            lines = [line for line in map(str.strip, clean(text).splitlines()) if any(map(str.isalnum, line))]
            if lines and not any("\n".join(lines) in other for other in known):
                known.append("\n".join(lines))
        if not self.has_figure(image):
            start = self.add_block("\n".join(known) or f"![{clean(name)}]()")
            self.mark_figure(image, start, texts[0], box)

    def mark_page(self, image: bytes, name: str) -> None:
        """Mark the current page as a figure; `name` stands for it where it has no text."""
        if self._next_page is not None:
            self.add_block(f"![{clean(name)}]()")
        assert self._page is not None
        self.mark_figure(image, self._page[1], box=WHOLE_PAGE)

    def mark_figure(self, image: bytes, start: int, caption: str = "", box: Box | None = None) -> None:
        """Mark the text from `start` to the current end as a figure, unless the images exceed `MAX_IMAGES`."""
        key = image_key(image)
        if sum(map(len, self._images.values())) + len(image) <= MAX_IMAGES:
            self._images[key] = image
            value = " ".join(clean(caption).split())[:_MAX_CAPTION]
            self._marks.append(Mark("figure", start, self.length, value, image=key, box=box))

    def build(self, metadata: Mapping[str, Scalar] | None = None) -> ParsedText:
        """Return the text and its marks, ordered by start; of marks with the same start, the longest comes first."""
        self._end_page(self.length)
        marks = sorted(self._marks, key=lambda mark: (mark.start, -mark.end))
        return ParsedText("".join(self._parts), tuple(marks), metadata or {}, self._images)

    def _add_marked(self, kind: Literal["heading", "table", "code"], text: str, value: str, level: int = 0) -> int:
        start = self.add_block(text)
        self._marks.append(Mark(kind, start, self.length, value, level))
        self._above.clear()
        return start

    def _end_page(self, end: int) -> None:
        if self._page is not None:
            number, start = self._page
            self._marks.append(Mark("page", start, end, str(number)))


def table_lines(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table: header row, separator, other rows; shorter rows are padded."""
    rows = list(rows)
    width = max(map(len, rows))
    lines = []
    for row in rows:
        line = " | ".join(row)
        # Most rows need no escaping, and counting the separators is much cheaper than escaping each cell.
        if line.count("|") != len(row) - 1 or "\n" in line or "  " in line or line[:1] == " " or line[-1:] == " ":
            line = " | ".join([" ".join(cell.split()).replace("|", "\\|") for cell in row])
        lines.append(f"| {line} |{'  |' * min(width - len(row), _MAX_PADDING)}")
    lines.insert(1, f"|{' --- |' * width}")
    return lines


def fenced(text: str, language: str = "") -> str:
    """Code in a fence that is longer than any fence in the code; empty for blank code."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}" if text.strip() else ""


def raised(text: str, before: str) -> str:
    """A superscript, in Unicode's characters if it is a number behind the one that ends `before`: 10⁶, not 106."""
    return text.translate(SUPERSCRIPTS) if before[-1:].isdecimal() and _EXPONENT.fullmatch(text) else text


def hidden_text(texts: Iterable[str]) -> str:
    """The start of what a document hides, for its metadata."""
    return clean(" ".join(" ".join(texts).split())[:_MAX_HIDDEN])


def clean(text: str) -> str:
    """Replace NUL and lone surrogates, which cannot be stored, by U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)
