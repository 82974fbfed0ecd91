"""Charts of Office documents, as tables of their numbers."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable

from ragfm.parsing.own.office.office_xml import Node, attribute, child, descendants
from ragfm.parsing.rendering import MarkdownBuilder

_MAX_POINTS = 5_000
_LITERAL = re.compile(r'"[^"]*"|\\.|\[[^\]]*\]')  # in a number format
_DATE = re.compile(r"[dy]", re.IGNORECASE)


def add_chart(root: Node, builder: MarkdownBuilder) -> None:
    """Add the title of a chart and a table with one row per category and one column per series.

    Series with categories or x values of their own are a table of their own.
    """
    title_lines = [
        "".join(text.text or "" for text in descendants(paragraph, "t")).strip()
        for paragraph in descendants(child(root, "chart", "title"), "p")
    ]
    title = " ".join(filter(None, title_lines))
    if title:
        builder.add_block(title)
    first_day = datetime.datetime(1899, 12, 30, tzinfo=datetime.UTC)
    if attribute(child(root, "date1904"), "val") in ("1", "true"):
        first_day = datetime.datetime(1904, 1, 1, tzinfo=datetime.UTC)
    tables: list[tuple[dict[int, str], list[str], list[dict[int, str]]]] = []  # categories, names, columns
    for series in descendants(root, "ser"):
        categories = _points(series, ("cat", "xVal"), first_day)
        if not tables or (categories and categories != tables[-1][0]):
            tables.append((categories, [], []))
        _, names, columns = tables[-1]
        names.append(" ".join(value.text or "" for value in descendants(child(series, "tx"), "v")).strip())
        columns.append(_points(series, ("val", "yVal"), first_day))
    for categories, names, columns in tables:
        indices = sorted(set(categories).union(*columns))[:_MAX_POINTS]
        if indices:
            rows = [[categories.get(i, ""), *(column.get(i, "") for column in columns)] for i in indices]
            builder.add_table([["", *names], *rows])


def _points(series: Node, elements: Iterable[str], first_day: datetime.datetime) -> dict[int, str]:
    """The values of a series by index; scatter charts use another element name."""
    node = next((found for name in elements if (found := child(series, name)) is not None), None)
    levels = [_values(level) for level in descendants(node, "lvl")]  # the innermost comes first
    if levels:
        points = levels[0]
        for outer in levels[1:]:
            label = ""
            for index in sorted({*points, *outer}):
                label = outer.get(index, label)  # it counts until the next one
                points[index] = f"{label} {points.get(index, '')}".strip()
        return points
    points = _values(node)
    number_format = next((code.text or "" for code in descendants(node, "formatCode")), "")
    if _DATE.search(_LITERAL.sub("", number_format)):
        for index, text in points.items():
            try:
                time = first_day + datetime.timedelta(days=float(text))
            except (ValueError, OverflowError):
                break
            points[index] = f"{time:%Y-%m-%d %H:%M:%S}".removesuffix(" 00:00:00")
    return points


def _values(node: Node | None) -> dict[int, str]:
    values = {}
    for point in descendants(node, "pt"):
        value, index = child(point, "v"), attribute(point, "idx")
        if value is not None and index.isdecimal():
            values[int(index)] = (value.text or "").strip()
    return values
