"""PDF: what a reader sees of each page, in the order of reading, with headings by size and weight of the type."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice, pairwise
from typing import TYPE_CHECKING

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.core.types import Scalar
from ragfm.parsing.heartbeat import step
from ragfm.parsing.own.media.ocr import HINT, has_ocr
from ragfm.parsing.own.pdf.pdf_layout import read_layout
from ragfm.parsing.own.pdf.pdf_lines import Block, line_of, rows_of
from ragfm.parsing.own.pdf.pdf_page import Content, Word, read_page
from ragfm.parsing.rendering import Parsed, Rendering, clean

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

_LOCK = threading.Lock()  # PDFium is not thread-safe, whatever the document
_CONTROLS = re.compile("[\x01-\x08\x0b\x0e-\x1f\ufffe\uffff]")
_PROTECTED = {4, 5}  # FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY
_MARGIN = 0.12  # of a page's height, above and below, where running titles stand
_APART = 0.7  # of a row's height
_MAX_ROWS = 3  # of a running title
_REPEATED = 3  # pages on which a line must stand to be a running title
_LARGER = 1.15  # times the body's size: a heading
_MAX_HEADING = 200  # characters
_NUMBERED = re.compile(r"(\d{1,3}(?:\.\d{1,3})*)\.?\s")
_NOTHING = {"", "untitled", "anonymous", "unspecified", "unknown"}  # what programs write where nobody said anything
_WINDOW = 200  # pages
_MAX_HIDDEN = 1_000  # characters of hidden text that metadata keep


def read_pdf(data: bytes, name: str) -> Parsed:
    """The pages' text, with one mark per page that has some.

    Metadata: `title`, `author`; `hidden_text`, where the file has text that no reader sees; `pages_without_text`.
    Raises ParseError for a damaged or protected file, SkipDocument where no page has text.
    """
    import pypdfium2

    with _LOCK:
        try:
            document = pypdfium2.PdfDocument(data)
        except pypdfium2.PdfiumError as error:
            if error.err_code in _PROTECTED:
                raise ParseError(f"{name} is protected by a password.", "Save a copy without one.") from error
            raise ParseError(f"{name} is a damaged PDF: {error}") from error
        try:
            if not len(document):
                raise ParseError(f"{name} is a damaged PDF: it has no pages.")
            parsed = render_pages(_page(document, number, name) for number in range(1, len(document) + 1))
            metadata = _metadata(document)
        finally:
            document.close()
    if not parsed.text:
        if "pages_without_text" in parsed.metadata and not has_ocr():
            raise SkipDocument(f"{name} has no text layer, it is perhaps a scan: that needs OCR.", HINT)
        raise SkipDocument(f"{name} has no text in it.")
    return parsed._replace(metadata=metadata | dict(parsed.metadata))


def render_pages(pages: Iterable[Content]) -> Parsed:
    """The pages' text in the order of reading, without running titles; metadata that only the pages tell."""
    blocks: list[list[Block]] = []
    scans: list[str] = []
    hidden: list[str] = []
    titles: set[str] = set()
    pages = iter(pages)
    # A page's words take far more memory than its text: they are kept until titles among them have shown.
    while window := list(islice(pages, _WINDOW)):
        _drop_running_titles(window, titles)
        for number, page in enumerate(window, len(blocks) + 1):
            if not page.words and page.drawing.images:
                scans.append(str(number))
            hidden += page.hidden.split()
        blocks += [read_layout(page) for page in window]
    metadata: dict[str, Scalar] = {}
    if scans:
        metadata["pages_without_text"] = ", ".join(scans)
    if hidden:
        metadata["hidden_text"] = clean(" ".join(hidden)[:_MAX_HIDDEN])
    return _render(blocks)._replace(metadata=metadata)


def _page(document: PdfDocument, number: int, name: str) -> Content:
    from pypdfium2 import PdfiumError

    step()
    try:
        return read_page(document, number - 1)
    except PdfiumError as error:
        raise ParseError(f"{name} is a damaged PDF: page {number} can't be read ({error}).") from error


def _drop_running_titles(pages: Sequence[Content], known: set[str]) -> None:
    """Leave out the lines that pages have in their margins again and again; words stay where they stand first.

    `known` are those of the pages before, to which these pages' are added.
    """
    found: dict[str, list[tuple[int, list[Word]]]] = {}
    for number, page in enumerate(pages):
        for row in [*_edge(page.words, page.height), *_edge(page.words, page.height, below=True)]:
            found.setdefault(re.sub(r"\d+", "#", line_of(row).plain), []).append((number, row))
    gone: dict[int, set[int]] = {}
    for key, rows in found.items():
        if key in known or len({number for number, _ in rows}) >= max(_REPEATED, 0.3 * len(pages)):
            first = key not in known and any(map(str.isalpha, key))
            for number, row in rows[first:]:
                gone.setdefault(number, set()).update(map(id, row))
            known.add(key)
    for number, words in gone.items():
        pages[number].words = [word for word in pages[number].words if id(word) not in words]


def _edge(words: Sequence[Word], height: float, *, below: bool = False) -> list[list[Word]]:
    """The rows in a page's upper or lower margin that white space parts from the rest."""
    margin = _MARGIN * height
    rows = rows_of(word for word in words if (word.top > height - 2 * margin if below else word.bottom < 2 * margin))
    if below:
        rows.reverse()
    for count, (outer, inner) in enumerate(pairwise(rows), 1):
        tall = max(word.bottom - word.top for word in outer)
        upper, lower = (inner, outer) if below else (outer, inner)
        if min(word.top for word in lower) - max(word.bottom for word in upper) > _APART * tall:
            return rows[:count] if _in_margin(outer[0], height) and count <= _MAX_ROWS else []
    return rows if len(rows) == 1 and _in_margin(rows[0][0], height) else []


def _in_margin(word: Word, height: float) -> bool:
    return word.bottom < _MARGIN * height or word.top > (1 - _MARGIN) * height


def _render(pages: Sequence[Sequence[Block]]) -> Parsed:
    levels = _Levels([block for page in pages for block in page])
    rendering = Rendering()
    for number, blocks in enumerate(pages, 1):
        rendering.page(number)
        for block in blocks:
            text = _tidy(block.text)
            if block.rows:
                rendering.table([[_tidy(cell) for cell in row] for row in block.rows])
            elif level := levels.of(block):
                rendering.heading(level, " ".join(text.split()))
            elif text:
                rendering.block(text, tight=block.item)
    return rendering.finish()


def _tidy(text: str) -> str:
    return clean(_CONTROLS.sub("", text)).strip()


class _Levels:
    """Which blocks are headings, and of which level: by size first, then by the depth of their numbers."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        sizes: Counter[float] = Counter()
        for block in blocks:
            sizes[_rounded(block.size)] += len(block.text)
        self._body = sizes.most_common(1)[0][0] if sizes else 0.0
        texts = [block for block in blocks if not block.rows]
        bold = sum(block.bold and block.size < _LARGER * self._body for block in texts)
        self._bold_counts = bold <= 0.4 * len(texts)
        styles = {self._style(block) for block in texts if self._is_heading(block)}
        self._levels = {style: min(level, 6) for level, style in enumerate(sorted(styles), 1)}

    def of(self, block: Block) -> int:
        """The level of a heading, 0 for what is none."""
        return self._levels[self._style(block)] if self._is_heading(block) else 0

    def _style(self, block: Block) -> tuple[float, int]:
        number = _NUMBERED.match(block.text)
        return -_rounded(max(block.size, self._body)), number[1].count(".") + 1 if number else 1

    def _is_heading(self, block: Block) -> bool:
        text = block.text
        if block.rows or len(text) > _MAX_HEADING or block.lines > 3 or not any(map(str.isalpha, text)):
            return False
        if text.startswith("- ") or text.endswith((",", ";")):
            return False
        if block.size >= _LARGER * self._body:
            return not text.endswith(".") or len(text) < 60
        return (
            block.bold
            and self._bold_counts
            and block.size >= 0.97 * self._body
            and block.lines <= 2
            and not text.endswith((".", ":"))
        )


def _rounded(size: float) -> float:
    return round(size * 2) / 2


def _metadata(document: PdfDocument) -> dict[str, Scalar]:
    given = {key.lower(): " ".join(clean(document.get_metadata_value(key)).split()) for key in ("Title", "Author")}
    return {key: value for key, value in given.items() if value.lower().strip("()") not in _NOTHING}
