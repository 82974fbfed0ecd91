"""ODT and ODP: OpenDocument texts and presentations; a presentation has one page per slide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ragfm.core.errors import ParseError
from ragfm.parsing.own.media.picture import add_picture
from ragfm.parsing.own.office.office_xml import (
    Node,
    attribute,
    child,
    children,
    core_metadata,
    descendants,
    local_name,
    parse_xml,
)
from ragfm.parsing.own.office.zip_container import open_zip, read_entry
from ragfm.parsing.rendering import MarkdownBuilder, ParsedText, clean, hidden_text
from ragfm.parsing.table_layout import Cell, arrange_table, repeat_cells

_DROPPED = frozenset(
    "tracked-changes annotation annotation-end desc title bookmark sequence-decls forms note-citation notes"
    " event-listeners ruby-text".split()
)
_SHAPES = frozenset(
    "frame custom-shape g rect ellipse circle path line polyline polygon regular-polygon connector measure"
    " caption".split()
)
_CONTAINERS = _SHAPES | frozenset(
    "a section index-body text-box bibliography user-index soft-page-break numbered-paragraph".split()
)
_STYLE_FAMILIES = {"p": "paragraph", "h": "paragraph", "span": "text", "page": "drawing-page"}
_ROW_GROUPS = frozenset({"table-rows", "table-header-rows", "table-row-group"})
_MAX_REPEATS = 200  # repeated columns or rows; the last row of a sheet may be repeated a million times
_MAX_SPACES = 100
_MAX_LEVEL = 9  # of headings and lists
_MAX_CHAIN = 20  # styles based on styles


def read_odf(data: bytes, name: str, *, images: bool = False) -> ParsedText:
    """Return the body as Markdown-like text, with `images` its pictures as figures.

    Metadata: `title`, `author`, `modified`; `hidden_text` and `hidden_slides`, which are left out. Raises ParseError.
    """
    archive = open_zip(data, name)
    content = read_entry(archive, "content.xml", name)
    if content is None:
        raise ParseError(f"{name} is damaged: it has no content.")
    manifest = read_entry(archive, "META-INF/manifest.xml", name)
    if manifest is not None and b"encryption-data" in manifest:
        raise ParseError(f"{name} is protected by a password.", "Save a copy without a password.")
    root, styles = parse_xml(content, name), read_entry(archive, "styles.xml", name)
    hidden_styles = _hidden_styles([parse_xml(styles, name), root] if styles is not None else [root])
    reader = _BodyReader((lambda path: read_entry(archive, path, name)) if images else None, hidden_styles)
    body = child(root, "body")
    hidden_slides: list[str] = []
    for part in body if body is not None else ():
        if local_name(part) == "presentation":
            for number, slide in enumerate(children(part, "page"), 1):
                if reader.is_hidden(slide):
                    hidden_slides.append(str(number))
                    continue
                reader.builder.start_page(number)
                reader.read_blocks(slide)
        else:
            reader.read_blocks(part)
    meta = read_entry(archive, "meta.xml", name)
    metadata = core_metadata(parse_xml(meta, name) if meta is not None else None)
    if reader.hidden:
        metadata["hidden_text"] = hidden_text(reader.hidden)
    if hidden_slides:
        metadata["hidden_slides"] = ", ".join(hidden_slides)
    return reader.builder.build(metadata).with_title(only_with_metadata=True)


class _BodyReader:
    def __init__(self, load: Callable[[str], bytes | None] | None, hidden_styles: set[tuple[str, str]]) -> None:
        self.builder = MarkdownBuilder()
        self.hidden: list[str] = []
        self._hidden_styles = hidden_styles
        self._load = load  # a file of the archive; None without images
        self._pending_notes: list[str] = []  # of the current paragraph or table
        self._pending_frames: list[Node] = []  # of the current paragraph

    def is_hidden(self, node: Node) -> bool:
        """Whether a slide, section, paragraph or part of it is hidden, by itself or by its style."""
        kind = local_name(node)
        if kind in ("p", "h") and any(
            attribute(field, "is-hidden") == "true" for field in children(node, "hidden-paragraph")
        ):
            return True
        return (
            attribute(node, "display") == "none"
            or attribute(node, "is-hidden") == "true"
            or (_STYLE_FAMILIES.get(kind, ""), attribute(node, "style-name")) in self._hidden_styles
        )

    def read_blocks(self, parent: Node, depth: int = -1, marker: str = "") -> None:
        """Add the paragraphs, lists and tables below a node; `depth` is the depth of the list around them."""
        if local_name(parent) == "frame":
            self._add_pictures(parent)
        for node in parent:
            kind = local_name(node)
            if self.is_hidden(node):
                self.hidden += node.itertext()
            elif kind in ("h", "p"):
                text = self._text(node)
                if text and kind == "h":
                    level = attribute(node, "outline-level")
                    has_level = level.isdecimal() and level != "0"
                    self.builder.add_heading(min(int(level), _MAX_LEVEL) if has_level else 1, text)
                elif text:
                    self.builder.add_block("  " * min(max(depth, 0), _MAX_LEVEL) + marker + text, tight=depth >= 0)
                frames, self._pending_frames = self._pending_frames, []
                for frame in frames:
                    self.read_blocks(frame)
                self._add_notes()
                marker = "  " if marker else ""
            elif kind == "list":
                for item in node:
                    if local_name(item) in ("list-item", "list-header"):
                        self.read_blocks(item, depth + 1, "- ")
            elif kind == "table":
                self._add_table(node)
            elif kind == "frame" and attribute(node, "class") in ("title", "subtitle"):
                title = self._joined_text(node)
                if title and attribute(node, "class") == "title":
                    self.builder.add_heading(1, title)
                elif title:
                    self.builder.add_block(title)
            elif kind in _CONTAINERS:
                self.read_blocks(node, depth, marker)

    def _add_pictures(self, frame: Node) -> None:
        texts = [(text.text or "") for text in frame if local_name(text) in ("title", "desc")]
        for path in (attribute(image, "href") for image in children(frame, "image")):
            if self._load is not None:
                add_picture(self.builder, self._load(path), ["", *texts], path.rpartition("/")[2])

    def _add_notes(self) -> None:
        notes, self._pending_notes = self._pending_notes, []
        for note in notes:
            self.builder.add_block(note)

    def _joined_text(self, parent: Node) -> str:
        """The text of all paragraphs below a node in one line."""
        return " ".join(filter(None, map(self._text, self._paragraphs(parent))))

    def _paragraphs(self, parent: Node) -> Iterator[Node]:
        """The paragraphs and headings at any depth, without hidden ones and those of notes and comments."""
        for node in parent:
            kind = local_name(node)
            if self.is_hidden(node):
                if kind in ("p", "h", "section"):  # _text_parts records what a paragraph hides
                    self.hidden += node.itertext()
                continue
            if kind in ("p", "h"):
                yield node
            if kind != "note" and kind not in _DROPPED:
                yield from self._paragraphs(node)

    def _text(self, node: Node) -> str:
        lines = "".join(self._text_parts(node)).split("\n")
        return clean("\n".join(" ".join(line.split()) for line in lines).strip())

    def _text_parts(self, node: Node) -> Iterator[str]:
        yield node.text or ""
        for inner in node:
            kind = local_name(inner)
            if self.is_hidden(inner):
                self.hidden += inner.itertext()
            elif kind == "s":
                count = attribute(inner, "c")
                yield " " * (min(int(count), _MAX_SPACES) if count.isdecimal() else 1)
            elif kind == "tab":
                yield " "
            elif kind == "line-break":
                yield "\n"
            elif kind == "note":
                citation, body = child(inner, "note-citation"), child(inner, "note-body")
                mark = f"[{(citation.text or '').strip() if citation is not None else ''}]"
                if body is not None and (text := self._joined_text(body)):
                    self._pending_notes.append(f"{mark} {text}")
                    yield mark
            elif kind in _SHAPES:
                self._pending_frames.append(inner)
            elif kind not in _DROPPED:
                yield from self._text_parts(inner)
            yield inner.tail or ""

    def _add_table(self, table: Node) -> None:
        header_rows = len(list(_rows(child(table, "table-header-rows"))))
        row_nodes = list(_rows(table))
        lines = [
            [
                Cell(
                    self._joined_text(node),
                    _repeats(node, "number-columns-spanned"),
                    _repeats(node, "number-rows-spanned"),
                )
                for node in children(row_node, "table-cell")  # others are covered by them
                for _ in range(_repeats(node, "number-columns-repeated"))
            ]
            for row_node in row_nodes
        ]
        rows: list[list[Cell]] = []
        for row_node, row in zip(row_nodes, repeat_cells(lines), strict=True):
            while row and not row[-1].text:
                row.pop()
            if row:
                rows += [row] * _repeats(row_node, "number-rows-repeated")
        if any(len(row) > 1 for row in rows):
            titles, texts = arrange_table(rows, header_rows)
            self.builder.add_table(texts, titles=titles)
        else:
            for row in rows:
                self.builder.add_block(row[0].text)
        self._pending_frames = []  # their text is in the cells
        for frame in descendants(table, "frame"):
            self._add_pictures(frame)
        self._add_notes()


def _hidden_styles(roots: Sequence[Node]) -> set[tuple[str, str]]:
    """Family and name of the styles that hide text or slides; those of later roots replace earlier ones."""
    styles = {
        (attribute(style, "family"), attribute(style, "name")): style
        for root in roots
        for part in root
        for style in children(part, "style")
    }
    hidden = set()
    for family, name in styles:
        parent: Node | None = styles[family, name]
        for _ in range(_MAX_CHAIN):
            if parent is None:
                break
            values = [attribute(node, key) for node in parent for key in ("display", "visibility")]
            if any(values):
                if {"none", "hidden"} & set(values):
                    hidden.add((family, name))
                break
            parent = styles.get((family, attribute(parent, "parent-style-name")))
    return hidden


def _rows(parent: Node | None) -> Iterator[Node]:
    for node in parent if parent is not None else ():
        if local_name(node) == "table-row":
            yield node
        elif local_name(node) in _ROW_GROUPS:
            yield from _rows(node)


def _repeats(node: Node, name: str) -> int:
    count = attribute(node, name)
    return min(int(count), _MAX_REPEATS) if count.isdecimal() and count != "0" else 1
