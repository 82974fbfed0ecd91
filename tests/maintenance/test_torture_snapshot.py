"""Readers next to a writer: every search sees one generation, never an older one than before."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.torture.fork_server import ForkServer
from support.torture.snapshots import snapshots


def test_two_readers_next_to_a_writer(tmp_path: Path) -> None:
    with ForkServer() as fork_server:
        done = snapshots(fork_server, tmp_path, commits=10, searches=200, readers=2)
    assert done["problems"] == []
    assert max(done["rounds_seen"]) >= 5


@pytest.mark.slow
def test_four_readers_next_to_a_writer(tmp_path: Path) -> None:
    with ForkServer() as fork_server:
        done = snapshots(fork_server, tmp_path, commits=40, searches=2_000)
    assert done["problems"] == []
    assert max(done["rounds_seen"]) >= 20
