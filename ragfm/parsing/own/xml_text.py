"""XML: prose as headings and paragraphs, data as lines `path: value`, one block per record."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ragfm.core.errors import ParseError
from ragfm.parsing.own.office.office_xml import Node, local, parse_xml
from ragfm.parsing.own.web.html import read_html
from ragfm.parsing.rendering import Parsed, Rendering, clean

_PARAGRAPHS = frozenset({"p", "para", "simpara", "paragraph", "li", "listitem", "abstract", "td"})
_HEADINGS = frozenset({"title", "head", "heading", "subtitle"})
_MAX_LEVEL = 6
_MARKUP = re.compile(r"<(?:p|div|br|a|ul|li|h[1-6]|span|b|i|em|strong|img|table)\b[^>]*>", re.IGNORECASE)


def read_xml(text: str, name: str) -> Parsed:
    """The text of all elements; comments and processing instructions are left out. Raises ParseError.

    Entities of its own and references to other files are refused. HTML within an element becomes what a reader sees.
    """
    root = parse_xml(text.strip().encode("utf-8", "replace"), name, dtd=True, encoding="utf-8")
    rendering = Rendering()
    try:
        if _is_prose(root):
            _prose(root, rendering, 0)
        else:
            _data(root, rendering, name)
    except RecursionError as error:
        raise ParseError(f"{name} nests its elements too deeply.") from error
    parsed = rendering.finish()
    title = next((mark.value for mark in parsed.marks if mark.level == 1), "")
    return parsed._replace(metadata={"title": title}) if title else parsed


def _is_prose(root: Node) -> bool:
    """Whether elements have text and elements beside each other, or are called as paragraphs are."""
    mixed = count = 0
    for node in root.iter():
        count += 1
        mixed += local(node) in _PARAGRAPHS or any(child.tail and child.tail.strip() for child in node)
    return mixed > 0.03 * count


def _prose(node: Node, rendering: Rendering, depth: int) -> None:
    if local(node) in _HEADINGS and (words := _words(node)):
        rendering.heading(min(max(depth, 1), _MAX_LEVEL), words)
        return
    inner = list(node)
    is_text = (node.text and node.text.strip()) or any(child.tail and child.tail.strip() for child in inner)
    if not inner or is_text or local(node) in _PARAGRAPHS:
        if words := _words(node):
            rendering.block(words)
        return
    titled = any(local(child) in _HEADINGS for child in inner)
    for child in inner:
        _prose(child, rendering, depth + titled)


def _data(root: Node, rendering: Rendering, name: str) -> None:
    records = [child for child in root if len(child)]
    scalars = [child for child in root if not len(child)]
    blocks = [_lines(root, "", scalars), *(_lines(record, local(record), list(record)) for record in records)]
    if len(records) == 1 and not scalars:  # it only wraps what is in it
        _data(records[0], rendering, name)
        return
    for block in blocks:
        lines = []
        for path, value in block:
            if _MARKUP.search(value):
                value = " ".join(read_html(value, name).text.split())
            lines.append(f"{path}: {value}" if path else value)
        if lines:
            rendering.block(clean("\n".join(lines)))


def _lines(node: Node, path: str, inner: list[Node]) -> Iterator[tuple[str, str]]:
    """Paths and values of an element's attributes, of its text, and of what is below."""
    for key, value in node.attrib.items():
        key = key.rsplit("}", 1)[-1]
        if value.strip():
            yield (f"{path}.{key}" if path else key), " ".join(value.split())
    if node.text and node.text.strip():
        yield path, " ".join(node.text.split())
    for child in inner:
        yield from _lines(child, f"{path}.{local(child)}" if path else local(child), list(child))


def _words(node: Node) -> str:
    return clean(" ".join("".join(node.itertext()).split()))
