"""Requests that wait for a commit: they look at the database together, and a key has a limited number of them."""

from __future__ import annotations

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from support.running_server import LIMITS, Running, eventually, make_collection, serve

from ragfm import Collection
from ragfm.core.errors import CollectionUnavailableError
from ragfm.server.commit_watch import CommitWatch
from ragfm.testing import ScriptedReader


def test_one_look_serves_all_that_wait() -> None:
    newest, looks = 0, 0

    async def look() -> int:
        nonlocal looks
        looks += 1
        return newest

    async def wait(watch: CommitWatch, started: list[int]) -> None:
        async with aclosing(watch.changes()) as changes:
            async for _ in changes:
                started.append(1)
                if newest:
                    return

    async def main() -> None:
        nonlocal newest
        watch, started = CommitWatch(look), list[int]()
        waits = [asyncio.create_task(wait(watch, started)) for _ in range(500)]
        while len(started) < 500:
            await asyncio.sleep(0)
        newest = 1
        await asyncio.gather(*waits)
        ended = looks
        assert ended < 100
        await asyncio.sleep(0.5)
        assert looks == ended  # nobody waits

    asyncio.run(main())


def test_a_database_that_cannot_be_read_wakes_all() -> None:
    async def look() -> int:
        raise CollectionUnavailableError("The database cannot be reached.")

    async def main() -> None:
        async with asyncio.timeout(60), aclosing(CommitWatch(look).changes()) as changes:
            for _ in range(3):
                await anext(changes)

    asyncio.run(main())


def search(it: Running, key: str, commit: str) -> httpx.Response:
    return it.client(key).post("/v1/search", json={"query": "leave"}, headers={"x-ragfm-commit": commit})


def test_waits_of_a_key_are_limited_and_end_with_the_commit(tmp_path: Path) -> None:
    limits = replace(LIMITS, commit_waits=4, commit_seconds=300.0)
    folder = make_collection(tmp_path)
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "docs/more.txt").write_text("More leave.")
    with Collection.open(tmp_path / "copy") as copy:
        copy.sync(tmp_path / "docs")
        commit = copy.commit
    with (
        serve(tmp_path, ScriptedReader(["Yes."]), collection=folder, limits=limits) as it,
        ThreadPoolExecutor(12) as pool,
    ):
        waits = it.app.state.service.commit_waits
        sent = [pool.submit(search, it, "guest", commit) for _ in range(12)]
        eventually(lambda: sum(wait.done() for wait in sent) == 8)
        assert {wait.result().status_code for wait in sent if wait.done()} == {429}
        assert waits["guest"] == 4
        waiting = [wait for wait in sent if not wait.done()]
        refused = search(it, "guest", commit)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_waits")
        waiting.append(pool.submit(search, it, "hr", commit))
        eventually(lambda: waits["hr"] == 1)
        assert it.client("guest").post("/v1/search", json={"query": "leave"}).status_code == 200
        with Collection.open(folder) as owner:
            owner.sync(tmp_path / "docs")
            assert owner.commit == commit
        assert [wait.result().status_code for wait in waiting] == [200] * len(waiting)
        assert "docs/more.txt" in [hit["uri"] for hit in waiting[0].result().json()["data"]]
        assert waits.total() == 0


@pytest.mark.parametrize("commit", ["1-x", "tomorrow", "1-\xff", "1-" + "0f" * 16, "²-" + "0f" * 16])
def test_what_is_no_commit_of_the_collection_is_refused(running: Running, commit: str) -> None:
    headers = {"x-ragfm-commit": commit.encode("latin-1")}
    refused = running.client().post("/v1/search", json={"query": "leave"}, headers=headers)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-ragfm-commit")
    assert commit[:2] in refused.json()["error"]["message"]
