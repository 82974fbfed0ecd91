"""PPTX: one page per slide; titles are headings, then what the slide shows from top to bottom, then its notes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.parsing.formats import IMAGE
from ragfm.parsing.media_types import recognise
from ragfm.parsing.own.media.image import read_image
from ragfm.parsing.own.media.ocr import HINT, has_ocr
from ragfm.parsing.own.office.office_charts import render_chart
from ragfm.parsing.own.office.office_xml import Node, Package, attribute, child, children, descendants, local
from ragfm.parsing.rendering import Parsed, Rendering, clean

_TITLES = frozenset({"title", "ctrTitle"})
_MARGINAL = frozenset({"dt", "ftr", "sldNum", "hdr"})  # date, footer, number of the slide
_BULLETED = frozenset({"body", "obj", "", "half"})  # placeholders whose paragraphs have bullets by default
_MAX_SPAN = 100
_FEWEST = 3  # letters in a picture; fewer are shapes that look like some
_ROW = 50_000  # English Metric Units; shapes whose tops differ by less stand beside each other


class _Shape(NamedTuple):
    node: Node
    top: int
    left: int
    role: str | None  # the placeholder's type; None where it is none


def read_pptx(data: bytes, name: str) -> Parsed:
    """The slides in order. Metadata: `title`, `author`, `modified`; `hidden_slides`, which are left out.

    Raises ParseError, and SkipDocument where there are pictures alone and OCR isn't installed.
    """
    package = Package(data, name)
    path, root = package.main()
    related = package.related(path)
    rendering = Rendering()
    hidden, pictures = [], 0
    for number, entry in enumerate(descendants(child(root, "sldIdLst"), "sldId"), 1):
        target = next(
            (related[value][1] for key, value in entry.attrib.items() if key != "id" and value in related), ""
        )
        slide = package.xml(target) if target else None
        if slide is None:
            raise ParseError(f"{name} is damaged: slide {number} is missing.")
        if slide.get("show") in ("0", "false"):
            hidden.append(str(number))
            continue
        rendering.page(number)
        try:
            pictures += _Slide(package, target, rendering).read(slide)
        except RecursionError as error:
            raise ParseError(f"{name} nests its parts too deeply.") from error
    metadata = package.metadata()
    if hidden:
        metadata["hidden_slides"] = ", ".join(hidden)
    if pictures and not rendering.length and not has_ocr():
        raise SkipDocument(f"{name} has pictures alone: what is written in them needs OCR.", HINT)
    return rendering.finish(metadata)


class _Slide:
    """Reads one slide."""

    def __init__(self, package: Package, path: str, rendering: Rendering) -> None:
        self._package = package
        self._related = package.related(path)
        self._rendering = rendering
        layout = next((target for kind, target in self._related.values() if kind == "slideLayout"), "")
        root = package.xml(layout) if layout else None
        self._layout = {_placeholder(shape): _position(shape) for shape in descendants(root, "sp")}

    def read(self, slide: Node) -> int:
        """Title first, then the other shapes by their places, then the notes; gives how many pictures stand alone."""
        before = self._rendering.length
        shapes = list(self._shapes(child(slide, "cSld", "spTree")))
        shapes.sort(key=lambda shape: (shape.role not in _TITLES, shape.top // _ROW, shape.left))
        for shape in shapes:
            if shape.role not in _MARGINAL:
                self._shape(shape)
        pictures = [] if self._rendering.length > before else list(self._pictures(slide))
        for picture in pictures if has_ocr() else ():
            with suppress(ParseError):  # a damaged one
                parsed = read_image(picture, self._package.name)
                if len(parsed.text) >= _FEWEST:
                    self._rendering.append(parsed._replace(marks=()))
        notes = next((target for kind, target in self._related.values() if kind == "notesSlide"), "")
        if notes:
            for node in descendants(self._package.xml(notes), "sp"):
                if _placeholder(node)[0] == "body":
                    self._text(node, role=None)
        return len(pictures)

    def _pictures(self, slide: Node) -> Iterator[bytes]:
        for blip in descendants(slide, "blip"):
            kind, target = self._related.get(attribute(blip, "embed"), ("", ""))
            data = self._package.data(target) if kind == "image" else None
            if data and recognise(data, "", None)[0] == IMAGE:
                yield data

    def _shapes(self, parent: Node | None) -> Iterator[_Shape]:
        """Shapes at any depth; those of a group stand where the group does."""
        for node in parent if parent is not None else ():
            kind = local(node)
            if kind == "grpSp":
                top, left = _position(node) or (0, 0)
                yield from (shape._replace(top=top, left=left) for shape in self._shapes(node))
            elif kind in ("AlternateContent", "Choice"):
                yield from self._shapes(node)
            elif kind in ("sp", "graphicFrame") and attribute(next(descendants(node, "cNvPr"), node), "hidden") != "1":
                is_placeholder = next(descendants(node, "ph"), None) is not None
                role = _placeholder(node)
                top, left = _position(node) or self._layout.get(role) or (0, 0)
                yield _Shape(node, top, left, role[0] if is_placeholder else None)

    def _shape(self, shape: _Shape) -> None:
        if local(shape.node) == "sp":
            self._text(shape.node, shape.role)
            return
        for table in descendants(shape.node, "tbl"):
            self._table(table)
        for reference in (*descendants(shape.node, "chart"), *descendants(shape.node, "relIds")):
            for value in reference.attrib.values():
                kind, target = self._related.get(value, ("", ""))
                part = self._package.xml(target) if kind in ("chart", "diagramData") else None
                if part is not None and kind == "chart":
                    render_chart(part, self._rendering)
                elif part is not None:
                    self._diagram(part)

    def _text(self, shape: Node, role: str | None) -> None:
        paragraphs = list(children(child(shape, "txBody"), "p"))
        if role in _TITLES:
            words = " ".join(filter(None, map(_words, paragraphs)))
            if words:
                self._rendering.heading(1, " ".join(words.split()))
            return
        for paragraph in paragraphs:
            words = _words(paragraph)
            if not words:
                continue
            properties = child(paragraph, "pPr")
            depth = attribute(properties, "lvl") if properties is not None else ""
            marked = any(child(properties, kind) is not None for kind in ("buChar", "buAutoNum", "buBlip"))
            bare = child(properties, "buNone") is not None or role not in _BULLETED
            if marked or not bare:
                indent = "  " * min(int(depth), 9) if depth.isdecimal() else ""
                self._rendering.block(f"{indent}- {words}", tight=True)
            else:
                self._rendering.block(words)

    def _table(self, table: Node) -> None:
        rows: list[list[str]] = []
        for line in children(table, "tr"):
            row: list[str] = []
            for cell in children(line, "tc"):
                words = " ".join(filter(None, map(_words, descendants(cell, "p"))))
                if attribute(cell, "vMerge") in ("1", "true") and rows and len(row) < len(rows[-1]):
                    words = rows[-1][len(row)]
                row.append(words)
            if any(row):
                rows.append(row)
        if rows:
            self._rendering.table(rows)

    def _diagram(self, root: Node) -> None:
        for point in descendants(root, "pt"):
            words = " ".join(filter(None, map(_words, descendants(child(point, "t"), "p"))))
            if words:
                self._rendering.block(f"- {words}", tight=True)


def _placeholder(shape: Node) -> tuple[str, str]:
    """Type and number of a placeholder; empty for other shapes."""
    found = next(descendants(shape, "ph"), None)
    return ("", "") if found is None else (attribute(found, "type"), attribute(found, "idx"))


def _position(shape: Node) -> tuple[int, int] | None:
    """Top and left edge, in English Metric Units."""
    for properties in ("spPr", "grpSpPr", None):
        place = child(shape, properties, "xfrm", "off") if properties else child(shape, "xfrm", "off")
        if place is not None:
            try:
                return int(attribute(place, "y")), int(attribute(place, "x"))
            except ValueError:
                return None
    return None


def _words(paragraph: Node) -> str:
    parts = []
    for node in paragraph.iter():
        if local(node) == "t":
            parts.append(node.text or "")
        elif local(node) in ("br", "tab"):
            parts.append(" ")
    return clean(" ".join("".join(parts).split()))
