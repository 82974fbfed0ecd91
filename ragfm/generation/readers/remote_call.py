"""Requests to a server in an event loop, where a request can be cancelled whatever it is waiting for.

A thread that waits for a connection, for the first token or for the next retry cannot be interrupted.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from openai.types.chat import ChatCompletionChunk

from ragfm.generation.readers.generation_request import ResultQueue
from ragfm.generation.readers.server_pool import ServerPool

T = TypeVar("T")
Started: TypeAlias = Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]


class ClientThread:
    """A pool of servers and the thread with its event loop, which ends with this object."""

    def __init__(self, pool: ServerPool) -> None:
        self.pool, self.process = pool, os.getpid()
        started: Started = Future()
        threading.Thread(target=asyncio.run, args=[_serve(pool, started)], name="ragfm-openai", daemon=True).start()
        self.loop, ending = started.result()
        weakref.finalize(self, _end, self.process, self.loop, ending)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine, in the event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()


async def _serve(pool: ServerPool, started: Started) -> None:
    ending = asyncio.Event()
    started.set_result((asyncio.get_running_loop(), ending))
    await ending.wait()
    for server in pool.servers:
        await server.client.close()


def _end(process: int, loop: asyncio.AbstractEventLoop, ending: asyncio.Event) -> None:
    if os.getpid() == process:  # a forked process shares the file descriptor that wakes the loop
        with suppress(RuntimeError):  # the loop is already closed
            loop.call_soon_threadsafe(ending.set)


class RemoteCall(ResultQueue[ChatCompletionChunk]):
    """One request. Cancelling it ends the wait for results at once and closes the connection."""

    def __init__(self) -> None:
        super().__init__()
        self._future: Future[None] | None = None

    def chunks(self, thread: ClientThread, stream: AsyncIterator[ChatCompletionChunk]) -> Iterator[ChatCompletionChunk]:
        """Read the stream in the thread and return its chunks. Raises its errors, and RagfmError if it is cancelled."""

        async def read() -> None:
            async for chunk in stream:
                self.put(chunk)

        self._future = asyncio.run_coroutine_threadsafe(read(), thread.loop)
        self._future.add_done_callback(self._on_done)
        if self.cancelled:
            self.cancel()
        return self.results()

    def cancel(self) -> None:
        """End the request. Any thread may call this at any time."""
        super().cancel()
        if future := self._future:
            future.cancel()

    def _on_done(self, future: Future[None]) -> None:
        self._future = None  # breaks a reference cycle
        error = None if future.cancelled() else future.exception()
        self.finish(error if isinstance(error, Exception) else None)
