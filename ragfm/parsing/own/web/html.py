"""HTML: the visible text as Markdown-like text, in one pass over the tree."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import unquote_to_bytes

from selectolax.lexbor import LexborHTMLParser

from ragfm.core.errors import ParseError
from ragfm.core.types import Scalar
from ragfm.parsing.figures import kept_image
from ragfm.parsing.own.media.picture import recognized_text
from ragfm.parsing.own.web.html_tree import (
    BLOCKS,
    attribute,
    find_bold_headings,
    is_dropped,
    is_layout,
    is_permalink,
    remove_text_without_size,
    walk,
)
from ragfm.parsing.own.web.main_content import contents_of_book, find_main_content
from ragfm.parsing.rendering import MarkdownBuilder, ParsedText
from ragfm.parsing.table_layout import ArrangedTable, Cell, arrange_table, repeat_cells

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

LoadFile: TypeAlias = Callable[[str], bytes | None]
"""Returns the file with an address that a page names, None if it is not at hand."""
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_BOLD_LEVEL = 2  # of headings that are bold paragraphs
_LISTS = frozenset({"ol", "ul", "menu"})
_MAX_DEFINITION = 200
"""Characters of a definition that is in one paragraph with its term; the term is the heading of a longer one."""
_SECTION = ", ".join(["pre", "table", "dl", *_LISTS, *_HEADINGS])
"""Elements that one paragraph cannot have, as a CSS selector."""
_MAX_LEVEL = 6
_MAX_TERMS = 8  # of one definition
_BULLETS = "•◦▪▫●○■□‣⁃∙·◆◇►▶➢➤✓✔*-\u2013\u2014"
_ITEM_MARKER = re.compile(rf"[{re.escape(_BULLETS)}☐☑☒]|\(?(?:\d{{1,2}}|[a-z]|[ivx]{{1,4}})[.)]", re.IGNORECASE)
_BREAK = "\0"  # stands for <br>; the text of a parsed page has no NUL
_META_NAMES = {
    **{name: name for name in ("author", "date", "description")},
    **dict.fromkeys(("article:published_time", "dc.date", "dcterms.date"), "date"),
    **dict.fromkeys(("dc.creator", "dcterms.creator"), "author"),
}
"""Metadata keys by the names that `meta` elements use."""
_MAX_INDENT = 10  # levels of lists
_MAX_SPAN = 50  # columns of one cell

# Elements without an end tag, or with an optional one, do not count for the depth.
_TAG = re.compile(
    r"<(/?)(?!(?:area|base|br|col|embed|hr|img|input|link|meta|source|track|wbr|p|li|dt|dd|t[rdh]|tbody|thead|tfoot"
    r"|option|colgroup)\b)[a-z][^<>]*(?<!/)>",
    re.IGNORECASE,
)
# An empty element of XHTML, which is only a start tag in HTML: all that follows a <title/> or <script/> is lost in it.
_EMPTY_ELEMENT = re.compile(
    r"""<(?!(?:area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr)\b)([a-z][\w:-]*)
        ((?:\s+[\w:.-]+(?:\s*=\s*(?:"[^"]*"|'[^']*'))?)*)\s*/>""",
    re.IGNORECASE | re.VERBOSE,
)
_HIDING = re.compile(r"\s(?:style|hidden|aria-hidden|role)\b", re.IGNORECASE)
_XHTML = re.compile(r"<\?xml\s|http://www\.w3\.org/1999/xhtml")
_XHTML_START = 2_000  # characters that tell whether a page is XHTML
_MAX_DEPTH = 10_000  # lexbor takes quadratic time over the depth: 0.2 s here, minutes at 200,000


def read_html(
    text: str,
    name: str,
    *,
    images: bool = False,
    load: LoadFile | None = None,
    is_chapter: Callable[[str], bool] | None = None,
) -> ParsedText:
    """Return the main part of the page as Markdown-like text; metadata from `title`, `meta` and `lang`.

    With `images`, pictures are figures: those in `data:` addresses, and those that `load` returns for an address.
    With `is_chapter`, which tells whether an address is part of the same book, its table of contents is left out.
    """
    if is_chapter is not None or _XHTML.search(text, 0, _XHTML_START):
        # Browsers may read the page as HTML, where <div hidden/> hides what follows. Books are always XHTML.
        text = _EMPTY_ELEMENT.sub(
            lambda tag: f"<{tag[1]}{tag[2]}></{tag[1]}>" if is_chapter or not _HIDING.search(tag[2]) else tag[0], text
        )
    if max(accumulate((-1 if end else 1) for end in _TAG.findall(text)), default=0) > _MAX_DEPTH:
        raise ParseError(f"{name} nests elements more than {_MAX_DEPTH:,} levels deep.")
    page = LexborHTMLParser(text)
    body = page.body or page.root
    if body is None:
        return ParsedText("")
    values: dict[str, str] = {}
    title = page.css_first("head > title") or page.css_first("title")
    if title is not None:
        values["title"] = title.text()
    for meta in page.css("meta[content]"):
        key = (attribute(meta, "name") or attribute(meta, "property")).strip().lower()
        if key in _META_NAMES:
            values.setdefault(_META_NAMES[key], attribute(meta, "content"))
    html = page.css_first("html")
    if html is not None:
        values["lang"] = attribute(html, "lang")
    metadata: dict[str, Scalar] = {key: line for key, value in values.items() if (line := " ".join(value.split()))}

    remove_text_without_size(body)
    main, left_out = find_main_content(body)
    if is_chapter is not None:
        left_out |= contents_of_book(main, is_chapter)
    parsed = _PageReader(left_out, (load or (lambda _: None)) if images else None).read(main, metadata)
    return parsed.with_title(only_with_metadata=True)


@dataclass(slots=True)
class _Definitions:
    """An open list of definitions: the level of its terms as headings, and whether it has any."""

    level: int
    has_headings: bool = False


class _PageReader:
    """Converts a tree in one pass; blocks are added as their elements end."""

    def __init__(self, left_out: frozenset[int], load: LoadFile | None = None) -> None:
        self._left_out = set(left_out)  # identifiers of elements
        self._load = load  # None without images
        self._builder = MarkdownBuilder()
        self._texts: list[str] = []  # of the current paragraph
        self._lists: list[int | None] = []  # open lists: the number of the next item; None in an unordered list
        self._marker = ""  # of a list item without text so far
        self._definitions: list[_Definitions] = []  # open ones
        self._terms: list[str] = []  # of a definition without text so far
        self._level = 1  # of the last heading outside of definitions
        self._bold_headings = frozenset[int]()  # identifiers of blocks

    def read(self, root: LexborNode, metadata: dict[str, Scalar]) -> ParsedText:
        self._bold_headings = find_bold_headings(root)
        walk(root, self._enter, self._leave)
        self._end_paragraph()
        return self._builder.build(metadata)

    def _enter(self, node: LexborNode) -> bool:
        tag = node.tag
        if tag == "-text":
            self._texts.append(node.text_content or "")
            return False
        if tag == "br":
            self._texts.append(_BREAK)
        if node.mem_id in self._left_out or is_permalink(node):
            return False
        if tag == "img" and self._load is not None:
            self._add_image(node)
        if tag not in BLOCKS:
            return True
        self._end_paragraph()
        if tag == "dl":
            level = self._definitions[-1].level if self._definitions else self._level
            self._definitions.append(_Definitions(min(level + 1, _MAX_LEVEL)))
        if tag == "figure" and self._load is not None:
            caption = node.css_first("figcaption")
            text = _text_of(caption) if caption is not None else ""
            if [image for image in node.css("img") if self._add_image(image, text)] and caption is not None:
                self._left_out.add(caption.mem_id)
        if tag in _LISTS:
            start = attribute(node, "start").strip()
            number = int(start) if start.isdecimal() and len(start) < 6 else 1
            self._lists.append(number if tag == "ol" else None)
        elif tag == "li":
            item_number = self._lists[-1] if self._lists else None
            self._marker = "- " if item_number is None else f"{item_number}. "
            if item_number is not None:
                self._lists[-1] = item_number + 1
        elif tag == "pre":
            text = _code_of(node).replace("\r", "\n").strip("\n").rstrip()
            if text.strip():
                code = node.css_first("code")
                classes = " ".join(attribute(element, "class") for element in (node, code) if element is not None)
                language = re.search(r"\blang(?:uage)?-([\w+#-]+)", classes)
                self._builder.add_code(text, language[1] if language else "")
                self._marker = ""
            return False
        elif tag == "table" and not is_layout(node):
            titles, rows = read_table(node)
            if rows and not titles and all(len(row) == 2 and _ITEM_MARKER.fullmatch(row[0]) for row in rows):
                for marker, text in rows:  # a list, laid out as a table
                    self._builder.add_block(f"{'-' if marker in _BULLETS else marker} {text}", tight=True)
            elif rows:
                self._builder.add_table(rows, titles=titles)
            else:
                for title in titles:
                    self._builder.add_block(title)
            self._marker = "" if titles or rows else self._marker
            return False
        return True

    def _leave(self, node: LexborNode) -> None:
        tag = node.tag
        if tag in _HEADINGS:
            level = _HEADINGS[tag]
            if not self._definitions:
                self._level = level
            elif self._definitions[-1].has_headings:  # in a definition, it is below the term
                level = min(max(level, self._definitions[-1].level + 1), _MAX_LEVEL)
            self._add_heading(level, self._take_line())
        elif node.mem_id in self._bold_headings:
            self._add_heading(_BOLD_LEVEL, self._take_line())
        elif tag == "dt" and self._definitions:
            # Keep the term for the first paragraph of its definition, or add it as a heading if that is longer.
            self._terms.append(self._take_line())
            following: list[LexborNode] = []
            after = node.next
            while after is not None and len(following) < _MAX_TERMS:
                if not after.tag.startswith("-"):  # a text or a comment
                    following.append(after)
                after = after.next
            parts = list(takewhile(lambda element: element.tag == "dd", following))
            if not parts:
                if next((element.tag for element in following if element.tag != "dt"), None) != "dd":
                    self._end_terms()
            elif any(part.css_first(_SECTION) is not None or len(_text_of(part)) > _MAX_DEFINITION for part in parts):
                if self._lists:
                    self._end_terms()
                else:
                    self._add_heading(self._definitions[-1].level, self._take_terms())
                    self._definitions[-1].has_headings = True
        elif tag in BLOCKS:
            self._end_paragraph()
            if tag in _LISTS:
                self._lists.pop()
            elif tag == "dd":
                self._end_terms()
            elif tag == "dl":
                definitions = self._definitions.pop()
                if definitions.has_headings:
                    self._builder.end_section(definitions.level)

    def _take_line(self) -> str:
        """The text of the element that ends, in one line."""
        line = " ".join("".join(self._texts).replace(_BREAK, " ").split())
        self._texts.clear()
        return line

    def _take_terms(self) -> str:
        """The terms without a definition so far, in one line."""
        terms = ", ".join(self._terms)
        self._terms.clear()
        return terms

    def _add_heading(self, level: int, title: str) -> None:
        if title:
            self._builder.add_heading(level, title)
            self._marker = ""

    def _end_terms(self) -> None:
        """Add terms that have no definition, or that are a paragraph of their own."""
        if self._terms:
            self._texts.append(self._take_terms())
            self._end_paragraph()

    def _add_image(self, node: LexborNode, caption: str = "") -> bool:
        """Add a picture, once, if it is visible and its file is there. Returns whether it was added."""
        if is_dropped(node):
            return False
        source = attribute(node, "src").strip()
        data = None
        if source.startswith("data:"):
            head, _, encoded = source.partition(",")
            with suppress(ValueError):
                data = b64decode(unquote_to_bytes(encoded)) if head.endswith(";base64") else None
        elif self._load is not None:
            data = self._load(source)
        kept = kept_image(data) if data else None
        if kept is None or self._builder.has_figure(kept):
            return False
        self._end_paragraph()
        stand_in = "image" if source.startswith("data:") else source.rpartition("/")[2]
        texts = [caption, attribute(node, "alt"), attribute(node, "title"), recognized_text(kept)]
        self._builder.add_figure(kept, texts, stand_in)
        return True

    def _end_paragraph(self) -> None:
        if not self._texts:
            return
        lines = [" ".join(line.split()) for line in "".join(self._texts).split(_BREAK)]
        self._texts.clear()
        if not any(lines):
            return
        if self._terms:
            lines.insert(0, self._take_terms())
        depth = min(len(self._lists), _MAX_INDENT)
        indent = "  " * (depth - 1 if self._marker else depth)
        paragraph = f"\n{indent}".join(filter(None, lines))
        self._builder.add_block(indent + self._marker + paragraph, tight=bool(self._lists))
        self._marker = ""


def read_table(table: LexborNode) -> ArrangedTable:
    """The rows of a table, with its `caption` as a title; a cell over several rows is repeated in each."""
    caption = table.css_first("caption")
    caption_text = _text_of(caption) if caption is not None else ""
    captions = [caption_text] if caption_text else []
    rows: list[list[Cell]] = []
    header_rows = 0
    only_headers: list[int] = []  # rows
    labelled: list[bool] = []  # of rows with several cells: the first is a header, the others are not
    row_nodes = table.css("tr")
    node_rows = [
        [cell for cell in row.iter() if cell.tag in {"td", "th"} and not is_dropped(cell)] for row in row_nodes
    ]
    lines = repeat_cells(
        [
            [Cell(_text_of(node), min(_span(node, "colspan"), _MAX_SPAN), _span(node, "rowspan")) for node in nodes]
            for nodes in node_rows
        ]
    )
    for row_node, nodes, row in zip(row_nodes, node_rows, lines, strict=True):
        # A row without text of its own or from the cells above is dropped.
        if any(cell.text for cell in row):
            rows.append(row)
            if len(nodes) > 1:
                labelled.append(nodes[0].tag == "th" and all(node.tag == "td" for node in nodes[1:]))
            if row_node.parent is not None and row_node.parent.tag == "thead":
                header_rows += header_rows == len(rows) - 1
            elif all(node.tag == "th" for node in nodes):
                only_headers.append(len(rows) - 1)
    if not rows:
        return ArrangedTable(captions, [])
    width = max(sum(cell.columns for cell in row) for row in rows)
    for at in only_headers:  # without <thead>
        header_rows += at == header_rows and len(rows[at]) > 1 and sum(cell.columns for cell in rows[at]) == width
    labels_only = any(labelled[:1]) and 2 * sum(labelled) > len(labelled)
    arranged = arrange_table(rows, header_rows, labels_only=labels_only)
    return arranged._replace(titles=[*captions, *arranged.titles])


def _span(cell: LexborNode, name: str) -> int:
    digits = attribute(cell, name).strip()
    return max(int(digits), 1) if digits.isdecimal() and len(digits) < 6 else 1


def _code_of(pre: LexborNode) -> str:
    texts: list[str] = []
    at_edge = False  # of a block
    in_line = False  # the line has text

    def enter(node: LexborNode) -> bool:
        nonlocal at_edge, in_line
        if is_dropped(node):
            return False
        if node.tag not in {"-text", "br"}:
            at_edge |= node.tag in BLOCKS
            return True
        text = "\n" if node.tag == "br" else node.text_content or ""
        if at_edge and in_line and (node.tag == "br" or not text.startswith("\n")):
            texts.append("\n")
            in_line = False
        texts.append(text)
        *ended, line = text.rsplit("\n", 1)
        in_line = bool(line.strip()) or (in_line and not ended)
        at_edge = False
        return False

    def leave(node: LexborNode) -> None:
        nonlocal at_edge
        at_edge |= node.tag in BLOCKS

    walk(pre, enter, leave)
    return "".join(texts)


def _text_of(root: LexborNode) -> str:
    """All text below a node in one line."""
    texts: list[str] = []

    def enter(node: LexborNode) -> bool:
        tag = node.tag
        if tag == "-text":
            texts.append(node.text_content or "")
            return False
        if tag in BLOCKS or tag == "br":
            texts.append(" ")
        return not is_dropped(node) and not is_permalink(node)

    def leave(node: LexborNode) -> None:
        if node.tag in BLOCKS:
            texts.append(" ")

    walk(root, enter, leave)
    return " ".join("".join(texts).split())
