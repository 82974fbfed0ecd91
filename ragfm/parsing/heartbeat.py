"""What a parser says of itself while it works. Where nobody watches over it, nobody listens."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

_PAUSE = 1.0  # seconds from one word to the next, so that a parser may say it for each row
_listener: Callable[[bool], None] | None = None
_said = 0.0


def listen(listener: Callable[[bool], None]) -> None:
    """Have the steps told, at most one a second; the listener is given whether a model runs from now on."""
    global _listener
    _listener = listener


def step() -> None:
    """A page, a row, a part is done. A parser that doesn't say so for a minute is taken to hang."""
    global _said
    if _listener is not None and (now := monotonic()) - _said >= _PAUSE:
        _said = now
        _listener(False)


def running_model() -> None:
    """From here on a model (OCR, speech) runs on the document, and may take as much memory as models need."""
    if _listener is not None:
        _listener(True)
