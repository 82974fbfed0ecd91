"""Plots as inline SVG: a few rectangles and lines need no library, and a report needs nothing from elsewhere.

Colours are the page's: the classes `bar`, `miss`, `line`, `mark`, `soft`, and text in the text's own colour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ragfm.evaluation.metrics import Estimate

_WIDTH = 720
_LEFT, _RIGHT = 100, 150
_LETTER = 7.5  # the width of one, on average
_ROW = 30
_HEIGHT, _BELOW, _ABOVE = 190, 40, 34
_BINS = 48
_LEAST = 1e-3  # of what is shown on a logarithmic scale


def bars(rows: Mapping[str, Estimate], label: str) -> str:
    """A bar for each value, on a scale of 0 to 1, with its interval as a line across the end."""
    left = max(_LEFT, 20 + _LETTER * max(map(len, rows), default=0))
    width, bottom = _WIDTH - left - _RIGHT, len(rows) * _ROW + 6

    def x(value: float) -> float:
        return left + width * value

    parts = [_line(x(tick / 4), 0, x(tick / 4), bottom, "soft") for tick in range(5)]
    parts += [_text(x(tick / 4), bottom + 16, f"{tick / 4:g}", "middle", "small") for tick in range(5)]
    for row, (name, value) in enumerate(rows.items()):
        y = row * _ROW + 6
        told = f"{value.value:.3f}  [{value.low:.3f}, {value.high:.3f}]"
        parts.append(_text(left - 10, y + 16, name, "end"))
        parts.append(_bar(left, y + 3, width * value.value, _ROW - 10, f"{name}: {told}"))
        parts.append(_line(x(value.low), y + 13, x(value.high), y + 13, "line"))
        parts += [_line(x(end), y + 8, x(end), y + 18, "line") for end in (value.low, value.high)]
        parts.append(_text(x(1) + 10, y + 17, told, "start", "small"))
    return _svg(parts, bottom + 24, label)


def histogram(counts: Mapping[str, int], label: str) -> str:
    """A column for each count; one named `none` is what failed, and has another colour."""
    step = _WIDTH / max(len(counts), 1)
    most, total = max(counts.values(), default=0) or 1, sum(counts.values()) or 1
    parts = [_line(0, _ABOVE + _HEIGHT, _WIDTH, _ABOVE + _HEIGHT, "line")]
    for at, (name, count) in enumerate(counts.items()):
        height = _HEIGHT * count / most
        middle, top = step * (at + 0.5), _ABOVE + _HEIGHT - height
        told = f"{name}: {count} of {total}"
        parts.append(_bar(middle - step * 0.38, top, step * 0.76, height, told, "miss" if name == "none" else "bar"))
        parts.append(_text(middle, top - 6, f"{count} ({100 * count / total:.0f} %)", "middle", "small"))
        parts.append(_text(middle, _ABOVE + _HEIGHT + 18, name, "middle"))
    return _svg(parts, _ABOVE + _HEIGHT + 28, label)


def curve(points: Sequence[tuple[float, float]], x_label: str, y_label: str, label: str) -> str:
    """A line through points of [0, 1] x [0, 1]."""
    ground, width = _ABOVE + _HEIGHT, _WIDTH - _LEFT - 20

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + width * x, ground - _HEIGHT * y

    parts = []
    for tick in range(5):
        share = tick / 4
        (x, _), (_, y) = at(share, 0), at(0, share)
        parts += [_line(x, _ABOVE, x, ground, "soft"), _line(_LEFT, y, _LEFT + width, y, "soft")]
        parts += [_text(x, ground + 18, f"{share:g}", "middle", "small"), _text(_LEFT - 10, y + 4, f"{share:g}", "end",
                                                                                "small")]  # fmt: skip
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
    parts.append(f'<polyline class="path" points="{path}"/>')
    parts += [_text(_LEFT + width, ground + 38, x_label, "end"), _text(_LEFT, 20, y_label, "start")]
    return _svg(parts, ground + 48, label)


def lines(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, label: str) -> str:
    """Lines through the points of each series, on scales from 0 to the largest; the second one in another colour."""
    ground, width = _ABOVE + _HEIGHT, _WIDTH - _LEFT - 20
    points = [point for line in series.values() for point in line] or [(1.0, 1.0)]
    right, top = max(x for x, _ in points) or 1, max(y for _, y in points) or 1
    parts = []
    for tick in range(5):
        x, y = _LEFT + width * tick / 4, ground - _HEIGHT * tick / 4
        parts += [_line(x, _ABOVE, x, ground, "soft"), _line(_LEFT, y, _LEFT + width, y, "soft")]
        parts.append(_text(x, ground + 18, f"{right * tick / 4:.3g}", "middle", "small"))
        parts.append(_text(_LEFT - 10, y + 4, f"{top * tick / 4:.3g}", "end", "small"))
    for number, (name, line) in enumerate(series.items()):
        kind = "path" if number == 0 else "path second"
        path = " ".join(f"{_LEFT + width * x / right:.1f},{ground - _HEIGHT * y / top:.1f}" for x, y in line)
        parts.append(f'<polyline class="{kind}" points="{path}"><title>{escape(name)}</title></polyline>')
        parts.append(_line(_LEFT + 150 * number, 16, _LEFT + 150 * number + 18, 16, "mark" if number else "line"))
        parts.append(_text(_LEFT + 150 * number + 24, 20, name, "start", "small"))
    parts.append(_text(_LEFT + width, ground + 38, x_label, "end"))
    return _svg(parts, ground + 48, label)


def distribution(values: Sequence[float], marks: Mapping[str, float], label: str) -> str:
    """How values > 0 are spread, on a logarithmic scale, with lines where the `marks` are."""
    logs = [math.log10(max(value, _LEAST)) for value in values]
    low, high = min(logs) - 0.05, max(logs) + 0.05
    counts = [0] * _BINS
    for value in logs:
        counts[int((value - low) / (high - low) * _BINS)] += 1

    def x(value: float) -> float:
        return _WIDTH * (math.log10(max(value, _LEAST)) - low) / (high - low)

    ground, width = _ABOVE + _HEIGHT, _WIDTH / _BINS
    parts = [_line(0, ground, _WIDTH, ground, "line")]
    for at, count in enumerate(counts):
        ends = [10 ** (low + (high - low) * end / _BINS) for end in (at, at + 1)]
        height = _HEIGHT * count / max(counts)
        told = f"{ends[0]:.3g} to {ends[1]:.3g}: {count}"
        parts.append(_bar(at * width + 0.5, ground - height, width - 1, height, told))
    taken = -math.inf
    for tick in _ticks(10**low, 10**high):
        half = _LETTER * len(f"{tick:g}") / 2
        if x(tick) - half > taken:  # else one label would cover the last
            parts.append(_text(x(tick), ground + 18, f"{tick:g}", "middle", "small"))
            taken = x(tick) + half + _LETTER
    taken = -math.inf  # where the last label ended: one that it would cover goes a line lower
    for name, value in marks.items():
        told = f"{name} {value:,.0f}" if value >= 100 else f"{name} {value:.3g}"
        half = _LETTER * len(told) / 2
        middle = min(max(x(value), half), _WIDTH - half)
        y = 12 if middle - half > taken else 26
        taken = middle + half
        parts.append(_line(x(value), y + 4, x(value), ground, "mark"))
        parts.append(_text(middle, y, told, "middle", "small"))
    return _svg(parts, ground + 28, label)


def _ticks(low: float, high: float) -> list[float]:
    """Those of 1, 2, 5, 10, … that lie between, and where these are few, all of one digit."""
    decades = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)))]
    for digits in ((1, 2, 5), range(1, 10), [tenth / 10 for tenth in range(10, 100)]):
        ticks = [digit * decade for decade in decades for digit in digits if low <= digit * decade <= high]
        if len(ticks) >= 4:
            break
    return ticks


def _svg(parts: Sequence[str], height: float, label: str) -> str:
    inside = "\n".join(parts)
    return f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{escape(label)}">\n{inside}\n</svg>'


def _bar(x: float, y: float, width: float, height: float, told: str, kind: str = "bar") -> str:
    title = f"<title>{escape(told)}</title>"
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}">{title}</rect>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
