"""Source code, character for character; definitions are headings, so that each is a passage with its path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from itertools import accumulate
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ragfm.core.types import Mark
from ragfm.parsing.rendering import ParsedText

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

GRAMMARS = {
    **dict.fromkeys((".py", ".pyi"), ("python", "tree_sitter_python", "language")),
    **dict.fromkeys((".js", ".mjs", ".jsx"), ("javascript", "tree_sitter_javascript", "language")),
    ".ts": ("typescript", "tree_sitter_typescript", "language_typescript"),
    ".tsx": ("typescript", "tree_sitter_typescript", "language_tsx"),
    ".java": ("java", "tree_sitter_java", "language"),
    ".go": ("go", "tree_sitter_go", "language"),
    ".rs": ("rust", "tree_sitter_rust", "language"),
    ".c": ("c", "tree_sitter_c", "language"),
    ".h": ("c", "tree_sitter_cpp", "language"),
    **dict.fromkeys((".cc", ".cpp", ".cxx", ".hpp"), ("c++", "tree_sitter_cpp", "language")),
    ".cs": ("c#", "tree_sitter_c_sharp", "language"),
    ".rb": ("ruby", "tree_sitter_ruby", "language"),
    ".php": ("php", "tree_sitter_php", "language_php"),
    **dict.fromkeys((".sh", ".bash"), ("shell", "tree_sitter_bash", "language")),
}
"""By suffix: the language, the package of its grammar, and the function there that returns the grammar."""

_DEFINITION = re.compile(
    r"(?:abstract_)?(?:function|method|class|interface|struct|enum|union|trait|impl|mod|module|namespace|constructor"
    r"|record|singleton_method|generator_function|internal_module|type)"
    r"(?:_definition|_declaration|_item|_specifier|_spec)?$"
)
_WRAPPERS = frozenset({"decorated_definition", "export_statement", "template_declaration", "type_declaration"})
_MAX_LEVEL = 6
_MAX_COMMENT_LINES = 8  # of comment that belong to the definition below
_MAX_HEADING = 80  # characters of the line that is the heading of code outside of definitions


def read_code(text: str, name: str) -> ParsedText:
    """Return the text with one mark for all code and one for each definition (only the former without tree-sitter)."""
    suffix = PurePosixPath(urlsplit(name).path).suffix.lower()
    if suffix not in GRAMMARS:
        return ParsedText(text)
    language = GRAMMARS[suffix][0]
    begin, end = len(text) - len(text.lstrip()), len(text.rstrip())
    begin = text.rfind("\n", 0, begin) + 1
    if begin >= end:
        return ParsedText("")
    marks = [Mark("code", begin, end, language)]
    parser = _load_parser(suffix)
    if parser is not None:
        data = text.encode("utf-8", "surrogatepass")
        tree = parser.parse(data)
        marks += _headings(tree.root_node, text, data)
    marks.sort(key=lambda mark: (mark.start, -mark.end))
    return ParsedText(text, tuple(marks))


@cache
def _load_parser(suffix: str) -> Parser | None:
    """The tree-sitter parser of a language; None where it is not installed."""
    _, package, function = GRAMMARS[suffix]
    try:
        tree_sitter = import_module("tree_sitter")
        language = getattr(import_module(package), function)()
    except ModuleNotFoundError:
        return None
    parser: Parser = tree_sitter.Parser(tree_sitter.Language(language))
    return parser


def _headings(root: Node, text: str, data: bytes) -> Iterator[Mark]:
    """A heading per definition, and one for the code that follows a definition at the outermost level."""
    lines = [] if len(text) == len(data) else data.split(b"\n")  # where offsets in bytes are not those in characters
    starts = list(accumulate((len(line.decode("utf-8", "surrogatepass")) + 1 for line in lines), initial=0))

    def character(row: int, column: int, offset: int) -> int:
        """The character at a byte offset with the given line, and column in bytes."""
        return starts[row] + len(lines[row][:column].decode("utf-8", "surrogatepass")) if lines else offset

    after_definition = False
    for level, node, name in _definitions(root):
        if name is None and not after_definition:
            continue
        start = character(node.start_point[0], node.start_point[1], node.start_byte)
        line_start = text.rfind("\n", 0, start) + 1
        after_definition = name is not None
        if name is None:
            end = text.find("\n", start)
            end = len(text) if end < 0 else end
            title = " ".join(text[start:end].split())
            if title and len(title) <= _MAX_HEADING and line_start == start:
                yield Mark("heading", start, start + len(text[start:end].rstrip()), title, 1)
            continue
        if text[line_start:start].strip():
            continue  # it begins within a line, such as a function passed as an argument
        title = " ".join((name.text or b"").decode("utf-8", "replace").split())
        end = text.find("\n", text.find(title, start))
        first = node  # of the comment lines directly above
        while (above := first.prev_named_sibling) is not None and above.type.endswith("comment"):
            row, column = above.start_point
            is_adjacent = above.end_point[0] + (above.end_point[1] > 0) >= first.start_point[0]
            if not is_adjacent or column != node.start_point[1] or node.start_point[0] - row > _MAX_COMMENT_LINES:
                break
            first = above
        begin = character(first.start_point[0], 0, first.start_byte - first.start_point[1])
        yield Mark("heading", begin, len(text) if end < 0 else end, title, level)


def _definitions(root: Node) -> Iterator[tuple[int, Node, Node | None]]:
    """Level, node and name of the definitions in order; other code at the outermost level has no name."""
    stack = [(1, node, node) for node in reversed(root.named_children)]  # level, node, node with its wrappers
    while stack:
        level, node, outer = stack.pop()
        fields = (node.child_by_field_name(field) for field in ("name", "declarator", "type"))
        name = next(filter(None, fields), None)
        while name is not None and (inner := name.child_by_field_name("declarator")) is not None:
            name = inner  # in C, the name is nested in declarators
        body = node.child_by_field_name("body")
        is_definition = name is not None and (body is not None or node.type == "type_spec")
        if is_definition and _DEFINITION.match(node.type):
            yield min(level, _MAX_LEVEL), outer, name
        elif node.type in _WRAPPERS and (  # decorators, `export`, type parameters
            wrapped := [part for part in node.named_children if part.type in _WRAPPERS or _DEFINITION.match(part.type)]
        ):
            stack += [(level, definition, outer) for definition in reversed(wrapped)]
            continue
        elif level == 1 and node.type != "comment":
            yield 1, node, None
            continue
        if body is not None and (is_definition or level > 1):
            stack += [(level + is_definition, part, part) for part in reversed(body.named_children)]
