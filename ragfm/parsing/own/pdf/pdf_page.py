"""The content of one PDF page: words with their positions, rules, links, images, and hidden text."""

from __future__ import annotations

import ctypes
import math
import re
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pypdfium2.raw as pdfium

from ragfm.parsing.own.media.ocr import has_ocr, recognize_words
from ragfm.parsing.own.pdf.pdf_drawing import Drawing, has_text_annotations, read_drawing, read_links
from ragfm.parsing.own.pdf.pdf_types import HYPHEN, Box, Figure, Word
from ragfm.parsing.own.pdf.pdf_visibility import find_invisible, find_switched_off, rasterize, render
from ragfm.parsing.rendering import SUPERSCRIPTS

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage, PdfTextPage

_MIN_FONT_SIZE = 1.0  # points; smaller text is not readable
_MIN_OPACITY = 12  # of 255; text with less is not visible
_INVISIBLE_MODE, _CLIPPING_MODE = 3, 7  # text render modes that paint nothing
_FILL_MODES = (0, 4)  # text render modes that fill and draw no outline
# Font names are the best evidence: many fonts have no weight or a wrong one. CMBX and SFBX are TeX's, Medi is Nimbus's.
_BOLD = re.compile(r"bold|black|heavy|demi|medi\b|^(?:.{6}\+)?(?:cm|sf|ec|lm)[a-z]*bx", re.IGNORECASE)
_ITALIC = re.compile(r"italic|oblique|^(?:.{6}\+)?(?:cm|sf|ec)ti", re.IGNORECASE)
_ITALIC_FLAG = 64
_LIGATURES = {0xFB00 + i: letters for i, letters in enumerate(("ff", "fi", "fl", "ffi", "ffl", "st", "st"))}
_MAX_SUPERSCRIPT = 0.8  # times the font size of the text before
_MIN_RISE = 0.2  # times the font size of the text before
_MIN_INITIAL = 1.8  # times the font size: a letter at the start of a paragraph that is as high as two lines
_SPACES = frozenset({0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000})  # thin ones separate thousands
_IGNORED_CODES = frozenset({0, 0xAD, 0x200B, 0xFEFF, 0xFFFF})
_MAX_SCAN_CHARACTERS = 30  # a scanned page may have a page number or a stamp as text
_SCAN_AREA = 0.3  # share of the page that an image must cover to be a scan of it
_SCAN_AREA_WITHOUT_TEXT = 0.01  # the same where the page has no text at all
_OCR_SCALE = 2.5  # pixels per point: 180 dpi


@dataclass
class PageContent:
    """A page: its words in the order in which the file draws them, and everything else on it."""

    width: float
    height: float
    words: list[Word] = field(default_factory=list)
    turned: dict[int, list[Word]] = field(default_factory=dict)
    """Words that run from left to right once the page is turned clockwise by 90, 180 or 270 degrees, with the
    coordinates of the turned page."""
    slanted: str = ""
    """Text that runs in another direction, such as a watermark."""
    drawing: Drawing = field(default_factory=Drawing)
    figures: list[Figure] = field(default_factory=list)
    image: bytes = b""
    """The whole page as an image, if it is kept."""
    hidden_text: str = ""
    """Text that the page has but does not show: white on white, off the page, too small, covered, in an invisible
    mode, in a layer that is switched off."""

    def turned_box(self, box: Box, degrees: int) -> Box:
        """A box in the coordinates of the page turned clockwise by 90, 180 or 270 degrees."""
        if degrees == 90:
            return Box(self.height - box.bottom, box.x0, self.height - box.top, box.x1)
        if degrees == 180:
            return Box(self.width - box.x1, self.height - box.bottom, self.width - box.x0, self.height - box.top)
        return Box(box.top, self.width - box.x1, box.bottom, self.width - box.x0)

    @property
    def is_scan(self) -> bool:
        """Whether the page is an image with hardly any text of its own."""
        image_area = max(((box.x1 - box.x0) * (box.bottom - box.top) for box in self.drawing.images), default=0)
        characters = sum(len(word.text) for words in (self.words, *self.turned.values()) for word in words)
        min_share = _SCAN_AREA if characters else _SCAN_AREA_WITHOUT_TEXT
        return characters < _MAX_SCAN_CHARACTERS and image_area > min_share * self.width * self.height


class _Style(NamedTuple):
    size: float
    face: str
    turn: int | None  # degrees to turn the page clockwise, to read from left to right; None if no quarter turn does
    visible: bool | None  # None where only the rasterized page can decide
    layer: str | None


def read_page(document: PdfDocument, index: int, *, images: bool | Literal["pages"] = False) -> PageContent:
    """Return the content of page `index`, counted from 0, without figures; a page that is one has its image.

    The caller holds the PDFium lock. Raises PdfiumError.
    """
    page = document[index]
    try:
        geometry = _Geometry(page)
        links = read_links(page, geometry.to_box)
        if has_text_annotations(page):
            status = pdfium.FPDFPage_Flatten(page.raw, pdfium.FLAT_NORMALDISPLAY)
            if status == pdfium.FLATTEN_SUCCESS:
                page.close()
                page = document[index]  # text in form fields is text of the page now
        text_page = page.get_textpage()
        try:
            content = PageContent(geometry.width, geometry.height, drawing=read_drawing(page, geometry.to_box))
            content.drawing.links = links
            reader = _WordReader(text_page, geometry, content)
            suspects = reader.read()
            words, invisible = content.words, set[int]()
            if reader.layered:
                invisible |= find_switched_off(page, content.drawing.layers, reader.layered)
                content.words = [word for word in words if id(word) not in invisible]
            if suspects:
                invisible |= find_invisible(page, suspects, content.words)
                content.words = [word for word in words if id(word) not in invisible]
            if invisible:
                content.hidden_text += " " + " ".join(word.text for word in words if id(word) in invisible)
        finally:
            text_page.close()
        is_scan = content.is_scan
        if is_scan and has_ocr():
            pixels = rasterize(page, _OCR_SCALE)
            words = recognize_words(pixels, pixels.shape[1] / max(content.width, 1))
            content.words = words or content.words
        is_blank = not (content.words or content.turned or content.drawing.images or content.drawing.has_shapes)
        if (images == "pages" and not is_blank) or (images and is_scan):
            content.image = render(page, Box(0, 0, content.width, content.height))
        return content
    finally:
        page.close()


class _Geometry:
    """Converts the page's own coordinates to those of the displayed page."""

    def __init__(self, page: PdfPage) -> None:
        self._x0, self._y0, self._x1, self._y1 = page.get_bbox()
        self._rotation = page.get_rotation() % 360
        width, height = self._x1 - self._x0, self._y1 - self._y0
        self.width, self.height = (height, width) if self._rotation in (90, 270) else (width, height)

    def to_box(self, left: float, bottom: float, right: float, top: float) -> Box:
        if self._rotation == 0:
            return Box(left - self._x0, self._y1 - top, right - self._x0, self._y1 - bottom)
        if self._rotation == 90:
            return Box(bottom - self._y0, left - self._x0, top - self._y0, right - self._x0)
        if self._rotation == 180:
            return Box(self._x1 - right, bottom - self._y0, self._x1 - left, top - self._y0)
        return Box(self._y1 - top, self._x1 - right, self._y1 - bottom, self._x1 - left)

    def turn(self, a: float, b: float) -> int | None:
        """The degrees by which to turn the displayed page, so that text whose matrix begins with a, b is upright."""
        degrees = math.degrees(math.atan2(b, a)) - self._rotation
        nearest = 90 * round(degrees / 90)
        return nearest % 360 if abs(degrees - nearest) < 10 else None


class _WordReader:
    """Reads the characters of a page and groups them into words."""

    def __init__(self, text_page: PdfTextPage, geometry: _Geometry, content: PageContent) -> None:
        self._text_page = text_page
        self._geometry = geometry
        self._content = content
        self._styles: dict[int, _Style] = {}  # by the address of the text object
        self._faces: dict[int, str] = {}  # by the address of the font
        self._suspects: list[Word] = []
        self.layered: dict[str, list[Word]] = {}
        """The words of each layer."""
        self._characters: list[str] = []  # of the current word
        self._box = self._last_box = Box(0, 0, 0, 0)  # of the current word, and of its last character
        self._style = _Style(0, "", 0, True, None)
        self._last_large = ""  # letter or digit of the current word that is not a superscript
        # Filled by PDFium for each text object, which some files have one of per character.
        self._matrix = pdfium.FS_MATRIX()
        self._channels = tuple(ctypes.c_uint() for _ in range(4))
        self._matrix_pointer = ctypes.byref(self._matrix)
        self._channel_pointers = tuple(map(ctypes.byref, self._channels))

    def read(self) -> list[Word]:
        """Add the words to the content in one pass, and return those whose visibility is uncertain.

        A word ends at white space, at a gap, or where another line begins.
        """
        # Local names: the loop runs once per character.
        count, handle = self._text_page.count_chars(), self._text_page.raw
        get_code, get_object = pdfium.FPDFText_GetUnicode, pdfium.FPDFText_GetTextObject
        get_box = pdfium.FPDFText_GetLooseCharBox
        rect = pdfium.FS_RECTF()
        rect_pointer, address = ctypes.byref(rect), ctypes.addressof
        to_box, page_right, page_bottom = self._geometry.to_box, self._geometry.width + 1, self._geometry.height + 1
        hidden: list[str] = []
        slanted: list[str] = []
        for i in range(count):
            code = get_code(handle, i)
            text_object = get_object(handle, i)
            if (code <= 32 and code != 2) or code in _SPACES:
                self._end_word()
                for text in (hidden, slanted):
                    if text and text[-1] != " ":
                        text.append(" ")
                continue
            if not text_object or code in _IGNORED_CODES:
                continue
            get_box(handle, i, rect_pointer)
            box = to_box(rect.left, rect.bottom, rect.right, rect.top)
            key = address(text_object.contents)
            style = self._styles.get(key)
            if style is None:
                style = self._styles[key] = self._read_style(i, text_object, key, box)
            if code in (2, 0xFFFE):
                character = HYPHEN
            else:
                character = _LIGATURES.get(code) or (chr(code) if code <= sys.maxunicode else "\ufffd")
            x, y = box.center
            on_page = -1 <= x <= page_right and -1 <= y <= page_bottom
            if style.visible is False or not on_page:
                hidden.append(character)
                continue
            if style.turn is None:
                slanted.append(character)
                continue
            if style.turn:
                box = self._content.turned_box(box, style.turn)
            word = self._box
            if self._characters:
                overlap = min(box.bottom, word.bottom) - max(box.top, word.top)
                same_line = overlap > 0.4 * min(box.bottom - box.top, word.bottom - word.top)
                gap = max(box.x0 - word.x1, word.x0 - box.x1)
                other_visibility = style.visible != self._style.visible or style.layer != self._style.layer
                separate = gap > 0.3 * style.size or other_visibility
                if style.turn != self._style.turn or not same_line or separate or self._characters[-1] == HYPHEN:
                    self._end_word()
            if not self._characters:
                self._characters, self._box, self._style, self._last_large = [character], box, style, character
            else:
                if style.size >= _MAX_SUPERSCRIPT * self._style.size:
                    self._last_large = character if character.isalnum() else self._last_large
                elif (
                    box.bottom < word.bottom - _MIN_RISE * self._style.size
                    and self._last_large.isdecimal()
                    and self._characters.count("(") == self._characters.count(")")  # the one in "(1)" is clear
                ):
                    character = character.translate(SUPERSCRIPTS)  # 10⁶, not 106: an exponent or a footnote
                # PDFium reverses the letters of one glyph in words that run from right to left.
                is_reversed = box == self._last_box and "\u0590" <= character <= "\u08ff"
                self._characters.insert(len(self._characters) - is_reversed, character)
                self._box = Box(
                    min(word.x0, box.x0), min(word.top, box.top), max(word.x1, box.x1), max(word.bottom, box.bottom)
                )
            self._last_box = box
        self._end_word()
        self._join_initials()
        self._content.hidden_text = _join_surrogates("".join(hidden)).strip()
        self._content.slanted = _join_surrogates("".join(slanted)).strip()
        return self._suspects

    def _end_word(self) -> None:
        if not self._characters:
            return
        text, box, style = _join_surrogates("".join(self._characters)), self._box, self._style
        self._characters = []
        if style.turn:
            word = Word(text, box.x0, box.top, box.x1, box.bottom, style.size, style.face)
            self._content.turned.setdefault(style.turn, []).append(word)
            return
        x, y = box.center
        link = next((address for link_box, address in self._content.drawing.links if link_box.contains(x, y)), "")
        word = Word(text, box.x0, box.top, box.x1, box.bottom, style.size, style.face, link)
        self._content.words.append(word)
        if style.visible is None:
            self._suspects.append(word)
        # The recognized text of a scan is invisible.
        if style.layer is not None and not any(image.contains(x, y) for image in self._content.drawing.images):
            self.layered.setdefault(style.layer, []).append(word)

    def _join_initials(self) -> None:
        """Join the large letter with which a paragraph begins to the rest of its word, at the top right of it."""
        words = self._content.words
        joined = set()
        for initial, rest in pairwise(words):
            if (
                initial.size > _MIN_INITIAL * rest.size
                and len(initial.text) == 1
                and (initial.text + rest.text[0]).isalpha()
                and initial.text.isupper()
                and initial.bottom - rest.bottom > 0.5 * rest.size
                and rest.center_y > initial.top
                and -0.1 * initial.size < rest.x0 - initial.x1 < rest.size
            ):
                if initial.text == "A" and len(rest.text) > 2:  # more often a word than the start of one
                    initial.top, initial.bottom, initial.size = rest.top, rest.bottom, rest.size
                    initial.x0 = initial.x1 = rest.x0 - 0.3 * rest.size
                    continue
                rest.text = initial.text + rest.text
                joined.add(id(initial))
        if joined:
            self._content.words = [word for word in words if id(word) not in joined]

    def _read_style(self, index: int, text_object: Any, key: int, box: Box) -> _Style:
        found = pdfium.FPDFText_GetMatrix(self._text_page.raw, index, self._matrix_pointer)
        matrix = self._matrix if found else pdfium.FS_MATRIX()
        size = abs(pdfium.FPDFText_GetFontSize(self._text_page.raw, index)) * math.hypot(matrix.c, matrix.d)
        if not size:  # a Type 3 font may have none
            size = box.bottom - box.top
        visible: bool | None = size >= _MIN_FONT_SIZE
        drawing, mode = self._content.drawing, pdfium.FPDFTextObj_GetTextRenderMode(text_object)
        if visible and mode in (_INVISIBLE_MODE, _CLIPPING_MODE):
            # The text layer of a scan is invisible text over the image.
            visible = any(image.contains(*box.center) for image in drawing.images)
        elif visible and mode in _FILL_MODES and pdfium.FPDFPageObj_GetFillColor(text_object, *self._channel_pointers):
            red, green, blue, alpha = (channel.value for channel in self._channels)
            if alpha < _MIN_OPACITY:
                visible = False
            elif drawing.may_hide(box, drawing.paint_order.get(key, 0), (red, green, blue)):
                visible = None
        font = pdfium.FPDFTextObj_GetFont(text_object)
        font_key = ctypes.addressof(font.contents) if font else 0
        if font and font_key not in self._faces:
            buffer = ctypes.create_string_buffer(256)
            pdfium.FPDFFont_GetBaseFontName(font, buffer, len(buffer))
            name = buffer.value.decode("latin-1")
            is_bold = pdfium.FPDFFont_GetWeight(font) >= 600 or _BOLD.search(name)
            is_italic = not is_bold and (pdfium.FPDFFont_GetFlags(font) & _ITALIC_FLAG or _ITALIC.search(name))
            self._faces[font_key] = "bold" if is_bold else "italic" if is_italic else ""
        face, layer = self._faces.get(font_key, ""), drawing.layer_names.get(key)
        return _Style(size, face, self._geometry.turn(matrix.a, matrix.b), visible, layer)


def _join_surrogates(text: str) -> str:
    """Combine surrogate pairs, which PDFium may return as two characters."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
