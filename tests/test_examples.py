"""The scripts of examples/ run as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.postgres_server import PostgresServer

from ragfm.core.errors import ModelNotFoundError
from ragfm.models.model_lookup import find_model

SCALE_OUT = Path(__file__).parents[1] / "examples" / "scale-out"


def test_every_script_is_in_the_docs() -> None:
    page = (SCALE_OUT.parents[1] / "docs" / "scale-out.md").read_text(encoding="utf-8")
    for path in SCALE_OUT.glob("*.py"):
        assert path.name == "parts.py" or path.name in page
        assert "support" not in path.read_text(encoding="utf-8")


def _run(name: str, *words: str) -> None:
    try:
        find_model("bundled", "reader")
    except ModelNotFoundError:
        pytest.skip("needs the bundled reader")
    command = [sys.executable, str(SCALE_OUT / name), *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("Done.\n")


@pytest.mark.slow
def test_one_machine() -> None:
    _run("one_machine.py")


@pytest.mark.slow
def test_servers_and_workers(postgres: PostgresServer) -> None:
    _run("servers_and_workers.py", postgres.address("handbook"))
