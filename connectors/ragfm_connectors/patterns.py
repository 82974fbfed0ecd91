"""Paths of a source, and glob patterns over them with the rules of .gitignore."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from ragfm.core.errors import ConfigError
from ragfm.core.globs import Glob, matches_glob


class PathFilter:
    """Selects the paths that match `glob` and one of `include`, and none of `exclude`.

    `*.md` matches at any depth. A pattern with a `/` before its end starts at the source's root. `**` matches any
    number of folders. A pattern that matches a folder matches everything in it. `glob`, which comes from the source's
    location, always matches the whole path from the root. Raises ConfigError for an empty pattern and for `!PATTERN`.
    """

    def __init__(self, include: Sequence[str], exclude: Sequence[str], glob: str = "") -> None:
        self._include = _parse(include)
        self._exclude = _parse(exclude)
        self._glob: Glob = tuple(glob.split("/")) if glob else ("**",)

    def excludes(self, path: str) -> bool:
        """Whether a file, or a folder with all that it contains, is excluded."""
        return any(matches_glob(path.split("/"), pattern) for pattern in self._exclude)

    def includes(self, path: str) -> bool:
        """Whether a file belongs to the source."""
        parts = path.split("/")
        included = not self._include or any(matches_glob(parts, pattern) for pattern in self._include)
        return included and matches_glob(parts, self._glob) and not self.excludes(path)

    def selects(self, path: str) -> bool:
        """Whether a file is selected by one of `include`, rather than merely not excluded."""
        return bool(self._include) and self.includes(path)

    def may_contain(self, folder: str) -> bool:
        """Whether anything below a folder can belong to the source; if not, it need not be listed."""
        parts = folder.split("/")
        included = not self._include or any(_leads_to(parts, pattern) for pattern in self._include)
        return included and _leads_to(parts, self._glob) and not self.excludes(folder)


def join_path(folder: str, name: str) -> str:
    """The path of an entry of a folder; the root's path is empty."""
    return f"{folder}/{name}" if folder else name


def _parse(patterns: Sequence[str]) -> list[Glob]:
    parsed: list[Glob] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        parts = tuple(part for part in pattern.split("/") if part not in ("", "."))
        if not parts:
            raise ConfigError(f"{pattern!r} is not a pattern for paths.", "Use a pattern such as *.md or drafts/**.")
        if pattern.startswith("!"):
            raise ConfigError(
                f"The pattern {pattern!r} is not supported: it begins with !.",
                "Specify what to ingest with --include. For a name that begins with !, write **/!NAME.",
            )
        anchored = "/" in pattern.rstrip("/")
        parsed.append((*(() if anchored else ("**",)), *parts, "**"))
    return parsed


def _leads_to(parts: Sequence[str], pattern: Glob) -> bool:
    """Whether a path below the folder `parts` can match."""
    for part, wanted in zip(parts, pattern, strict=False):
        if wanted == "**":
            return True
        if not fnmatchcase(part, wanted):
            return False
    return len(parts) < len(pattern)
