"""A streamed answer as server-sent events: one event per piece, and a comment when there is nothing to send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

__all__ = ["EventStream"]

KEEPALIVE_SECONDS = 15.0
"""Time without an event after which a comment is sent. Proxies close connections that are silent for a minute."""


class EventStream(EventSourceResponse):
    """Sends events as they come.

    FastAPI's own event streams have status 200 before the first event. Here an exception before the first byte is
    raised, so that the response has the error's status. A later one becomes the event that `error_event` makes.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], error_event: Callable[[Exception], bytes]) -> None:
        self._events, self._error_event = events, error_event
        # Unbounded, so that a slow client does not hold a slot of the reader. An answer is small.
        self._queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        super().__init__(self._body(), headers={"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. When this returns or is cancelled, their generator is closed."""
        producer = asyncio.create_task(self._produce())
        try:
            body = self.body_iterator
            first = await anext(aiter(body))

            async def all_events() -> AsyncIterator[str | bytes | memoryview]:
                yield first
                async for data in body:
                    yield data

            self.body_iterator = all_events()
            await super().__call__(scope, receive, send)
        finally:
            producer.cancel()
            await asyncio.gather(producer, return_exceptions=True)

    async def _produce(self) -> None:
        # In a task of its own: the time-out of a keep-alive must not cancel the generator.
        try:
            async with aclosing(self._events):
                async for event in self._events:
                    self._queue.put_nowait(event)
        except Exception as error:
            self._queue.put_nowait(error)
        else:
            self._queue.put_nowait(None)

    async def _body(self) -> AsyncGenerator[bytes, None]:
        started = False
        while True:
            try:
                async with asyncio.timeout(KEEPALIVE_SECONDS):
                    item = await self._queue.get()
            except TimeoutError:
                item = KEEPALIVE_COMMENT
            if item is None:
                return
            if isinstance(item, Exception):
                if not started:
                    raise item
                yield self._error_event(item)
                return
            yield item
            started = True
