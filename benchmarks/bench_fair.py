"""Measure how long a light key waits while a heavy key sends as many requests as it can.

    python benchmarks/bench_fair.py [--part all|search|ask|upload] [--seconds 60] [--no-save]

Each part starts `ragfm serve` with the bundled models over the sample handbook, and measures one kind of request of the
light key: first on the idle server, then while the heavy key keeps open, all the time, eight streamed answers, eight
searches, eight requests for the embeddings of 256 texts, eight lists of its documents and four uploads of archives of
400 files. A refused request is repeated after the delay in the response, at most a second. The light key sends one
request after the other, with pauses. An upload is measured until its document is `ready`. The goal is a 95th percentile
of at most three times the idle one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from queue import Empty
from typing import Any, TypeAlias

import httpx
import measure
from bench_server import free_port, running

from ragfm import Collection
from ragfm.samples import QUESTIONS, copy_handbook
from ragfm.server.api_keys import Key, KeyFile

LIMIT = 3.0
HEAVY_TASKS = {"ask": 8, "search": 8, "embed": 8, "list": 8, "upload": 4}
ARCHIVE_FILES = 400
TOKENS = 64
PAUSE = {"search": 0.2, "ask": 0.5, "upload": 0.5}
WORDS = "leave office salary holiday contract manager laptop meeting visitor travel expense training safety".split()

Counts: TypeAlias = dict[str, Counter[int]]
"""Number of responses by kind of request and status."""
Request: TypeAlias = Callable[[httpx.AsyncClient, random.Random], Awaitable[int]]
"""Sends a request; returns its status."""


# --- Requests ----------------------------------------------------------------------------------------------------


async def search(client: httpx.AsyncClient, chance: random.Random) -> int:
    return (await client.post("/v1/search", json={"query": chance.choice(QUESTIONS), "k": 5})).status_code


async def ask(client: httpx.AsyncClient, chance: random.Random) -> int:
    body = {
        "model": "handbook",
        "messages": [{"role": "user", "content": chance.choice(QUESTIONS)}],
        "stream": True,
        "max_tokens": TOKENS,
        "temperature": 0,
    }
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for _ in answer.aiter_bytes():
            pass
    return answer.status_code


async def embed(client: httpx.AsyncClient, chance: random.Random) -> int:
    texts = [text(chance, 60) for _ in range(256)]
    return (await client.post("/v1/embeddings", json={"model": "handbook", "input": texts})).status_code


async def list_documents(client: httpx.AsyncClient, _: random.Random) -> int:
    return (await client.get("/v1/documents", params={"limit": 1000})).status_code


async def upload_archive(client: httpx.AsyncClient, chance: random.Random) -> int:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(ARCHIVE_FILES):
            archive.writestr(f"{number}.txt", text(chance, 100))
    files = {"file": ("archive.zip", packed.getvalue())}
    return (await client.post("/v1/documents", files=files)).status_code


async def upload_until_ready(client: httpx.AsyncClient, chance: random.Random) -> int:
    said = await client.post("/v1/documents", files={"file": ("note.txt", text(chance, 200).encode())})
    while said.is_success and said.json()["state"] != "ready":
        await asyncio.sleep(0.05)
        said = await client.get(f"/v1/documents/{said.json()['uri']}")
    return said.status_code


def text(chance: random.Random, words: int) -> str:
    return f"{' '.join(chance.choices(WORDS, k=words))} {chance.randrange(10**9)}."


LIGHT: dict[str, Request] = {"search": search, "ask": ask, "upload": upload_until_ready}
HEAVY: dict[str, Request] = {
    "ask": ask,
    "search": search,
    "embed": embed,
    "list": list_documents,
    "upload": upload_archive,
}


# --- Users -------------------------------------------------------------------------------------------------------


async def send_without_pause(client: httpx.AsyncClient, request: Request, seed: int, done: Counter[int]) -> None:
    """Send a request again and again until cancelled."""
    chance = random.Random(seed)
    while True:
        status = await request(client, chance)
        done[status] += 1
        if status == 429:
            await asyncio.sleep(1)


def send_heavy_load(address: str, key: str, kinds: list[str], stop: Event, counts: Queue[Counts]) -> None:
    """The process of the heavy key: send until `stop` is set and report the number of responses by status."""
    done: Counts = {kind: Counter() for kind in kinds}

    async def send() -> None:
        async with client_of(address, key) as client:
            seeds = itertools.count()
            tasks = [
                asyncio.create_task(send_without_pause(client, HEAVY[kind], next(seeds), done[kind]))
                for kind in kinds
                for _ in range(HEAVY_TASKS[kind])
            ]
            while not stop.is_set():
                await asyncio.sleep(0.1)
                broken = [task for task in tasks if task.done()]
                assert not broken, broken[0].exception()
            counts.put(done)  # before requests are cancelled, which takes long while the server is busy
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(send())


@contextlib.contextmanager
def heavy_load(address: str, key: str, kinds: list[str]) -> Iterator[Callable[[], Counts]]:
    """The load of the heavy key during the block. Yields a function that ends it and returns the responses."""
    context = multiprocessing.get_context("spawn")  # a process of its own: its work must not delay the light key's
    stop, counts = context.Event(), context.Queue()
    process = context.Process(target=send_heavy_load, args=(address, key, kinds, stop, counts), daemon=True)
    process.start()

    def end() -> Counts:
        stop.set()
        while True:
            alive = process.is_alive()
            with contextlib.suppress(Empty):
                done: Counts = counts.get(timeout=1)
                return done
            if not alive:
                raise RuntimeError(f"The heavy key's process ended early, with exit code {process.exitcode}.")

    try:
        yield end
    finally:
        process.kill()


def client_of(address: str, key: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=address, headers=headers, timeout=600, limits=limits)


async def measure_light(client: httpx.AsyncClient, kind: str, seconds: float) -> list[float]:
    """The times of the light key's requests, in seconds."""
    chance, times, end = random.Random(1), list[float](), time.monotonic() + seconds
    while time.monotonic() < end or len(times) < 3:
        begin = time.monotonic()
        status = await LIGHT[kind](client, chance)
        assert status in (200, 201), f"{kind}: status {status}"
        times.append(time.monotonic() - begin)
        await asyncio.sleep(PAUSE[kind])
    return times


async def compare(
    address: str, keys: dict[str, str], kind: str, heavy_kinds: list[str], seconds: float
) -> dict[str, Any]:
    """One part: a light request on the idle server, and under the heavy load."""
    async with client_of(address, keys["light"]) as light:
        for _ in range(3):
            await LIGHT[kind](light, random.Random(0))
        idle = await measure_light(light, kind, seconds / 2)
        with heavy_load(address, keys["heavy"], heavy_kinds) as end:
            await asyncio.sleep(max(5, seconds / 6))
            busy = await measure_light(light, kind, seconds)
            done = await asyncio.to_thread(end)
    return {
        "idle_s": percentiles(idle),
        "busy_s": percentiles(busy),
        "ratio_p95": round(percentiles(busy)["p95"] / percentiles(idle)["p95"], 2),
        "heavy": {name: {str(status): count for status, count in counts.items()} for name, counts in done.items()},
    }


def percentiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return {"count": len(values), "p50": round(statistics.median(values), 4), "p95": round(cuts[18], 4)}


@contextlib.contextmanager
def server() -> Iterator[tuple[str, dict[str, str]]]:
    """Address and keys of a server over the handbook."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Collection.open(folder / ".ragfm").sync(copy_handbook(folder))
        file = KeyFile(folder / "keys.json")
        # The rate limit is lifted: what is measured is how the work is shared.
        keys = {name: file.add(Key(name=name, per_minute=1e6, uploads_mb=1e5)) for name in ("light", "heavy")}
        port = free_port()
        command = [sys.executable, "-c", "from ragfm.cli import main; main()", "serve"]
        command += ["-c", f"handbook={folder / '.ragfm'}", "--port", str(port), "--keys", str(file.path)]
        with running(command, f"http://127.0.0.1:{port}/readyz", {}):
            yield f"http://127.0.0.1:{port}", keys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["all", *LIGHT], default="all")
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of the busy row; half of it for the idle")
    parser.add_argument("--heavy", choices=list(HEAVY), nargs="+", default=list(HEAVY), help="the heavy key's requests")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the server, too
    result = measure.about("fair", ("ragfm", "llama-cpp-python", "fastapi", "uvicorn"))
    parts = measure.read("fair").get("parts", {})
    for kind in LIGHT if args.part == "all" else [args.part]:
        with server() as (address, keys):
            parts[kind] = asyncio.run(compare(address, keys, kind, args.heavy, args.seconds)) | {
                "load": os.getloadavg()[0]
            }
        print(kind, parts[kind], file=sys.stderr, flush=True)
    result |= {
        "seconds": args.seconds,
        "heavy_tasks": HEAVY_TASKS,
        "archive_files": ARCHIVE_FILES,
        "max_tokens": TOKENS,
        "limit": LIMIT,
        "parts": parts,
    }
    if not args.no_save:
        measure.save(result, "fair")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
