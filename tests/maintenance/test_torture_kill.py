"""A writer is killed at random times and at its writing system calls. Acknowledged commits are complete.

`benchmarks/torture.py` does so for longer.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.postgres_server import PostgresServer, postgres_server
from support.torture import faults
from support.torture.fork_server import ForkServer
from support.torture.kill import kill

needs_strace = pytest.mark.skipif(not faults.has_strace(), reason="strace is not installed, or may not trace here")


@pytest.mark.slow
def test_kills_of_a_writer_to_postgresql(fork_server: ForkServer, tmp_path: Path, postgres: PostgresServer) -> None:
    done = kill(fork_server, tmp_path, 10, server=postgres)
    assert done["problems"] == []
    assert done["commits_acknowledged"] > 0


@pytest.mark.slow
def test_immediate_shutdowns_of_postgresql(fork_server: ForkServer, tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with postgres_server() as server:
        done = kill(fork_server, tmp_path, 5, server=server, kill_server=True)
    assert done["problems"] == []
    assert done["commits_acknowledged"] > 0


@pytest.mark.slow
def test_twenty_kills(fork_server: ForkServer, tmp_path: Path) -> None:
    done = kill(fork_server, tmp_path, 20, seed=1)
    assert done["problems"] == []
    assert done["commits_acknowledged"] > 0  # how many depends on the machine and its load


@pytest.mark.slow
@needs_strace
@pytest.mark.parametrize("change", faults.CHANGES)
def test_kills_at_many_calls(fork_server: ForkServer, tmp_path: Path, change: str) -> None:
    done = faults.kill_at_calls(fork_server, tmp_path / "site", (change,), step=12)
    assert done["problems"] == []
    assert done["kills"][change] >= 3
