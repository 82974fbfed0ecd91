"""PDF: the visible text of each page in reading order, with headings by font size and weight."""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Literal, NamedTuple

import pypdfium2

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.core.types import Scalar
from ragfm.parsing import heartbeat
from ragfm.parsing.own.media.ocr import OCR_HINT, has_ocr
from ragfm.parsing.own.pdf.pdf_contents import drop_contents
from ragfm.parsing.own.pdf.pdf_figures import read_figures
from ragfm.parsing.own.pdf.pdf_layout import read_layout
from ragfm.parsing.own.pdf.pdf_lines import Block, resolve_hyphens
from ragfm.parsing.own.pdf.pdf_margins import drop_running_titles
from ragfm.parsing.own.pdf.pdf_page import PageContent, read_page
from ragfm.parsing.own.pdf.pdf_types import Figure
from ragfm.parsing.rendering import MarkdownBuilder, ParsedText, clean, hidden_text
from ragfm.parsing.table_layout import MAX_CAPTION, MAX_CAPTION_LINES, scale_of

_log = logging.getLogger(__name__)
_LOCK = threading.Lock()  # PDFium is not thread-safe, not even across documents
_CONTROL_CHARACTERS = re.compile("[\x01-\x08\x0b\x0e-\x1f\ufffe\uffff]")
_PASSWORD_ERRORS = {4, 5}  # FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY
_WINDOW = 200  # pages whose words are in memory at once

# Captions of tables, and tables that continue on the next page.
_DOT_LEADER = re.compile(r"[\s.·…]*[.·…]\s*[.·…]\s*[.·…][\s.·…]*")
_LONG_LEADER = re.compile(r" ?(?:[.·…] ?){6,}")
_MAX_FIGURE_CAPTION = 600  # characters
_LABEL = re.compile(r"[^\W\d]{1,12}\.?\s?[A-Z]?\d+(?:[.-]\d+)*\s*([.:|\u2013\u2014])?(?:\s|$)")
_MAX_BETWEEN = 60  # characters of the only block between two parts of a table
_SAME_EDGE = 6.0  # points: the right edges of the same column on two pages

# Headings.
_LARGER, _SMALLER = 1.15, 0.95  # times the body size
_MAX_HEADING = 200  # characters
_MAX_TITLE_BLOCKS = 8  # on a title page
_NUMBERED = re.compile(r"(\d{1,3}(?:\.\d{1,3})*)\.?\s")


def read_pdf(data: bytes, name: str, *, images: bool | Literal["pages"] = False) -> ParsedText:
    """Return the text of all pages, with one mark per page that has text, and with `images` the figures, or the pages.

    Metadata: `title`, `author`; `hidden_text`, text that is in the file but not visible; `pages_without_text`;
    `unread_pages`, which are damaged. Raises ParseError for a protected file and for one without a readable page,
    SkipDocument where no page has text.
    """
    with _LOCK:
        try:
            document = pypdfium2.PdfDocument(data)
        except pypdfium2.PdfiumError as error:
            if error.err_code in _PASSWORD_ERRORS:
                raise ParseError(f"{name} is protected by a password.", "Save a copy without a password.") from error
            raise ParseError(f"{name} is a damaged PDF: {error}") from error
        try:
            if not len(document):
                raise ParseError(f"{name} is a damaged PDF: it has no pages.")

            unread: dict[int, Exception] = {}  # by number of the page

            def pages() -> Iterable[PageContent]:
                for index in range(len(document)):
                    heartbeat.beat()
                    try:
                        page = read_page(document, index, images=images)
                    except Exception as error:  # damage that PDFium or this parser does not expect
                        unread[index + 1] = error
                        page = PageContent(0, 0)
                    if images is True and not page.image:
                        try:
                            page.figures = read_figures(document, index, page)
                        except Exception as error:  # a page whose drawings are damaged keeps its text
                            _log.debug("figures of page %d", index + 1, exc_info=error)
                    yield page

            parsed = build_text(pages(), unread, name=name)
            if len(unread) == len(document):
                raise ParseError(f"{name} is a damaged PDF: no page can be read ({unread[1]}).") from unread[1]
            metadata: dict[str, Scalar] = {}
            for key in ("Title", "Author"):
                value = " ".join(clean(document.get_metadata_value(key)).split())
                if value:
                    metadata[key.lower()] = value
        finally:
            document.close()
    if not parsed.text:
        if "pages_without_text" in parsed.metadata and not has_ocr():
            raise SkipDocument(f"{name} has no text layer: it may be a scan, which needs OCR.", OCR_HINT)
        raise SkipDocument(f"{name} has no text.")
    return parsed._replace(metadata=metadata | dict(parsed.metadata))


def build_text(
    pages: Iterable[PageContent], unread: dict[int, Exception] | None = None, *, name: str = ""
) -> ParsedText:
    """Return the text of pages in reading order, without running titles. `name` stands for a page without text.

    `unread` has the errors of damaged pages by number; pages without a readable layout are added. Metadata:
    `pages_without_text`, `unread_pages`, `hidden_text`.
    """
    unread = {} if unread is None else unread
    blocks_by_page: list[list[Block]] = []
    scans: list[str] = []
    hidden: list[str] = []
    running_titles: set[str] = set()
    page_images: dict[int, bytes] = {}
    figures_by_page: list[list[Figure]] = []
    pages = iter(pages)
    # The words of a page take far more memory than its text, so at most one window of pages is kept.
    while window := list(islice(pages, _WINDOW)):
        scans += [
            str(number)
            for number, page in enumerate(window, len(blocks_by_page) + 1)
            if not (page.words or page.turned) and page.drawing.images
        ]
        drop_running_titles(window, running_titles, len(blocks_by_page))
        drop_contents(window)
        for number, page in enumerate(window, len(blocks_by_page) + 1):
            hidden += page.hidden_text.split()
            blocks: list[Block] = []
            try:
                blocks = read_layout(page)
            except Exception as error:  # numbers of a damaged page, such as infinite coordinates
                unread[number] = error
            blocks_by_page.append(blocks)
            figures_by_page.append(page.figures)
            if page.image:
                page_images[number] = page.image
    resolve_hyphens(chain.from_iterable(blocks_by_page))
    metadata: dict[str, Scalar] = {}
    if scans:
        metadata["pages_without_text"] = ", ".join(scans)
    if unread:
        metadata["unread_pages"] = ", ".join(map(str, sorted(unread)))
    if hidden:
        metadata["hidden_text"] = hidden_text(hidden)

    headings = _Headings(blocks_by_page)
    builder = MarkdownBuilder()
    open_table: _OpenTable | None = None
    unfinished = False  # the last block is text that ends within a sentence
    for number, blocks in enumerate(blocks_by_page, 1):
        builder.start_page(number)
        above: list[Block] = []  # since the last table or the start of the page
        placed = _place_figures(blocks, figures_by_page[number - 1], headings)
        for at, block in enumerate([*blocks, None]):
            for figure, is_captioned in placed.get(at, ()):
                title = _text(block.text) if block is not None and is_captioned else ""
                if not builder.has_figure(figure.image):  # a picture on many pages, such as a logo, is stored once
                    texts = [text for text in (title, _text(figure.text)) if text]
                    start = builder.add_block("\n".join(texts) or f"![{number}-{at + 1}.png]()")
                    builder.mark_figure(figure.image, start, title, figure.place)
                elif title:
                    builder.add_block(title)
            if block is None:
                continue
            text = _text(block.text)
            continues = unfinished and not at and text[:1].islower()
            unfinished = False
            if any(is_captioned for _, is_captioned in placed.get(at, ())):
                above.append(block)
                continue
            if block.rows:
                rows = [[_text(cell) for cell in row] for row in block.rows]
                caption = own_caption = _caption_lines(above, headings)
                if open_table is not None and open_table.continues_with(block, rows, above):
                    rows[0], caption = open_table.header, [*open_table.caption, *own_caption]
                    open_table = open_table._replace(block=block)  # the next part has this caption and its own, too
                else:
                    open_table = _OpenTable(block, rows[0], caption)
                builder.add_table(rows, caption=caption)
                above = []
                continue
            above.append(block)
            if level := headings.level_of(block):
                builder.add_heading(level, " ".join(text.split()))
            elif text and not _DOT_LEADER.fullmatch(block.text):
                builder.add_block(text, tight=block.is_item, continues=continues)
                unfinished = text[-1] not in ".!?:"
        if not _is_short(above):
            open_table = None
        if number in page_images:
            builder.mark_page(page_images[number], name)
    return builder.build(metadata)


class _OpenTable(NamedTuple):
    """A table that may continue below a section title or on the next page."""

    block: Block
    header: list[str]
    caption: list[str]

    def continues_with(self, block: Block, rows: Sequence[Sequence[str]], above: Sequence[Block]) -> bool:
        """Whether the next table has the same columns, and no header of its own, or the same without a caption."""
        if not self.block.edges or len(rows[0]) != len(self.header) or not _is_short(above):
            return False
        same_header = not any(rows[0]) or (list(rows[0]) == self.header and not above)
        return (
            same_header
            and len(block.edges) == len(self.block.edges)
            and all(abs(edge - other) < _SAME_EDGE for edge, other in zip(block.edges, self.block.edges, strict=True))
        )


def _is_short(blocks: Sequence[Block]) -> bool:
    """Whether blocks may stand between the parts of a table: one line, such as a title or a page number."""
    return not blocks or (len(blocks) == 1 and len(blocks[0].text) <= _MAX_BETWEEN)


def _caption_lines(above: Sequence[Block], headings: _Headings) -> list[str]:
    """The lines directly above a table that are its caption and unit rather than text: short, and not a sentence."""
    lines: list[str] = []
    for block in reversed(above[-MAX_CAPTION_LINES:]):
        text = _text(block.text)
        if len(text) > MAX_CAPTION or block.is_item or (text.endswith((".", ";")) and block.lines > 1):
            lines[:0] = [] if block.is_item else [scale_of(text)]
            break
        parts = [text] if headings.level_of(block) else text.splitlines()
        lines[:0] = [" ".join(part.split()) for part in parts]
    return [line for line in lines if any(map(str.isalpha, line)) and not line.startswith("|")]


def _place_figures(
    blocks: Sequence[Block], figures: Sequence[Figure], headings: _Headings
) -> dict[int, list[tuple[Figure, bool]]]:
    """The figures of a page, by the position of the block before which each stands, and whether it is the caption.

    A caption is next to the figure, below it or above. It begins with a name and a number, as in "Abb. 3:", or has
    smaller letters than the body. A figure without one stands behind the last block above it.
    """
    placed: dict[int, list[tuple[Figure, bool]]] = {}
    captions: set[int] = set()
    for figure in figures:
        box = figure.box
        candidates: list[tuple[bool, bool, float, int]] = []
        above, below = [0], [len(blocks)]
        for at, block in enumerate(blocks):
            if block.box.x0 >= box.x1 or block.box.x1 <= box.x0:
                continue
            is_above = block.box.center[1] < box.center[1]
            (above if is_above else below).append(at + is_above)
            distance = box.top - block.box.bottom if is_above else block.box.top - box.bottom
            is_near = -block.size <= distance <= (2 if is_above else 4) * block.size
            is_text = not (block.rows or block.is_item or len(block.text) > _MAX_FIGURE_CAPTION)
            label = _LABEL.match(block.text)
            is_labelled = bool(label and (label[1] or (block.lines <= 3 and not block.text.endswith("."))))
            if at not in captions and is_text and is_near and (is_labelled or headings.is_small(block)):
                candidates.append((not is_labelled, is_above, distance, at))
        place = min(candidates)[-1] if candidates else max(above) or min(below)
        captions.update([place] if candidates else [])
        placed.setdefault(place, []).append((figure, bool(candidates)))
    return placed


def _text(drawn: str) -> str:
    """Text without control characters, and with one dot leader for many dots, each of which is a token."""
    return _LONG_LEADER.sub(" … ", clean(_CONTROL_CHARACTERS.sub("", drawn))).strip()


class _Headings:
    """Which blocks are headings. The level follows from the size first, then from the depth of the number."""

    def __init__(self, blocks_by_page: Sequence[Sequence[Block]]) -> None:
        blocks = [block for blocks in blocks_by_page for block in blocks]
        # Of a title page, with subtitle and authors, the title is the only heading.
        filled = [blocks for blocks in blocks_by_page if blocks]
        self._below_title: set[int] = set()  # ids of blocks
        if len(filled) > 1 and len(filled[0]) <= _MAX_TITLE_BLOCKS:
            title = max(filled[0], key=lambda block: block.size)
            if not any(block.rows or len(block.text) > _MAX_HEADING for block in filled[0]):
                below = (block for block in filled[0] if block is not title and not _NUMBERED.match(block.text))
                self._below_title.update(map(id, below))
        sizes: Counter[float] = Counter()
        for block in blocks:
            sizes[_round(block.size)] += len(block.text)
        self._body_size = sizes.most_common(1)[0][0] if sizes else 0.0
        texts = [block for block in blocks if not block.rows]
        bold = sum(block.bold and block.size < _LARGER * self._body_size for block in texts)
        self._bold_counts = bold <= 0.4 * len(texts)  # where most text is bold, bold means nothing
        styles = {self._style(block) for block in texts if self._is_heading(block)}
        self._levels = {style: min(level, 6) for level, style in enumerate(sorted(styles), 1)}

    def level_of(self, block: Block) -> int:
        """The level of a heading, 0 for any other block."""
        return self._levels[self._style(block)] if self._is_heading(block) else 0

    def is_small(self, block: Block) -> bool:
        """Whether the letters of a block are smaller than those of most text."""
        return block.size < _SMALLER * self._body_size

    def _style(self, block: Block) -> tuple[float, int]:
        number = _NUMBERED.match(block.text)
        return -_round(max(block.size, self._body_size)), number[1].count(".") + 1 if number else 1

    def _is_heading(self, block: Block) -> bool:
        text = block.text
        if block.rows or len(text) > _MAX_HEADING or block.lines > 3 or not any(map(str.isalpha, text)):
            return False
        if text.startswith("- ") or text.endswith((",", ";")) or id(block) in self._below_title:
            return False
        if block.size >= _LARGER * self._body_size:
            return not text.endswith(".") or len(text) < 60
        return (
            block.bold
            and self._bold_counts
            and block.size >= 0.97 * self._body_size
            and block.lines <= 2
            and not text.endswith((".", ":"))
        )


def _round(size: float) -> float:
    return round(size * 2) / 2
