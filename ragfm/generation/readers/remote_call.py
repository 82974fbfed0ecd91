"""Requests to a server, in an event loop: there one can be called off, whatever it is waiting for.

A thread that waits for a connection, for a first word or for the time of its next try is woken by nobody.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from ragfm.generation.readers.generation_request import Results

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletionChunk

    Started: TypeAlias = Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]

__all__ = ["Call", "Line"]


class Line:
    """A client, and the thread that it runs in, which ends with this object."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self.client, self.process = client, os.getpid()
        started: Started = Future()
        threading.Thread(target=asyncio.run, args=[_serve(client, started)], name="ragfm-openai", daemon=True).start()
        self.loop, ending = started.result()
        weakref.finalize(self, _end, self.process, self.loop, ending)


async def _serve(client: openai.AsyncOpenAI, started: Started) -> None:
    ending = asyncio.Event()
    started.set_result((asyncio.get_running_loop(), ending))
    async with client:
        await ending.wait()


def _end(process: int, loop: asyncio.AbstractEventLoop, ending: asyncio.Event) -> None:
    if os.getpid() == process:  # a forked one shares what wakes the loop
        with suppress(RuntimeError):  # it is closed
            loop.call_soon_threadsafe(ending.set)


class Call(Results["ChatCompletionChunk"]):
    """One request. Cancelled, it ends at once for who waits for it, and its connection is closed."""

    def __init__(self) -> None:
        super().__init__()
        self._sent: Future[None] | None = None

    def chunks(self, line: Line, request: Mapping[str, Any]) -> Iterator[ChatCompletionChunk]:
        """Ask, and give what the server sends. Raises what the SDK does, and RagfmError where it is cancelled."""
        self._sent = asyncio.run_coroutine_threadsafe(self._ask(line, request), line.loop)
        self._sent.add_done_callback(self._done)
        if self.cancelled:
            self.cancel()
        return self.results()

    def cancel(self) -> None:
        """End it; any thread may say so, at any time."""
        super().cancel()
        if sent := self._sent:
            sent.cancel()

    async def _ask(self, line: Line, request: Mapping[str, Any]) -> None:
        async with await line.client.chat.completions.create(**request) as answer:
            async for chunk in answer:
                self.give(chunk)

    def _done(self, sent: Future[None]) -> None:
        self._sent = None  # it holds this object
        error = None if sent.cancelled() else sent.exception()
        self.end(error if isinstance(error, Exception) else None)
