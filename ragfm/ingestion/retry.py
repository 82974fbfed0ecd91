"""Retry policy: a document that failed is tried again after a delay that grows with the number of attempts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

RETRY_DELAYS = (0, 60, 300, 1_800, 7_200, 86_400)
"""Seconds to wait after the first, second, … attempt; the last value is used for all later attempts."""


def must_wait(attempts: int, last_attempt: str) -> bool:
    """Whether it is too early to retry a document that failed `attempts` times, last at `last_attempt` (ISO 8601)."""
    elapsed = datetime.now(UTC) - datetime.fromisoformat(last_attempt)
    # A time in the future means that the clock was set back by an unknown amount.
    return timedelta(0) <= elapsed < timedelta(seconds=RETRY_DELAYS[min(attempts, len(RETRY_DELAYS)) - 1])
