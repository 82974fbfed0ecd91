"""The benchmarks in catalog.toml: their claims, their results, and whether the measured code has changed since.

`tables.py --readme` writes the table of README.md with it.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
_FIGURE = re.compile(r"\{(?:([\w.-]+)#)?([^{}]+):([^{}:]+)\}")


@dataclass(frozen=True)
class Benchmark:
    """An entry of catalog.toml. Paths of the measured code are relative to the repository."""

    name: str
    topic: str
    claim: str
    measures: tuple[str, ...]
    results: tuple[str, ...]  # names in `results/`, without .json
    run: str = ""  # arguments
    minutes: float | None = None  # on two cores

    def stated_claim(self) -> str:
        """The claim with the figures of the results."""

        def figure(match: re.Match[str]) -> str:
            value = load(match[1] or self.results[0])
            for key in match[2].split("/"):
                value = value[int(key) if isinstance(value, list) else key]
            return format(value, match[3])

        return _FIGURE.sub(figure, self.claim)

    def oldest(self) -> tuple[str, str]:
        """Commit and date of the oldest part of the results; empty strings where they were not recorded."""
        return min((part for name in self.results for part in _parts(load(name))), key=lambda part: part[1])


def benchmarks() -> list[Benchmark]:
    entries = tomllib.loads((HERE / "catalog.toml").read_text(encoding="utf-8"))
    return [
        Benchmark(
            name,
            topic,
            **{"results": (name,)} | {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()},
        )
        for topic, of_topic in entries.items()
        for name, entry in of_topic.items()
    ]


@functools.cache
def load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _parts(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Commit and date of a result, or of each of its parts that were measured separately."""
    if "date" in result:
        yield str(result.get("commit") or ""), result["date"]
    else:
        for part in result.values():
            if isinstance(part, dict):
                yield from _parts(part)


def commits_since(commit: str, paths: tuple[str, ...], repository: Path = HERE) -> int | None:
    """Number of commits that changed the paths after a commit; None if the history does not have it, or without git."""
    try:
        root = _git(repository, "rev-parse", "--show-toplevel")
        return int(_git(Path(root), "rev-list", "--count", f"{commit}..HEAD", "--", *paths)) if commit else None
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def readme() -> str:
    """The table of benchmarks/README.md, one section per topic."""
    lines, topic = [], ""
    for one in benchmarks():
        if one.topic != topic:
            topic = one.topic
            head = ("claim", "command", "minutes", "results", "measured")
            lines += ["", f"## {topic}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        files = ", ".join(f"[{name}](results/{name}.json)" for name in one.results)
        measured = "-"
        if one.results:
            commit, date = one.oldest()
            measured = f"{commit or 'commit not recorded'}, {date}"
        command = f"`scripts/bench {one.name}{' ' if one.run else ''}{one.run}`".replace("|", "\\|")
        minutes = "" if one.minutes is None else f"about {one.minutes:g}"
        lines.append(f"| {one.stated_claim()} | {command} | {minutes} | {files or '-'} | {measured} |")
    return "\n".join(lines[1:])


def listing() -> str:
    """A line per benchmark: its name, its claim, and whether its results are stale."""
    lines = []
    for one in benchmarks():
        changes = commits_since(one.oldest()[0], one.measures) if one.results else 0
        state = " [stale: commit unknown]" if changes is None else f" [stale: {changes} commits]" if changes else ""
        lines.append(f"{one.name:<22} {one.stated_claim()}{state}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(listing())
