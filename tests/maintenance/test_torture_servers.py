"""Two processes search a collection on PostgreSQL that another one changes: all hits are those of their generation."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.postgres_server import PostgresServer
from support.torture.fork_server import ForkServer
from support.torture.servers import servers


@pytest.mark.slow
def test_two_servers_and_a_writer(fork_server: ForkServer, tmp_path: Path, postgres: PostgresServer) -> None:
    done = servers(fork_server, tmp_path, postgres, seconds=6, chunks=2_000, checks=1_000)
    assert done["problems"] == []
    assert min(done["generations_searched"]) > 1
    assert done["without_conditions"]["checks"] >= 1_000
