"""The fork server that the torture tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.torture.fork_server import ForkServer


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer() as fork_server:
        yield fork_server
