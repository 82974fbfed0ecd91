"""The paths of a source, and glob patterns over them with the rules of .gitignore."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from ragfm.core.errors import ConfigError

Pattern: TypeAlias = tuple[str, ...]
"""A glob, one part for each level; `**` stands for any number of levels, none included."""


class PathFilter:
    """Which paths belong to a source: those that match `glob` and one of `include`, and none of `exclude`.

    `*.md` matches at any depth; a pattern with a `/` other than at its end counts from the source's root; `**` is any
    number of folders; a pattern that matches a folder takes all that lies in it. Only `glob`, which comes from the
    location itself, matches whole paths and always from the root. Raises ConfigError for an empty pattern.
    """

    def __init__(self, include: Sequence[str], exclude: Sequence[str], glob: str = "") -> None:
        self._include = _parse(include)
        self._exclude = _parse(exclude)
        self._glob: Pattern = tuple(glob.split("/")) if glob else ("**",)

    def excludes(self, path: str) -> bool:
        """Whether the path, and with a folder all that lies in it, is excluded."""
        return any(_matches(path.split("/"), pattern) for pattern in self._exclude)

    def takes(self, path: str) -> bool:
        """Whether a file of that path belongs to the source."""
        parts = path.split("/")
        included = not self._include or any(_matches(parts, pattern) for pattern in self._include)
        return included and _matches(parts, self._glob) and not self.excludes(path)

    def may_hold(self, folder: str) -> bool:
        """Whether anything below a folder can belong to the source: what can't need not be listed."""
        parts = folder.split("/")
        included = not self._include or any(_leads_to(parts, pattern) for pattern in self._include)
        return included and _leads_to(parts, self._glob) and not self.excludes(folder)


def below(folder: str, name: str) -> str:
    """The path of what lies in a folder; the root's own is empty."""
    return f"{folder}/{name}" if folder else name


def _parse(patterns: Sequence[str]) -> list[Pattern]:
    parsed: list[Pattern] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        parts = tuple(part for part in pattern.split("/") if part not in ("", "."))
        if not parts:
            raise ConfigError(f"{pattern!r} is no pattern for paths.", "Write one such as *.md or drafts/**.")
        anchored = "/" in pattern.rstrip("/")
        parsed.append((*(() if anchored else ("**",)), *parts, "**"))
    return parsed


def _matches(parts: Sequence[str], pattern: Pattern) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return len(pattern) == 1 or any(_matches(parts[at:], pattern[1:]) for at in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _leads_to(parts: Sequence[str], pattern: Pattern) -> bool:
    for part, wanted in zip(parts, pattern, strict=False):
        if wanted == "**":
            return True
        if not fnmatchcase(part, wanted):
            return False
    return len(parts) < len(pattern)
