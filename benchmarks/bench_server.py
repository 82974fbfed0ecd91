"""Measure `ragfm serve` with users who pause between questions; compare it with llama-cpp-python's server.

    python benchmarks/bench_server.py [--users 1 8 32 128] [--seconds 75] [--think 2.0] [--no-peer]

Users ask questions about the sample handbook, stream the answer, pause for an exponentially distributed time and ask
the next; they share eight keys. A user who gets status 429 waits for the time given and tries again. By number of
users: time to the first token (of accepted requests, from their start), tokens per second of all users, complete
answers per second (the goodput), refusals and how long one took, and requests without an answer at the end and their
age. The last row has ten times the users of the row with the highest goodput: the goal is to keep at least 90 % of it,
in answers and in tokens (the length of answers depends on the random questions). The other server gets the same
questions without passages, so its prompts are short: the difference is the cost of retrieval, passages and grounding.
Its queue is not bounded, so the times of the users who got an answer are less meaningful.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import measure
import rendering

from ragfm import Collection
from ragfm.generation.readers.llama_cpp_reader import LlamaCppReader
from ragfm.models.hardware import physical_cores
from ragfm.samples import QUESTIONS, copy_handbook
from ragfm.server.api_keys import Key, KeyFile

KEYS = 8
MORE = (
    "How many days of annual leave are there?",
    "What is the wifi password?",
    "Who is the safety officer?",
    "Can I bring my dog?",
    "Which meeting rooms are there?",
    "How do I report a lost laptop?",
    "How long is parental leave?",
    "When does the office open?",
    "What do I do when I am ill?",
)
TOKENS = 64
SOON = 0.1  # seconds within which a refusal should come


@dataclass
class Observations:
    """Observations of all users of a row."""

    open: set[float] = field(default_factory=set)
    first: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    tokens: int = 0
    answers: int = 0
    failed: int = 0


# --- Servers -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(command: Sequence[str], ready: str, environment: dict[str, str]) -> Iterator[int]:
    """A server that is ready; yields its process."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | environment
    )
    try:
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None, f"{command[2:5]} did not start"
            assert time.monotonic() < deadline, "the server does not answer"
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(ready).status_code == 200:
                    break
            time.sleep(0.3)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def ragfm_server(folder: Path, reader: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Address and keys of ragfm's server."""
    Collection.open(folder / ".ragfm").sync(copy_handbook(folder))
    keys = KeyFile(folder / "keys.json")
    secrets = [keys.add(Key(name=f"user{number}", per_minute=1e6)) for number in range(KEYS)]
    port = free_port()
    command = [
        sys.executable,
        "-c",
        "from ragfm.cli import main; main()",
        "serve",
        "-c",
        f"model={folder / '.ragfm'}",
        "--reader",
        str(reader),
        "--port",
        str(port),
        "--keys",
        str(keys.path),
    ]
    with running(command, f"http://127.0.0.1:{port}/readyz", {}):
        yield f"http://127.0.0.1:{port}/v1/chat/completions", secrets


@contextlib.contextmanager
def peer_server(file: Path, threads: int) -> Iterator[tuple[str, list[str]]]:
    port = free_port()
    words = ["--model", str(file), "--port", str(port), "--n_ctx", "4096", "--n_threads", str(threads)]
    words += ["--n_threads_batch", str(threads), "--interrupt_requests", "False", "--verbose", "False"]
    with running([sys.executable, "-m", "llama_cpp.server", *words], f"http://127.0.0.1:{port}/v1/models", {}):
        yield f"http://127.0.0.1:{port}/v1/chat/completions", ["none"]


# --- Users -------------------------------------------------------------------------------------------------------


async def use(
    client: httpx.AsyncClient, address: str, key: str, think: float, chance: random.Random, seen: Observations
) -> None:
    """Ask as one user would, until cancelled."""
    await asyncio.sleep(chance.uniform(0, think))
    while True:
        question = chance.choice([*QUESTIONS, *MORE])
        while (wait := await ask(client, address, key, question, seen)) > 0:
            await asyncio.sleep(wait)
        await asyncio.sleep(chance.expovariate(1 / think))


async def ask(client: httpx.AsyncClient, address: str, key: str, question: str, seen: Observations) -> float:
    """Ask once. Returns the seconds to wait before asking again; 0 if the answer is complete."""
    asked = {
        "model": "model",
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "max_tokens": TOKENS,
        "temperature": 0,
        "repeat_penalty": 1.0,
    }
    begin, first = time.perf_counter(), 0.0
    seen.open.add(begin)
    try:
        async with client.stream("POST", address, json=asked, headers={"Authorization": f"Bearer {key}"}) as reply:
            if reply.status_code == 429:
                seen.refused.append(time.perf_counter() - begin)
                return float(reply.headers["Retry-After"])
            reply.raise_for_status()
            async for line in reply.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                assert "error" not in chunk, chunk
                if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                    seen.tokens += 1
                    first = first or time.perf_counter() - begin
    except (httpx.HTTPError, AssertionError):
        seen.failed += 1
        return 1.0
    finally:
        seen.open.discard(begin)
    seen.first.append(first)
    seen.answers += 1
    return 0.0


async def row(address: str, keys: Sequence[str], users: int, seconds: float, think: float) -> dict[str, Any]:
    """Measure a number of users for `seconds`, after a warm-up of a fifth of that time."""
    seen = Observations()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        await ask(
            client, address, keys[0], QUESTIONS[0], Observations()
        )  # by then the requests that other users left are finished
        tasks = [
            asyncio.create_task(use(client, address, keys[number % len(keys)], think, random.Random(number), seen))
            for number in range(users)
        ]
        await asyncio.sleep(seconds / 5)
        vars(seen).update(vars(Observations(open=seen.open)))
        begin = time.perf_counter()
        await asyncio.sleep(seconds)
        end = time.perf_counter()
        took, now = end - begin, Observations(**vars(seen) | {"open": set(seen.open)})
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        broken = [each for each in ends if not isinstance(each, asyncio.CancelledError)]
        assert not broken, broken[0]
    return {
        "users": users,
        "first_s": percentiles(now.first),
        "refusal_s": percentiles(now.refused),
        "tokens_per_s": round(now.tokens / took, 1),
        "answers_per_s": round(now.answers / took, 3),
        "refused": len(now.refused),
        "refused_soon": round(sum(wait < SOON for wait in now.refused) / len(now.refused), 4) if now.refused else None,
        "unanswered": {"count": len(now.open), "longest_s": round(end - min(now.open), 1)} if now.open else None,
        "failed": now.failed,
    }


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    if len(values) < 2:
        return None
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return {"p50": round(statistics.median(values), 3), "p95": round(cuts[18], 3), "most": round(max(values), 3)}


def table(results: rendering.Results) -> str:
    result = results["server"]
    peer = {row["users"]: row for row in result["llama_cpp.server, no passages"]}

    def figures(row: Any) -> list[str]:
        first = row["first_s"]
        return [f"{row['answers_per_s']:.2f}", f"{row['tokens_per_s']:.0f}", f"{first['p50']:.1f} / {first['p95']:.1f}"]

    rows = []
    for row in result["ragfm serve"]:
        refusals = row["refusal_s"]
        refused = f"{row['refused']}, within {1000 * refusals['most']:.0f} ms" if refusals else f"{row['refused']}"
        peer_figures = figures(peer[row["users"]]) if row["users"] in peer else ["-"] * 3
        rows.append([f"{row['users']}", *figures(row), refused, *peer_figures])
    head = ("answers/s", "tokens/s", "first token, p50 / p95 s")
    return rendering.table(("users", *head, "refused", *(f"peer: {name}" for name in head)), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument(
        "--seconds", type=float, default=75.0, help="duration of a row; half of it for the other server"
    )
    parser.add_argument(
        "--think", type=float, default=2.0, help="mean pause in seconds between an answer and the next question"
    )
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each user has a connection
    threads = physical_cores()
    reader = LlamaCppReader("bundled")
    file = Path(reader._engine.model.path)  # the file that both sides load
    del reader
    result = measure.about("server", ("ragfm", "llama-cpp-python", "fastapi", "uvicorn"))
    result |= {
        "file": file.name,
        "threads": threads,
        "seconds": args.seconds,
        "think_s": args.think,
        "max_tokens": TOKENS,
        "load": os.getloadavg()[0],
    }

    def rows(address: str, keys: Sequence[str], users: Sequence[int], seconds: float) -> list[dict[str, Any]]:
        done = []
        for count in users:
            done.append(asyncio.run(row(address, keys, count, seconds, args.think)))
            print(done[-1], file=sys.stderr, flush=True)
        return done

    with tempfile.TemporaryDirectory() as folder, ragfm_server(Path(folder), file) as (address, keys):
        own = rows(address, keys, args.users, args.seconds)
        best = max(own, key=lambda each: each["answers_per_s"])
        own += rows(address, keys, [10 * best["users"]], args.seconds)
    result["ragfm serve"] = own
    result["left_at_ten_times"] = {
        what: round(own[-1][what] / max(each[what] for each in own[:-1]), 3) if best[what] else None
        for what in ("answers_per_s", "tokens_per_s")
    }
    if not args.no_save:
        measure.save(result, "server")
    if not args.no_peer:
        with peer_server(file, threads) as (address, keys):
            result["llama_cpp.server, no passages"] = rows(address, keys, args.users, args.seconds / 2)
    if not args.no_save:
        measure.save(result, "server")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
