"""The plugin registry."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from ragfm.core.registry import plugins


def test_installed_packages_are_read_once_and_a_new_one_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plugins("indexes")
    with monkeypatch.context() as patched:
        patched.setattr(importlib.metadata, "entry_points", None)
        assert plugins("indexes") == before
    monkeypatch.syspath_prepend(tmp_path)
    assert plugins("indexes") == before
    package = tmp_path / "new-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: new\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[ragfm.indexes]\nnew = new:Index\n")
    assert plugins("indexes").keys() - before.keys() == {"new"}
