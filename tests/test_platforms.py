"""Other platforms, as far as they can be shown on this one: modules that they lack are blocked in a new process."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ragfm import Collection
from ragfm.testing import HashingEmbedder

SYNC = """
from ragfm import Collection
from ragfm.store.sqlite_driver import sqlite
from ragfm.testing import HashingEmbedder
from pathlib import Path

assert sqlite.__name__ == "sqlean"
Path("docs").mkdir()
Path("docs/leave.md").write_text("Every employee gets 28 days of leave.")
with Collection.open(".ragfm", embedder=HashingEmbedder()) as collection:
    collection.sync("docs")
    collection.backup("backup")
    assert not collection.verify().damaged
    print(collection.search("days of leave", 1)[0].uri)
"""


def _run_without(modules: tuple[str, ...], program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program where the modules cannot be imported."""
    path = [entry for entry in sys.path if entry]
    block = f"import sys; sys.path[:] = {path!r}; sys.modules.update(dict.fromkeys({modules!r}))\n"
    command = [sys.executable, "-c", block + program]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("program", ["import ragfm", "from ragfm.cli import main", "import ragfm_connectors.files"])
@pytest.mark.parametrize("module", ["fcntl", "resource"])
def test_without_posix_the_import_says_what_to_do(program: str, module: str, tmp_path: Path) -> None:
    done = _run_without((module,), program, tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: Cannot run ragfm: it needs POSIX, and this system does not have it. "
        "On Windows, install ragfm in WSL 2."
    )


@pytest.mark.skipif(not find_spec("sqlean"), reason="needs sqlean.py")
def test_sqlean_opens_the_collections_that_pysqlite3_opens(tmp_path: Path) -> None:
    done = _run_without(("pysqlite3",), SYNC, tmp_path)
    assert (done.stdout, done.returncode) == ("docs/leave.md\n", 0), done.stderr
    with Collection.open(tmp_path / ".ragfm", embedder=HashingEmbedder()) as collection:
        assert collection.search("days of leave", 1)[0].uri == "docs/leave.md"
        assert not collection.verify().damaged
