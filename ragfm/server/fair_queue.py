"""Turns: who may use a reader now, who waits, and who is told to come again later.

What waits is bounded, by number and by how long it would have to: who let in more than can be answered in time would
answer nobody. It is shared fairly: a key may have as many requests waiting as places are left (the dynamic threshold of
Choudhury and Hahne 1998), so one key takes up half of the queue, two take up a third each, and there is always room for
one more. The next turn goes to the key that has fewest, and among equals to the one that was served
longest ago.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

__all__ = ["Busy", "Turns"]

_LONGEST = 60  # seconds that anybody is told to stay away
_SPREAD = 0.5  # shorter or longer, by chance: who was refused together would come back together
_FEW = 4  # places that there are at least, for other keys
_WEIGHT = 0.2  # of the newest turn's length in the mean


class Busy(Exception):  # noqa: N818  it is an answer, not a failure
    """There is no place to wait; there may be one in `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many requests are waiting; try again in {retry_after} s")
        self.retry_after = retry_after


class Turns:
    """`running` turns at once, and at most `waiting` requests that wait for one, none much longer than `seconds`.

    Used by one event loop.
    """

    def __init__(self, running: int, waiting: int, seconds: float = math.inf) -> None:
        self.most_running, self.most_waiting, self._most_seconds = running, waiting, seconds
        self.running: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """By key, the one that was served longest ago first."""
        self._seconds = 1.0  # that a turn takes

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it for as long as the block lasts. Raises Busy at once where no place is left."""
        await self._enter(key)
        start = monotonic()
        try:
            yield
        finally:
            self._seconds += _WEIGHT * (monotonic() - start - self._seconds)
            self._leave(key)

    async def _enter(self, key: str) -> None:
        if self.running.total() < self.most_running and not self._waiting:
            self.running[key] += 1
            return
        waiting, own = self.waiting, self._waiting.get(key, deque())
        if len(own) >= self._places - waiting:
            raise Busy(self._retry_after(waiting))
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, own).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                self._forget(key, place)
            else:
                self._leave(key)  # its turn came just when it went away
            raise

    @property
    def _places(self) -> int:
        """How many may wait now: as long as turns take, those whose turn comes in time, and always a few."""
        in_time = self._most_seconds / self._seconds * self.most_running
        return int(min(self.most_waiting, max(in_time, self.most_running, _FEW)))

    def _leave(self, key: str) -> None:
        self.running[key] -= 1
        self.running += Counter()  # drops what is zero
        while self._waiting and self.running.total() < self.most_running:
            chosen = min(self._waiting, key=lambda other: self.running[other])
            places = self._waiting.pop(chosen)
            place = places.popleft()
            if places:
                self._waiting[chosen] = places  # last among equals from now on
            if not place.done():  # else it has gone away, and will soon forget its place
                self.running[chosen] += 1
                place.set_result(None)

    def _forget(self, key: str, place: asyncio.Future[None]) -> None:
        places = self._waiting.get(key, deque())
        if place in places:
            places.remove(place)
        if not places:
            self._waiting.pop(key, None)

    def _retry_after(self, waiting: int) -> int:
        expected = min(_LONGEST / (1 + _SPREAD), self._seconds * (waiting + 1) / self.most_running)
        return max(1, round(expected * random.uniform(1 - _SPREAD, 1 + _SPREAD)))  # noqa: S311  nothing is secret here
