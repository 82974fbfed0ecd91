"""Values as HTML for notebooks.

Texts come from documents and models, so all of them are escaped and shown as they are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TypeAlias

from ragfm.core.table_rows import TableRow


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
