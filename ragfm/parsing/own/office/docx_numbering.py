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
        abstract = {attribute(node, "abstractNumId"): _read_levels(node) for node in children(root, "abstractNum")}
        self._lists: dict[str, tuple[str, dict[int, _Level]]] = {}
        for node in children(root, "num"):
            name = attribute(child(node, "abstractNumId"), "val")
            overrides: dict[int, _Level] = {}
            for override in children(node, "lvlOverride"):
                overrides |= _read_levels(override)
            self._lists[attribute(node, "numId")] = (name, abstract.get(name, {}) | overrides)
        self._counts: dict[str, dict[int, int]] = {}

    def next_label(self, list_id: str, depth: int) -> str:
        """Count the next item of a list, and return its number, or `-` for a bullet."""
        name, levels = self._lists.get(list_id, ("", {}))
        level = levels.get(depth)
        # Lists with the same definition share their count, whatever their own ids are.
        counts = self._counts.setdefault(name or list_id, {})
        counts[depth] = counts[depth] + 1 if depth in counts else (level.start if level else 1)
        for deeper in [other for other in counts if other > depth]:
            del counts[deeper]
        if level is None or level.number_format in ("bullet", "none") or not level.text:
            return "-"

        def fill(match: re.Match[str]) -> str:
            depth = int(match[1]) - 1
            level = levels.get(depth)
            number = counts.get(depth, level.start if level else 1)
            return _format_number(number, level.number_format if level else "decimal")

        return _PLACEHOLDER.sub(fill, level.text)


def _read_levels(node: Node) -> dict[int, _Level]:
    levels = {}
    for level in children(node, "lvl"):
        number_format, text, start = (attribute(child(level, name), "val") for name in ("numFmt", "lvlText", "start"))
        depth = attribute(level, "ilvl")
        if depth.isdecimal():
            levels[int(depth)] = _Level(number_format, text, int(start) if start.isdecimal() else 1)
    return levels


def _format_number(number: int, number_format: str) -> str:
    if number_format in ("lowerLetter", "upperLetter") and number > 0:
        letters = chr(ord("a") + (number - 1) % 26) * min((number - 1) // 26 + 1, 9)
        return letters.upper() if number_format == "upperLetter" else letters
    if number_format in ("lowerRoman", "upperRoman") and 0 < number < 4000:
        roman = ""
        for value, letters in _ROMAN:
            roman += letters * (number // value)
            number %= value
        return roman.upper() if number_format == "upperRoman" else roman
    return str(number)
