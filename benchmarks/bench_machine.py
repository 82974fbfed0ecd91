"""Describe this machine for ragfm, in less than five minutes: kernels, embedding backends, reader, search.

    python benchmarks/bench_machine.py [--seconds 4] [--busy 0 1 2] [--no-save]

kernels    the instructions that llama.cpp's kernels use, and the processor's vector and matrix instructions
embedding  tokens/s of each backend of the bundled embedding model, and its lowest cosine to fp32
reader     tokens/s of the bundled reader, one answer and eight at once, alongside 0, 1 and 2 processes that each use a
           core: ragfm as it is, fixed numbers of threads, and llama-cpp-python's `Llama` on the idle machine
search     median milliseconds of a hybrid search of the sample handbook, and of FAISS for one query and 100,000 vectors

Each side of the reader runs in its own process. Prints a table, and one JSON line last. The result is only saved on an
idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
from llama_sides import SLOTS, high_level, turns

from ragfm import Collection, Message, Sampling
from ragfm.core import registry
from ragfm.core.types import Stream
from ragfm.embedders import load_embedder
from ragfm.generation.readers.llama_cpp_reader import LlamaCppReader
from ragfm.models.hardware import FreeCpus, physical_cores, usable_cpus
from ragfm.models.llama_library import llama_cpp
from ragfm.models.model_lookup import find_model
from ragfm.models.thread_count import ThreadCount
from ragfm.samples import HANDBOOK, QUESTIONS, handbook_text

SIDES = ("ragfm", "fixed: all threads, short spinning", "fixed: one thread", "fixed: all threads", "Llama")
"""The last ones are left out with busy processes, where a token takes them a second."""
TOPICS = ("rivers", "chess", "the sea", "bread", "maps", "glass", "winter", "trains")
INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
VECTORS, DIMENSIONS = 100_000, 384
MAX_BUSY = 0.2
"""CPUs that other programs may use when the measurement starts."""


def essay(topic: str) -> list[Message]:
    return [Message("user", f"Write a long essay about {topic}.")]


def reader_rates(side: str, seconds: float) -> dict[str, float]:
    """Tokens per second of one answer after the other, and of eight at once."""
    if side == "Llama":
        model = high_level(find_model("bundled", "reader"), physical_cores(), 4096)

        def answer() -> Iterator[object]:
            return iter(
                model.create_chat_completion(turns(essay("rivers")), max_tokens=1000, temperature=0, stream=True)
            )

        list(itertools.islice(answer(), 2))
        return {"one": _rate([answer()], seconds)}

    if side.startswith("fixed"):
        ThreadCount.count = property(lambda self: self.maximum)  # type: ignore[assignment,method-assign]
        ThreadCount.record = lambda *_: None  # type: ignore[method-assign]
    reader = LlamaCppReader("bundled", threads=1 if side == "fixed: one thread" else None, slots=SLOTS)
    for stream in [reader.stream(essay(topic), Sampling(max_tokens=2)) for topic in TOPICS]:
        list(stream)  # memory for all slots, and all prompts evaluated
    endless = Sampling(max_tokens=2000)
    one = _rate([reader.stream(essay(TOPICS[0]), endless)], seconds)
    eight = _rate([reader.stream(essay(topic), endless) for topic in TOPICS], seconds)
    return {"one": one, "eight": eight}


def _rate(answers: Sequence[Iterator[object]], seconds: float) -> float:
    """Tokens per second of answers that are read at once, for a while."""
    counts, end = [0] * len(answers), time.perf_counter() + seconds

    def read(number: int) -> None:
        for _ in answers[number]:
            counts[number] += 1
            if time.perf_counter() > end:
                break
        if isinstance(answers[number], Stream):
            answers[number].close()

    threads = [threading.Thread(target=read, args=(number,)) for number in range(len(answers))]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return round(sum(counts) / (time.perf_counter() - start), 1)


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure_readers(seconds: float, loads: list[int]) -> dict[str, dict[str, Any]]:
    """For each number of busy processes, the rates of each side."""
    found: dict[str, dict[str, Any]] = {}
    for busy in loads:
        with busy_processes(busy):
            for side in SIDES[: len(SIDES) - min(busy, 2)]:
                environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
                if "short spinning" in side:
                    environment["GOMP_SPINCOUNT"] = "300"
                command = [sys.executable, __file__, "--seconds", str(seconds), "--one", side]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
                rates = json.loads(done.stdout.splitlines()[-1])
                found.setdefault(f"{busy} busy", {})[side] = rates
                print(f"{busy} busy, {side}: {rates}", file=sys.stderr, flush=True)
    return found


def measure_search() -> dict[str, float]:
    """Median milliseconds of a search."""
    flat_index = registry.load_plugin("indexes", "faiss-flat")
    with tempfile.TemporaryDirectory() as folder, Collection.open(Path(folder) / "collection") as collection:
        collection.sync(HANDBOOK)
        hybrid = [_milliseconds(lambda: collection.search(QUESTIONS[0], k=5)) for _ in range(100)]
    random = np.random.default_rng(0)
    vectors = random.standard_normal((VECTORS, DIMENSIONS), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = flat_index.build(np.arange(VECTORS), vectors)
    flat = [_milliseconds(lambda: index.search(vectors[:1], 10)) for _ in range(50)]
    return {"handbook, hybrid": _median(hybrid), "100,000 vectors, FAISS flat": _median(flat)}


def _milliseconds(search: Callable[[], object]) -> float:
    start = time.perf_counter()
    search()
    return 1000 * (time.perf_counter() - start)


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 2)


def instructions() -> list[str]:
    """The vector and matrix instructions of this processor that matter here; empty outside Linux."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        flags = next(line for line in lines if line.startswith("flags")).split()
        return [name for name in INSTRUCTIONS if name in flags]
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each measurement of the reader")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(reader_rates(args.one, args.seconds)))
        return
    free = FreeCpus()
    time.sleep(1)
    busy = len(usable_cpus()) - free()
    if busy > MAX_BUSY and not args.no_save:
        raise SystemExit(f"Other programs use {busy:.1f} CPUs: the result would say little. Use --no-save to see it.")
    about = measure.about("machine", ("ragfm", "llama-cpp-python", "torch", "openvino", "faiss-cpu", "numpy"))
    embedder: Any = load_embedder("bundled")
    text = 3 * handbook_text()
    sample = embedder._tokenize([text[start : start + 600] for start in range(0, 24_000, 300)], "document")
    backends: dict[str, dict[str, float]] = {}
    exact = None
    for name in dict.fromkeys((embedder._network.exact_backend, embedder._network.fast_backend)):
        run = embedder._network.load(name)
        run(*sample)
        start = time.perf_counter()
        vectors = run(*sample)
        rate = sum(map(len, sample[2])) / (time.perf_counter() - start)
        exact = vectors if exact is None else exact
        backends[name] = {"tokens/s": round(rate), "lowest cosine": round(float((vectors * exact).sum(1).min()), 6)}
    found = about | {
        "load": os.getloadavg()[0],
        "threads": physical_cores(),
        "instructions": instructions(),
        "kernels": llama_cpp.llama_print_system_info().decode().strip(" |"),
        "embedding": backends,
        "reader": measure_readers(args.seconds, args.busy),
        "search_ms": measure_search(),
    }
    for name in ("instructions", "kernels", "embedding", "search_ms"):
        print(f"{name:12} {found[name]}")
    for busy, sides in found["reader"].items():
        for side, rates in sides.items():
            print(f"{busy:8} {side:36}" + "".join(f" {name} {rate:7.1f}" for name, rate in rates.items()))
    if not args.no_save:
        processor = found["machine"]["processor"]
        measure.save(measure.read("machine") | {processor: found}, "machine")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
