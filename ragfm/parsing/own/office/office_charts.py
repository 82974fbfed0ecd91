"""Charts of Office documents, as tables of their numbers."""

from __future__ import annotations

from ragfm.parsing.own.office.office_xml import Node, attribute, child, descendants
from ragfm.parsing.rendering import MarkdownBuilder

_MAX_POINTS = 5_000


def add_chart(root: Node, builder: MarkdownBuilder) -> None:
    """Add the title of a chart and a table with one row per category and one column per series."""
    title_lines = [
        "".join(text.text or "" for text in descendants(paragraph, "t")).strip()
        for paragraph in descendants(child(root, "chart", "title"), "p")
    ]
    title = " ".join(filter(None, title_lines))
    if title:
        builder.add_block(title)
    series = list(descendants(root, "ser"))
    if not series:
        return
    names = []
    columns = []
    for one in series:
        names.append(" ".join(value.text or "" for value in descendants(child(one, "tx"), "v")).strip())
        columns.append(_points(one, "val", "yVal"))
    categories = _points(series[0], "cat", "xVal")
    indices = sorted(set(categories).union(*columns))[:_MAX_POINTS]
    if indices:
        rows = [[categories.get(i, ""), *(column.get(i, "") for column in columns)] for i in indices]
        builder.add_table([["", *names], *rows])


def _points(series: Node, element: str, scatter_element: str) -> dict[int, str]:
    """The values of a series by index; scatter charts use another element name."""
    node, points = child(series, element), {}
    if node is None:
        node = child(series, scatter_element)
    for point in descendants(node, "pt"):
        value, index = child(point, "v"), attribute(point, "idx")
        if value is not None and index.isdecimal():
            points[int(index)] = (value.text or "").strip()
    return points
