"""Globs over paths, level by level."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

Glob: TypeAlias = tuple[str, ...]
"""A glob, one part per level; `**` matches any number of levels, including none."""


def matches_glob(levels: Sequence[str], glob: Glob) -> bool:
    """Whether a path, given by its levels, matches a glob as a whole."""
    if not glob:
        return not levels
    if glob[0] == "**":
        return len(glob) == 1 or any(matches_glob(levels[start:], glob[1:]) for start in range(len(levels) + 1))
    return bool(levels) and fnmatchcase(levels[0], glob[0]) and matches_glob(levels[1:], glob[1:])
