"""Damaged files: reads return what was written, or an error names the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.torture.damage import damage
from support.torture.fork_server import ForkServer


@pytest.mark.slow
def test_much_damage_to_the_catalog(fork_server: ForkServer, tmp_path: Path) -> None:
    done = damage(fork_server, tmp_path, flips=6, zeroed=6, cuts=3, seed=1, only="catalog.db")
    assert done["problems"] == []


@pytest.mark.slow
def test_damage_to_every_file(fork_server: ForkServer, tmp_path: Path) -> None:
    done = damage(fork_server, tmp_path, flips=1, zeroed=1, cuts=1, seed=2)
    assert done["problems"] == []
    assert done["outcomes"]["c: HEAD"] == {"noticed": 4}
    assert done["outcomes"]["c: index.faiss"] == {"warned": 4}
