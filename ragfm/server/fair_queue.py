"""A bounded queue for the slots of a reader, shared fairly between keys.

The queue is bounded by number and by waiting time: requests that could not be answered in time are refused at once. A
key may have as many waiting requests as there are free places (the dynamic threshold of Choudhury and Hahne 1998). One
key therefore takes up to half of the queue, two take a third each, and there is always a place for another key. A free
slot goes to the key with the fewest running requests, among equals to the one served longest ago.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

_MAX_RETRY_SECONDS = 60
_RETRY_JITTER = 0.5  # fraction by which the retry time varies, so that refused requests do not return together
_MIN_PLACES = 4
_SMOOTHING = 0.2  # weight of the newest duration in the moving average


class QueueFullError(Exception):
    """The queue is full. There may be a place in `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many requests are waiting; try again in {retry_after} s")
        self.retry_after = retry_after


class FairQueue:
    """At most `slots` requests run at once and at most `max_waiting` wait, none much longer than `max_seconds`.

    At most `per_key` requests of a key run at once, by default all. Belongs to one event loop.
    """

    def __init__(
        self, slots: int, max_waiting: int, max_seconds: float = math.inf, *, per_key: int | None = None
    ) -> None:
        self.slots, self._max_waiting, self._max_seconds = slots, max_waiting, max_seconds
        self._per_key = per_key or slots
        self.running: Counter[str] = Counter()  # by key
        # By key, the key that was served longest ago first.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._mean_seconds = 1.0  # that a request holds its slot

    @property
    def waiting(self) -> int:
        """Number of waiting requests."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def slot(self, key: str, *, refusable: bool = True) -> AsyncIterator[bool]:
        """Wait for a slot and hold it during the block. Raises QueueFullError at once if there is no place.

        Yields whether the key has more requests waiting. The end of a request that has begun is not `refusable`.
        """
        # If a slot is free, all keys that wait have as many running requests as they may have.
        if self.running.total() < self.slots and self.running[key] < self._per_key:
            self.running[key] += 1
        else:
            waiting, own = self.waiting, self._waiting.get(key, deque())
            if refusable and len(own) >= self._places - waiting:
                raise QueueFullError(self._retry_after(waiting))
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(key, own).append(place)
            try:
                await place
            except asyncio.CancelledError:
                if not place.cancelled():
                    self._release(key)  # the slot was granted just before the cancellation
                elif place in own:
                    own.remove(place)
                    if not own and self._waiting.get(key) is own:
                        del self._waiting[key]
                raise
        start = monotonic()
        try:
            yield key in self._waiting
        finally:
            self._mean_seconds += _SMOOTHING * (monotonic() - start - self._mean_seconds)
            self._release(key)

    @property
    def _places(self) -> int:
        """Number of requests that may wait: those that get a slot in time at the current speed, and always a few."""
        in_time = self._max_seconds / self._mean_seconds * self.slots
        return int(min(self._max_waiting, max(in_time, self.slots, _MIN_PLACES)))

    def _release(self, key: str) -> None:
        self.running[key] -= 1
        self.running += Counter()  # drops zero counts
        while self.running.total() < self.slots:
            ready = [other for other in self._waiting if self.running[other] < self._per_key]
            if not ready:
                break
            next_key = min(ready, key=lambda other: self.running[other])
            places = self._waiting.pop(next_key)
            place = places.popleft()
            if places:
                self._waiting[next_key] = places  # now the last among equals
            if not place.done():  # a cancelled request removes its place later
                self.running[next_key] += 1
                place.set_result(None)

    def _retry_after(self, waiting: int) -> int:
        expected = self._mean_seconds * (waiting + 1) / self.slots
        expected = min(_MAX_RETRY_SECONDS / (1 + _RETRY_JITTER), expected)
        return max(1, round(expected * random.uniform(1 - _RETRY_JITTER, 1 + _RETRY_JITTER)))  # noqa: S311  not secret
