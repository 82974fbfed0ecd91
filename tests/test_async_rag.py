"""Collections and answers in an event loop."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.running_server import SECRET, SlowReader, eventually, make_collection

from ragfm import Answer, AsyncCollection, AsyncRag, Collection, Message, Rag
from ragfm.async_rag import AskOptions
from ragfm.core.errors import FilterError, RagfmError
from ragfm.testing import ScriptedReader

QUESTION = "How many days of leave do I get?"


class SilentReader(SlowReader):
    """A reader that says nothing until it is closed. `reading` counts the threads that have waited for it."""

    def __init__(self, slots: int = 20) -> None:
        super().__init__(slots=slots, silent=True)
        self.reading = 0

    def _words(self, ended: threading.Event) -> Iterator[str]:
        with self._lock:
            self.reading += 1
        yield from super()._words(ended)


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(main(), 300))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def threads_of_answers() -> int:
    gc.collect()
    return sum(thread.name.startswith("ragfm-answers") for thread in threading.enumerate())


def open_descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def timeless(answer: Answer) -> Answer:
    return replace(answer, seconds=0.0)


def test_answers_are_those_of_rag(shared_handbook: Collection) -> None:
    rag = Rag(shared_handbook, reader=ScriptedReader(["You get 28 days of leave."]))
    history = [Message("user", "Is there leave?"), Message("assistant", "Yes.")]
    answer = run(lambda: AsyncRag(rag).ask(QUESTION, history=history))
    assert answer.citations
    assert timeless(answer) == timeless(rag.ask(QUESTION, history=history))


def test_streams_are_those_of_rag(shared_handbook: Collection) -> None:
    rag = Rag(shared_handbook, reader=ScriptedReader(["You get 28 days of leave."]))

    async def main() -> tuple[list[str], Answer, Sequence[tuple[int, int]]]:
        async with AsyncRag(rag).stream(QUESTION) as stream:
            pieces = [piece async for piece in stream]
            return pieces, stream.answer, stream.cited_spans

    stream = rag.stream(QUESTION)
    pieces, answer, spans = run(main)
    assert pieces == list(stream)
    assert timeless(answer) == timeless(stream.answer)
    assert spans == stream.cited_spans


def test_options_are_those_of_rag() -> None:
    for method in (Rag.ask, Rag.stream):
        assert [*AskOptions.__annotations__] == [*inspect.signature(method).parameters][2:]


def test_hits_are_those_of_the_collection(shared_handbook: Collection) -> None:
    hits = run(lambda: AsyncCollection(shared_handbook).search("leave", 2, mode="keyword"))
    assert hits
    assert hits == shared_handbook.search("leave", 2, mode="keyword")


def test_methods_of_a_collection_keep_their_parameters() -> None:
    for name in ("search", "sync", "document"):
        method = getattr(AsyncCollection, name)
        assert inspect.iscoroutinefunction(method)
        assert inspect.signature(method) == inspect.signature(getattr(Collection, name))


def test_a_restricted_handle_finds_what_its_groups_may_see(tmp_path: Path) -> None:
    collection = AsyncCollection(Collection.open(make_collection(tmp_path)))

    async def main() -> list[str]:
        found = [await collection.as_groups(groups).search(SECRET) for groups in (set[str](), {"hr"})]
        return ["".join(hit.text for hit in hits) for hits in found]

    public, restricted = run(main)
    assert SECRET not in public
    assert SECRET in restricted


def test_another_rag_shares_the_limit(shared_handbook: Collection) -> None:
    reader = SilentReader()
    first = AsyncRag(Rag(shared_handbook, reader=reader), limit=1)
    second = first.with_rag(first.rag.with_options(k=1))

    async def main() -> None:
        tasks = [asyncio.create_task(rag.ask(QUESTION)) for rag in (first, second)]
        await until(lambda: reader.reading == 1)
        tasks[0].cancel()
        await until(lambda: reader.reading == 2)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(main)
    assert reader.busy == 0


def test_two_hundred_questions_run_in_one_event_loop(shared_handbook: Collection) -> None:
    together = threading.Barrier(200)

    def say(messages: Sequence[Message]) -> str:
        together.wait(120)
        return "I don't know."

    hits = shared_handbook.search(QUESTION, 1)
    rag = AsyncRag(Rag(shared_handbook, reader=ScriptedReader(say)))

    async def main() -> list[Answer]:
        return await asyncio.gather(*(rag.ask(f"{QUESTION} {number}", hits=hits) for number in range(200)))

    answers = run(main)
    assert [answer.question for answer in answers] == [f"{QUESTION} {number}" for number in range(200)]


def test_streams_that_hold_all_slots_continue_while_others_wait(shared_handbook: Collection) -> None:
    """If questions that wait for a slot had all threads, the stream that holds it could not go on."""
    slots = threading.Semaphore(1)

    class OneSlot(ScriptedReader):
        def stream(self, messages: Any, *args: Any) -> Any:
            slots.acquire()
            stream = super().stream(messages, *args)
            stream._cancel = slots.release
            return stream

    rag = AsyncRag(Rag(shared_handbook, reader=OneSlot(["I don't know."])), limit=3)
    hits = shared_handbook.search(QUESTION, 1)

    async def read() -> str:
        async with rag.stream(QUESTION, hits=hits) as stream:
            return "".join([piece async for piece in stream])

    async def main() -> list[str]:
        return await asyncio.gather(*(read() for _ in range(12)))

    assert len(run(main)) == 12


def test_cancelled_questions_leave_no_slot_thread_or_descriptor(shared_handbook: Collection) -> None:
    reader = SilentReader()
    rag = Rag(shared_handbook, reader=reader)
    hits = shared_handbook.search(QUESTION, 1)
    with ThreadPoolExecutor(20) as threads:  # the pool of the database keeps the connections that these open
        list(threads.map(lambda _: shared_handbook.search(QUESTION, 1), range(100)))
    before, descriptors = threads_of_answers(), open_descriptors()

    async def main() -> None:
        asked = AsyncRag(rag, limit=20)
        tasks = [asyncio.create_task(asked.ask(QUESTION, hits=hits)) for _ in range(50)]
        await until(lambda: reader.reading == 20)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in ended)
        assert reader.busy == 0  # at once: a task ends after its thread has returned
        reader.silent, reader.words = False, 2
        assert await asked.ask(QUESTION, hits=hits)

    run(main)
    assert reader.asked == 21  # those that waited never reached the reader
    eventually(lambda: threads_of_answers() <= before)  # those of earlier tests may end, too
    assert open_descriptors() <= descriptors


def test_cancelling_a_stream_ends_the_answer(shared_handbook: Collection) -> None:
    reader = SilentReader()
    rag = AsyncRag(Rag(shared_handbook, reader=reader))

    async def read() -> None:
        async with rag.stream(QUESTION) as stream:
            async for _ in stream:
                pass

    async def main() -> None:
        task = asyncio.create_task(read())
        await until(lambda: reader.reading == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert reader.busy == 0

    run(main)


def test_leaving_a_stream_early_ends_the_answer(shared_handbook: Collection) -> None:
    reader = SlowReader()
    rag = AsyncRag(Rag(shared_handbook, reader=reader))

    async def main() -> None:
        async with rag.stream(QUESTION) as stream:
            async for _ in stream:
                break
        assert reader.busy == 0
        with pytest.raises(RuntimeError, match="complete when the stream has ended"):
            _ = stream.answer

    run(main)


def test_an_error_of_the_reader_reaches_the_task(shared_handbook: Collection) -> None:
    def fail(messages: Sequence[Message]) -> str:
        raise RagfmError("The reader failed.")

    rag = AsyncRag(Rag(shared_handbook, reader=ScriptedReader(fail)))
    with pytest.raises(RagfmError, match="The reader failed"):
        run(lambda: rag.ask(QUESTION))


def test_an_error_of_the_search_reaches_the_task(shared_handbook: Collection) -> None:
    rag = AsyncRag(Rag(shared_handbook, reader=ScriptedReader(["Yes."])))
    with pytest.raises(FilterError):
        run(lambda: rag.ask(QUESTION, filter="year >"))
    with pytest.raises(FilterError):
        run(lambda: AsyncCollection(shared_handbook).search(QUESTION, filter="year >"))


def test_a_reader_sees_the_context_of_the_task(shared_handbook: Collection) -> None:
    request, seen = ContextVar("request", default=""), list[str]()

    def say(messages: Sequence[Message]) -> str:
        seen.append(request.get())
        return "Yes."

    rag = AsyncRag(Rag(shared_handbook, reader=ScriptedReader(say)))

    async def main() -> None:
        request.set("r1")
        await rag.ask(QUESTION)

    run(main)
    assert seen == ["r1"]


def test_a_cancelled_sync_ends_and_the_next_one_continues(collection: Collection, docs: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def report(_: Any) -> None:
        begun.set()
        go_on.wait(60)

    async def main() -> tuple[int, int]:
        handbook = AsyncCollection(collection)
        task = asyncio.create_task(handbook.sync(docs, progress=report))
        await until(begun.is_set)
        task.cancel()
        await asyncio.sleep(0)  # the task learns of it
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        before = len(await handbook.documents())
        return before, (await handbook.sync(docs)).added

    assert run(main) == (0, 4)
