"""Charts of Office documents, as the table of their numbers."""

from __future__ import annotations

from ragfm.parsing.own.office.office_xml import Node, attribute, child, descendants
from ragfm.parsing.rendering import Rendering

_MAX_POINTS = 5_000


def render_chart(root: Node, rendering: Rendering) -> None:
    """Add a chart's title and a table: one row per category, one column per series."""
    title = " ".join(text for part in descendants(child(root, "chart", "title"), "p") if (text := _words(part)))
    if title:
        rendering.block(title)
    series = list(descendants(root, "ser"))
    if not series:
        return
    names = [_name(one) for one in series]
    categories = _points(child(series[0], "cat") if child(series[0], "cat") is not None else child(series[0], "xVal"))
    values = [_points(child(one, "val") if child(one, "val") is not None else child(one, "yVal")) for one in series]
    indices = sorted(set(categories).union(*values))[:_MAX_POINTS]
    if indices:
        rows = [[categories.get(i, ""), *(column.get(i, "") for column in values)] for i in indices]
        rendering.table([["", *names], *rows])


def _name(series: Node) -> str:
    return " ".join(value.text or "" for value in descendants(child(series, "tx"), "v")).strip()


def _points(node: Node | None) -> dict[int, str]:
    found = {}
    for point in descendants(node, "pt"):
        value, index = child(point, "v"), attribute(point, "idx")
        if value is not None and index.isdecimal():
            found[int(index)] = (value.text or "").strip()
    return found


def _words(paragraph: Node) -> str:
    return "".join(text.text or "" for text in descendants(paragraph, "t")).strip()
