"""HTML: what a reader sees, as Markdown-like text, in one pass over the tree."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING

from selectolax.lexbor import LexborHTMLParser

from ragfm.core.errors import ParseError
from ragfm.core.types import Scalar
from ragfm.parsing.rendering import Parsed, Rendering

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

_DROPPED = frozenset(
    "script style noscript template nav svg iframe object canvas select textarea head datalist audio video".split()
)
_BLOCKS = frozenset(
    "address article aside blockquote body caption center dd details dialog div dl dt fieldset figcaption figure footer"
    " form h1 h2 h3 h4 h5 h6 header hgroup hr legend li main menu ol p pre search section summary table tbody td tfoot"
    " th thead tr ul".split()
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_LISTS = frozenset({"ol", "ul", "menu"})
_HIDDEN = re.compile(
    r"""display\s*:\s*none | visibility\s*:\s*(?:hidden|collapse)
      | (?<![\w-])(?:font-size|opacity)\s*:\s*0(?:\.0+)?(?:px|pt|r?em|%)?\s*(?:[;!]|$)
      | (?<![\w-])(?:left|right|top|bottom|text-indent)\s*:\s*-\d{4}""",
    re.IGNORECASE | re.VERBOSE,
)
_COLOUR = re.compile(r"(?<![\w-])(color|background(?:-color)?)\s*:\s*(#[0-9a-f]{3,6}|[a-z]+)", re.IGNORECASE)
_NAMED = {"white": "#ffffff", "black": "#000000"}
_BREAK = "\0"  # stands for <br>; no text of a parsed page has one
_SAID = {
    **{name: name for name in ("author", "date", "description")},
    **dict.fromkeys(("article:published_time", "dc.date", "dcterms.date"), "date"),
    **dict.fromkeys(("dc.creator", "dcterms.creator"), "author"),
}
"""What a page says of itself, by the names in use."""
_MAX_INDENT = 10  # levels of lists
_MAX_SPAN = 50  # columns of one cell
_MAX_REPEATS = 20_000  # cells of one table that repeat the cell above, so that spans can't multiply a page
_MAX_REPEATED = 200  # characters of a repeated cell

# Elements whose end tag may be missing, and those without one, say nothing of the depth.
_TAG = re.compile(
    r"<(/?)(?!(?:area|base|br|col|embed|hr|img|input|link|meta|source|track|wbr|p|li|dt|dd|t[rdh]|tbody|thead|tfoot"
    r"|option|colgroup)\b)[a-z][^<>]*(?<!/)>",
    re.IGNORECASE,
)
_MAX_DEPTH = 10_000  # lexbor takes quadratic time over the depth: 0.2 s here, minutes at 200,000


def read_html(text: str, name: str) -> Parsed:
    """The page's main part as Markdown-like text; metadata from `title`, `meta` and `lang`."""
    if max(accumulate((-1 if end else 1) for end in _TAG.findall(text)), default=0) > _MAX_DEPTH:
        raise ParseError(f"{name} nests more than {_MAX_DEPTH:,} elements.")
    page = LexborHTMLParser(text)
    body = page.body or page.root
    if body is None:
        return Parsed("")
    metadata = _metadata(page)
    main = page.css_first("main, [role=main]") or _only_article(page)
    parsed = _Page(main).finish(metadata) if main is not None else Parsed("")
    if not parsed.text:
        parsed = _Page(body).finish(metadata)
    title = next((mark.value for mark in parsed.marks if mark.level == 1), "")
    if title and "title" not in metadata:
        metadata["title"] = title
    return parsed


class _Page:
    """One pass over a tree; blocks go to the rendering as they end."""

    def __init__(self, root: LexborNode) -> None:
        self._rendering = Rendering()
        self._words: list[str] = []
        self._lists: list[int | None] = []  # the number of the next item; None in an unordered list
        self._marker = ""
        self._is_body = root.tag == "body"
        _walk(root, self._enter, self._leave)
        self._flush()

    def finish(self, metadata: dict[str, Scalar]) -> Parsed:
        return self._rendering.finish(metadata)

    def _enter(self, node: LexborNode) -> bool:
        tag = node.tag
        if tag == "-text":
            self._words.append(node.text_content or "")
            return False
        if tag == "br":
            self._words.append(_BREAK)
        if _is_dropped(node) or (self._is_body and tag in {"header", "footer"} and not _in_section(node)):
            return False
        if tag not in _BLOCKS:
            return True
        self._flush()
        if tag in _LISTS:
            self._lists.append(_first_number(node) if tag == "ol" else None)
        elif tag == "li":
            self._begin_item()
        elif tag == "pre":
            self._code(node)
            return False
        elif tag == "table" and not _is_layout(node):
            self._table(node)
            return False
        return True

    def _leave(self, node: LexborNode) -> None:
        tag = node.tag
        if tag in _HEADINGS:
            if words := " ".join("".join(self._words).replace(_BREAK, " ").split()):
                self._rendering.heading(_HEADINGS[tag], words)
                self._marker = ""
            self._words.clear()
        elif tag in _BLOCKS:
            self._flush()
            if tag in _LISTS:
                self._lists.pop()

    def _flush(self) -> None:
        """End a paragraph."""
        if not self._words:
            return
        lines = [" ".join(line.split()) for line in "".join(self._words).split(_BREAK)]
        self._words.clear()
        if not any(lines):
            return
        depth = min(len(self._lists), _MAX_INDENT)
        indent = "  " * (depth - 1 if self._marker else depth)
        paragraph = f"\n{indent}".join(filter(None, lines))
        self._rendering.block(indent + self._marker + paragraph, tight=bool(self._lists))
        self._marker = ""

    def _begin_item(self) -> None:
        number = self._lists[-1] if self._lists else None
        self._marker = "- " if number is None else f"{number}. "
        if number is not None:
            self._lists[-1] = number + 1

    def _code(self, node: LexborNode) -> None:
        text = node.text().replace("\r", "\n").strip("\n").rstrip()
        if text.strip():
            code = node.css_first("code")
            classes = " ".join(_attribute(element, "class") for element in (node, code) if element is not None)
            language = re.search(r"\blang(?:uage)?-([\w+#-]+)", classes)
            self._rendering.code(text, language[1] if language else "")
            self._marker = ""

    def _table(self, node: LexborNode) -> None:
        caption = node.css_first("caption")
        if caption is not None and (words := _text_of(caption)):
            self._rendering.block(words)
        rows, header_rows = table_rows(node)
        if rows:
            self._rendering.table(rows, header_rows)
            self._marker = ""


def _walk(root: LexborNode, enter: Callable[[LexborNode], bool], leave: Callable[[LexborNode], None]) -> None:
    """Visit all nodes below `root` without recursion; what `enter` refuses is neither gone into nor left."""
    path: list[LexborNode] = []
    node = root.child
    while node is not None:
        entered = enter(node)
        below = node.child if entered else None
        if below is not None:
            path.append(node)
            node = below
            continue
        if entered:
            leave(node)
        while (following := node.next) is None and path:
            node = path.pop()
            leave(node)
        node = following


def table_rows(table: LexborNode) -> tuple[list[list[str]], int]:
    """The rows of a table and how many of them are header; a cell over several rows is repeated in each."""
    rows: list[list[str]] = []
    header_rows = 0
    open_spans: dict[int, tuple[int, str]] = {}  # column: rows to come, text
    lines = table.css("tr")
    budget = _MAX_REPEATS
    for line in lines:
        row: list[str] = []
        cells = [cell for cell in _children(line) if cell.tag in {"td", "th"} and not _is_dropped(cell)]
        for cell in [*cells, None]:
            while len(row) in open_spans:
                left, text = open_spans.pop(column := len(row))
                if left > 1:
                    open_spans[column] = (left - 1, text)
                row.append(text)
            if cell is None:
                break
            texts = [_text_of(cell)] + [""] * (min(_number(cell, "colspan"), _MAX_SPAN) - 1)
            more = min(_number(cell, "rowspan"), len(lines)) - 1
            if 0 < more * len(texts) <= budget:
                budget -= more * len(texts)
                open_spans |= {len(row) + i: (more, text[:_MAX_REPEATED]) for i, text in enumerate(texts)}
            row += texts
        # Spans beyond the last cell go on; a row that they alone fill is none.
        if any(row):
            rows.append(row)
            parent = line.parent
            header_rows += parent is not None and parent.tag == "thead" and header_rows == len(rows) - 1
    return rows, min(max(header_rows, 1), len(rows))


def _text_of(root: LexborNode) -> str:
    """All text below a node in one line."""
    words: list[str] = []

    def enter(node: LexborNode) -> bool:
        tag = node.tag
        if tag == "-text":
            words.append(node.text_content or "")
            return False
        if tag in _BLOCKS or tag == "br":
            words.append(" ")
        return not _is_dropped(node)

    def leave(node: LexborNode) -> None:
        if node.tag in _BLOCKS:
            words.append(" ")

    _walk(root, enter, leave)
    return " ".join("".join(words).split())


def _is_dropped(node: LexborNode) -> bool:
    """True for what a reader doesn't see, or sees on every page."""
    if node.tag in _DROPPED:
        return True
    attributes = node.attributes
    if not attributes:
        return False
    return (
        "hidden" in attributes
        or attributes.get("aria-hidden") == "true"
        or attributes.get("role") == "navigation"
        or ("style" in attributes and _is_hidden(attributes["style"] or ""))
    )


def _is_hidden(style: str) -> bool:
    """Whether an element's own style keeps its text from being seen; what style sheets do is not looked at."""
    if _HIDDEN.search(style):
        return True
    colours = {name[:5].lower(): _colour(value.lower()) for name, value in _COLOUR.findall(style)}
    return "color" in colours and colours["color"] == colours.get("backg")


def _colour(value: str) -> str:
    value = _NAMED.get(value, value)
    return "#" + "".join(2 * digit for digit in value[1:]) if len(value) == 4 and value[0] == "#" else value


def _is_layout(table: LexborNode) -> bool:
    """True for a table that only puts things in their places: its cells are read one after the other."""
    if _attribute(table, "role") in {"presentation", "none"}:
        return True
    if any(found != table for found in table.css("table, pre, h1, h2, h3, h4, h5, h6")):
        return True
    return all(sum(cell.tag in {"td", "th"} for cell in _children(line)) <= 1 for line in table.css("tr"))


def _in_section(node: LexborNode) -> bool:
    parent = node.parent
    while parent is not None:
        if parent.tag in {"article", "main", "section"}:
            return True
        parent = parent.parent
    return False


def _only_article(page: LexborHTMLParser) -> LexborNode | None:
    articles: list[LexborNode] = page.css("article")
    return articles[0] if len(articles) == 1 else None


def _children(node: LexborNode) -> list[LexborNode]:
    return list(node.iter())


def _attribute(node: LexborNode, name: str) -> str:
    return node.attributes.get(name) or ""


def _number(node: LexborNode, name: str) -> int:
    digits = _attribute(node, name).strip()
    return max(int(digits), 1) if digits.isdecimal() and len(digits) < 6 else 1


def _first_number(node: LexborNode) -> int:
    digits = _attribute(node, "start").strip()
    return int(digits) if digits.isdecimal() and len(digits) < 6 else 1


def _metadata(page: LexborHTMLParser) -> dict[str, Scalar]:
    found: dict[str, str] = {}
    title = page.css_first("head > title") or page.css_first("title")
    if title is not None:
        found["title"] = title.text()
    for meta in page.css("meta[content]"):
        name = (_attribute(meta, "name") or _attribute(meta, "property")).strip().lower()
        if name in _SAID:
            found.setdefault(_SAID[name], _attribute(meta, "content"))
    html = page.css_first("html")
    if html is not None:
        found["lang"] = _attribute(html, "lang")
    stripped = {key: " ".join(value.split()) for key, value in found.items()}
    return {key: value for key, value in stripped.items() if value}
