"""The llama.cpp reader beside llama-cpp-python's high-level API and server: the same file, prompts and threads.

    python benchmarks/bench_reader.py [--rounds 3] [--only PART …] [--threads N] [--soak SECONDS] [--no-server]

together   eight prompts over passages of SQuAD, each from another article: tokens/s of all their answers, asked at
           once, asked one after the other, and asked at once of `python -m llama_cpp.server`
follow_up  seconds to the first token of a second question over the same five passages, and of one after another chat
           came in between; the first question beside a bare evaluation of its tokens
gap        the longest wait between two tokens of a running answer while a prompt of 2,000 tokens comes in
soak       32 clients that stop some answers early: texts that were not those of the prompt alone, failures, memory

Each round measures all sides in turn; a figure is the median of the rounds. The server needs
`pip install 'llama-cpp-python[server]'`.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import measure
from bench_prompt import DATA, shipped

from ragfm.llama import physical_cores
from ragfm.readers.context import Context, Row
from ragfm.readers.llama_cpp import LlamaCppReader
from ragfm.readers.llama_model import BLOCK
from ragfm.types import Message, Sampling

TOKENS = 48
CONTEXT = 4096
TOGETHER = Sampling(max_tokens=TOKENS)


def load_prompts() -> tuple[list[list[Message]], list[list[Message]], list[Message]]:
    """Eight prompts of a passage; two questions over the same five; and a prompt of about 2,000 tokens."""
    with gzip.open(DATA / "squad" / "squad-v1.0-train.json.gz") as file:
        articles = random.Random(1).sample(json.load(file)["data"], 10)

    def passages(article: dict[str, Any], count: int) -> list[str]:
        return [paragraph["context"] for paragraph in article["paragraphs"][:count]]

    def question(article: dict[str, Any], paragraph: int) -> str:
        return str(article["paragraphs"][paragraph]["qas"][0]["question"])

    eight = [shipped(question(article, 0), passages(article, 1)) for article in articles[:8]]
    five = passages(articles[8], 5)
    follow = [shipped(question(articles[8], paragraph), five) for paragraph in (0, 1)]
    return eight, follow, shipped(question(articles[9], 0), passages(articles[9], 12))


# --- Sides -------------------------------------------------------------------------------------------------------


def at_once(ask: Callable[[list[Message]], int], prompts: Sequence[list[Message]]) -> tuple[int, float]:
    """All prompts at once, from threads: tokens and seconds."""
    tokens: list[int] = []
    threads = [threading.Thread(target=lambda p=prompt: tokens.append(ask(p))) for prompt in prompts]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == len(prompts), "a request failed"
    return sum(tokens), time.perf_counter() - start


def one_by_one(ask: Callable[[list[Message]], int], prompts: Sequence[list[Message]]) -> tuple[int, float]:
    start = time.perf_counter()
    return sum(ask(prompt) for prompt in prompts), time.perf_counter() - start


def fresh(file: Path, threads: int) -> LlamaCppReader:
    """A reader with nothing in memory but the model."""
    reader = LlamaCppReader(str(file), context_tokens=CONTEXT, threads=threads)
    list(reader.stream([Message("user", "Hi")], Sampling(max_tokens=1)))
    return reader


def ours(reader: LlamaCppReader) -> Callable[[list[Message]], int]:
    def ask(messages: list[Message]) -> int:
        stream = reader.stream(messages, TOGETHER)
        for _ in stream:
            pass
        return stream.usage.completion_tokens

    return ask


def turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


@contextlib.contextmanager
def server(file: Path, threads: int) -> Iterator[Callable[[list[Message]], int]]:
    """llama-cpp-python's own server on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--model", str(file), "--port", str(port), "--n_ctx", str(CONTEXT), "--n_threads", str(threads)]
    words += ["--n_threads_batch", str(threads), "--interrupt_requests", "False", "--verbose", "False"]
    process = subprocess.Popen(
        [sys.executable, "-m", "llama_cpp.server", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def ask(messages: list[Message]) -> int:
        asked = {"messages": turns(messages), "max_tokens": TOKENS, "temperature": 0, "repeat_penalty": 1.0}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as reply:
            return int(json.load(reply)["usage"]["completion_tokens"])

    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, "the server did not start"
            try:
                ask([Message("user", "Hi")])
                break
            except OSError:
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.3)
        yield ask
    finally:
        process.terminate()
        process.wait()


def high_level(file: Path, threads: int) -> Any:
    import llama_cpp

    return llama_cpp.Llama(str(file), n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, verbose=False)


# --- Measurements ------------------------------------------------------------------------------------------------


def together(file: Path, threads: int, prompts: list[list[Message]], *, with_server: bool) -> dict[str, float]:
    """Tokens per second."""
    rates = {}

    def rate(name: str, done: tuple[int, float]) -> None:
        rates[name] = done[0] / done[1]

    rate("at once", at_once(ours(fresh(file, threads)), prompts))
    rate("one by one", one_by_one(ours(fresh(file, threads)), prompts))
    if with_server:
        with server(file, threads) as ask:
            rate("llama_cpp.server", at_once(ask, prompts))
    model = high_level(file, threads)

    def ask_model(messages: list[Message]) -> int:
        reply = model.create_chat_completion(turns(messages), max_tokens=TOKENS, temperature=0, repeat_penalty=1.0)
        return int(reply["usage"]["completion_tokens"])

    rate("Llama", one_by_one(ask_model, prompts))
    model.close()
    return rates


def follow_up(file: Path, threads: int, questions: list[list[Message]], other: list[Message]) -> dict[str, float]:
    """Seconds to the first token."""
    reader = fresh(file, threads)

    def first(messages: list[Message], rest: int = 16) -> float:
        start = time.perf_counter()
        stream = reader.stream(messages, Sampling(max_tokens=rest))
        next(stream)
        seconds = time.perf_counter() - start
        for _ in stream:
            pass
        return seconds

    model = high_level(file, threads)

    def first_of_theirs(messages: list[Message], rest: int = 16) -> float:
        start, seconds = time.perf_counter(), 0.0
        options = {"max_tokens": rest, "temperature": 0, "repeat_penalty": 1.0, "stream": True}
        for part in model.create_chat_completion(turns(messages), **options):
            if not seconds and part["choices"][0]["delta"].get("content"):
                seconds = time.perf_counter() - start
        return seconds

    reader.stream(other, Sampling(max_tokens=1)), reader.stream(other, Sampling(max_tokens=1))  # room for two chats
    times = {"first": first(questions[0]), "follow-up": first(questions[1])}
    times["Llama, first"] = first_of_theirs(questions[0])
    times["Llama, follow-up"] = first_of_theirs(questions[1])
    first(other), first_of_theirs(other)
    times["follow-up after another chat"] = first(questions[0])
    times["Llama, follow-up after another chat"] = first_of_theirs(questions[0])
    model.close()
    loaded = reader._engine.model
    context, prompt = Context(loaded, 1, CONTEXT, threads), loaded.prompt(questions[0])
    start = time.perf_counter()
    for at in range(0, len(prompt), BLOCK):
        rows = [Row(token, at + i, 0, at + i == len(prompt) - 1) for i, token in enumerate(prompt[at : at + BLOCK])]
        context.evaluate(rows)
    times["bare evaluation of the first"] = time.perf_counter() - start
    return times


def gap(file: Path, threads: int, running: list[Message], long: list[Message]) -> dict[str, float]:
    """Seconds between the tokens of an answer, and until the prompt that came in has its first."""
    reader = fresh(file, threads)
    stream = reader.stream(running, Sampling(max_tokens=1000))
    next(stream)
    answered = threading.Event()
    waited: list[float] = []

    def come_in() -> None:
        start = time.perf_counter()
        next(reader.stream(long, Sampling(max_tokens=1)))
        waited.append(time.perf_counter() - start)
        answered.set()

    alone, beside = [], []
    last = time.perf_counter()
    newcomer = threading.Thread(target=come_in)
    for count, _ in enumerate(stream):
        now = time.perf_counter()
        (beside if newcomer.ident else alone).append(now - last)
        last = now
        if count == 20:
            newcomer.start()
        if answered.is_set():
            break
    stream.close()
    newcomer.join()
    return {"alone": statistics.median(alone), "longest": max(beside), "first token of the long one": waited[0]}


def soak(file: Path, threads: int, prompts: list[list[Message]], seconds: float) -> dict[str, Any]:
    """32 clients for a while; each text must be the beginning of, or all of, what its prompt gets alone."""
    reader = fresh(file, threads)
    hows = [Sampling(max_tokens=24), Sampling(max_tokens=24, temperature=0.8, seed=3)]
    cases = [(prompt, how) for prompt in prompts for how in hows]
    alone = ["".join(reader.stream(*case)) for case in cases]
    counts = {"answers": 0, "stopped": 0, "mixed": 0, "failed": 0}
    lock, end = threading.Lock(), time.monotonic() + seconds

    def client(number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < end:
            case = chance.randrange(len(cases))
            stop = chance.randrange(24) if chance.random() < 0.4 else None
            outcome = "answers" if stop is None else "stopped"
            try:
                with reader.stream(*cases[case]) as stream:
                    said = ""
                    for count, piece in enumerate(stream):
                        said += piece
                        if count == stop:
                            break
            except Exception:  # any at all is what is looked for
                outcome = "failed"
            else:
                if said != alone[case] if stop is None else not alone[case].startswith(said):
                    outcome = "mixed"
            with lock:
                counts[outcome] += 1

    threads_ = [threading.Thread(target=client, args=(number,)) for number in range(32)]
    for thread in threads_:
        thread.start()
    time.sleep(min(30.0, seconds / 3))
    before = memory()
    for thread in threads_:
        thread.join()
    return {**counts, "seconds": seconds, "megabytes_grown": round(memory() - before, 1)}


def memory() -> float:
    """Resident, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 1e6


def medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(entry[name] for entry in rounds), 4) for name in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=["together", "follow_up", "gap"], metavar="PART")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--soak", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--no-server", action="store_true")
    parser.add_argument("--model", default="bundled")
    args = parser.parse_args()
    file = fresh(Path(args.model), args.threads)._engine.model.path  # the one that both sides read
    eight, questions, long = load_prompts()
    run: dict[str, Callable[[], dict[str, float]]] = {
        "together": lambda: together(file, args.threads, eight, with_server=not args.no_server),
        "follow_up": lambda: follow_up(file, args.threads, questions, long),
        "gap": lambda: gap(file, args.threads, eight[0], long),
    }
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in args.only}
    for number in range(args.rounds):
        for name, rounds in parts.items():
            rounds.append(run[name]())
            print(f"round {number + 1}, {name}: {rounds[-1]}", file=sys.stderr, flush=True)
    result = measure.about("reader", ("ragfm", "llama-cpp-python", "numpy"))
    result |= {"file": file.name, "threads": args.threads, "rounds": args.rounds, "load": os.getloadavg()[0]}
    result |= {name: medians(rounds) for name, rounds in parts.items() if rounds}
    if args.soak:
        result["soak"] = soak(file, args.threads, eight, args.soak)
    measure.save(measure.read("reader") | result, "reader")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
