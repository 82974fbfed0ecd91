"""The tree of an HTML page: traversal, attributes, invisible elements and layout tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

BLOCKS = frozenset(
    "address article aside blockquote body caption center dd details dialog div dl dt fieldset figcaption figure footer"
    " form h1 h2 h3 h4 h5 h6 header hgroup hr legend li main menu ol p pre search section summary table tbody td tfoot"
    " th thead tr ul".split()
)
_DROPPED = frozenset(
    "script style noscript template nav search svg iframe object canvas select textarea head datalist audio"
    " video".split()
)
_HIDDEN = re.compile(
    r"""display\s*:\s*none | visibility\s*:\s*(?:hidden|collapse)
      | (?<![\w-])opacity\s*:\s*0(?:\.0+)?(?:px|pt|r?em|%)?\s*(?:[;!]|$)
      | (?<![\w-])(?:left|right|top|bottom|text-indent)\s*:\s*-\d{4}""",
    re.IGNORECASE | re.VERBOSE,
)
_NO_SIZE = re.compile(r"(?<![\w-])font-size\s*:\s*(?:0+(?:\.0*)?|\.0+)(?:[a-z]+|%)?\s*(?:[;!]|$)", re.IGNORECASE)
# Others, such as 2em and larger, are a multiple of the inherited size.
_ABSOLUTE_SIZE = re.compile(
    r"""(?:^|;)\s*font-size\s*:\s*
        (?:(?=[\d.]*[1-9])[\d.]+(?:px|pt|pc|in|cm|mm|rem|vw|vh) | (?:x{1,3}-)?(?:small|large) | medium)
        \s*(?:[;!]|$)""",
    re.IGNORECASE | re.VERBOSE,
)
_WEIGHT = re.compile(r"(?<![\w-])font-weight\s*:\s*(?:(bold|[6-9]00)|\w+)", re.IGNORECASE)
_MAX_HEADING = 120  # characters
_MAX_BOLD = 0.4  # of all text
_COLOUR = re.compile(r"(?<![\w-])(color|background(?:-color)?)\s*:\s*(#[0-9a-f]{3,6}|[a-z]+)", re.IGNORECASE)
_NAMED_COLOURS = {"white": "#ffffff", "black": "#000000"}


def walk(root: LexborNode, enter: Callable[[LexborNode], bool], leave: Callable[[LexborNode], None]) -> None:
    """Visit all nodes below `root` without recursion; where `enter` returns False, the node is skipped and not left."""
    path: list[LexborNode] = []
    node = root.child
    while node is not None:
        entered = enter(node)
        first_child = node.child if entered else None
        if first_child is not None:
            path.append(node)
            node = first_child
            continue
        if entered:
            leave(node)
        while (sibling := node.next) is None and path:
            node = path.pop()
            leave(node)
        node = sibling


def is_dropped(node: LexborNode) -> bool:
    """Whether a node is invisible, or navigation by its tag or ARIA role."""
    if node.tag in _DROPPED:
        return True
    attributes = node.attributes
    if not attributes:
        return False
    if (
        "hidden" in attributes
        or attributes.get("aria-hidden") == "true"
        or attributes.get("role") in {"navigation", "search"}
    ):
        return True
    style = attributes.get("style") or ""  # style sheets are not evaluated
    if not style:
        return False
    if _HIDDEN.search(style):
        return True
    colours = {}
    for name, value in _COLOUR.findall(style):
        colour = _NAMED_COLOURS.get(value.lower(), value.lower())
        if len(colour) == 4 and colour[0] == "#":  # #abc is short for #aabbcc
            colour = "#" + "".join(2 * digit for digit in colour[1:])
        colours[name[:5].lower()] = colour
    return "color" in colours and colours["color"] == colours.get("backg")


def remove_text_without_size(root: LexborNode) -> None:
    """Remove text of font size 0 below `root`; a child that sets a size of its own is visible."""
    if not any(_NO_SIZE.search(attribute(node, "style")) for node in root.css("[style]")):
        return
    has_size = [True]
    hidden: list[LexborNode] = []

    def enter(node: LexborNode) -> bool:
        if node.tag == "-text":
            if not has_size[-1] and (node.text_content or "").strip():
                hidden.append(node)
            return False
        style = attribute(node, "style")
        has_size.append(not _NO_SIZE.search(style) and (has_size[-1] or bool(_ABSOLUTE_SIZE.search(style))))
        return True

    def leave(_: LexborNode) -> None:
        has_size.pop()

    walk(root, enter, leave)
    for node in hidden:
        node.decompose()


def find_bold_headings(root: LexborNode) -> frozenset[int]:
    """The identifiers of the blocks that are headings of a page without heading elements: short, with bold text only.

    Where much of the text is bold, bold means nothing. Tables and lists have no headings.
    """
    if root.css_first("h1, h2, h3, h4, h5, h6") is not None:
        return frozenset()
    bold = [False]
    counts = [[0, 0]]  # characters of open blocks outside of their inner blocks: plain, bold
    total = [0, 0]
    found = list[int]()

    def enter(node: LexborNode) -> bool:
        if node.tag == "-text":
            length = len((node.text_content or "").strip())
            counts[-1][bold[-1]] += length
            total[bold[-1]] += length
            return False
        if node.tag in {"li", "pre", "dl"} or is_dropped(node) or (node.tag == "table" and not is_layout(node)):
            return False
        weight = _WEIGHT.search(attribute(node, "style"))
        bold.append(bool(weight[1]) if weight else bold[-1] or node.tag in {"b", "strong"})
        if node.tag in BLOCKS:
            counts.append([0, 0])
        return True

    def leave(node: LexborNode) -> None:
        bold.pop()
        if node.tag in BLOCKS:
            plain, of_bold = counts.pop()
            if of_bold and not plain and is_heading(" ".join(node.text().split())):
                found.append(node.mem_id)

    def is_heading(text: str) -> bool:
        return len(text) <= _MAX_HEADING and not text.endswith((".", ":", ",", ";")) and any(map(str.isalpha, text))

    walk(root, enter, leave)
    return frozenset(found if total[1] <= _MAX_BOLD * sum(total) else ())


def is_permalink(node: LexborNode) -> bool:
    """Whether a link to a place of the same page shows only a sign, as the `¶` behind headings."""
    if node.tag != "a" or not attribute(node, "href").startswith("#"):
        return False
    text = node.text().strip()
    return bool(text) and not any(map(str.isalnum, text))


def is_layout(table: LexborNode) -> bool:
    """Whether a table only arranges other content: its cells are read one after the other."""
    if attribute(table, "role") in {"presentation", "none"}:
        return True
    if any(node.mem_id != table.mem_id for node in table.css("table, pre, h1, h2, h3, h4, h5, h6")):
        return True
    return all(sum(cell.tag in {"td", "th"} for cell in row.iter()) <= 1 for row in table.css("tr"))


def attribute(node: LexborNode, name: str) -> str:
    """The value of an attribute; empty if it has none."""
    return node.attributes.get(name) or ""
