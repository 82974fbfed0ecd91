"""Signs of life from a parser, for the parent process that watches it. Without a listener, nothing happens."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Literal, TypeAlias

Sign: TypeAlias = Literal["beat", "model", "heavy"]

_INTERVAL = 1.0  # seconds between two calls of the listener, so that a parser may call `beat` for each row
_listener: Callable[[Sign], None] | None = None
_last_beat = 0.0


def set_listener(listener: Callable[[Sign], None]) -> None:
    """Call `listener` at most once a second while a parser works, and when a model or a heavy parser starts."""
    global _listener
    _listener = listener


def beat() -> None:
    """Report that a page, a row or a part is done. A parser that does not beat for a minute counts as hung."""
    global _last_beat
    if _listener is not None:
        now = monotonic()
        if now - _last_beat >= _INTERVAL:
            _last_beat = now
            _listener("beat")


def announce(work: Literal["model", "heavy"]) -> None:
    """Report that a model (OCR, speech) runs on the document from now on, which raises the memory limit.

    A `heavy` parser needs as much memory, and may not call `beat`.
    """
    if _listener is not None:
        _listener(work)
