"""Markdown: the text is unchanged; marks follow the block structure of CommonMark and GitHub's tables."""

from __future__ import annotations

import datetime
import math
import re
import tomllib
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING

import yaml

from ragfm.core.types import Mark, Scalar
from ragfm.parsing.rendering import ParsedText, clean

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock

_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_TOML_FRONT_MATTER = re.compile(r"\+\+\+[ \t]*\n(.*?)^\+\+\+[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_MAX_FRONT_MATTER = 1 << 16  # characters; YAML parsers are slow, and nobody writes more by hand
_HTML_HEADING = re.compile(r"<h([1-6])(?:\s[^<>]*)?>(.{1,400}?)</h\1>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")
_RAW_HTML = re.compile(r"\s*<(?:!|\?|pre|script|style|textarea)", re.IGNORECASE)
_YAML_KEY = re.compile(r"\s*(?:#.*\n\s*)*[\w-]+[ \t]*:(?:\s|$)")


def read_markdown(text: str, name: str) -> ParsedText:
    """Return the text with marks for headings, tables and code; scalars of front matter become metadata."""
    metadata, body_start = _front_matter(text)
    # A lone carriage return ends a line in CommonMark; replacing it by a line feed moves no offset.
    markdown = text[body_start:].replace("\r", "\n")
    line_starts = list(accumulate((len(line) + 1 for line in markdown.split("\n")), initial=body_start))

    def span(first: int, last: int) -> tuple[int, int]:
        return line_starts[first], min(line_starts[last] - 1, len(text))

    marks = []
    tokens = _block_parser().parse(markdown)
    for index, token in enumerate(tokens):
        if token.map is None or token.type not in {"heading_open", "table_open", "fence", "code_block", "html_block"}:
            continue
        start, end = span(*token.map)
        if token.type == "heading_open":
            title = tokens[index + 1].content.strip()
            if token.level == 0 and title:  # headings in lists and quotations do not structure the document
                marks.append(Mark("heading", start, end, " ".join(title.split()), int(token.tag[1:])))
        elif token.type == "html_block":
            for found in _HTML_HEADING.finditer(text, start, end) if not _RAW_HTML.match(text, start) else ():
                titles = [title for part in _TAG.split(found[2]) if (title := " ".join(part.split()))]
                line_start = max(start, text.rfind("\n", start, found.start()) + 1)
                if token.level == 0 and len(titles) == 1 and (not marks or line_start >= marks[-1].end):
                    marks.append(Mark("heading", line_start, found.end(), titles[0], int(found[1])))
        elif token.type == "table_open":
            _, header_end = span(token.map[0], token.map[0] + 2)
            marks.append(Mark("table", start, end, text[start:header_end]))
        else:
            marks.append(Mark("code", start, end, (token.info.split() or [""])[0]))
    return ParsedText(text, tuple(marks), metadata).with_title()


def _front_matter(text: str) -> tuple[dict[str, Scalar], int]:
    """Metadata, and where the Markdown begins."""
    match = _FRONT_MATTER.match(text) or _TOML_FRONT_MATTER.match(text)
    if not match or match.end() > _MAX_FRONT_MATTER:
        return {}, 0
    try:
        values = tomllib.loads(match[1]) if text[0] == "+" else yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that does not exist, or invalid TOML
        # Handwritten front matter is often invalid YAML, but it is still not part of the text.
        return {}, match.end() if _YAML_KEY.match(match[1]) else 0
    if not isinstance(values, dict):
        return {}, 0
    scalars: dict[str, Scalar | None] = {}
    for key, value in values.items():
        scalar: Scalar | None = None
        if isinstance(value, (str, datetime.date)):  # includes datetime
            scalar = clean(value if isinstance(value, str) else value.isoformat())
        elif isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
            scalar = value
        scalars[clean(str(key))] = scalar
    return {key: scalar for key, scalar in scalars.items() if scalar is not None}, match.end()


@cache
def _block_parser() -> MarkdownIt:
    """Block structure only: inline parsing would take most of the time, and the text is not changed anyway."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table")
    parser.core.ruler.enableOnly(["normalize", "block"])
    parser.block.ruler.disable("reference")  # slow, and not needed for marks
    parser.block.ruler.at("table", _table_rule, {"alt": ["paragraph", "reference"]})
    return parser


def _table_rule(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """The extent of a table. markdown-it's rule finds its start, but would then create three tokens per cell."""
    from markdown_it.rules_block import table

    if not table(state, start, end, True):
        return False
    if not silent:
        line = start + 2
        other_blocks = state.md.block.ruler.getRules("blockquote")
        while line < end and state.sCount[line] >= state.blkIndent:
            if state.isEmpty(line) or state.is_code_block(line):
                break
            is_row = state.src[state.bMarks[line] + state.tShift[line]] == "|"  # no other block begins with it
            if not is_row and any(rule(state, line, end, True) for rule in other_blocks):
                break
            line += 1
        state.push("table_open", "table", 1).map = [start, line]
        state.push("table_close", "table", -1)
        state.line = line
    return True
