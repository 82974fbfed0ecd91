"""Limits requests without a valid key by the client's address: each of them would cost a look at the database."""

from __future__ import annotations

from time import monotonic

ATTEMPTS_PER_MINUTE = 300
"""Requests of an address in a minute whose key was not valid before."""
_MAX_ADDRESSES = 10_000


class KeyAttempts:
    """Counts the attempts of each address in this process."""

    def __init__(self) -> None:
        # Token buckets by address, with the attempts of one minute: those left, and since when.
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, address: str) -> float:
        """Count an attempt of an address. Returns 0, or the seconds until the next one if there are too many."""
        now = monotonic()
        left, updated = self._buckets.get(address, (ATTEMPTS_PER_MINUTE, now))
        left = min(ATTEMPTS_PER_MINUTE, left + (now - updated) * ATTEMPTS_PER_MINUTE / 60)
        if left < 1:
            return (1 - left) * 60 / ATTEMPTS_PER_MINUTE
        if len(self._buckets) >= _MAX_ADDRESSES:
            self._buckets.clear()
        self._buckets[address] = left - 1, now
        return 0.0
