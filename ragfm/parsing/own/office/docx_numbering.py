"""The numbers and bullets that Word puts before paragraphs."""

from __future__ import annotations

import re
from typing import NamedTuple

from ragfm.parsing.own.office.office_xml import Node, attribute, child, children

_PLACE = re.compile(r"%([1-9])")
_ROMAN = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"),
          (9, "ix"), (5, "v"), (4, "iv"), (1, "i"))  # fmt: skip


class _Level(NamedTuple):
    kind: str
    text: str
    start: int


class Numbering:
    """Counts the items of all lists of a document."""

    def __init__(self, root: Node | None) -> None:
        abstract = {attribute(node, "abstractNumId"): _levels(node) for node in children(root, "abstractNum")}
        self._lists: dict[str, tuple[str, dict[int, _Level]]] = {}
        for node in children(root, "num"):
            kind = child(node, "abstractNumId")
            name = attribute(kind, "val") if kind is not None else ""
            own: dict[int, _Level] = {}
            for override in children(node, "lvlOverride"):
                own |= _levels(override)
            self._lists[attribute(node, "numId")] = (name, abstract.get(name, {}) | own)
        self._counts: dict[str, dict[int, int]] = {}

    def label(self, number: str, depth: int) -> str:
        """What stands before the next item of a list: its number, else `-`."""
        name, levels = self._lists.get(number, ("", {}))
        level = levels.get(depth)
        # Lists of one kind go on counting, whatever their own numbers are.
        counts = self._counts.setdefault(name or number, {})
        counts[depth] = counts[depth] + 1 if depth in counts else (level.start if level else 1)
        for deeper in [other for other in counts if other > depth]:
            del counts[deeper]
        if level is None or level.kind in ("bullet", "none") or not level.text:
            return "-"

        def place(found: re.Match[str]) -> str:
            other = int(found[1]) - 1
            at = levels.get(other)
            return _count(counts.get(other, at.start if at else 1), at.kind if at else "decimal")

        return _PLACE.sub(place, level.text)


def _levels(node: Node) -> dict[int, _Level]:
    levels = {}
    for level in children(node, "lvl"):
        values = {name: attribute(found, "val") if (found := child(level, name)) is not None else ""
                  for name in ("numFmt", "lvlText", "start")}  # fmt: skip
        depth, start = attribute(level, "ilvl"), values["start"]
        if depth.isdecimal():
            levels[int(depth)] = _Level(values["numFmt"], values["lvlText"], int(start) if start.isdecimal() else 1)
    return levels


def _count(number: int, kind: str) -> str:
    if kind in ("lowerLetter", "upperLetter") and number > 0:
        letters = chr(ord("a") + (number - 1) % 26) * min((number - 1) // 26 + 1, 9)
        return letters.upper() if kind == "upperLetter" else letters
    if kind in ("lowerRoman", "upperRoman") and 0 < number < 4000:
        roman = ""
        for value, letters in _ROMAN:
            roman += letters * (number // value)
            number %= value
        return roman.upper() if kind == "upperRoman" else roman
    return str(number)
