"""What is drawn on a page of a PDF beside text: rules, filled areas and images, in the order of painting; links."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from pypdfium2 import PdfPage

    Colour: TypeAlias = tuple[int, int, int]

_THIN = 2.5  # points: what is thinner is a rule
_MAX_OBJECTS = 20_000  # a map has hundreds of thousands, and no tables
_MAX_SEGMENTS = 400  # of one path; a grid may be one
_MAX_FILLS = 400
_PAPER = (255, 255, 255)
_ALIKE = 24  # of 255: two colours that differ by less in all channels can hardly be told apart
_MAX_DEPTH = 8  # forms within forms
_TEXT, _PATH, _IMAGE, _SHADING, _FORM = 1, 2, 3, 4, 5
_LINE_TO, _MOVE_TO = 0, 2
_FREE_TEXT, _STAMP, _WIDGET = 3, 13, 20
_MAX_ANNOTATIONS = 2_000
_URI = 3


class Box(NamedTuple):
    """A rectangle; `top` is less than `bottom`."""

    x0: float
    top: float
    x1: float
    bottom: float

    def holds(self, x: float, y: float) -> bool:
        """Whether a point is in it."""
        return self.x0 <= x <= self.x1 and self.top <= y <= self.bottom


class _Area(NamedTuple):
    order: int
    box: Box
    colour: Colour | None  # None: an image or a shading, of any colour


@dataclass
class Drawing:
    """Rules as boxes that are thin one way, areas, and when each text object is painted."""

    rules: list[Box] = field(default_factory=list)
    areas: list[_Area] = field(default_factory=list)
    images: list[Box] = field(default_factory=list)
    orders: dict[int, int] = field(default_factory=dict)
    """The place of a text object, by its address, in the order of painting."""
    links: list[tuple[Box, str]] = field(default_factory=list)

    def over_image(self, box: Box) -> bool:
        """Whether a place lies within an image."""
        x, y = (box.x0 + box.x1) / 2, (box.top + box.bottom) / 2
        return any(image.holds(x, y) for image in self.images)

    def may_hide(self, box: Box, order: int, colour: Colour) -> bool:
        """Whether text of a colour might not be seen there: the page or an area has its colour, or an area covers it.

        What an image covers counts as seen: scans have the text that was recognised below the image.
        """
        if _alike(colour, _PAPER):
            return True
        x, y = (box.x0 + box.x1) / 2, (box.top + box.bottom) / 2
        return any(
            area.colour is not None and (area.order > order or _alike(colour, area.colour)) and area.box.holds(x, y)
            for area in self.areas
        )

    def link_at(self, box: Box) -> str:
        """The address that a place leads to; empty where there is none."""
        if not self.links:
            return ""
        x, y = (box.x0 + box.x1) / 2, (box.top + box.bottom) / 2
        return next((address for place, address in self.links if place.holds(x, y)), "")


def _alike(first: Colour, second: Colour) -> bool:
    return all(abs(a - b) < _ALIKE for a, b in zip(first, second, strict=True))


def has_notes(page: PdfPage) -> bool:
    """Whether a page has annotations that show text: fields of forms, typed notes, stamps."""
    import pypdfium2.raw as pdfium

    for i in range(min(pdfium.FPDFPage_GetAnnotCount(page.raw), _MAX_ANNOTATIONS)):
        annotation = pdfium.FPDFPage_GetAnnot(page.raw, i)
        kind = pdfium.FPDFAnnot_GetSubtype(annotation)
        pdfium.FPDFPage_CloseAnnot(annotation)
        if kind in (_FREE_TEXT, _STAMP, _WIDGET):
            return True
    return False


def read_drawing(page: PdfPage, place: Callable[[float, float, float, float], Box]) -> Drawing:
    """All that is drawn on a page; `place` turns left, bottom, right, top to the page as it is shown."""
    import pypdfium2.raw as pdfium

    drawing = Drawing()
    reader = _Reader(drawing, place)
    handle = page.raw
    count = pdfium.FPDFPage_CountObjects(handle)
    for i in range(min(count, _MAX_OBJECTS)):
        reader.read(pdfium.FPDFPage_GetObject(handle, i), _IDENTITY, 0)
    return drawing


_Matrix: TypeAlias = tuple[float, float, float, float, float, float]
_IDENTITY: _Matrix = (1, 0, 0, 1, 0, 0)


def _times(first: _Matrix, then: _Matrix) -> _Matrix:
    a, b, c, d, e, f = first
    g, h, i, j, k, m = then
    return a * g + b * i, a * h + b * j, c * g + d * i, c * h + d * j, e * g + f * i + k, e * h + f * j + m


def _apply(matrix: _Matrix, x: float, y: float) -> tuple[float, float]:
    a, b, c, d, e, f = matrix
    return a * x + c * y + e, b * x + d * y + f


class _Reader:
    """Goes through the objects of a page, those in forms included."""

    def __init__(self, drawing: Drawing, place: Callable[[float, float, float, float], Box]) -> None:
        self._drawing = drawing
        self._place = place
        self._order = 0

    def read(self, item: Any, matrix: _Matrix, depth: int) -> None:
        import pypdfium2.raw as pdfium

        if not item or self._order > _MAX_OBJECTS:
            return
        self._order += 1
        kind = pdfium.FPDFPageObj_GetType(item)
        if kind == _TEXT:
            self._drawing.orders[ctypes.addressof(item.contents)] = self._order
        elif kind == _PATH:
            self._path(item, matrix)
        elif kind in (_IMAGE, _SHADING):
            box = self._bounds(item, matrix)
            self._drawing.areas.append(_Area(self._order, box, None))
            if kind == _IMAGE:
                self._drawing.images.append(box)
        elif kind == _FORM and depth < _MAX_DEPTH:
            own = pdfium.FS_MATRIX()
            pdfium.FPDFPageObj_GetMatrix(item, ctypes.byref(own))
            inner = _times((own.a, own.b, own.c, own.d, own.e, own.f), matrix)
            for i in range(pdfium.FPDFFormObj_CountObjects(item)):
                self.read(pdfium.FPDFFormObj_GetObject(item, i), inner, depth + 1)

    def _path(self, item: Any, matrix: _Matrix) -> None:
        import pypdfium2.raw as pdfium

        mode, stroke = ctypes.c_int(), ctypes.c_int()
        pdfium.FPDFPath_GetDrawMode(item, mode, stroke)
        box = self._bounds(item, matrix)
        if min(box.x1 - box.x0, box.bottom - box.top) < _THIN:
            if mode.value or stroke.value:
                self._drawing.rules.append(box)
            return
        if mode.value:
            red, green, blue, alpha = (ctypes.c_uint() for _ in range(4))
            known = pdfium.FPDFPageObj_GetFillColor(item, red, green, blue, alpha)
            segments = pdfium.FPDFPath_CountSegments(item)
            plain = known and alpha.value == 255 and segments <= 5 and not pdfium.FPDFPageObj_HasTransparency(item)
            if len(self._drawing.areas) < _MAX_FILLS:
                colour = (red.value, green.value, blue.value) if plain else None
                self._drawing.areas.append(_Area(self._order, box, colour))
        self._edges(item, matrix)

    def _edges(self, item: Any, matrix: _Matrix) -> None:
        """Rules from the straight segments of a path, where they run along the page."""
        import pypdfium2.raw as pdfium

        count = pdfium.FPDFPath_CountSegments(item)
        if not 1 < count <= _MAX_SEGMENTS:
            return
        own = pdfium.FS_MATRIX()
        pdfium.FPDFPageObj_GetMatrix(item, ctypes.byref(own))
        matrix = _times((own.a, own.b, own.c, own.d, own.e, own.f), matrix)
        x, y = ctypes.c_float(), ctypes.c_float()
        start = last = (0.0, 0.0)
        for i in range(count):
            segment = pdfium.FPDFPath_GetPathSegment(item, i)
            kind = pdfium.FPDFPathSegment_GetType(segment)
            pdfium.FPDFPathSegment_GetPoint(segment, x, y)
            point = _apply(matrix, x.value, y.value)
            if kind == _MOVE_TO:
                start = point
            elif kind == _LINE_TO:
                self._rule(last, point)
            last = point
            if pdfium.FPDFPathSegment_GetClose(segment):
                self._rule(point, start)
                last = start

    def _rule(self, first: tuple[float, float], last: tuple[float, float]) -> None:
        (x0, y0), (x1, y1) = first, last
        if abs(x0 - x1) < 1 or abs(y0 - y1) < 1:
            self._drawing.rules.append(self._place(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))

    def _bounds(self, item: Any, matrix: _Matrix) -> Box:
        import pypdfium2.raw as pdfium

        left, bottom, right, top = (ctypes.c_float() for _ in range(4))
        pdfium.FPDFPageObj_GetBounds(item, left, bottom, right, top)
        if matrix is _IDENTITY:
            return self._place(left.value, bottom.value, right.value, top.value)
        corners = [_apply(matrix, x.value, y.value) for x in (left, right) for y in (bottom, top)]
        xs, ys = zip(*corners, strict=True)
        return self._place(min(xs), min(ys), max(xs), max(ys))


def read_links(page: PdfPage, place: Callable[[float, float, float, float], Box]) -> list[tuple[Box, str]]:
    """The places on a page that lead to an address, and the address."""
    import pypdfium2.raw as pdfium

    links = []

    position, link = ctypes.c_int(0), pdfium.FPDF_LINK()
    while pdfium.FPDFLink_Enumerate(page.raw, position, link):
        action = pdfium.FPDFLink_GetAction(link)
        rect = pdfium.FS_RECTF()
        if not action or pdfium.FPDFAction_GetType(action) != _URI or not pdfium.FPDFLink_GetAnnotRect(link, rect):
            continue
        buffer = ctypes.create_string_buffer(2048)
        length = pdfium.FPDFAction_GetURIPath(page.pdf.raw, action, buffer, len(buffer))
        address = buffer.value.decode("utf-8", "replace") if 0 < length <= len(buffer) else ""
        if address.startswith(("http://", "https://", "mailto:")):
            bottom, top = sorted((rect.bottom, rect.top))
            links.append((place(rect.left, bottom, rect.right, top), address))
    return links
