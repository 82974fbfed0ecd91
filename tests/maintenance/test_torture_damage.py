"""Damaged files: reads return what was written, or an error names the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.torture.damage import damage
from support.torture.fork_server import ForkServer


@pytest.mark.slow
def test_a_little_damage_to_each_file(fork_server: ForkServer, tmp_path: Path) -> None:
    done = damage(fork_server, tmp_path, flips=1, zeroed=0, cuts=0)
    assert done["problems"] == []
    assert done["outcomes"]["c: HEAD"] == {"noticed": 2}
    assert done["outcomes"]["c: index.faiss"] == {"warned": 2}


@pytest.mark.slow
def test_much_damage_to_the_catalog(fork_server: ForkServer, tmp_path: Path) -> None:
    done = damage(fork_server, tmp_path, flips=12, zeroed=9, cuts=4, seed=1, only="catalog.db")
    assert done["problems"] == []


@pytest.mark.slow
def test_damage_to_every_file(fork_server: ForkServer, tmp_path: Path) -> None:
    done = damage(fork_server, tmp_path, flips=2, zeroed=1, cuts=1, seed=2)
    assert done["problems"] == []
