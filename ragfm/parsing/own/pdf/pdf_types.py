"""Boxes and words on a PDF page.

Coordinates are points from the upper left corner of the page as it is displayed: rotation and crop box are applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

HYPHEN = "\x02"
"""A hyphen at the end of a line, which PDFium distinguishes from others. It may not belong to the word."""


class Box(NamedTuple):
    """A rectangle; `top` is less than `bottom`."""

    x0: float
    top: float
    x1: float
    bottom: float

    @property
    def center(self) -> tuple[float, float]:
        """X and y."""
        return (self.x0 + self.x1) / 2, (self.top + self.bottom) / 2

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.x1 - self.x0) * (self.bottom - self.top)

    def contains(self, x: float, y: float) -> bool:
        """Whether a point is in the box."""
        return self.x0 <= x <= self.x1 and self.top <= y <= self.bottom


class Figure(NamedTuple):
    """A figure on a page: its box in points and as fractions of the page, its image, and text recognized in it."""

    box: Box
    place: tuple[float, float, float, float]
    image: bytes
    text: str


@dataclass(slots=True)
class Word:
    """Characters without white space between them; `size` is the font size in points."""

    text: str
    x0: float
    top: float
    x1: float
    bottom: float
    size: float
    face: str = ""
    """`bold`, `italic`, or empty for a regular font."""
    link: str = ""

    @property
    def center_x(self) -> float:
        """Horizontal middle."""
        return (self.x0 + self.x1) / 2

    @property
    def center_y(self) -> float:
        """Vertical middle, from the top of the page."""
        return (self.top + self.bottom) / 2
