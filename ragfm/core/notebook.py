"""Values as HTML and Markdown for notebooks.

Texts come from documents and models, so all of them are escaped and shown as they are written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TypeAlias

from ragfm.core.table_rows import TableRow

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")  # all that Markdown may give a meaning, which is ASCII


class Heading(str):
    """A line in bold."""

    __slots__ = ()


Block: TypeAlias = str | Sequence[TableRow]
"""A paragraph, a heading, or the rows of a table."""


def as_html(blocks: Iterable[Block]) -> str:
    """Blocks as HTML, with all text escaped; the likeliest cell of a row is marked."""
    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"<p><b>{escape(block)}</b></p>")
        elif isinstance(block, str):
            parts.append(f'<p style="white-space: pre-wrap">{escape(block)}</p>')
        else:
            head = "".join(f"<th>{escape(title)}</th>" for title in block[0].titles)
            rows = ""
            for row in block:
                cells = (
                    f"<td><mark>{escape(cell)}</mark></td>" if at == row.column else f"<td>{escape(cell)}</td>"
                    for at, cell in enumerate(row.cells)
                )
                rows += f"<tr>{''.join(cells)}</tr>"
            parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")
    return f"<div>{''.join(parts)}</div>"


def as_markdown(blocks: Iterable[Block]) -> str:
    """Blocks as Markdown, with all text escaped; the likeliest cell of a row is in bold."""
    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"**{_escaped(block)}**")
        elif isinstance(block, str):
            parts.append(_escaped(block).replace("\n", "  \n"))
        else:
            titles = [_escaped(title) for title in block[0].titles]
            rows = [
                [f"**{_escaped(cell)}**" if at == row.column else _escaped(cell) for at, cell in enumerate(row.cells)]
                for row in block
            ]
            lines = [titles, ["---"] * len(titles), *rows]
            parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    return "\n\n".join(parts)


def _escaped(text: str) -> str:
    return _PUNCTUATION.sub(r"\\\1", text)
