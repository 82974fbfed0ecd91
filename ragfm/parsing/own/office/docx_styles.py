"""Styles of a DOCX: which paragraphs are headings, which are list items, and which text is hidden."""

from __future__ import annotations

import re

from ragfm.parsing.own.office.office_xml import Node, attribute, child, children

_HEADING = re.compile(r"heading ([1-9])$", re.IGNORECASE)
_CONTENTS = re.compile(r"(?:toc (?:[1-9]|heading)|table of figures)$", re.IGNORECASE)
_MAX_CHAIN = 20  # styles based on styles
_OFF = frozenset({"0", "false", "off"})


class Styles:
    """The styles by id, each with the styles that it is based on."""

    def __init__(self, root: Node | None) -> None:
        self._styles = {attribute(style, "styleId"): style for style in children(root, "style")}
        self._hidden: dict[str, bool] = {}  # of styles that say so themselves, or are based on such a style
        for style in self._styles:
            for vanish in (child(node, "rPr", "vanish") for node in self._chain(style)):
                if vanish is not None:
                    self._hidden.setdefault(style, attribute(vanish, "val") not in _OFF)

    def heading_level(self, style: str, own: Node | None) -> int:
        """The heading level of a paragraph with a style and its `own` pPr; 0 where it is not a heading."""
        outline = attribute(child(own, "outlineLvl"), "val")
        for node in self._chain(style):
            if outline.isdecimal():
                break
            name = attribute(child(node, "name"), "val")
            if match := _HEADING.match(name):
                return int(match[1])
            if name.lower() == "title":
                return 1
            outline = attribute(child(node, "pPr", "outlineLvl"), "val")
        return int(outline) + 1 if outline.isdecimal() and int(outline) < 9 else 0

    def is_caption(self, style: str) -> bool:
        """Whether a style is that of captions, which has the same name in every language."""
        return any(attribute(child(node, "name"), "val").lower() == "caption" for node in self._chain(style))

    def is_contents(self, style: str) -> bool:
        """Whether a style is that of a table of contents or figures, which has the same name in every language."""
        return any(_CONTENTS.match(attribute(child(node, "name"), "val")) for node in self._chain(style))

    def is_hidden(self, own: Node | None, *styles: str) -> bool:
        """Whether a run is hidden, by its `own` rPr, or else by the first of its styles that decides it."""
        vanish = child(own, "vanish")
        if vanish is not None:
            return attribute(vanish, "val") not in _OFF
        return next((self._hidden[style] for style in styles if style and style in self._hidden), False)

    def list_position(self, style: str, own: Node | None) -> tuple[str, int] | None:
        """The list id and the depth of a paragraph with a style and its `own` numPr; None outside of lists."""
        depth = attribute(child(own, "ilvl"), "val")
        for node in (own, *(child(style, "pPr", "numPr") for style in self._chain(style))):
            depth = depth or attribute(child(node, "ilvl"), "val")
            if list_id := attribute(child(node, "numId"), "val"):
                return (list_id, int(depth) if depth.isdecimal() else 0) if list_id != "0" else None
        return None

    def _chain(self, style: str) -> list[Node]:
        chain: list[Node] = []
        while (node := self._styles.get(style)) is not None and len(chain) < _MAX_CHAIN:
            chain.append(node)
            style = attribute(child(node, "basedOn"), "val")
        return chain
