"""XML: prose becomes headings and paragraphs, data becomes lines `path: value` with one block per record."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ragfm.parsing.own.office.office_xml import Node, local_name, parse_xml
from ragfm.parsing.own.web.html import read_html
from ragfm.parsing.rendering import MarkdownBuilder, ParsedText, clean

_PARAGRAPHS = frozenset({"p", "para", "simpara", "paragraph", "li", "listitem", "abstract", "td"})
_HEADINGS = frozenset({"title", "head", "heading", "subtitle"})
_MAX_LEVEL = 6
_HTML_TAG = re.compile(r"<(?:p|div|br|a|ul|li|h[1-6]|span|b|i|em|strong|img|table)\b[^>]*>", re.IGNORECASE)


def read_xml(text: str, name: str) -> ParsedText:
    """Return the text of all elements; comments and processing instructions are left out. Raises ParseError.

    Entity declarations and references to other files are refused. HTML within an element becomes its visible text.
    """
    root = parse_xml(text.strip().encode("utf-8", "replace"), name, dtd=True, encoding="utf-8")
    builder = MarkdownBuilder()
    # In prose, elements mix text and child elements, or have the names of paragraphs.
    mixed = count = 0
    for node in root.iter():
        count += 1
        mixed += local_name(node) in _PARAGRAPHS or any(child.tail and child.tail.strip() for child in node)
    if mixed > 0.03 * count:
        _add_prose(root, builder, 0)
    else:
        _add_data(root, builder, name)
    return builder.build().with_title()


def _add_prose(node: Node, builder: MarkdownBuilder, depth: int) -> None:
    if local_name(node) in _HEADINGS and (title := _text_of(node)):
        builder.add_heading(min(max(depth, 1), _MAX_LEVEL), title)
        return
    children = list(node)
    has_text = (node.text and node.text.strip()) or any(child.tail and child.tail.strip() for child in children)
    if not children or has_text or local_name(node) in _PARAGRAPHS:
        if text := _text_of(node):
            builder.add_block(text)
        return
    has_heading = any(local_name(child) in _HEADINGS for child in children)
    for child in children:
        _add_prose(child, builder, depth + has_heading)


def _add_data(root: Node, builder: MarkdownBuilder, name: str) -> None:
    records = [child for child in root if len(child)]
    scalars = [child for child in root if not len(child)]
    if len(records) == 1 and not scalars:  # an element that only wraps the records
        _add_data(records[0], builder, name)
        return
    blocks = [_values(root, "", scalars), *(_values(record, local_name(record), list(record)) for record in records)]
    for block in blocks:
        lines = []
        for path, value in block:
            if _HTML_TAG.search(value):
                value = " ".join(read_html(value, name).text.split())
            lines.append(f"{path}: {value}" if path else value)
        if lines:
            builder.add_block(clean("\n".join(lines)))


def _values(node: Node, path: str, children: list[Node]) -> Iterator[tuple[str, str]]:
    """Paths and values of an element's attributes, of its text, and of its descendants."""
    for key, value in node.attrib.items():
        key = key.rsplit("}", 1)[-1]
        if value.strip():
            yield (f"{path}.{key}" if path else key), " ".join(value.split())
    if len(children) == len(node) and any(child.tail and child.tail.strip() for child in children):
        yield path, _text_of(node)  # a sentence with inline elements
        return
    if node.text and node.text.strip():
        yield path, " ".join(node.text.split())
    for child in children:
        name = local_name(child)
        yield from _values(child, f"{path}.{name}" if path else name, list(child))


def _text_of(node: Node) -> str:
    return clean(" ".join("".join(node.itertext()).split()))
