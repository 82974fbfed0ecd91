"""A writer is killed: at random times, and at each system call that writes. What it acknowledged is there, whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.torture import faults
from support.torture.kill import kill
from support.torture.nursery import Nursery

needs_strace = pytest.mark.skipif(not faults.has_strace(), reason="strace is not installed, or may not trace here")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.mark.slow
def test_a_few_kills(nursery: Nursery, tmp_path: Path) -> None:
    done = kill(nursery, tmp_path, 8)
    assert done["problems"] == []
    assert done["commits_acknowledged"] > 0


@needs_strace
def test_kills_at_some_calls_of_a_commit(nursery: Nursery, tmp_path: Path) -> None:
    done = faults.kill_at_calls(nursery, tmp_path / "site", ("commit",), step=12)
    assert done["problems"] == []
    assert done["kills"]["commit"] >= 3


@pytest.mark.slow
def test_a_hundred_kills(nursery: Nursery, tmp_path: Path) -> None:
    done = kill(nursery, tmp_path, 100, seed=1)
    assert done["problems"] == []
    assert done["commits_acknowledged"] > 50


@pytest.mark.slow
@needs_strace
@pytest.mark.parametrize("change", faults.CHANGES)
def test_kills_at_many_calls(nursery: Nursery, tmp_path: Path, change: str) -> None:
    done = faults.kill_at_calls(nursery, tmp_path / "site", (change,), step=4)
    assert done["problems"] == []
    assert done["kills"][change] >= 3
