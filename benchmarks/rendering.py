"""Parts of the tables of docs/benchmarks.md, which the benchmarks render from their results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MODES = ("dense", "keyword", "hybrid")


class Results:
    """The files of `results/`, or another folder, by their names without .json."""

    def __init__(self, folder: Path = Path(__file__).parent / "results") -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> Any:
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def interval(estimate: Sequence[float] | None) -> str:
    if estimate is None:
        return "-"
    value, low, high = estimate
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def difference(estimate: Sequence[float]) -> str:
    value, low, high = estimate
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
