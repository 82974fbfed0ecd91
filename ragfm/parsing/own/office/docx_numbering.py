"""The numbers and bullets that Word shows before paragraphs."""

from __future__ import annotations

import re
from typing import NamedTuple

from ragfm.parsing.own.office.office_xml import Node, attribute, child, children

_PLACEHOLDER = re.compile(r"%([1-9])")
_ROMAN = (
    *((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc")),
    *((50, "l"), (40, "xl"), (10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i")),
)


class _Level(NamedTuple):
    number_format: str
    text: str
    start: int


class Numbering:
    """Counts the items of all lists of a document."""

    def __init__(self, root: Node | None) -> None:
        abstract: dict[str, dict[int, _Level]] = {}
        styles: dict[str, str] = {}  # list style: the definition of its levels
        links: dict[str, str] = {}  # definition without levels: its list style
        for node in children(root, "abstractNum"):
            name = attribute(node, "abstractNumId")
            abstract[name] = _read_levels(node)
            styles[attribute(child(node, "styleLink"), "val")] = name
            links[name] = attribute(child(node, "numStyleLink"), "val")
        self._lists: dict[str, tuple[str, dict[int, _Level]]] = {}
        self._restarts: set[tuple[str, int]] = set()  # lists and depths that restart at their first item
        for node in children(root, "num"):
            list_id, name = attribute(node, "numId"), attribute(child(node, "abstractNumId"), "val")
            if link := links.get(name):
                name = styles.get(link, name)
            levels = dict(abstract.get(name, {}))
            for override in children(node, "lvlOverride"):
                levels |= _read_levels(override)
                depth, start = attribute(override, "ilvl"), attribute(child(override, "startOverride"), "val")
                if depth.isdecimal() and start.isdecimal() and int(depth) in levels:
                    levels[int(depth)] = levels[int(depth)]._replace(start=int(start))
                    self._restarts.add((list_id, int(depth)))
            self._lists[list_id] = (name, levels)
        self._counts: dict[str, dict[int, int]] = {}

    def next_label(self, list_id: str, depth: int) -> str:
        """Count the next item of a list, and return its number, or `-` for a bullet."""
        name, levels = self._lists.get(list_id, ("", {}))
        level = levels.get(depth)
        # Lists with the same definition share their count, whatever their own ids are, unless one restarts.
        counts = self._counts.setdefault(name or list_id, {})
        if (list_id, depth) in self._restarts:
            self._restarts.remove((list_id, depth))
            counts.pop(depth, None)
        counts[depth] = counts[depth] + 1 if depth in counts else (level.start if level else 1)
        for deeper in [other for other in counts if other > depth]:
            del counts[deeper]
        if level is None or level.number_format in ("bullet", "none") or not level.text:
            return "-"

        def fill(match: re.Match[str]) -> str:
            depth = int(match[1]) - 1
            level = levels.get(depth)
            number = counts.get(depth, level.start if level else 1)
            number_format = level.number_format if level else "decimal"
            if number_format in ("lowerLetter", "upperLetter") and number > 0:
                text = chr(ord("a") + (number - 1) % 26) * min((number - 1) // 26 + 1, 9)
            elif number_format in ("lowerRoman", "upperRoman") and 0 < number < 4000:
                text = ""
                for value, letters in _ROMAN:
                    text += letters * (number // value)
                    number %= value
            else:
                return f"{number:02}" if number_format == "decimalZero" else str(number)
            return text.upper() if number_format.startswith("upper") else text

        return _PLACEHOLDER.sub(fill, level.text)


def _read_levels(node: Node) -> dict[int, _Level]:
    levels = {}
    for level in children(node, "lvl"):
        number_format, text, start = (attribute(child(level, name), "val") for name in ("numFmt", "lvlText", "start"))
        depth = attribute(level, "ilvl")
        if depth.isdecimal():
            levels[int(depth)] = _Level(number_format, text, int(start) if start.isdecimal() else 1)
    return levels
