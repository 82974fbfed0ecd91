"""What stands on a page of a PDF: words with their places, rules, links, images, and the text that nobody sees.

Coordinates are points from the upper left corner of the page as it is shown: rotation and crop box are applied.
"""

from __future__ import annotations

import ctypes
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ragfm.parsing.own.pdf.pdf_drawing import Box, Drawing, has_notes, read_drawing, read_links
from ragfm.parsing.own.pdf.pdf_visibility import paint, unseen

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage, PdfTextPage

HYPHEN = "\x02"
"""Stands for a hyphen at a line's end that splits a word; PDFium tells it from others."""
_SMALLEST = 1.0  # points; text of less is no text for a reader
_FAINT = 12  # of 255: text of less opacity is not seen
_INVISIBLE, _CLIPPING = 3, 7  # text render modes without paint
_FILLED = (0, 4)  # those that fill, and draw no outline
# Names of fonts say it best: many have no weight, or a wrong one. CMBX and SFBX are TeX's, Medi is Nimbus's.
_BOLD = re.compile(r"bold|black|heavy|demi|medi\b|^(?:.{6}\+)?(?:cm|sf|ec|lm)[a-z]*bx", re.IGNORECASE)
_ITALIC = re.compile(r"italic|oblique|^(?:.{6}\+)?(?:cm|sf|ec)ti", re.IGNORECASE)
_ITALIC_FLAG = 64
_LIGATURES = {0xFB00 + i: letters for i, letters in enumerate(("ff", "fi", "fl", "ffi", "ffl", "st", "st"))}
_FEW = 30  # characters: a scanned page may have a number or a stamp
_MOST = 0.3  # of a page's area that a scan covers
_SOME = 0.01  # of it that is looked at where there is nothing else
_OCR_SCALE = 2.5  # pixels of a point: 180 dpi
_NOTHING = Box(0, 0, 0, 0)
_IGNORED = frozenset({0, 0xAD, 0x200B, 0xFEFF, 0xFFFF})


@dataclass(slots=True)
class Word:
    """Characters without white space between them; `size` is in points."""

    text: str
    x0: float
    top: float
    x1: float
    bottom: float
    size: float
    face: str = ""
    """`bold`, `italic`, or empty for an ordinary one."""
    link: str = ""

    @property
    def middle(self) -> float:
        """Half of the height, from the page's top."""
        return (self.top + self.bottom) / 2


@dataclass
class Content:
    """A page: its words in the order in which the file draws them, and what else is on it."""

    width: float
    height: float
    words: list[Word] = field(default_factory=list)
    turned: list[str] = field(default_factory=list)
    """Text that does not run from left to right, line by line."""
    drawing: Drawing = field(default_factory=Drawing)
    hidden: str = ""
    """Text that the page has but doesn't show: white on white, off the page, too small, covered, without paint."""

    @property
    def is_scan(self) -> bool:
        """Whether the page is a picture with hardly any text of its own."""
        area = max((image.x1 - image.x0) * (image.bottom - image.top) for image in self.drawing.images or [_NOTHING])
        letters = sum(len(word.text) for word in self.words)
        return letters < _FEW and area > (_MOST if letters else _SOME) * self.width * self.height


class _Style(NamedTuple):
    size: float
    face: str
    turned: bool
    seen: bool | None  # None where only the painted page can tell


def read_page(document: PdfDocument, number: int) -> Content:
    """The content of a page, counted from 0. The caller holds the lock of PDFium. Raises PdfiumError."""
    import pypdfium2.raw as pdfium

    page = document[number]
    try:
        frame = _Frame(page)
        links = read_links(page, frame.box)
        if has_notes(page) and pdfium.FPDFPage_Flatten(page.raw, pdfium.FLAT_NORMALDISPLAY) == pdfium.FLATTEN_SUCCESS:
            page.close()
            page = document[number]  # what was typed into a form is text of the page now
        text_page = page.get_textpage()
        try:
            content = _read(page, text_page, frame, links)
        finally:
            text_page.close()
        if content.is_scan:
            _recognise(page, content)
        return content
    finally:
        page.close()


def _recognise(page: PdfPage, content: Content) -> None:
    """Read a scanned page by OCR, where that is installed."""
    from ragfm.parsing.own.media.ocr import has_ocr, read_words

    if has_ocr():
        pixels = paint(page, _OCR_SCALE)
        words = read_words(pixels, pixels.shape[1] / max(content.width, 1))
        content.words = words or content.words


def _read(page: PdfPage, text_page: PdfTextPage, frame: _Frame, links: list[tuple[Box, str]]) -> Content:
    content = Content(frame.width, frame.height, drawing=read_drawing(page, frame.box))
    content.drawing.links = links
    doubtful = _Characters(text_page, frame, content).read()
    if doubtful:
        hidden = unseen(page, doubtful, content.words)
        content.words = [word for word in content.words if id(word) not in hidden]
        content.hidden += " " + " ".join(word.text for word in doubtful if id(word) in hidden)
    return content


class _Frame:
    """From the page's own coordinates to those of the reader."""

    def __init__(self, page: PdfPage) -> None:
        self._x0, self._y0, self._x1, self._y1 = page.get_bbox()
        self._turn = page.get_rotation() % 360
        width, height = self._x1 - self._x0, self._y1 - self._y0
        self.width, self.height = (height, width) if self._turn in (90, 270) else (width, height)

    def box(self, left: float, bottom: float, right: float, top: float) -> Box:
        if self._turn == 0:
            return Box(left - self._x0, self._y1 - top, right - self._x0, self._y1 - bottom)
        if self._turn == 90:
            return Box(bottom - self._y0, left - self._x0, top - self._y0, right - self._x0)
        if self._turn == 180:
            return Box(self._x1 - right, bottom - self._y0, self._x1 - left, top - self._y0)
        return Box(self._y1 - top, self._x1 - right, self._y1 - bottom, self._x1 - left)

    def turned(self, a: float, b: float) -> bool:
        """Whether text whose matrix begins with a, b does not run from left to right as the page is shown."""
        off = (math.degrees(math.atan2(b, a)) - self._turn + 180) % 360 - 180
        return not -10 < off < 10


class _Characters:
    """Reads the characters of a page, and puts them together to words."""

    def __init__(self, text_page: PdfTextPage, frame: _Frame, content: Content) -> None:
        self._text_page = text_page
        self._frame = frame
        self._content = content
        self._styles: dict[int, _Style] = {}
        self._faces: dict[int, str] = {}
        self._doubtful: list[Word] = []
        self._letters: list[str] = []
        self._box = self._last = Box(0, 0, 0, 0)  # of the word, and of its last letter
        self._style = _Style(0, "", False, True)

    def read(self) -> list[Word]:
        """One pass over the characters; a word ends at white space, a gap, or another line. Gives doubtful words."""
        import pypdfium2.raw as pdfium

        count, handle = self._text_page.count_chars(), self._text_page.raw
        code_of, object_of, loose = (
            pdfium.FPDFText_GetUnicode,
            pdfium.FPDFText_GetTextObject,
            pdfium.FPDFText_GetLooseCharBox,
        )
        rect = pdfium.FS_RECTF()
        rect_at, address = ctypes.byref(rect), ctypes.addressof
        hidden: list[str] = []
        turned: list[str] = []
        for i in range(count):
            code = code_of(handle, i)
            pointer = object_of(handle, i)
            if (code <= 32 and code != 2) or code == 0xA0:
                self._end()
                for text in (hidden, turned):
                    if text and text[-1] != " ":
                        text.append(" ")
                continue
            if not pointer or code in _IGNORED:
                continue
            loose(handle, i, rect_at)
            box = self._frame.box(rect.left, rect.bottom, rect.right, rect.top)
            key = address(pointer.contents)
            style = self._styles.get(key)
            if style is None:
                style = self._styles[key] = self._style_of(i, pointer, key, box)
            letter = HYPHEN if code in (2, 0xFFFE) else _LIGATURES.get(code) or chr(code)
            if style.seen is False or self._off_page(box):
                hidden.append(letter)
            elif style.turned:
                turned.append(letter)
            else:
                self._add(letter, box, style)
        self._end()
        self._content.hidden = _whole("".join(hidden)).strip()
        if rest := _whole("".join(turned)).strip():
            self._content.turned.append(rest)
        return self._doubtful

    def _add(self, letter: str, box: Box, style: _Style) -> None:
        last = self._box
        if self._letters:
            overlap = min(box.bottom, last.bottom) - max(box.top, last.top)
            same_line = overlap > 0.4 * min(box.bottom - box.top, last.bottom - last.top)
            gap = max(box.x0 - last.x1, last.x0 - box.x1)
            other = gap > 0.3 * style.size or style.seen != self._style.seen
            if not same_line or other or self._letters[-1] == HYPHEN:
                self._end()
        if not self._letters:
            self._letters, self._box, self._style = [letter], box, style
        else:
            # PDFium turns the letters of one sign round, where a word runs from right to left.
            turned = box == self._last and "\u0590" <= letter <= "\u08ff"
            self._letters.insert(len(self._letters) - turned, letter)
            self._box = Box(
                min(last.x0, box.x0), min(last.top, box.top), max(last.x1, box.x1), max(last.bottom, box.bottom)
            )

        self._last = box

    def _end(self) -> None:
        if not self._letters:
            return
        text, box = _whole("".join(self._letters)), self._box
        self._letters = []
        style, link = self._style, self._content.drawing.link_at(box)
        word = Word(text, box.x0, box.top, box.x1, box.bottom, style.size, style.face, link)
        self._content.words.append(word)
        if style.seen is None:
            self._doubtful.append(word)

    def _off_page(self, box: Box) -> bool:
        x, y = (box.x0 + box.x1) / 2, (box.top + box.bottom) / 2
        return not (-1 <= x <= self._frame.width + 1 and -1 <= y <= self._frame.height + 1)

    def _style_of(self, index: int, pointer: Any, key: int, box: Box) -> _Style:
        import pypdfium2.raw as pdfium

        matrix = pdfium.FS_MATRIX()
        pdfium.FPDFText_GetMatrix(self._text_page.raw, index, ctypes.byref(matrix))
        size = abs(pdfium.FPDFText_GetFontSize(self._text_page.raw, index)) * math.hypot(matrix.c, matrix.d)
        if not size:  # a font of Type 3 may have none
            size = box.bottom - box.top
        turned = self._frame.turned(matrix.a, matrix.b)
        seen = False if size < _SMALLEST else self._is_seen(pointer, key, box)
        return _Style(size, self._face(pointer), turned, seen)

    def _face(self, pointer: Any) -> str:
        import pypdfium2.raw as pdfium

        font = pdfium.FPDFTextObj_GetFont(pointer)
        if not font:
            return ""
        key = ctypes.addressof(font.contents)
        if key not in self._faces:
            buffer = ctypes.create_string_buffer(256)
            pdfium.FPDFFont_GetBaseFontName(font, buffer, len(buffer))
            name = buffer.value.decode("latin-1")
            if pdfium.FPDFFont_GetWeight(font) >= 600 or _BOLD.search(name):
                self._faces[key] = "bold"
            else:
                italic = pdfium.FPDFFont_GetFlags(font) & _ITALIC_FLAG or _ITALIC.search(name)
                self._faces[key] = "italic" if italic else ""
        return self._faces[key]

    def _is_seen(self, pointer: Any, key: int, box: Box) -> bool | None:
        import pypdfium2.raw as pdfium

        drawing = self._content.drawing
        mode = pdfium.FPDFTextObj_GetTextRenderMode(pointer)
        if mode in (_INVISIBLE, _CLIPPING):
            return drawing.over_image(box)  # the text layer of a scan is invisible, and stands over its image
        red, green, blue, alpha = (ctypes.c_uint() for _ in range(4))
        if mode not in _FILLED or not pdfium.FPDFPageObj_GetFillColor(pointer, red, green, blue, alpha):
            return True
        if alpha.value < _FAINT:
            return False
        return None if drawing.may_hide(box, drawing.orders.get(key, 0), (red.value, green.value, blue.value)) else True


def _whole(text: str) -> str:
    """The text with pairs of surrogates put together; PDFium may give them one by one."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
