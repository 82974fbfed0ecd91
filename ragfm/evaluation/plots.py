"""Plots as inline SVG, without a plotting library and without external resources.

The page defines the colours of the classes `bar`, `miss`, `line`, `mark`, `soft` and `path`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from ragfm.evaluation.metrics import Estimate

# All sizes are in units of the view box.
_WIDTH = 720
_LEFT, _RIGHT = 100, 150
_PLOT = _WIDTH - _LEFT - 20  # width between the axes of a curve
_CHARACTER = 7.5  # mean width
_ROW = 30
_HEIGHT, _ABOVE = 190, 34
_BASELINE = _ABOVE + _HEIGHT


def bars(rows: Mapping[str, Estimate], label: str) -> str:
    """Horizontal bars on a scale from 0 to 1, with intervals as error bars."""
    left = max(_LEFT, 20 + _CHARACTER * max(map(len, rows), default=0))
    width, bottom = _WIDTH - left - _RIGHT, len(rows) * _ROW + 6

    def x(value: float) -> float:
        return left + width * value

    parts = [_line(x(tick / 4), 0, x(tick / 4), bottom, "soft") for tick in range(5)]
    parts += [_text(x(tick / 4), bottom + 16, f"{tick / 4:g}", "middle", "small") for tick in range(5)]
    for row, (name, value) in enumerate(rows.items()):
        y = row * _ROW + 6
        caption = f"{value.value:.3f}  [{value.low:.3f}, {value.high:.3f}]"
        parts.append(_text(left - 10, y + 16, name, "end"))
        parts.append(_bar(left, y + 3, width * value.value, _ROW - 10, f"{name}: {caption}"))
        parts.append(_line(x(value.low), y + 13, x(value.high), y + 13, "line"))
        parts += [_line(x(end), y + 8, x(end), y + 18, "line") for end in (value.low, value.high)]
        parts.append(_text(x(1) + 10, y + 17, caption, "start", "small"))
    return _svg(parts, bottom + 24, label)


def histogram(counts: Mapping[str, int], label: str) -> str:
    """A column for each count; a count named `none` has the colour of failures."""
    step = _WIDTH / max(len(counts), 1)
    highest, total = max(counts.values(), default=0) or 1, sum(counts.values()) or 1
    parts = [_line(0, _BASELINE, _WIDTH, _BASELINE, "line")]
    for column, (name, count) in enumerate(counts.items()):
        height = _HEIGHT * count / highest
        middle, top = step * (column + 0.5), _BASELINE - height
        kind = "miss" if name == "none" else "bar"
        parts.append(_bar(middle - step * 0.38, top, step * 0.76, height, f"{name}: {count} of {total}", kind))
        parts.append(_text(middle, top - 6, f"{count} ({100 * count / total:.0f} %)", "middle", "small"))
        parts.append(_text(middle, _BASELINE + 18, name, "middle"))
    return _svg(parts, _BASELINE + 28, label)


def lines(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, label: str) -> str:
    """A line through the (x, y) points of each series, with scales from 0 to the maximum, and a legend."""
    points = [point for line in series.values() for point in line] or [(1.0, 1.0)]
    right, top = max(x for x, _ in points) or 1, max(y for _, y in points) or 1
    parts = [_text(_LEFT + _PLOT, _BASELINE + 38, x_label, "end")]
    for tick in range(5):
        x, y = _LEFT + _PLOT * tick / 4, _BASELINE - _HEIGHT * tick / 4
        parts += [_line(x, _ABOVE, x, _BASELINE, "soft"), _line(_LEFT, y, _LEFT + _PLOT, y, "soft")]
        parts.append(_text(x, _BASELINE + 18, f"{right * tick / 4:.3g}", "middle", "small"))
        parts.append(_text(_LEFT - 10, y + 4, f"{top * tick / 4:.3g}", "end", "small"))
    for number, (name, line) in enumerate(series.items()):
        kind = "path" if number == 0 else "path second"
        path = " ".join(f"{_LEFT + _PLOT * x / right:.1f},{_BASELINE - _HEIGHT * y / top:.1f}" for x, y in line)
        parts.append(f'<polyline class="{kind}" points="{path}"><title>{escape(name)}</title></polyline>')
        legend = _LEFT + 150 * number
        parts.append(_line(legend, 16, legend + 18, 16, "mark" if number else "line"))
        parts.append(_text(legend + 24, 20, name, "start", "small"))
    return _svg(parts, _BASELINE + 48, label)


def _svg(parts: Sequence[str], height: float, label: str) -> str:
    content = "\n".join(parts)
    return f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{escape(label)}">\n{content}\n</svg>'


def _bar(x: float, y: float, width: float, height: float, caption: str, kind: str = "bar") -> str:
    title = f"<title>{escape(caption)}</title>"
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}">{title}</rect>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
