"""DOCX: headings by style, with Word's numbers; lists, tables, notes, charts; pages where Word left page breaks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from ragfm.core.errors import ParseError
from ragfm.parsing.own.media.picture import add_picture
from ragfm.parsing.own.office.docx_numbering import Numbering
from ragfm.parsing.own.office.docx_styles import Styles
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
from ragfm.parsing.rendering import MarkdownBuilder, ParsedText, clean, hidden_text, raised
from ragfm.parsing.table_layout import Cell, arrange_table, repeat_cells

_DROPPED = frozenset({"del", "moveFrom", "instrText", "delText", "pPr", "rPr", "sectPr", "Fallback", "object", "rt"})
_BLOCK_CONTAINERS = frozenset(
    {"sdt", "sdtContent", "customXml", "ins", "moveTo", "smartTag", "AlternateContent", "Choice"}
)
_ROW_CONTAINERS = frozenset({"sdt", "sdtContent", "ins", "customXml"})
_PICTURES, _DRAWINGS = frozenset({"blip", "imagedata"}), frozenset({"inline", "anchor", "shape"})
_MAX_INDENT = 9  # levels of lists
_UNREADABLE_SIZES = frozenset("01234")  # half-points: text of two points or less
_CHARACTERS = {"tab": " ", "cr": "\n", "noBreakHyphen": "-", "ptab": " "}
_FORMULA_PARTS = {"num": "/", "sup": "^", "sub": "_"}  # how a line of text shows the structure of a formula


def read_docx(data: bytes, name: str, *, images: bool = False) -> ParsedText:
    """Return the body as Markdown-like text, without page headers and footers, comments, and deleted text.

    With `images`, pictures are figures; a following paragraph with the style `caption` is the caption.

    Metadata: `title`, `author`, `modified`; `hidden_text` of runs that are formatted as hidden. Raises ParseError.
    """
    package = Package(data, name)
    path, root = package.main_part()
    body = child(root, "body")
    if body is None:
        raise ParseError(f"{name} is damaged: it has no body.")
    reader = _BodyReader(package, path, root, images=images)
    reader.read_blocks(body)
    reader.add_pictures()
    metadata = package.metadata()
    if reader.hidden:
        metadata["hidden_text"] = hidden_text(reader.hidden)
    return reader.builder.build(metadata).with_title(only_with_metadata=True)


@dataclass
class _Paragraph:
    """The content of a paragraph, and the page on which its text begins."""

    parts: list[str] = field(default_factory=list)
    page: int = 1
    style: str = ""
    text_boxes: list[Node] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    charts: list[str] = field(default_factory=list)  # ids of relations
    fields: list[bool] = field(default_factory=list)  # of those around: whether the result has begun
    alt_text: str = ""  # of the drawing that is being read
    pictures: list[tuple[str, str, int]] = field(default_factory=list)  # ids of relations, alt texts, pages

    def text(self) -> str:
        lines = "".join(self.parts).replace("\r", "\n").split("\n")
        return clean("\n".join(" ".join(line.split()) for line in lines).strip())


class _BodyReader:
    def __init__(self, package: Package, path: str, root: Node, *, images: bool) -> None:
        self.builder = MarkdownBuilder()
        self.hidden: list[str] = []
        self._package, self._relations = package, package.relations(path)
        parts = {
            kind: package.xml(target)
            for kind, target in self._relations.values()
            if kind in ("styles", "numbering", "footnotes", "endnotes")
        }
        self._styles = Styles(parts.get("styles"))
        self._numbering = Numbering(parts.get("numbering"))
        self._notes = {
            kind: {attribute(note, "id"): note for note in children(parts.get(f"{kind}s"), kind)}
            for kind in ("footnote", "endnote")
        }
        # Word marks where pages began when it last rendered the document. Otherwise, only manual breaks are known.
        self._has_rendered_breaks = next(descendants(root, "lastRenderedPageBreak"), None) is not None
        has_manual_breaks = any(attribute(node, "type") == "page" for node in descendants(root, "br"))
        self._has_pages = self._has_rendered_breaks or has_manual_breaks
        self._page = 1
        self._note_count = 0
        self._images = images
        self._in_contents = False
        self._pictures: list[tuple[str, str, int]] = []  # that wait for a caption

    def read_blocks(self, parent: Node) -> None:
        """Add the paragraphs and tables below a node."""
        for node in parent:
            name = local_name(node)
            if name == "p":
                self._add_paragraph(node)
            elif name == "tbl":
                self._add_table(node)
            elif name in _BLOCK_CONTAINERS:
                gallery = attribute(child(node, "sdtPr", "docPartObj", "docPartGallery"), "val")
                was_in_contents = self._in_contents
                self._in_contents |= gallery == "Table of Contents"
                self.read_blocks(node)
                self._in_contents = was_in_contents

    # --- Paragraphs ---

    def _add_paragraph(self, node: Node) -> None:
        paragraph = self._read_paragraph(node)
        if self._in_contents or self._styles.is_contents(paragraph.style):
            return
        text = paragraph.text()
        has_pictures = bool(self._pictures or paragraph.pictures)
        if has_pictures and text:
            if self._styles.is_caption(paragraph.style):
                self._pictures += paragraph.pictures
                self.add_pictures(text)
                return
            self.add_pictures()
        properties = child(node, "pPr")
        level = self._styles.heading_level(paragraph.style, properties)
        position = self._styles.list_position(paragraph.style, child(properties, "numPr"))
        if text or paragraph.text_boxes:
            self._start_page(paragraph.page)
        if text:
            label = self._numbering.next_label(*position) if position else None
            if level:
                title = f"{label} {text}" if label and label != "-" else text
                self.builder.add_heading(level, " ".join(title.split()))
            elif label is not None:
                depth = min(position[1] if position else 0, _MAX_INDENT)
                self.builder.add_block(f"{'  ' * depth}{label} {text}", tight=True)
            else:
                self.builder.add_block(text)
        for text_box in paragraph.text_boxes:
            self.read_blocks(text_box)
        self._add_charts_and_notes(paragraph)

    def _add_charts_and_notes(self, paragraph: _Paragraph) -> None:
        for relation_id in paragraph.charts:
            relation = self._relations.get(relation_id)
            chart = self._package.xml(relation.target) if relation else None
            if chart is not None:
                self._start_page(paragraph.page)
                add_chart(chart, self.builder)
        for note in paragraph.notes:
            self.builder.add_block(note)
        self._pictures += paragraph.pictures

    def add_pictures(self, caption: str = "") -> None:
        """Add the pictures that wait for a caption."""
        pictures, self._pictures = self._pictures, []
        for relation_id, alt_text, page in pictures:
            relation = self._relations.get(relation_id)
            if relation is not None and relation.kind == "image":
                self._start_page(page)
                stand_in = relation.target.rpartition("/")[2]
                add_picture(self.builder, self._package.read(relation.target), [caption, alt_text], stand_in)

    def _read_paragraph(self, node: Node) -> _Paragraph:
        paragraph = _Paragraph(page=self._page, style=attribute(child(node, "pPr", "pStyle"), "val"))
        self._read_inline(node, paragraph)
        return paragraph

    def _read_inline(self, parent: Node, paragraph: _Paragraph) -> None:
        for node in parent:
            name = local_name(node)
            if name == "t":
                if all(paragraph.fields[:-1]):  # otherwise it is an operand of the field around
                    paragraph.parts.append(node.text or "")
            elif name == "fldChar":
                kind = attribute(node, "fldCharType")
                if kind == "begin":
                    paragraph.fields.append(False)
                elif kind == "separate" and paragraph.fields:
                    paragraph.fields[-1] = True
                elif kind == "end" and paragraph.fields:
                    paragraph.fields.pop()
            elif name == "r":
                properties = child(node, "rPr")
                style = attribute(child(properties, "rStyle"), "val")
                is_hidden = self._styles.is_hidden(properties, style, paragraph.style)
                if is_hidden or attribute(child(properties, "sz"), "val") in _UNREADABLE_SIZES:
                    hidden = _Paragraph()
                    self._read_inline(node, hidden)
                    self.hidden.append("".join(hidden.parts))
                    continue
                start = len(paragraph.parts)
                self._read_inline(node, paragraph)
                if attribute(child(properties, "vertAlign"), "val") == "superscript":
                    before = "".join(paragraph.parts[max(start - 2, 0) : start])
                    paragraph.parts[start:] = [raised("".join(paragraph.parts[start:]), before)]
            elif name in _DROPPED:
                continue
            elif name in _CHARACTERS:
                paragraph.parts.append(_CHARACTERS[name])
            elif name in ("br", "lastRenderedPageBreak"):
                kind = attribute(node, "type")
                if name == "lastRenderedPageBreak" or (kind == "page" and not self._has_rendered_breaks):
                    self._page += 1
                    if not "".join(paragraph.parts).strip():
                        paragraph.page = self._page
                elif kind not in ("page", "column"):
                    paragraph.parts.append("\n")
            elif name == "sym":
                with suppress(ValueError, OverflowError):
                    symbol = chr(int(attribute(node, "char"), 16))
                    if not "\ue000" <= symbol <= "\uf8ff":  # private use: meaningless without its font
                        paragraph.parts.append(symbol)
            elif name in ("footnoteReference", "endnoteReference"):
                note = self._notes[name.removesuffix("Reference")].pop(attribute(node, "id"), None)
                if note is not None:
                    self._note_count += 1
                    mark = f"[{self._note_count}]"
                    texts = [self._read_paragraph(inner).text() for inner in _paragraphs(note)]
                    if text := " ".join(filter(None, texts)):
                        paragraph.parts.append(mark)
                        paragraph.notes.append(f"{mark} {text}")
            elif name == "txbxContent":
                paragraph.text_boxes.append(node)
            elif name == "chart":
                paragraph.charts.append(attribute(node, "id"))
            elif name in _PICTURES and self._images:
                relation_id = attribute(node, "embed") or attribute(node, "id")
                paragraph.pictures.append((relation_id, paragraph.alt_text, self._page))
            else:
                if name in _DRAWINGS:
                    properties = child(node, "docPr")
                    alt_texts = (attribute(properties, "title"), attribute(properties, "descr"), attribute(node, "alt"))
                    paragraph.alt_text = "\n".join(filter(None, alt_texts))
                paragraph.parts.append(_FORMULA_PARTS.get(name, ""))
                self._read_inline(node, paragraph)

    def _start_page(self, page: int) -> None:
        if self._has_pages:
            self.builder.start_page(page)

    # --- Tables ---

    def _add_table(self, node: Node) -> None:
        row_nodes = list(_rows(node))
        rows = [list(_cells(row)) for row in row_nodes]
        indents = [column_count(child(row, "trPr", "gridBefore"), "val") for row in row_nodes]
        if all(len(row) <= 1 for row in rows):  # a frame around other content
            for row in rows:
                for cell, _, _ in row:
                    self.read_blocks(cell)
            return
        self.add_pictures()
        self._start_page(self._page)
        below = _Paragraph(page=self._page)  # what cells cannot hold
        lines = [
            [
                *[Cell("")] * indent,
                *(Cell(self._read_cell(cell, below), columns, height) for cell, columns, height in row),
            ]
            for indent, row in zip(indents, rows, strict=True)
        ]
        cells = [line for line in repeat_cells(lines) if any(cell.text for cell in line)]
        if cells:
            header_rows = sum(child(row, "trPr", "tblHeader") is not None for row in row_nodes)
            table = arrange_table(cells, header_rows)
            self.builder.add_table(table.rows, titles=table.titles)
        self._add_charts_and_notes(below)
        self.add_pictures()

    def _read_cell(self, cell: Node, below: _Paragraph) -> str:
        """The text of a cell, including nested tables and text boxes, in one line."""
        texts = []
        for node in _paragraphs(cell):
            paragraph = self._read_paragraph(node)
            text = paragraph.text()
            position = self._styles.list_position(paragraph.style, child(node, "pPr", "numPr"))
            if position and text:
                text = f"{self._numbering.next_label(*position)} {text}"
            texts += [text, *(self._read_cell(text_box, below) for text_box in paragraph.text_boxes)]
            below.charts += paragraph.charts
            below.notes += paragraph.notes
            below.pictures += paragraph.pictures
        return " ".join(filter(None, texts))


def _paragraphs(parent: Node) -> Iterator[Node]:
    """The paragraphs at any depth, without those of text boxes in a paragraph."""
    for node in parent:
        if local_name(node) == "p":
            yield node
        elif local_name(node) not in _DROPPED:
            yield from _paragraphs(node)


def _rows(table: Node) -> Iterator[Node]:
    for node in table:
        if local_name(node) == "tr":
            yield node
        elif local_name(node) in _ROW_CONTAINERS:
            yield from _rows(node)


def _cells(row: Node) -> Iterator[tuple[Node, int, int]]:
    """The cells of a row, the number of columns of each, and 0 rows if it continues the cell above, else 1."""
    for node in row:
        if local_name(node) == "tc":
            properties = child(node, "tcPr")
            span, merged = column_count(child(properties, "gridSpan"), "val") or 1, child(properties, "vMerge")
            yield node, span, int(merged is None or attribute(merged, "val") == "restart")
        elif local_name(node) in _ROW_CONTAINERS:
            yield from _cells(node)
