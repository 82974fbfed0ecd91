"""DOCX: headings by style, numbered as Word numbers them, lists, tables, notes, pages where Word left their breaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ragfm.core.errors import ParseError
from ragfm.parsing.own.office.docx_numbering import Numbering
from ragfm.parsing.own.office.docx_styles import Styles
from ragfm.parsing.own.office.office_charts import render_chart
from ragfm.parsing.own.office.office_xml import Node, Package, attribute, child, children, descendants, local
from ragfm.parsing.rendering import Parsed, Rendering, clean

_DROPPED = frozenset({"del", "moveFrom", "instrText", "delText", "pPr", "rPr", "sectPr", "Fallback", "object", "ruby"})
_MAX_SPAN = 100  # columns of one cell
_MAX_HIDDEN = 1_000  # characters of hidden text that metadata keep
_TINY = frozenset("01234")  # half-points: no reader sees letters of two points or less
_TEXTS = {"tab": " ", "cr": "\n", "noBreakHyphen": "-", "ptab": " "}
_BETWEEN = {"num": "/", "sup": "^", "sub": "_"}  # what shows in a line of text how a formula's part stands


def read_docx(data: bytes, name: str) -> Parsed:
    """The body as Markdown-like text; headers and footers of the pages, comments and what was deleted are left out.

    Metadata: `title`, `author`, `modified`; `hidden_text` of runs that are formatted as hidden. Raises ParseError.
    """
    package = Package(data, name)
    path, root = package.main()
    body = child(root, "body")
    if body is None:
        raise ParseError(f"{name} is damaged: it has no body.")
    reader = _Reader(package, path, root)
    try:
        reader.blocks(body)
    except RecursionError as error:
        raise ParseError(f"{name} nests its parts too deeply.") from error
    metadata = package.metadata()
    if reader.hidden:
        metadata["hidden_text"] = clean(" ".join(" ".join(reader.hidden).split())[:_MAX_HIDDEN])
    parsed = reader.rendering.finish(metadata)
    title = next((mark.value for mark in parsed.marks if mark.level == 1), "")
    if title and "title" not in metadata:
        metadata["title"] = title
    return parsed


@dataclass
class _Text:
    """What a paragraph has gathered: its words, the page on which they begin, boxes and notes that belong to it."""

    parts: list[str] = field(default_factory=list)
    page: int = 1
    boxes: list[Node] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    charts: list[str] = field(default_factory=list)

    def whole(self) -> str:
        lines = "".join(self.parts).replace("\r", "\n").split("\n")
        return clean("\n".join(" ".join(line.split()) for line in lines).strip())


class _Reader:
    """One pass over the body; blocks go to the rendering as they come."""

    def __init__(self, package: Package, path: str, root: Node) -> None:
        self.rendering = Rendering()
        self.hidden: list[str] = []
        self._package, self._related = package, package.related(path)
        parts = {kind: package.xml(target) for kind, target in self._related.values()
                 if kind in ("styles", "numbering", "footnotes", "endnotes")}  # fmt: skip
        self._styles = Styles(parts.get("styles"))
        self._numbering = Numbering(parts.get("numbering"))
        self._notes = {
            kind: {attribute(note, "id"): note for note in children(parts.get(f"{kind}s"), kind)}
            for kind in ("footnote", "endnote")
        }
        # Word leaves a mark where a page began when it was last shown; without any, the breaks that were set must do.
        self._rendered = next(descendants(root, "lastRenderedPageBreak"), None) is not None
        breaks = (attribute(node, "type") == "page" for node in descendants(root, "br"))
        self._has_pages = self._rendered or any(breaks)
        self._page = 1
        self._count = 0  # of notes

    def blocks(self, parent: Node) -> None:
        """Paragraphs and tables below an element, in order."""
        for node in parent:
            name = local(node)
            if name == "p":
                self._paragraph(node)
            elif name == "tbl":
                self._table(node)
            elif name in ("sdt", "sdtContent", "customXml", "ins", "moveTo", "smartTag", "AlternateContent", "Choice"):
                self.blocks(node)

    # --- Paragraphs ---

    def _paragraph(self, node: Node) -> None:
        text = self._gather(node)
        words = text.whole()
        level, number = self._outline(node)
        if words or text.boxes:
            self._show_page(text.page)
        if words:
            label = self._numbering.label(*number) if number else None
            if level:
                heading = " ".join(f"{label} {words}".split() if label and label != "-" else words.split())
                self.rendering.heading(level, heading)
            elif label is not None:
                self.rendering.block(f"{'  ' * min(number[1] if number else 0, 9)}{label} {words}", tight=True)
            else:
                self.rendering.block(words)
        for box in text.boxes:
            self.blocks(box)
        for chart in text.charts:
            root = self._package.xml(self._related[chart][1]) if chart in self._related else None
            if root is not None:
                self._show_page(text.page)
                render_chart(root, self.rendering)
        for note in text.notes:
            self.rendering.block(note)

    def _outline(self, node: Node) -> tuple[int, tuple[str, int] | None]:
        """The level of a heading, 0 for other paragraphs; the list that it is an item of, and how deep."""
        properties = child(node, "pPr")
        style = attribute(found, "val") if (found := child(properties, "pStyle")) is not None else ""
        level = self._styles.level(style)
        if (own := child(properties, "outlineLvl")) is not None and attribute(own, "val").isdecimal():
            level = int(attribute(own, "val")) + 1 if int(attribute(own, "val")) < 9 else 0
        return level, self._styles.number(style, child(properties, "numPr"))

    def _gather(self, node: Node) -> _Text:
        text = _Text(page=self._page)
        self._runs(node, text)
        return text

    def _runs(self, parent: Node, text: _Text) -> None:
        for node in parent:
            name = local(node)
            if name == "t":
                text.parts.append(node.text or "")
            elif name == "r":
                self._run(node, text)
            elif name in _DROPPED:
                continue
            elif name in _TEXTS:
                text.parts.append(_TEXTS[name])
            elif name in ("br", "lastRenderedPageBreak"):
                self._break(node, name, text)
            elif name == "sym":
                text.parts.append(_symbol(attribute(node, "char")))
            elif name in ("footnoteReference", "endnoteReference"):
                self._note(node, name.removesuffix("Reference"), text)
            elif name == "txbxContent":
                text.boxes.append(node)
            elif name == "chart":
                text.charts.append(attribute(node, "id"))
            else:
                text.parts.append(_BETWEEN.get(name, ""))
                self._runs(node, text)

    def _run(self, node: Node, text: _Text) -> None:
        properties = child(node, "rPr")
        vanish, size = child(properties, "vanish"), child(properties, "sz")
        tiny = size is not None and attribute(size, "val") in _TINY
        if not tiny and (vanish is None or attribute(vanish, "val") in ("0", "false", "off")):
            self._runs(node, text)
            return
        hidden = _Text()
        self._runs(node, hidden)
        self.hidden.append("".join(hidden.parts))

    def _break(self, node: Node, name: str, text: _Text) -> None:
        kind = attribute(node, "type")
        if name == "lastRenderedPageBreak" or (kind == "page" and not self._rendered):
            self._page += 1
            if not "".join(text.parts).strip():
                text.page = self._page
        elif kind not in ("page", "column"):
            text.parts.append("\n")

    def _note(self, node: Node, kind: str, text: _Text) -> None:
        note = self._notes[kind].pop(attribute(node, "id"), None)
        if note is None:
            return
        self._count += 1
        mark = f"[{self._count}]"
        words = " ".join(filter(None, (self._gather(paragraph).whole() for paragraph in descendants(note, "p"))))
        if words:
            text.parts.append(mark)
            text.notes.append(f"{mark} {words}")

    def _show_page(self, page: int) -> None:
        if self._has_pages:
            self.rendering.page(page)

    # --- Tables ---

    def _table(self, node: Node) -> None:
        rows = [[*_cells(row)] for row in _rows(node)]
        if all(len(row) <= 1 for row in rows):  # it only puts a frame around things
            for row in rows:
                for cell, _, _ in row:
                    self.blocks(cell)
            return
        self._show_page(self._page)
        texts: list[list[str]] = []
        notes: list[str] = []
        for row in rows:
            line: list[str] = []
            for cell, span, goes_on in row:
                words = self._cell(cell, notes)
                above = texts[-1][len(line)] if goes_on and texts and len(line) < len(texts[-1]) else ""
                line += [words or above, *([""] * (span - 1))]
            if any(line):
                texts.append(line)
        if texts:
            headers = sum(child(row, "trPr", "tblHeader") is not None for row in _rows(node)) or 1
            self.rendering.table(texts, min(headers, len(texts)))
        for note in notes:
            self.rendering.block(note)

    def _cell(self, cell: Node, notes: list[str]) -> str:
        """All of a cell as one line; tables within it too."""
        words = []
        for paragraph in descendants(cell, "p"):
            text = self._gather(paragraph)
            number = self._outline(paragraph)[1]
            label = f"{self._numbering.label(*number)} " if number and text.whole() else ""
            words.append(label + text.whole())
            notes += text.notes
        return " ".join(filter(None, words))


def _rows(table: Node) -> Iterator[Node]:
    for node in table:
        if local(node) == "tr":
            yield node
        elif local(node) in ("sdt", "sdtContent", "ins", "customXml"):
            yield from _rows(node)


def _cells(row: Node) -> Iterator[tuple[Node, int, bool]]:
    """The cells of a row with the number of their columns, and whether they go on with the cell above."""
    for node in row:
        if local(node) == "tc":
            properties = child(node, "tcPr")
            span, merged = child(properties, "gridSpan"), child(properties, "vMerge")
            digits = attribute(span, "val") if span is not None else ""
            columns = min(max(int(digits), 1), _MAX_SPAN) if digits.isdecimal() and len(digits) < 6 else 1
            yield node, columns, merged is not None and attribute(merged, "val") != "restart"
        elif local(node) in ("sdt", "sdtContent", "ins", "customXml"):
            yield from _cells(node)


def _symbol(code: str) -> str:
    try:
        letter = chr(int(code, 16))
    except (ValueError, OverflowError):
        return ""
    return "" if "\ue000" <= letter <= "\uf8ff" else letter  # a font's own signs say nothing without it
