"""The fork server that the torture tests of a module share, and syncs that make one commit each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.torture.fork_server import ForkServer


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer() as fork_server:
        yield fork_server


@pytest.fixture(scope="module", autouse=True)
def _one_commit_per_sync() -> Iterator[None]:
    """A busy machine, where parsing takes seconds, splits no sync into several commits."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("ragfm.ingestion.preparation.WAIT_SECONDS", 600)
        yield
