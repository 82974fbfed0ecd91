"""Everything on a PDF page that is not text: rules, filled areas and images in the order of painting, and links."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import pypdfium2.raw as pdfium
from numpy.typing import NDArray
from pypdfium2 import PdfMatrix

from ragfm.parsing.own.pdf.pdf_types import Box

if TYPE_CHECKING:
    from pypdfium2 import PdfPage

    Colour: TypeAlias = tuple[int, int, int]

_MAX_RULE_WIDTH = 2.5  # points; a thinner path is a rule
_MAX_OBJECTS = 20_000  # a map has hundreds of thousands, and no tables
_MAX_SEGMENTS = 400  # of one path; a grid may be one path
_MAX_AREAS = 400
_PAPER = (255, 255, 255)
_MIN_DIFFERENCE = 24  # of 255: two colours that differ by less in all channels look the same
_MAX_DEPTH = 8  # forms within forms
_MAX_ANNOTATIONS = 2_000
_MAX_LAYERS = 8  # of one page; the text of all others is checked together
_OC = "OC".encode("utf-16-le")
# PDFium's numbers of object types, segment types, annotation types and actions.
_TEXT, _PATH, _IMAGE, _SHADING, _FORM = 1, 2, 3, 4, 5
_LINE_TO, _MOVE_TO = 0, 2
_FREE_TEXT, _STAMP, _WIDGET = 3, 13, 20
_URI_ACTION = 3

ToBox: TypeAlias = Callable[[float, float, float, float], Box]
"""Converts left, bottom, right, top in the page's own coordinates to a box on the displayed page."""


class _Area(NamedTuple):
    order: int
    box: Box
    colour: Colour | None  # None: an image or a shading, of any colour


@dataclass
class Drawing:
    """What is drawn on a page; a rule is a box that is thin in one direction."""

    rules: list[Box] = field(default_factory=list)
    areas: list[_Area] = field(default_factory=list)
    images: list[Box] = field(default_factory=list)
    has_shapes: bool = False
    """Whether there are paths with curves or diagonal lines."""
    paint_order: dict[int, int] = field(default_factory=dict)
    """Position of each text object, by its address, in the order of painting."""
    links: list[tuple[Box, str]] = field(default_factory=list)
    layers: dict[str, list[Any]] = field(default_factory=dict)
    """The text objects of each layer, which may be switched off."""
    layer_names: dict[int, str] = field(default_factory=dict)
    """The layer of each text object that has one, by its address."""

    def may_hide(self, box: Box, order: int, colour: Colour) -> bool:
        """Whether text of a colour might be invisible: the page or an area has its colour, or an area covers it.

        Text that an image covers counts as visible: scans have their recognized text below the image.
        """
        if _look_alike(colour, _PAPER):
            return True
        if not self.areas:
            return False
        x, y = box.center
        x0, top, x1, bottom = self._area_sides
        # A page may have thousands of texts and hundreds of shaded cells.
        around = ((x0 <= x) & (x <= x1) & (top <= y) & (y <= bottom)).nonzero()[0].tolist()
        return any(
            area.colour is not None and (area.order > order or _look_alike(colour, area.colour))
            for area in (self.areas[at] for at in around)
        )

    @cached_property
    def _area_sides(self) -> NDArray[np.float64]:
        """The sides of all areas, once these are complete. *Shape:* (4, n)."""
        return np.array([area.box for area in self.areas], dtype=np.float64).T.copy()


def _look_alike(first: Colour, second: Colour) -> bool:
    (red, green, blue), (other_red, other_green, other_blue) = first, second
    return (
        abs(red - other_red) < _MIN_DIFFERENCE
        and abs(green - other_green) < _MIN_DIFFERENCE
        and abs(blue - other_blue) < _MIN_DIFFERENCE
    )


def has_text_annotations(page: PdfPage) -> bool:
    """Whether a page has annotations that show text: form fields, typed notes, stamps."""
    for i in range(min(pdfium.FPDFPage_GetAnnotCount(page.raw), _MAX_ANNOTATIONS)):
        annotation = pdfium.FPDFPage_GetAnnot(page.raw, i)
        subtype = pdfium.FPDFAnnot_GetSubtype(annotation)
        pdfium.FPDFPage_CloseAnnot(annotation)
        if subtype in (_FREE_TEXT, _STAMP, _WIDGET):
            return True
    return False


def read_links(page: PdfPage, to_box: ToBox) -> list[tuple[Box, str]]:
    """Return the box and the address of each web and email link on a page."""
    links = []
    position, link = ctypes.c_int(0), pdfium.FPDF_LINK()
    while pdfium.FPDFLink_Enumerate(page.raw, position, link):
        action = pdfium.FPDFLink_GetAction(link)
        rect = pdfium.FS_RECTF()
        if not action or pdfium.FPDFAction_GetType(action) != _URI_ACTION:
            continue
        if not pdfium.FPDFLink_GetAnnotRect(link, rect):
            continue
        buffer = ctypes.create_string_buffer(2048)
        length = pdfium.FPDFAction_GetURIPath(page.pdf.raw, action, buffer, len(buffer))
        address = buffer.value.decode("utf-8", "replace") if 0 < length <= len(buffer) else ""
        if address.startswith(("http://", "https://", "mailto:")):
            bottom, top = sorted((rect.bottom, rect.top))
            links.append((to_box(rect.left, bottom, rect.right, top), address))
    return links


def read_drawing(page: PdfPage, to_box: ToBox) -> Drawing:
    """Return everything that is drawn on a page, except links."""
    drawing = Drawing()
    reader = _ObjectReader(drawing, to_box)
    for i in range(min(pdfium.FPDFPage_CountObjects(page.raw), _MAX_OBJECTS)):
        reader.read(pdfium.FPDFPage_GetObject(page.raw, i), None, 0)
    return drawing


class _ObjectReader:
    """Visits the objects of a page, including those in forms."""

    def __init__(self, drawing: Drawing, to_box: ToBox) -> None:
        self._drawing = drawing
        self._to_box = to_box
        self._order = 0

    def read(self, item: Any, matrix: PdfMatrix | None, depth: int, layer: str | None = None) -> None:
        """Read an object; `matrix` is that of the forms around it."""
        if not item or self._order > _MAX_OBJECTS:
            return
        self._order += 1
        kind = pdfium.FPDFPageObj_GetType(item)
        if kind in (_TEXT, _FORM):
            layer = _layer_of(item) or layer
        if kind == _TEXT:
            address, layers = ctypes.addressof(item.contents), self._drawing.layers
            self._drawing.paint_order[address] = self._order
            if layer is not None:
                name = layer if layer in layers or len(layers) < _MAX_LAYERS else "others"
                layers.setdefault(name, []).append(item)
                self._drawing.layer_names[address] = name
        elif kind == _PATH:
            self._read_path(item, matrix)
        elif kind in (_IMAGE, _SHADING):
            box = self._bounds(item, matrix)
            self._drawing.areas.append(_Area(self._order, box, None))
            if kind == _IMAGE:
                self._drawing.images.append(box)
        elif kind == _FORM and depth < _MAX_DEPTH:
            inner = _matrix_of(item, matrix)
            for i in range(pdfium.FPDFFormObj_CountObjects(item)):
                self.read(pdfium.FPDFFormObj_GetObject(item, i), inner, depth + 1, layer)

    def _read_path(self, item: Any, matrix: PdfMatrix | None) -> None:
        fill_mode, stroke = ctypes.c_int(), ctypes.c_int()
        pdfium.FPDFPath_GetDrawMode(item, fill_mode, stroke)
        box = self._bounds(item, matrix)
        if min(box.x1 - box.x0, box.bottom - box.top) < _MAX_RULE_WIDTH:
            if fill_mode.value or stroke.value:
                self._drawing.rules.append(box)
            return
        count = pdfium.FPDFPath_CountSegments(item)
        if fill_mode.value:
            red, green, blue, alpha = (ctypes.c_uint() for _ in range(4))
            has_colour = pdfium.FPDFPageObj_GetFillColor(item, red, green, blue, alpha)
            opaque = alpha.value == 255 and not pdfium.FPDFPageObj_HasTransparency(item)
            if len(self._drawing.areas) < _MAX_AREAS:
                colour = (red.value, green.value, blue.value) if has_colour and opaque and count <= 5 else None
                self._drawing.areas.append(_Area(self._order, box, colour))
        if not 1 < count <= _MAX_SEGMENTS:
            self._drawing.has_shapes |= count > _MAX_SEGMENTS and bool(fill_mode.value or stroke.value)
            return

        # Straight segments that run along the page are rules.
        matrix = _matrix_of(item, matrix)
        x, y = ctypes.c_float(), ctypes.c_float()
        start = last = (0.0, 0.0)
        is_straight = True
        for i in range(count):
            segment = pdfium.FPDFPath_GetPathSegment(item, i)
            kind = pdfium.FPDFPathSegment_GetType(segment)
            pdfium.FPDFPathSegment_GetPoint(segment, x, y)
            point = matrix.on_point(x.value, y.value)
            if kind == _MOVE_TO:
                start = point
            elif kind == _LINE_TO:
                is_straight &= self._add_rule(last, point)
            else:
                is_straight = False
            last = point
            if pdfium.FPDFPathSegment_GetClose(segment):
                is_straight &= self._add_rule(point, start)
                last = start
        self._drawing.has_shapes |= not is_straight and bool(fill_mode.value or stroke.value)

    def _add_rule(self, first: tuple[float, float], last: tuple[float, float]) -> bool:
        """Add a segment if it runs along the page. Returns whether it does."""
        (x0, y0), (x1, y1) = first, last
        is_rule = abs(x0 - x1) < 1 or abs(y0 - y1) < 1
        if is_rule:
            self._drawing.rules.append(self._to_box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))
        return is_rule

    def _bounds(self, item: Any, matrix: PdfMatrix | None) -> Box:
        left, bottom, right, top = (ctypes.c_float() for _ in range(4))
        pdfium.FPDFPageObj_GetBounds(item, left, bottom, right, top)
        sides = left.value, bottom.value, right.value, top.value
        return self._to_box(*(matrix.on_rect(*sides) if matrix else sides))


def _layer_of(item: Any) -> str | None:
    """The name of the layer that an object is marked with, None if there is none."""
    names = []
    for i in range(pdfium.FPDFPageObj_CountMarks(item)):
        mark, length = pdfium.FPDFPageObj_GetMark(item, i), ctypes.c_ulong()
        buffer = (pdfium.FPDF_WCHAR * 128)()
        pdfium.FPDFPageObjMark_GetName(mark, buffer, ctypes.sizeof(buffer), length)
        if bytes(buffer)[: length.value - 2] == _OC:
            pdfium.FPDFPageObjMark_GetParamStringValue(mark, b"Name", buffer, ctypes.sizeof(buffer), length)
            names.append(bytes(buffer)[: length.value].decode("utf-16-le", "replace"))
    return "/".join(names) if names else None


def _matrix_of(item: Any, around: PdfMatrix | None) -> PdfMatrix:
    """The matrix of an object on the page; `around` is that of the forms around it."""
    raw = pdfium.FS_MATRIX()
    pdfium.FPDFPageObj_GetMatrix(item, raw)
    matrix = PdfMatrix.from_raw(raw)
    return matrix.multiply(around) if around else matrix
