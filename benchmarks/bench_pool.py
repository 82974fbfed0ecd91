"""Measure `ragfm serve` over one and two llama-servers, and kill one of two while it answers.

    python benchmarks/bench_pool.py [--users 8] [--rounds 4] [--seconds 20] [--think 0.5] [--llama-server FILE]

Each llama-server has one thread, so that two are like two machines if there are cores for both. They ignore the end of
a text, so each answer has 64 tokens. Users ask, as in `bench_server.py`, in windows that alternate between two
`ragfm serve`, one with one llama-server behind it and one with both: other programs slow down both. Prompts have one
passage: the servers read prompts at a few hundred tokens per second.

Then eight answers of 256 tokens are streamed at once, and one llama-server is killed (SIGKILL) when all of them have
text; new questions are asked right away. Counted: answers that were finished, answers that ended with
`reader_unavailable`, all others, and for new questions the time to the first token, with both servers before the kill,
right after it, and when the other answers have ended.

llama.cpp's server is built as `bench_reader.py` says.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import measure
from bench_server import MORE, TOKENS, free_port, percentiles, ragfm_server, row, running

from ragfm.models.model_lookup import find_model
from ragfm.samples import QUESTIONS

SLOTS, CONTEXT = 8, 2048
PROGRAM = Path.home() / ".cache" / "ragfm-measure" / "llama-server" / "llama-server"
NEW = 5  # questions
LONG = 4 * TOKENS  # of the answers at the kill


@contextlib.contextmanager
def llama_servers(program: Path, file: Path, count: int) -> Iterator[dict[str, int]]:
    """Running servers: the process id of each, by host and port."""
    with contextlib.ExitStack() as stack:
        servers = {}
        for _ in range(count):
            port = free_port()
            command = [str(program), "--model", str(file), "--port", str(port), "--threads", "1", "--no-webui"]
            command += ["--ctx-size", str(SLOTS * CONTEXT), "--parallel", str(SLOTS), "--ignore-eos"]
            process = stack.enter_context(running(command, f"http://127.0.0.1:{port}/health", {}))
            servers[f"127.0.0.1:{port}"] = process
        yield servers


@contextlib.contextmanager
def served(hosts: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Address and keys of `ragfm serve` over these llama-servers."""
    os.environ["RAGFM_READER_OPTIONS__OPENAI__BASE_URL"] = ",".join(f"http://{host}/v1" for host in hosts)
    os.environ |= {"RAGFM_ASK__CONTEXT_TOKENS": str(CONTEXT), "RAGFM_ASK__K": "1"}
    with tempfile.TemporaryDirectory() as folder, ragfm_server(Path(folder), "openai:smollm2") as served:
        yield served


async def stream(
    client: httpx.AsyncClient, address: str, key: str, question: str, begun: asyncio.Event, tokens: int = TOKENS
) -> Any:
    """An answer: seconds to the first text, number of pieces, and the error that ended it."""
    asked = {"model": "model", "messages": [{"role": "user", "content": question}], "stream": True}
    asked |= {"max_tokens": tokens, "temperature": 0}
    begin, first, pieces, error = time.perf_counter(), 0.0, 0, ""
    async with client.stream("POST", address, json=asked, headers={"Authorization": f"Bearer {key}"}) as reply:
        if reply.status_code != 200:
            return {"first_s": 0.0, "pieces": 0, "error": (await reply.aread()).decode()}
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                error = chunk["error"]["code"]
            elif chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                first, pieces = first or time.perf_counter() - begin, pieces + 1
                begun.set()
    return {"first_s": first, "pieces": pieces, "error": error}


async def kill_one(address: str, keys: Sequence[str], servers: dict[str, int], streams: int) -> dict[str, Any]:
    questions = [*QUESTIONS, *MORE]

    async def new(client: httpx.AsyncClient) -> list[dict[str, Any]]:
        return [await stream(client, address, keys[0], questions[n], asyncio.Event()) for n in range(NEW)]

    async with httpx.AsyncClient(timeout=600) as client:
        before = await new(client)
        begun = [asyncio.Event() for _ in range(streams)]
        tasks = [
            asyncio.create_task(
                stream(client, address, keys[n % len(keys)], questions[n % len(questions)], begun[n], LONG)
            )
            for n in range(streams)
        ]
        await asyncio.gather(*(event.wait() for event in begun))
        process = next(iter(servers.values()))
        open_streams = sum(not task.done() for task in tasks)
        os.kill(process, signal.SIGKILL)
        at_once = await new(client)
        answers = await asyncio.gather(*tasks)
        after = await new(client)

    def firsts(asked: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "failed": sum(bool(one["error"]) for one in asked),
            **(percentiles([one["first_s"] for one in asked]) or {}),
        }

    return {
        "streams": streams,
        "open_at_the_kill": open_streams,
        "finished": sum(not one["error"] for one in answers),
        "reader_unavailable": sum(one["error"] == "reader_unavailable" for one in answers),
        "other_errors": [one["error"] for one in answers if one["error"] not in ("", "reader_unavailable")],
        "new_before": firsts(before),
        "new_at_the_kill": firsts(at_once),
        "new_after": firsts(after),
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of the windows."""
    firsts = [row["first_s"] for row in rows if row["first_s"]]
    return {
        "tokens_per_s": statistics.median(row["tokens_per_s"] for row in rows),
        "first_s": {name: round(statistics.median(first[name] for first in firsts), 3) for name in ("p50", "p95")}
        if firsts
        else None,
        "failed": sum(row["failed"] for row in rows),
        "windows": [row["tokens_per_s"] for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4, help="windows for each")
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of a window")
    parser.add_argument("--think", type=float, default=0.5, help="mean pause in seconds between answer and question")
    parser.add_argument("--streams", type=int, default=8, help="answers at the kill")
    parser.add_argument("--llama-server", type=Path, default=PROGRAM, metavar="FILE")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    file = find_model("bundled", "reader")
    result = measure.about("pool", ("ragfm", "openai", "llama_cpp_python"))
    result |= {"file": file.name, "max_tokens": TOKENS, "users": args.users, "seconds": args.seconds}
    result |= {"rounds": args.rounds, "think_s": args.think}
    result["load_at_start"] = [round(load, 1) for load in os.getloadavg()]
    with (
        llama_servers(args.llama_server, file, 2) as servers,
        served(list(servers)[:1]) as one,
        served(list(servers)) as both,
    ):
        rows: list[list[dict[str, Any]]] = [[], []]
        for _ in range(args.rounds):
            for (address, keys), done in zip((one, both), rows, strict=True):
                done.append(asyncio.run(row(address, keys, args.users, args.seconds, args.think)))
                print(done[-1], file=sys.stderr, flush=True)
        result |= {"one": summary(rows[0]), "two": summary(rows[1])}
        ratios = [b["tokens_per_s"] / a["tokens_per_s"] for a, b in zip(*rows, strict=True) if a["tokens_per_s"]]
        result["tokens_per_s_ratio"] = round(statistics.median(ratios), 2) if ratios else None
        result["kill"] = asyncio.run(kill_one(*both, servers, args.streams))
    result["load_at_end"] = [round(load, 1) for load in os.getloadavg()]
    result["note"] = "other programs computed on all cores at the same time" if result["load_at_start"][0] > 2 else ""
    if not args.no_save:
        measure.save(result, "pool")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
