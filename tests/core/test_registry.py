"""The plugin registry."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from ragfm.core.errors import MissingExtraError
from ragfm.core.registry import load_plugin, plugins


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


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import nothing_of_that_name", "needs the module 'nothing_of_that_name', which is not installed"),
        ("from json import nothing", "cannot be loaded: cannot import name 'nothing' from 'json'"),
        ("Other = 1", "cannot be loaded: module 'odd_index' has no attribute 'Index'"),
    ],
    ids=["missing", "other version", "no class"],
)
def test_a_plugin_that_cannot_be_imported_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, why: str
) -> None:
    (tmp_path / "odd_index.py").write_text(code)
    (tmp_path / "odd-1.0.dist-info").mkdir()
    (tmp_path / "odd-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (tmp_path / "odd-1.0.dist-info" / "entry_points.txt").write_text("[ragfm.indexes]\nodd = odd_index:Index\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_index", raising=False)
    with pytest.raises(MissingExtraError, match=f"The plugin 'odd' {why}.*reinstall odd with"):
        load_plugin("indexes", "odd")
