"""What the contract tests share."""

from __future__ import annotations


def require(condition: bool, message: str) -> None:
    """An assertion that `python -O` leaves in."""
    if not condition:
        raise AssertionError(message)
