"""The queue of a reader: bounded, and fair between keys."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable

import pytest

from ragfm.server import fair_queue
from ragfm.server.fair_queue import FairQueue, QueueFullError


async def hold_slot(queue: FairQueue, key: str, served: list[str], until: Awaitable[object]) -> None:
    async with queue.slot(key):
        served.append(key)
        await until


async def begin(queue: FairQueue, key: str, served: list[str], until: Awaitable[object]) -> asyncio.Task[None]:
    task = asyncio.create_task(hold_slot(queue, key, served, until))
    await asyncio.sleep(0)
    return task


def test_slots_rotate_between_keys() -> None:
    async def main() -> list[str]:
        queue, served, now = FairQueue(1, 12), list[str](), asyncio.sleep(0)
        gate = asyncio.Event()
        tasks = [await begin(queue, "a", served, gate.wait())]
        tasks += [await begin(queue, "a", served, asyncio.sleep(0)) for _ in range(4)]
        tasks += [await begin(queue, key, served, asyncio.sleep(0)) for key in "bbc"]
        assert queue.waiting == 7
        gate.set()
        await asyncio.gather(*tasks)
        await now
        assert queue.waiting == 0
        assert queue.running.total() == 0
        return served

    assert asyncio.run(asyncio.wait_for(main(), 20)) == list("aabcabaa")


def test_the_key_with_the_fewest_running_requests_is_next() -> None:
    async def main() -> list[str]:
        queue, served = FairQueue(2, 12), list[str]()
        first, second = asyncio.Event(), asyncio.Event()
        tasks = [await begin(queue, "a", served, first.wait()), await begin(queue, "a", served, second.wait())]
        tasks += [await begin(queue, key, served, asyncio.sleep(0)) for key in "ab"]
        first.set()
        await asyncio.sleep(0.01)
        second.set()
        await asyncio.gather(*tasks)
        return served

    assert asyncio.run(asyncio.wait_for(main(), 20)) == list("aaba")


def test_one_key_takes_half_of_the_queue_and_leaves_places_for_others() -> None:
    async def main() -> None:
        queue, never = FairQueue(1, 8), asyncio.Event()
        tasks = [await begin(queue, "a", [], never.wait()) for _ in range(5)]
        with pytest.raises(QueueFullError) as busy:
            async with queue.slot("a"):
                pass
        assert 1 <= busy.value.retry_after <= 60
        tasks += [await begin(queue, "b", [], never.wait()) for _ in range(2)]
        for key in "ab":
            with pytest.raises(QueueFullError):
                async with queue.slot(key):
                    pass
        tasks.append(await begin(queue, "c", [], never.wait()))
        assert queue.waiting == 7
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert queue.waiting == 0
        assert queue.running.total() == 0

    asyncio.run(asyncio.wait_for(main(), 20))


def test_the_end_of_a_request_that_has_begun_waits_in_a_full_queue() -> None:
    async def main() -> list[str]:
        queue, served, gate = FairQueue(1, 2), list[str](), asyncio.Event()
        tasks = [await begin(queue, "a", served, gate.wait()) for _ in range(2)]
        with pytest.raises(QueueFullError):
            async with queue.slot("a"):
                pass
        gate.set()
        async with queue.slot("a", refusable=False):
            served.append("end")
        await asyncio.gather(*tasks)
        return served

    assert asyncio.run(asyncio.wait_for(main(), 20)) == ["a", "a", "end"]


def test_requests_that_would_wait_too_long_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(fair_queue, "monotonic", lambda: now)

    async def hold() -> None:
        nonlocal now
        await asyncio.sleep(0)
        now += 0.2

    async def main() -> tuple[int, list[int]]:
        queue, ends = FairQueue(2, 64, max_seconds=0.3), asyncio.Event()
        quick = [await begin(queue, f"{n}", [], asyncio.sleep(0)) for n in range(30)]
        await asyncio.gather(*quick)
        at_first = queue._places
        for _ in range(10):  # slots are now held longer
            await asyncio.gather(*[await begin(queue, "slow", [], hold()) for _ in range(2)])
        tasks = [await begin(queue, key, [], ends.wait()) for key in "abcdefghijk"]
        refused = [task.exception() for task in tasks if task.done()]
        assert all(isinstance(error, QueueFullError) for error in refused)
        ends.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        return at_first, [len(refused), len(tasks) - len(refused)]

    assert asyncio.run(asyncio.wait_for(main(), 20)) == (64, [11 - 2 - 4, 2 + 4])


def test_retry_times_differ() -> None:
    queue = FairQueue(1, 8)
    queue._mean_seconds = 60.0
    random.seed(1)  # by chance, 500 draws may lack a value
    seconds = [queue._retry_after(8) for _ in range(500)]
    assert set(seconds) == set(range(20, 61))


@pytest.mark.parametrize("order", ["release first", "cancel first"])
def test_a_cancelled_request_holds_no_slot(order: str) -> None:
    async def main() -> None:
        queue, served, gate = FairQueue(1, 8), list[str](), asyncio.Event()
        first = await begin(queue, "a", served, gate.wait())
        second, third = [await begin(queue, key, served, asyncio.sleep(0)) for key in "bc"]
        if order == "release first":
            gate.set()
            await asyncio.sleep(0)  # the first request ends and its slot goes to the second one
            second.cancel()
        else:
            second.cancel()
            first.cancel()
        await asyncio.gather(first, second, third, return_exceptions=True)
        assert served[-1] == "c"
        assert queue.waiting == 0
        assert queue.running.total() == 0

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_key_leaves_slots_for_others_if_it_may_not_have_all() -> None:
    async def main() -> tuple[list[str], int]:
        queue, served, gate = FairQueue(2, 12, per_key=1), list[str](), asyncio.Event()
        tasks = [await begin(queue, "a", served, gate.wait()) for _ in range(3)]
        assert (served, queue.waiting) == (["a"], 2)
        tasks.append(await begin(queue, "b", served, gate.wait()))  # gets the free slot, although others wait
        tasks.append(await begin(queue, "b", served, gate.wait()))
        assert (served, queue.waiting) == (["a", "b"], 3)
        gate.set()
        await asyncio.gather(*tasks)
        return served, queue.running.total()

    served, running = asyncio.run(asyncio.wait_for(main(), 20))
    assert (sorted(served), running) == (list("aaabb"), 0)
