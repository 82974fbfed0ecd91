"""A service for the tests of confined services: does what the test asks for."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any, BinaryIO

from ragfm.core.errors import SkipDocument


def handle(file: BinaryIO | None, action: str, argument: Any) -> tuple[Any, bytes]:
    if action == "read":
        assert file is not None
        return os.getpid(), file.read()
    if action == "open":
        return len(Path(argument).read_bytes()), b""
    if action == "connect":
        socket.create_connection(("127.0.0.1", argument))
    if action == "skip":
        raise SkipDocument(argument)
    if action == "bytes":
        return None, b"x" * argument
    if action == "sleep":
        time.sleep(argument)
    if action == "exit":
        os._exit(argument)
    return argument, b""
