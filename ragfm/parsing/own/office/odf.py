"""ODT and ODP: OpenDocument texts and presentations; a presentation has one page per slide."""

from __future__ import annotations

from collections.abc import Iterator

from ragfm.core.errors import ParseError
from ragfm.parsing.own.office.office_xml import Node, attribute, child, children, core_metadata, local, parse_xml
from ragfm.parsing.own.office.zip_container import open_zip, read_entry
from ragfm.parsing.rendering import Parsed, Rendering, clean

_DROPPED = frozenset({"tracked-changes", "annotation", "annotation-end", "desc", "title", "bookmark", "sequence-decls",
                      "forms", "note-citation", "notes", "event-listeners", "ruby-text"})  # fmt: skip
_CONTAINERS = frozenset({"section", "index-body", "table-of-content", "frame", "text-box", "g", "custom-shape", "rect",
                         "illustration-index", "bibliography", "user-index", "soft-page-break"})  # fmt: skip
_MAX_REPEATS = 200  # columns or rows that a file says are alike; a sheet's last row may say a million
_MAX_SPACES = 100


def read_odf(data: bytes, name: str) -> Parsed:
    """The body as Markdown-like text. Metadata: `title`, `author`, `modified`. Raises ParseError."""
    archive = open_zip(data, name)
    content = read_entry(archive, "content.xml", name)
    if content is None:
        raise ParseError(f"{name} is damaged: it has no content.")
    manifest = read_entry(archive, "META-INF/manifest.xml", name)
    if manifest is not None and b"encryption-data" in manifest:
        raise ParseError(f"{name} is protected by a password.", "Save a copy without one.")
    body = child(parse_xml(content, name), "body")
    reader = _Reader()
    try:
        for kind in body if body is not None else ():
            if local(kind) == "presentation":
                for number, slide in enumerate(children(kind, "page"), 1):
                    reader.rendering.page(number)
                    reader.blocks(slide)
            else:
                reader.blocks(kind)
    except RecursionError as error:
        raise ParseError(f"{name} nests its parts too deeply.") from error
    meta = read_entry(archive, "meta.xml", name)
    metadata = core_metadata(parse_xml(meta, name) if meta is not None else None)
    parsed = reader.rendering.finish(metadata)
    title = next((mark.value for mark in parsed.marks if mark.level == 1), "")
    if title:
        metadata.setdefault("title", title)
    return parsed


class _Reader:
    """One pass over the body; blocks go to the rendering as they come."""

    def __init__(self) -> None:
        self.rendering = Rendering()
        self._notes: list[str] = []
        self._frames: list[Node] = []

    def blocks(self, parent: Node, depth: int = -1, marker: str = "") -> None:
        """Paragraphs, lists and tables below an element; `depth` is that of the list around them."""
        for node in parent:
            kind = local(node)
            if kind in ("h", "p"):
                self._paragraph(node, depth, marker)
                marker = "  " if marker else ""
            elif kind == "list":
                for item in node:
                    if local(item) in ("list-item", "list-header"):
                        self.blocks(item, depth + 1, "- ")
            elif kind == "table":
                self._table(node)
            elif kind in _CONTAINERS:
                if attribute(node, "class") in ("title", "subtitle") and kind == "frame":
                    self._title(node)
                else:
                    self.blocks(node, depth, marker)

    def _paragraph(self, node: Node, depth: int, marker: str) -> None:
        words = self._words(node)
        if words:
            level = attribute(node, "outline-level")
            if local(node) == "h":
                self.rendering.heading(min(int(level), 9) if level.isdecimal() and level != "0" else 1, words)
            else:
                self.rendering.block("  " * min(max(depth, 0), 9) + marker + words, tight=depth >= 0)
        frames, self._frames = self._frames, []
        for frame in frames:
            self.blocks(frame)
        notes, self._notes = self._notes, []
        for note in notes:
            self.rendering.block(note)

    def _title(self, frame: Node) -> None:
        words = " ".join(filter(None, (self._words(node) for node in frame.iter() if local(node) in ("p", "h"))))
        if words and attribute(frame, "class") == "title":
            self.rendering.heading(1, words)
        elif words:
            self.rendering.block(words)

    def _words(self, node: Node) -> str:
        lines = "".join(self._pieces(node)).split("\n")
        return clean("\n".join(" ".join(line.split()) for line in lines).strip())

    def _pieces(self, node: Node) -> Iterator[str]:
        yield node.text or ""
        for inner in node:
            kind = local(inner)
            if kind == "s":
                count = attribute(inner, "c")
                yield " " * (min(int(count), _MAX_SPACES) if count.isdecimal() else 1)
            elif kind == "tab":
                yield " "
            elif kind == "line-break":
                yield "\n"
            elif kind == "note":
                yield from self._note(inner)
            elif kind in ("frame", "custom-shape", "g"):
                self._frames.append(inner)
            elif kind not in _DROPPED:
                yield from self._pieces(inner)
            yield inner.tail or ""

    def _note(self, node: Node) -> Iterator[str]:
        citation, body = child(node, "note-citation"), child(node, "note-body")
        mark = f"[{(citation.text or '').strip() if citation is not None else ''}]"
        words = " ".join(filter(None, (self._words(part) for part in (body.iter() if body is not None else ())
                                       if local(part) == "p")))  # fmt: skip
        if words:
            self._notes.append(f"{mark} {words}")
            yield mark

    def _table(self, table: Node) -> None:
        headers = list(_rows(child(table, "table-header-rows")))
        rows = [row for line in _rows(table) for row in self._row(line) if any(row)]
        if rows and max(map(len, rows)) > 1:
            self.rendering.table(rows, min(max(len(headers), 1), len(rows)))
        else:
            for row in rows:
                self.rendering.block(row[0])
        notes, self._notes = self._notes, []
        for note in notes:
            self.rendering.block(note)

    def _row(self, line: Node) -> Iterator[list[str]]:
        row: list[str] = []
        for cell in line:
            if local(cell) in ("table-cell", "covered-table-cell"):
                words = " ".join(filter(None, (self._words(part) for part in cell.iter() if local(part) in ("p", "h"))))
                row += [words] * _repeats(cell, "number-columns-repeated")
        while row and not row[-1]:
            row.pop()
        for _ in range(_repeats(line, "number-rows-repeated")):
            yield row


def _rows(parent: Node | None) -> Iterator[Node]:
    for node in parent if parent is not None else ():
        if local(node) == "table-row":
            yield node
        elif local(node) in ("table-rows", "table-header-rows", "table-row-group"):
            yield from _rows(node)


def _repeats(node: Node, name: str) -> int:
    count = attribute(node, name)
    return min(int(count), _MAX_REPEATS) if count.isdecimal() and count != "0" else 1
