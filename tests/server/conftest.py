"""A server shared by all tests that need no special one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.browser import actor, browser, open_server, visit
from support.running_server import ANSWER, Running, serve

from ragfm.testing import ScriptedReader

__all__ = ["actor", "browser", "open_server", "visit"]


@pytest.fixture(scope="session")
def script() -> ScriptedReader:
    return ScriptedReader([ANSWER])


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory, script: ScriptedReader) -> Iterator[Running]:
    """The shared server."""
    with serve(tmp_path_factory.mktemp("served"), script) as it:
        yield it
