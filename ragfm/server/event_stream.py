"""A streamed answer as server-sent events: one event per piece, and a comment when there is nothing to send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse
from starlette.types import Receive, Scope, Send

KEEPALIVE_SECONDS = 15.0
"""Time without an event after which a comment is sent. Proxies close connections that are silent for a minute."""


class EventStream(EventSourceResponse):
    """Sends events as they come.

    FastAPI's own event streams have status 200 before the first event. Here an exception before the first byte is
    raised, so that the response has the error's status. A later one becomes the event that `error_event` makes.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        error_event: Callable[[Exception], bytes],
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(events, headers={"cache-control": "no-store", "x-accel-buffering": "no", **headers})
        self._events, self._error_event = events, error_event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. When this returns or is cancelled, their generator is closed."""
        # Unbounded, so that a slow client does not hold a slot of the reader. An answer is small.
        queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()

        async def produce() -> None:  # in a task of its own: the time-out below must not cancel the generator
            try:
                async with aclosing(self._events):
                    async for event in self._events:
                        queue.put_nowait(event)
            except Exception as error:
                queue.put_nowait(error)
            else:
                queue.put_nowait(None)

        async def next_item() -> bytes | Exception | None:
            try:
                async with asyncio.timeout(KEEPALIVE_SECONDS):
                    return await queue.get()
            except TimeoutError:
                return KEEPALIVE_COMMENT

        async def body(item: bytes | Exception | None) -> AsyncIterator[bytes]:
            while isinstance(item, bytes):
                yield item
                item = await next_item()
            if item is not None:
                yield self._error_event(item)

        producer = asyncio.create_task(produce())
        try:
            first = await next_item()
            if isinstance(first, Exception):
                raise first
            self.body_iterator = body(first)
            await super().__call__(scope, receive, send)
        finally:
            producer.cancel()
            await asyncio.gather(producer, return_exceptions=True)
