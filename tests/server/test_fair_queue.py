"""Turns at a reader: bounded, and fair to keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from ragfm.server.fair_queue import Busy, Turns


async def having(turns: Turns, key: str, served: list[str], until: Awaitable[object]) -> None:
    async with turns.turn(key):
        served.append(key)
        await until


async def begin(turns: Turns, key: str, served: list[str], until: Awaitable[object]) -> asyncio.Task[None]:
    task = asyncio.create_task(having(turns, key, served, until))
    await asyncio.sleep(0)
    return task


def test_turns_go_round_the_keys() -> None:
    async def main() -> list[str]:
        turns, served, now = Turns(1, 12), list[str](), asyncio.sleep(0)
        gate = asyncio.Event()
        tasks = [await begin(turns, "a", served, gate.wait())]
        tasks += [await begin(turns, "a", served, asyncio.sleep(0)) for _ in range(4)]
        tasks += [await begin(turns, key, served, asyncio.sleep(0)) for key in "bbc"]
        assert turns.waiting == 7
        gate.set()
        await asyncio.gather(*tasks)
        await now
        assert turns.waiting == 0
        assert turns.running.total() == 0
        return served

    assert asyncio.run(asyncio.wait_for(main(), 20)) == list("aabcabaa")


def test_who_has_fewest_running_is_next() -> None:
    async def main() -> list[str]:
        turns, served = Turns(2, 12), list[str]()
        first, second = asyncio.Event(), asyncio.Event()
        tasks = [await begin(turns, "a", served, first.wait()), await begin(turns, "a", served, second.wait())]
        tasks += [await begin(turns, key, served, asyncio.sleep(0)) for key in "ab"]
        first.set()
        await asyncio.sleep(0.01)
        second.set()
        await asyncio.gather(*tasks)
        return served

    assert asyncio.run(asyncio.wait_for(main(), 20)) == list("aaba")


def test_one_key_takes_half_of_the_queue_and_there_is_room_for_another() -> None:
    async def main() -> None:
        turns, never = Turns(1, 8), asyncio.Event()
        tasks = [await begin(turns, "a", [], never.wait()) for _ in range(5)]
        with pytest.raises(Busy) as busy:
            async with turns.turn("a"):
                pass
        assert 1 <= busy.value.retry_after <= 60
        tasks += [await begin(turns, "b", [], never.wait()) for _ in range(2)]
        for key in "ab":
            with pytest.raises(Busy):
                async with turns.turn(key):
                    pass
        tasks.append(await begin(turns, "c", [], never.wait()))
        assert turns.waiting == 7
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert turns.waiting == 0
        assert turns.running.total() == 0

    asyncio.run(asyncio.wait_for(main(), 20))


def test_who_could_not_have_a_turn_in_time_is_told_so_at_once() -> None:
    async def main() -> tuple[int, list[int]]:
        turns, ends = Turns(2, 64, seconds=0.3), asyncio.Event()
        quick = [await begin(turns, f"{n}", [], asyncio.sleep(0)) for n in range(30)]
        await asyncio.gather(*quick)
        at_first = turns._places
        for _ in range(10):  # turns come to take long
            await asyncio.gather(*[await begin(turns, "slow", [], asyncio.sleep(0.2)) for _ in range(2)])
        tasks = [await begin(turns, key, [], ends.wait()) for key in "abcdefghijk"]
        refused = [task.exception() for task in tasks if task.done()]
        assert all(isinstance(error, Busy) for error in refused)
        ends.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        return at_first, [len(refused), len(tasks) - len(refused)]

    assert asyncio.run(asyncio.wait_for(main(), 20)) == (64, [11 - 2 - 4, 2 + 4])


def test_who_is_refused_together_is_not_told_to_come_back_together() -> None:
    turns = Turns(1, 8)
    turns._seconds = 60.0
    told = [turns._retry_after(8) for _ in range(500)]
    assert set(told) == set(range(20, 61))


@pytest.mark.parametrize("order", ["leaves first", "goes away first"])
def test_who_goes_away_as_its_turn_comes_leaves_no_turn_taken(order: str) -> None:
    async def main() -> None:
        turns, served, gate = Turns(1, 8), list[str](), asyncio.Event()
        first = await begin(turns, "a", served, gate.wait())
        second, third = [await begin(turns, key, served, asyncio.sleep(0)) for key in "bc"]
        if order == "leaves first":
            gate.set()
            await asyncio.sleep(0)  # the first one ends, and the second one's place is given to it
            second.cancel()
        else:
            second.cancel()
            first.cancel()
        await asyncio.gather(first, second, third, return_exceptions=True)
        assert served[-1] == "c"
        assert turns.waiting == 0
        assert turns.running.total() == 0

    asyncio.run(asyncio.wait_for(main(), 20))
