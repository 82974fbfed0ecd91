"""Globs over paths, level by level."""

from __future__ import annotations

import pytest

from ragfm.core.globs import matches_glob


@pytest.mark.parametrize(
    ("path", "glob", "expected"),
    [
        ("a.md", "*.md", True),
        ("in/a.md", "*.md", False),
        ("in/a.md", "**/*.md", True),
        ("a.md", "**/*.md", True),
        ("in/deep/a.md", "in/**", True),
        ("in", "in/**/**", True),
        ("in/a.md", "**/in/**/a.md", True),
        ("in/a.md", "in", False),
        ("in", "in/a.md", False),
    ],
)
def test_a_path_matches_as_a_whole(path: str, glob: str, expected: bool) -> None:
    assert matches_glob(path.split("/"), tuple(glob.split("/"))) is expected
