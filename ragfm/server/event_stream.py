"""Server-sent events: the pieces of an answer as they come, and signs of life while there are none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING

from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

__all__ = ["EventStream", "event"]

BEAT_SECONDS = 15.0
"""After so long without an event comes a comment, which clients skip: proxies cut off what is silent for a minute."""
_BEAT = b": waiting\n\n"


def event(text: str) -> bytes:
    """One event."""
    return f"data: {text}\n\n".encode()


class EventStream(Response):
    """Until something was sent, what fails is a response with a status of its own; then it is the event `failed`."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], failed: Callable[[Exception], bytes]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._failed = events, failed
        self._begun, self._last = False, monotonic()
        self._writing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come."""
        try:
            async with self._beating(send), aclosing(self._events) as events:  # type: ignore[type-var]
                async for each in events:
                    await self._write(send, each)
        except Exception as error:
            if not self._begun:
                raise
            await self._write(send, self._failed(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send, data: bytes) -> None:
        async with self._writing:
            if not self._begun:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                self._begun = True
            await send({"type": "http.response.body", "body": data, "more_body": True})
            self._last = monotonic()

    @asynccontextmanager
    async def _beating(self, send: Send) -> AsyncIterator[None]:
        task = asyncio.create_task(self._beat(send))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _beat(self, send: Send) -> None:
        while True:
            await asyncio.sleep(max(0.0, self._last + BEAT_SECONDS - monotonic()))
            if monotonic() - self._last >= BEAT_SECONDS:
                await self._write(send, _BEAT)
