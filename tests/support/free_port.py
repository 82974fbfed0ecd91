"""A port for a server of another program, which cannot choose one itself."""

from __future__ import annotations

import secrets
import socket


def free_port() -> int:
    """A port that nobody listens at, outside of the ranges from which systems take the ports of connections."""
    while True:
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port := 20_000 + secrets.randbelow(12_000)))
            except OSError:
                continue
            return port
