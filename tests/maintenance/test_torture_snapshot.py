"""Readers beside a writer: every search sees one generation, and never an older one than before."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.torture.nursery import Nursery
from support.torture.snapshots import snapshots


def test_two_readers_beside_a_writer(tmp_path: Path) -> None:
    with Nursery() as nursery:
        done = snapshots(nursery, tmp_path, commits=10, searches=200, readers=2)
    assert done["problems"] == []
    assert max(done["rounds_seen"]) >= 5


@pytest.mark.slow
def test_four_readers_beside_a_writer(tmp_path: Path) -> None:
    with Nursery() as nursery:
        done = snapshots(nursery, tmp_path, commits=40, searches=2_000)
    assert done["problems"] == []
    assert max(done["rounds_seen"]) >= 20
