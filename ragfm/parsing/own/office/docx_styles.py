"""Styles of a DOCX: what makes a heading, and what makes an item of a list."""

from __future__ import annotations

import re

from ragfm.parsing.own.office.office_xml import Node, attribute, child, children

_HEADING = re.compile(r"heading ([1-9])$", re.IGNORECASE)
_MAX_CHAIN = 20  # styles upon styles


class Styles:
    """The paragraph styles by id, each with those that it is based on."""

    def __init__(self, root: Node | None) -> None:
        self._styles = {attribute(style, "styleId"): style for style in children(root, "style")}

    def level(self, style: str) -> int:
        """The level of a heading of this style; 0 where it makes none."""
        for node in self._chain(style):
            name = _value(child(node, "name"))
            if found := _HEADING.match(name):
                return int(found[1])
            if name.lower() == "title":
                return 1
            outline = _value(child(node, "pPr", "outlineLvl"))
            if outline.isdecimal():
                return int(outline) + 1 if int(outline) < 9 else 0
        return 0

    def number(self, style: str, own: Node | None) -> tuple[str, int] | None:
        """The list of a paragraph of this style, with properties of its own, and its depth in it; None for no list."""
        depth = _value(child(own, "ilvl"))
        for node in (own, *(child(style, "pPr", "numPr") for style in self._chain(style))):
            depth = depth or _value(child(node, "ilvl"))
            if number := _value(child(node, "numId")):
                return (number, int(depth) if depth.isdecimal() else 0) if number != "0" else None
        return None

    def _chain(self, style: str) -> list[Node]:
        chain: list[Node] = []
        while (node := self._styles.get(style)) is not None and len(chain) < _MAX_CHAIN:
            chain.append(node)
            style = _value(child(node, "basedOn"))
        return chain


def _value(node: Node | None) -> str:
    return attribute(node, "val") if node is not None else ""
