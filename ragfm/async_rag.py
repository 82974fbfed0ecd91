"""Collections and answers for programs with an event loop: the same functions, called in threads.

    await ─→ a slot of AsyncRag ─→ Rag.stream in a thread ─→ AnswerStream.step or .read in a thread ─→ the task
                                                                └── cancellation: stream.close()

A cancelled task ends when its thread has returned, so it leaves neither a slot nor a thread that works on.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence, Set
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from contextvars import copy_context
from functools import partial, wraps
from threading import Event
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypedDict, TypeVar, Unpack

from ragfm.collection import Collection
from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.rag import Rag

if TYPE_CHECKING:
    from ragfm.core.types import Answer, Hit, ImagePart, Message
    from ragfm.generation.answer_stream import AnswerStream

__all__ = ["AsyncAnswerStream", "AsyncCollection", "AsyncRag", "run_to_end"]

P = ParamSpec("P")
T = TypeVar("T")


async def run_to_end(threads: Executor, function: Callable[[], T], cancel: Callable[[], object] = lambda: None) -> T:
    """Call a blocking function in a thread. On cancellation, call `cancel` and wait for the function to return."""
    submitted = threads.submit(copy_context().run, function)
    call = asyncio.wrap_future(submitted)
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        if not submitted.cancel():  # it has begun
            cancel()
            await asyncio.gather(call, return_exceptions=True)
        raise


def _in_thread(
    method: Callable[Concatenate[Collection, P], T],
) -> Callable[Concatenate[AsyncCollection, P], Coroutine[Any, Any, T]]:
    """The method as one that is awaited. On cancellation, one that reports progress ends at its next report."""
    reports_progress = "progress" in inspect.signature(method).parameters

    @wraps(method)
    async def call(self: AsyncCollection, /, *args: P.args, **kwargs: P.kwargs) -> T:
        cancelled, given = Event(), dict[str, Any](kwargs)
        if reports_progress:
            given["progress"] = _until(cancelled, given.get("progress") or ignore_progress)
        return await run_to_end(self._threads, partial(method, self.collection, *args, **given), cancelled.set)

    return call


def _until(cancelled: Event, progress: ProgressCallback) -> ProgressCallback:
    def report(done: Progress) -> None:
        if cancelled.is_set():
            raise asyncio.CancelledError
        progress(done)

    return report


class AsyncCollection:
    """A collection whose methods are awaited. They have the parameters and results of those of `Collection`.

    At most `limit` calls run at once. `collection` is the collection itself, for everything that does not block.
    Cancelling a `sync` ends it when it next reports progress; what it has committed stays, and the next one continues.
    """

    def __init__(self, collection: Collection, *, limit: int = 32) -> None:
        self.collection = collection
        self._threads = ThreadPoolExecutor(limit, "ragfm-collection")

    def as_groups(self, groups: Set[str]) -> AsyncCollection:
        """A restricted handle within the same limit, see `Collection.as_groups`."""
        other = copy.copy(self)
        other.collection = self.collection.as_groups(groups)
        return other

    sync = _in_thread(Collection.sync)
    search = _in_thread(Collection.search)
    documents = _in_thread(Collection.documents)
    document = _in_thread(Collection.document)
    remove = _in_thread(Collection.remove)
    status = _in_thread(Collection.status)
    wait_for = _in_thread(Collection.wait_for)
    close = _in_thread(Collection.close)


class AsyncAnswerStream(AsyncIterator[str]):
    """Pieces of an answer as they are generated, like `AnswerStream`. `run` calls a blocking function in a thread."""

    def __init__(self, stream: AnswerStream, run: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
        self._stream, self._run = stream, run

    async def __anext__(self) -> str:
        while (piece := await self._run(self._stream.step)) is not None:
            if piece:
                return str(piece)
        raise StopAsyncIteration

    async def read(self) -> Answer:
        """Take the remaining pieces. Returns the complete answer."""
        answer: Answer = await self._run(self._stream.read)
        return answer

    @property
    def answer(self) -> Answer:
        """The complete answer. Raises RuntimeError before the last piece was taken."""
        return self._stream.answer

    @property
    def cited_spans(self) -> Sequence[tuple[int, int]]:
        """See `AnswerStream.cited_spans`."""
        return self._stream.cited_spans


class AskOptions(TypedDict, total=False):
    """The options of `Rag.ask` and `Rag.stream`."""

    history: Sequence[Message]
    filter: str | None
    hits: Sequence[Hit] | None
    images: Sequence[ImagePart]


class AsyncRag:
    """A `Rag` whose answers are awaited. Cancelling a task ends its answer and frees the reader's slot.

    At most `limit` answers are open at once, each with a thread; other questions wait. Belongs to one event loop.
    """

    def __init__(self, rag: Rag, *, limit: int = 256) -> None:
        self.rag = rag
        # An open stream holds a slot of the reader between two pieces. If others, which wait for that slot, had all
        # threads, it could never continue: thus there are as many threads as open streams.
        self._open = asyncio.Semaphore(limit)
        self._threads = ThreadPoolExecutor(limit, "ragfm-answers")

    def with_rag(self, rag: Rag) -> AsyncRag:
        """The same threads and limit with another `Rag`, such as one of `Rag.with_options` for a user's groups."""
        other = copy.copy(self)
        other.rag = rag
        return other

    async def ask(self, question: str, **options: Unpack[AskOptions]) -> Answer:
        """Answer a question, see `Rag.stream`."""
        async with self.stream(question, **options) as stream:
            return await stream.read()

    @asynccontextmanager
    async def stream(self, question: str, **options: Unpack[AskOptions]) -> AsyncGenerator[AsyncAnswerStream, None]:
        """Answer a question as a stream of text, see `Rag.stream`. The end of the block ends the answer."""
        async with self._open:
            start_stream = partial(self.rag.stream, question, **options)
            with closing(await run_to_end(self._threads, start_stream)) as stream:
                yield AsyncAnswerStream(stream, partial(run_to_end, self._threads, cancel=stream.close))
