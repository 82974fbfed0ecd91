"""Assertions shared by the contract tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def require(condition: bool, message: str) -> None:
    """An assertion that `python -O` does not remove."""
    if not condition:
        raise AssertionError(message)


def require_value_errors(calls: Mapping[str, Callable[[], object]]) -> None:
    """Each call, by a description of its invalid input, must raise ValueError."""
    for description, call in calls.items():
        try:
            call()
        except ValueError:
            continue
        raise AssertionError(f"{description} must raise ValueError, but is accepted")
