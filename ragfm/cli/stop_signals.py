"""Signals that stop a command between two steps."""

from __future__ import annotations

import signal
from threading import Event
from typing import Any


def stop_event() -> Event:
    """An event that the first Ctrl-C or SIGTERM sets; a second one ends the process at once."""
    stop = Event()

    def request_stop(number: int, _: Any) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, request_stop)
    return stop
