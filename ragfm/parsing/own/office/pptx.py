"""PPTX: one page per slide: the title as a heading, the shapes from top to bottom, then the notes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.core.types import Box
from ragfm.parsing.formats import IMAGE
from ragfm.parsing.media_types import detect
from ragfm.parsing.own.media.image import read_image
from ragfm.parsing.own.media.ocr import OCR_HINT, has_ocr
from ragfm.parsing.own.media.picture import add_picture
from ragfm.parsing.own.office.office_charts import add_chart
from ragfm.parsing.own.office.office_xml import (
    Node,
    Package,
    attribute,
    child,
    children,
    column_count,
    descendants,
    local_name,
)
from ragfm.parsing.rendering import MarkdownBuilder, ParsedText, clean, raised
from ragfm.parsing.table_layout import Cell, arrange_table, repeat_cells

_TITLES = frozenset({"title", "ctrTitle"})
_MARGINAL = frozenset({"dt", "ftr", "sldNum", "hdr"})  # date, footer, slide number, header
_BULLETED = frozenset({"body", "obj", "", "half"})  # placeholders whose paragraphs have bullets by default
_MAX_INDENT = 9  # levels of lists
_SHAPES, _SHAPES_AND_PICTURES = ("sp", "graphicFrame"), ("sp", "graphicFrame", "pic")
_MIN_OCR_LETTERS = 3  # in an image; fewer are shapes that resemble letters
_ROW_HEIGHT = 50_000  # English Metric Units; shapes whose tops differ by less are in the same row


class _Shape(NamedTuple):
    node: Node
    top: int
    left: int
    placeholder: str | None  # the type of a placeholder; None for other shapes


def read_pptx(data: bytes, name: str, *, images: bool = False) -> ParsedText:
    """Return the slides in order, and with `images` their pictures as figures.

    Metadata: `title`, `author`, `modified`; `hidden_slides`, which are left out. Raises ParseError, and
    SkipDocument where there are only images and OCR is not installed.
    """
    package = Package(data, name)
    path, root = package.main_part()
    relations = package.relations(path)
    builder = MarkdownBuilder()
    size = child(root, "sldSz") if images else None
    hidden: list[str] = []
    image_count = 0  # on slides without text
    for number, entry in enumerate(descendants(child(root, "sldIdLst"), "sldId"), 1):
        targets = (relations[value].target for key, value in entry.attrib.items() if key != "id" and value in relations)
        target = next(targets, "")
        slide = package.xml(target)
        if slide is None:
            raise ParseError(f"{name} is damaged: slide {number} is missing.")
        if slide.get("show") in ("0", "false"):
            hidden.append(str(number))
            continue
        builder.start_page(number)
        image_count += _SlideReader(package, target, builder, size).read(slide)
    metadata = package.metadata()
    if hidden:
        metadata["hidden_slides"] = ", ".join(hidden)
    if image_count and not builder.length and not has_ocr():
        raise SkipDocument(f"{name} has only images: reading their text needs OCR.", OCR_HINT)
    return builder.build(metadata)


class _SlideReader:
    def __init__(self, package: Package, path: str, builder: MarkdownBuilder, size: Node | None) -> None:
        """With the `size` of a slide, pictures are figures."""
        self._package, self._path = package, path
        self._size = size
        self._relations = package.relations(path)
        self._builder = builder
        layout = package.xml(package.related_part(path, "slideLayout"))
        self._layout_positions = {_placeholder(shape): _position(shape) for shape in descendants(layout, "sp")}

    def read(self, slide: Node) -> int:
        """Add the title, the other shapes by position, and the notes. Returns the number of images if there is no text.

        The text of images is read only on slides that have no other text.
        """
        length_before = self._builder.length
        shapes = self._shapes(child(slide, "cSld", "spTree"))
        for shape in sorted(shapes, key=lambda shape: (shape.placeholder not in _TITLES, _row_and_left(shape))):
            if shape.placeholder in _MARGINAL:
                continue
            if local_name(shape.node) == "sp":
                self._add_text(shape.node, shape.placeholder)
            elif local_name(shape.node) == "pic":
                self._add_picture(shape.node)
            else:
                self._add_graphic(shape.node)

        images: list[bytes] = []
        if self._builder.length == length_before and self._size is None:
            for blip in descendants(slide, "blip"):
                relation = self._relations.get(attribute(blip, "embed"))
                data = self._package.read(relation.target) if relation and relation.kind == "image" else None
                if data and detect(data, "", None)[0] == IMAGE:
                    images.append(data)
        if has_ocr():
            for image in images:
                with suppress(ParseError):  # a damaged image
                    parsed = read_image(image, self._package.name)
                    if len(parsed.text) >= _MIN_OCR_LETTERS:
                        self._builder.add_parsed(parsed._replace(marks=()))

        for node in descendants(self._package.xml(self._package.related_part(self._path, "notesSlide")), "sp"):
            if _placeholder(node)[0] == "body":
                self._add_text(node, placeholder=None)
        return len(images)

    def _shapes(self, parent: Node | None) -> Iterator[_Shape]:
        """Shapes at any depth; those of a group have the position of the group, and are ordered by their own."""
        kinds = _SHAPES if self._size is None else _SHAPES_AND_PICTURES
        for node in parent if parent is not None else ():
            kind = local_name(node)
            if kind == "grpSp":
                top, left = _position(node) or (0, 0)
                for shape in sorted(self._shapes(node), key=_row_and_left):
                    yield shape._replace(top=top, left=left)
            elif kind in ("AlternateContent", "Choice"):
                yield from self._shapes(node)
            elif kind in kinds and attribute(next(descendants(node, "cNvPr"), node), "hidden") != "1":
                placeholder = _placeholder(node)
                is_placeholder = next(descendants(node, "ph"), None) is not None
                top, left = _position(node) or self._layout_positions.get(placeholder) or (0, 0)
                yield _Shape(node, top, left, placeholder[0] if is_placeholder else None)

    def _add_text(self, shape: Node, placeholder: str | None) -> None:
        paragraphs = list(children(child(shape, "txBody"), "p"))
        if placeholder in _TITLES:
            if title := " ".join(filter(None, map(_paragraph_text, paragraphs))):
                self._builder.add_heading(1, " ".join(title.split()))
            return
        for paragraph in paragraphs:
            text = _paragraph_text(paragraph)
            if not text:
                continue
            properties = child(paragraph, "pPr")
            depth = attribute(properties, "lvl")
            has_bullet = any(child(properties, kind) is not None for kind in ("buChar", "buAutoNum", "buBlip"))
            if has_bullet or (placeholder in _BULLETED and child(properties, "buNone") is None):
                indent = "  " * min(int(depth), _MAX_INDENT) if depth.isdecimal() else ""
                self._builder.add_block(f"{indent}- {text}", tight=True)
            else:
                self._builder.add_block(text)

    def _add_picture(self, node: Node) -> None:
        blip, description = next(descendants(node, "blip"), None), next(descendants(node, "cNvPr"), None)
        relation = self._relations.get(attribute(blip, "embed"))
        if relation is None or relation.kind != "image":
            return
        box: Box | None = None
        transform = child(node, "spPr", "xfrm")
        with suppress(ValueError, ZeroDivisionError):
            left, top = (int(attribute(child(transform, "off"), axis)) for axis in "xy")
            width, height = (int(attribute(child(transform, "ext"), axis)) for axis in ("cx", "cy"))
            across, down = (int(attribute(self._size, axis)) for axis in ("cx", "cy"))
            right, bottom = min((left + width) / across, 1.0), min((top + height) / down, 1.0)
            if left < across and top < down and right > 0 and bottom > 0:  # otherwise it is beside the slide
                box = max(left / across, 0.0), max(top / down, 0.0), right, bottom
        texts = ["", attribute(description, "title"), attribute(description, "descr")]
        stand_in = relation.target.rpartition("/")[2]
        add_picture(self._builder, self._package.read(relation.target), texts, stand_in, box)

    def _add_graphic(self, frame: Node) -> None:
        for table in descendants(frame, "tbl"):
            lines: list[list[Cell]] = []
            for row in children(table, "tr"):
                lines.append([])
                for node in children(row, "tc"):
                    if attribute(node, "hMerge") not in ("1", "true") or not lines[-1]:
                        is_continued = attribute(node, "vMerge") in ("1", "true")
                        paragraphs = () if is_continued else descendants(node, "p")
                        text = " ".join(filter(None, map(_paragraph_text, paragraphs)))
                        lines[-1].append(Cell(text, column_count(node, "gridSpan") or 1, int(not is_continued)))
            rows = [line for line in repeat_cells(lines) if any(cell.text for cell in line)]
            if rows:
                titles, cells = arrange_table(rows)
                self._builder.add_table(cells, titles=titles)
        for reference in (*descendants(frame, "chart"), *descendants(frame, "relIds")):
            for value in reference.attrib.values():
                relation = self._relations.get(value)
                if relation is None or relation.kind not in ("chart", "diagramData"):
                    continue
                part = self._package.xml(relation.target)
                if part is not None and relation.kind == "chart":
                    add_chart(part, self._builder)
                else:
                    for point in descendants(part, "pt"):
                        texts = map(_paragraph_text, descendants(child(point, "t"), "p"))
                        if text := " ".join(filter(None, texts)):
                            self._builder.add_block(f"- {text}", tight=True)


def _row_and_left(shape: _Shape) -> tuple[int, int]:
    return shape.top // _ROW_HEIGHT, shape.left


def _placeholder(shape: Node) -> tuple[str, str]:
    """Type and index of a placeholder; empty for other shapes."""
    node = next(descendants(shape, "ph"), None)
    return attribute(node, "type"), attribute(node, "idx")


def _position(shape: Node) -> tuple[int, int] | None:
    """Top and left edge, in English Metric Units; None where the shape has no position of its own."""
    for path in (("spPr", "xfrm", "off"), ("grpSpPr", "xfrm", "off"), ("xfrm", "off")):
        offset = child(shape, *path)
        if offset is not None:
            try:
                return int(attribute(offset, "y")), int(attribute(offset, "x"))
            except ValueError:
                return None
    return None


def _paragraph_text(paragraph: Node) -> str:
    parts = [""]
    is_raised = False
    for node in paragraph.iter():
        name = local_name(node)
        if name == "r":
            baseline = attribute(child(node, "rPr"), "baseline")  # negative for a subscript
            is_raised = baseline[:1].isdecimal() and baseline != "0"
        elif name == "t":
            parts.append(raised(node.text or "", parts[-1]) if is_raised else node.text or "")
        elif name in ("br", "tab"):
            parts.append(" ")
    return clean(" ".join("".join(parts).split()))
