"""Wakes the requests that wait for a commit. One look at the database serves all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from ragfm.core.errors import RagfmError

_POLL_SECONDS = 0.1  # a replica of a database cannot notify


class CommitWatch:
    """The new commits of a collection. `newest` returns the number of the newest one. Belongs to one event loop."""

    def __init__(self, newest: Callable[[], Awaitable[int]]) -> None:
        self._newest = newest
        self._changed = asyncio.Event()
        self._waiting = 0
        self._task: asyncio.Task[None] | None = None

    async def changes(self) -> AsyncGenerator[None, None]:
        """Yield whenever there may be a commit that was not there at the time before. Close it after use."""
        self._waiting += 1
        self._task = self._task or asyncio.create_task(self._watch())
        try:
            while True:
                changed = self._changed
                yield
                await changed.wait()
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._task.cancel()
                self._task = None

    async def _watch(self) -> None:
        seen: int | None = None
        while True:
            try:
                newest = await self._newest()
            except RagfmError:  # each waiting request meets it, too
                newest = None
            if newest is None or newest != seen:
                self._changed.set()
                self._changed = asyncio.Event()
            seen = newest
            await asyncio.sleep(_POLL_SECONDS)
