"""What the contract tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def require(condition: bool, message: str) -> None:
    """An assertion that `python -O` leaves in."""
    if not condition:
        raise AssertionError(message)


def refused(wrong: Mapping[str, Callable[[], object]]) -> None:
    """Each of these calls, by what is wrong with it, must raise ValueError."""
    for what, call in wrong.items():
        try:
            call()
        except ValueError:
            continue
        raise AssertionError(f"{what} is taken, where a ValueError is due")
