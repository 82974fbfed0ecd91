"""Source code, character for character; definitions are its headings, so that each is a passage with its path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ragfm.core.types import Mark
from ragfm.parsing.rendering import Parsed

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

GRAMMARS = {
    ".py": ("python", "tree_sitter_python", "language"),
    ".pyi": ("python", "tree_sitter_python", "language"),
    ".js": ("javascript", "tree_sitter_javascript", "language"),
    ".mjs": ("javascript", "tree_sitter_javascript", "language"),
    ".jsx": ("javascript", "tree_sitter_javascript", "language"),
    ".ts": ("typescript", "tree_sitter_typescript", "language_typescript"),
    ".tsx": ("typescript", "tree_sitter_typescript", "language_tsx"),
    ".java": ("java", "tree_sitter_java", "language"),
    ".go": ("go", "tree_sitter_go", "language"),
    ".rs": ("rust", "tree_sitter_rust", "language"),
    ".c": ("c", "tree_sitter_c", "language"),
    ".h": ("c", "tree_sitter_cpp", "language"),
    ".cc": ("c++", "tree_sitter_cpp", "language"),
    ".cpp": ("c++", "tree_sitter_cpp", "language"),
    ".cxx": ("c++", "tree_sitter_cpp", "language"),
    ".hpp": ("c++", "tree_sitter_cpp", "language"),
    ".cs": ("c#", "tree_sitter_c_sharp", "language"),
    ".rb": ("ruby", "tree_sitter_ruby", "language"),
    ".php": ("php", "tree_sitter_php", "language_php"),
    ".sh": ("shell", "tree_sitter_bash", "language"),
    ".bash": ("shell", "tree_sitter_bash", "language"),
}
"""By suffix: the language, the package with its grammar, and the function there that gives it."""

_DEFINITION = re.compile(
    r"(?:abstract_)?(?:function|method|class|interface|struct|enum|union|trait|impl|mod|module|namespace|constructor"
    r"|record|singleton_method|generator_function|internal_module|type)"
    r"(?:_definition|_declaration|_item|_specifier|_spec)?$"
)
_WRAPPERS = frozenset({"decorated_definition", "export_statement", "template_declaration", "type_declaration"})
_MAX_LEVEL = 6
_MAX_COMMENT = 8  # lines of comment that are kept together with the definition below
_MAX_REST = 80  # characters of the line that stands for code outside of definitions


def read_code(text: str, name: str) -> Parsed:
    """The text itself, with a mark for the whole and one for each definition; without tree-sitter, for the whole."""
    suffix = PurePosixPath(urlsplit(name).path).suffix.lower()
    if suffix not in GRAMMARS:
        return Parsed(text)
    language = GRAMMARS[suffix][0]
    begin, end = len(text) - len(text.lstrip()), len(text.rstrip())
    begin = text.rfind("\n", 0, begin) + 1
    if begin >= end:
        return Parsed("")
    marks = [Mark("code", begin, end, language)]
    parser = _parser(suffix)
    if parser is not None:
        data = text.encode("utf-8", "surrogatepass")
        tree = parser.parse(data)
        places = _Places(text, data)
        marks += _marks(tree.root_node, places, text)
    marks.sort(key=lambda mark: (mark.start, -mark.end))
    return Parsed(text, tuple(marks))


@cache
def _parser(suffix: str) -> Parser | None:
    """The parser of a language; None where it isn't installed."""
    _, package, function = GRAMMARS[suffix]
    try:
        tree_sitter = import_module("tree_sitter")
        language = getattr(import_module(package), function)()
    except ModuleNotFoundError:
        return None
    parser: Parser = tree_sitter.Parser(tree_sitter.Language(language))
    return parser


class _Places:
    """From bytes of UTF-8 to characters, line by line."""

    def __init__(self, text: str, data: bytes) -> None:
        self._ascii = len(text) == len(data)
        self._data = data
        self._lines = [0]
        self._starts = [0]
        if not self._ascii:
            at = 0
            for line in data.split(b"\n"):
                at += len(line) + 1
                self._lines.append(at)
                self._starts.append(self._starts[-1] + len(line.decode("utf-8", "surrogatepass")) + 1)

    def of(self, row: int, column: int, position: int) -> int:
        """The character at a byte, whose line and column in bytes are known."""
        if self._ascii:
            return position
        start = self._lines[row]
        return self._starts[row] + len(self._data[start : start + column].decode("utf-8", "surrogatepass"))


def _marks(root: Node, places: _Places, text: str) -> Iterator[Mark]:
    """A heading per definition, and one for what follows a definition at the outermost level."""
    after = False  # whether code stands outside, after a definition
    for level, whole, name in _definitions(root):
        if not name:
            if after:
                yield from _rest(whole, places, text)
            after = False
            continue
        after = True
        start = places.of(whole.start_point[0], whole.start_point[1], whole.start_byte)
        line = text.rfind("\n", 0, start) + 1
        if text[line:start].strip():
            continue  # it begins within a line, as what is passed to a function does
        value = _text_of(name)
        end = text.find("\n", text.find(value, start))
        first = _first_comment(whole)
        begin = places.of(first.start_point[0], 0, first.start_byte - first.start_point[1])
        yield Mark("heading", begin, len(text) if end < 0 else end, value, level)


def _first_comment(node: Node) -> Node:
    """The first of the few lines of comment right above a definition, else the definition."""
    first = node
    while (above := first.prev_named_sibling) is not None and above.type.endswith("comment"):
        row, column = above.start_point
        touches = above.end_point[0] + (above.end_point[1] > 0) >= first.start_point[0]
        if not touches or column != node.start_point[1] or node.start_point[0] - row > _MAX_COMMENT:
            break
        first = above
    return first


def _rest(node: Node, places: _Places, text: str) -> Iterator[Mark]:
    start = places.of(node.start_point[0], node.start_point[1], node.start_byte)
    end = text.find("\n", start)
    end = len(text) if end < 0 else end
    words = " ".join(text[start:end].split())
    if words and len(words) <= _MAX_REST and text.rfind("\n", 0, start) + 1 == start:
        yield Mark("heading", start, start + len(text[start:end].rstrip()), words, 1)


def _definitions(root: Node) -> Iterator[tuple[int, Node, Node | None]]:
    """Level, node and name of the definitions in order; no name for other code at the outermost level."""
    stack = [(1, node, node) for node in reversed(root.named_children)]
    while stack:
        level, node, whole = stack.pop()
        name = _name(node)
        has_body = node.child_by_field_name("body") is not None or node.type == "type_spec"
        is_definition = name is not None and has_body
        if is_definition and _DEFINITION.match(node.type):
            yield min(level, _MAX_LEVEL), whole, name
        elif node.type in _WRAPPERS and (inner := _wrapped(node)):
            stack += [(level, definition, whole) for definition in reversed(inner)]
            continue
        elif level == 1 and node.type != "comment":
            yield 1, node, None
            continue
        body = node.child_by_field_name("body")
        if body is not None and is_definition:
            stack += [(level + 1, inner, inner) for inner in reversed(body.named_children)]
        elif level > 1 and body is not None:
            stack += [(level, inner, inner) for inner in reversed(body.named_children)]


def _wrapped(node: Node) -> list[Node]:
    """The definitions in what only adds to them: decorators, `export`, type parameters."""
    return [inner for inner in node.named_children if inner.type in _WRAPPERS or _DEFINITION.match(inner.type)]


def _name(node: Node) -> Node | None:
    for field in ("name", "declarator", "type"):
        found = node.child_by_field_name(field)
        while found is not None and (inner := found.child_by_field_name("declarator")) is not None:
            found = inner  # C has the name within what it declares
        if found is not None:
            return found
    return None


def _text_of(node: Node) -> str:
    return " ".join((node.text or b"").decode("utf-8", "replace").split())
