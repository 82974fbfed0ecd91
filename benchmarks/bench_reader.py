"""Compare the llama.cpp reader with llama-cpp-python's API and server and llama.cpp's server: same file, same threads.

    python benchmarks/bench_reader.py [--rounds 3] [--only PART …] [--model FILE] [--threads N] [--tokens N]
                                      [--llama-server FILE] [--no-server] [--soak SECONDS] [--alike PROMPTS]

together   eight prompts with a SQuAD passage, each from a different article: tokens/s of all answers; concurrent, or
           one after the other on sides that cannot do otherwise
talking    the same with eight prompts without a passage that have long answers
follow_up  seconds to the first token of a second question in a chat about five passages, with the prompt that each side
           builds for it; for ragfm also the tokens of the prompt and how many were cached: with the same passages in
           a different order, and with two new ones. LangChain and LlamaIndex first let the model rewrite the question.
           The first question is compared with a bare evaluation of its tokens
gap        the longest time between two tokens of a running answer while a prompt of 2,000 tokens is evaluated
soak       32 clients that stop some answers early: texts that differ from those of the prompt alone, failures, memory
alike      greedy answers of the llama.cpp reader compared with the transformers reader, with the same weights

Each round measures all sides in turn; a figure is the median of the rounds. Each part of a round runs in its own
process, ragfm first: OpenMP hardly spins in a process where its pools have more threads than there are cores, which
made ragfm a third slower after `Llama`. llama-cpp-python's server requires `pip install 'llama-cpp-python[server]'`;
llama.cpp's server is built from the same sources:

    pip download --no-binary :all: --no-deps llama-cpp-python==VERSION     # unpack it, then in vendor/llama.cpp:
    cmake -B build -DCMAKE_BUILD_TYPE=Release -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF
    cmake --build build --target llama-server
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import measure
import rendering
from alike import alike
from bench_prompt import DATA, shipped
from llama_sides import SLOTS, Side, high_level, llama_cpp_server, llama_server, of_llama

from ragfm.core.types import Hit, Message, Sampling
from ragfm.generation.prompt import EarlierTurn, build_prompt
from ragfm.generation.readers.llama_cpp_reader import LlamaCppReader
from ragfm.models.hardware import physical_cores
from ragfm.testing import ScriptedReader

CONTEXT = 4096
PARTS = ("together", "talking", "follow_up", "gap")


class Prompts:
    """From SQuAD: eight with a passage, eight without, five passages with two questions, and 2,000 tokens."""

    def __init__(self) -> None:
        with gzip.open(DATA / "squad" / "squad-v1.0-train.json.gz") as file:
            articles = random.Random(1).sample(json.load(file)["data"], 10)

        def passages(article: dict[str, Any], count: int) -> list[str]:
            return [paragraph["context"] for paragraph in article["paragraphs"][:count]]

        def question(article: dict[str, Any], paragraph: int) -> str:
            return str(article["paragraphs"][paragraph]["qas"][0]["question"])

        self.together = [shipped(question(article, 0), passages(article, 1)) for article in articles[:SLOTS]]
        self.talking = [
            [Message("user", f"Write a long essay about {article['title'].replace('_', ' ')}.")]
            for article in articles[:SLOTS]
        ]
        *self.five, six, seven = passages(articles[8], 7)
        self.two_new = [six, *self.five[2:], seven]
        self.questions = [question(articles[8], paragraph) for paragraph in (0, 1)]
        self.long = shipped(question(articles[9], 0), passages(articles[9], 12))

    def asked(
        self, question: str, passages: Sequence[str], history: Sequence[Message] = (), *, goes_on: bool = False
    ) -> list[Message]:
        """A question as ragfm asks it; a follow-up continues one about the five passages."""
        earlier = [EarlierTurn(self.questions[0], _hits(self.five), 0)] if goes_on else []
        wide = ScriptedReader(context_tokens=10**6)
        return list(build_prompt(question, _hits(passages), wide, history=history, earlier=earlier).messages)


def _hits(passages: Sequence[str]) -> list[Hit]:
    return [Hit(text, text, 0, len(text), n, None, {}) for n, text in enumerate(passages)]


# --- Sides -------------------------------------------------------------------------------------------------------


def new_reader(file: Path, threads: int) -> LlamaCppReader:
    """A reader with memory for all slots and an empty prefix cache."""
    reader = LlamaCppReader(str(file), context_tokens=CONTEXT, threads=threads, slots=SLOTS)
    for stream in [reader.stream([Message("user", f"Hi {n}")], Sampling(max_tokens=2)) for n in range(SLOTS)]:
        list(stream)
    return reader


def ours(reader: LlamaCppReader) -> Side:
    def ask(messages: Sequence[Message], tokens: int) -> int:
        stream = reader.stream(messages, Sampling(max_tokens=tokens))
        for _ in stream:
            pass
        return stream.usage.completion_tokens

    def pieces(messages: Sequence[Message], tokens: int) -> Iterator[str]:
        with reader.stream(messages, Sampling(max_tokens=tokens)) as stream:
            yield from stream

    return Side(ask, pieces)


def at_once(side: Side, prompts: Sequence[list[Message]], tokens: int) -> float:
    """Run all prompts concurrently; tokens per second."""
    counts: list[int] = []
    threads = [threading.Thread(target=lambda p=prompt: counts.append(side.ask(p, tokens))) for prompt in prompts]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counts) == len(prompts), "a request failed"
    return sum(counts) / (time.perf_counter() - start)


def one_by_one(side: Side, prompts: Sequence[list[Message]], tokens: int) -> float:
    start = time.perf_counter()
    return sum(side.ask(prompt, tokens) for prompt in prompts) / (time.perf_counter() - start)


def first_token(side: Side, messages: Sequence[Message], tokens: int = 16) -> tuple[float, str]:
    """Seconds to the first token, and the whole answer."""
    start, seconds, said = time.perf_counter(), 0.0, ""
    for piece in side.pieces(messages, tokens):
        seconds = seconds or time.perf_counter() - start
        said += piece
    return seconds, said


# --- Measurements ------------------------------------------------------------------------------------------------


class Bench:
    """The measurements, each for one round."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.threads, self.tokens, self.prompts = args.threads, args.tokens, Prompts()
        self.file = new_reader(Path(args.model), args.threads)._engine.model.path  # the file that all sides load
        self.servers: dict[str, Callable[[], AbstractContextManager[Side]]] = {}
        if not args.no_server:
            self.servers["llama_cpp.server"] = lambda: llama_cpp_server(self.file, self.threads, CONTEXT)
        if args.llama_server:
            program = args.llama_server.resolve()
            self.servers["llama-server"] = lambda: llama_server(program, self.file, self.threads, CONTEXT)

    def together(self) -> dict[str, float]:
        return self._rates(self.prompts.together, self.tokens)

    def talking(self) -> dict[str, float]:
        return self._rates(self.prompts.talking, 2 * self.tokens)

    def _rates(self, prompts: Sequence[list[Message]], tokens: int) -> dict[str, float]:
        rates = {"at once": at_once(ours(new_reader(self.file, self.threads)), prompts, tokens)}
        rates["one by one"] = one_by_one(ours(new_reader(self.file, self.threads)), prompts, tokens)
        for name, server in self.servers.items():
            with server() as side:
                rates[name] = at_once(side, prompts, tokens)
        model = high_level(self.file, self.threads, CONTEXT)
        rates["Llama, one by one"] = one_by_one(of_llama(model), prompts, tokens)
        model.close()
        return rates

    def follow_up(self) -> dict[str, float]:
        """Seconds to the first token, and tokens."""
        reader, prompts = new_reader(self.file, self.threads), self.prompts
        found: dict[str, float] = {}

        def ask(name: str, messages: Sequence[Message]) -> str:
            start, said = time.perf_counter(), ""
            with reader.stream(messages, Sampling(max_tokens=16)) as stream:
                for piece in stream:
                    found.setdefault(name, time.perf_counter() - start)
                    said += piece
            found[f"{name}: tokens"] = stream.usage.prompt_tokens
            found[f"{name}: of these in memory"] = stream.usage.cached_tokens
            return said

        question, second = prompts.questions
        said = ask("first", prompts.asked(question, prompts.five))
        history = [Message("user", question), Message("assistant", said)]
        ask("follow-up, the same passages", prompts.asked(second, prompts.five[::-1], history, goes_on=True))
        ask("follow-up, two new passages", prompts.asked(second, prompts.two_new, history, goes_on=True))
        model = high_level(self.file, self.threads, CONTEXT)
        tokens = reader._engine.model.prompt_tokens(prompts.asked(question, prompts.five))
        found |= _time_framework_follow_up(model, prompts, question, second)
        model.reset()
        start = time.perf_counter()
        model.eval(tokens)
        found["Llama, bare evaluation of the first"] = time.perf_counter() - start
        model.close()
        return found

    def gap(self) -> dict[str, float]:
        """Seconds between the tokens of an answer, and until the first token of the new prompt."""
        found = {f"ours, {name}": value for name, value in self._gap(ours(new_reader(self.file, self.threads))).items()}
        for server_name, server in self.servers.items():
            with server() as side:
                found |= {f"{server_name}, {name}": value for name, value in self._gap(side).items()}
        return found

    def _gap(self, side: Side) -> dict[str, float]:
        answered = threading.Event()
        waited: list[float] = []

        def come_in() -> None:
            waited.append(first_token(side, self.prompts.long, 1)[0])
            answered.set()

        alone, concurrent = [], []
        newcomer = threading.Thread(target=come_in)
        pieces = side.pieces(self.prompts.talking[0], 300)
        last, began = time.perf_counter(), False
        for count, _ in enumerate(pieces):
            now = time.perf_counter()
            (concurrent if began else alone).append(now - last)
            last = now
            if count == 20:
                newcomer.start()
                began = True
            if answered.is_set():
                break
        pieces.close()
        newcomer.join()
        return {
            "between two alone": statistics.median(alone[1:]),
            "longest": max(concurrent),
            "first of the long one": waited[0],
        }


def _time_framework_follow_up(model: Any, prompts: Prompts, question: str, second: str) -> dict[str, float]:
    """Time a follow-up with the prompts of LangChain's chains and LlamaIndex's chat engines.

    The passages are in the system message, and the model rewrites a follow-up before it answers.
    """
    side = of_llama(model)
    passages = "\n\n".join(prompts.five)
    system = Message("system", f"Use the following pieces of context to answer the question.\n\n{passages}")
    asked = Message("user", question)
    times = {}
    times["Llama, first"], said = first_token(side, [system, asked])
    history = [asked, Message("assistant", said), Message("user", second)]
    times["Llama, follow-up as it stands"], _ = first_token(side, [system, *history])
    words = (
        "Given a chat history and the latest user question which might reference context in the chat history, "
        "formulate a standalone question which can be understood without the chat history."
    )
    start = time.perf_counter()
    side.ask([Message("system", words), *history], 32)
    wording = time.perf_counter() - start
    seconds, _ = first_token(side, [system, *history])
    return times | {"Llama, follow-up rewritten": wording + seconds, "of that, its passages": seconds}


def soak(file: Path, threads: int, prompts: list[list[Message]], seconds: float) -> dict[str, Any]:
    """Run 32 clients for a while; each text must be a prefix of, or all of, the answer to its prompt alone.

    `megabytes` is the memory of the process at ten points in time.
    """
    reader = new_reader(file, threads)
    hows = [Sampling(max_tokens=24), Sampling(max_tokens=24, temperature=0.8, seed=3)]
    cases = [(prompt, how) for prompt in prompts for how in hows]
    alone = ["".join(reader.stream(*case)) for case in cases]
    counts = {"answers": 0, "stopped": 0, "mixed": 0, "failed": 0}
    lock, end = threading.Lock(), time.monotonic() + seconds

    def client(number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < end:
            case = chance.randrange(len(cases))
            stop = chance.randrange(-1, 24) if chance.random() < 0.4 else None  # -1: before the first piece
            outcome = "answers" if stop is None else "stopped"
            try:
                with reader.stream(*cases[case]) as stream:
                    said = ""
                    for count, piece in enumerate(stream if stop != -1 else ()):
                        said += piece
                        if count == stop:
                            break
            except Exception:  # any error is a failure
                outcome = "failed"
            else:
                if said != alone[case] if stop is None else not alone[case].startswith(said):
                    outcome = "mixed"
            with lock:
                counts[outcome] += 1

    clients = [threading.Thread(target=client, args=(number,)) for number in range(32)]
    for one in clients:
        one.start()
    held = []
    for _ in range(10):
        time.sleep(seconds / 10)
        held.append(round(memory(), 1))
    for one in clients:
        one.join()
    return {**counts, "seconds": seconds, "megabytes": held}


def memory() -> float:
    """Resident memory in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 1e6


def medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(entry[name] for entry in rounds), 4) for name in rounds[0]}


def table(results: rendering.Results) -> str:
    """Tokens per second of ragfm, llama-cpp-python's server, llama.cpp's server and llama-cpp-python's `Llama`."""
    sides = ("at once", "llama_cpp.server", "llama-server", "Llama, one by one")
    rows = [
        [
            machine,
            *(
                " / ".join(f"{entry[part][side]:.3g}" if side in entry[part] else "-" for side in sides)
                for part in parts
            ),
        ]
        for parts in [("talking", "together")]
        for machine, entry in results["reader"].items()
        if machine != "alike"
    ]
    return rendering.table(("processor, weights", "8 long answers", "8 prompts with a passage, short answers"), rows)


def waits_table(results: rendering.Results) -> str:
    result = next(entry for entry in results["reader"].values() if "soak" in entry)
    alike, gap, times, soak = results["reader"]["alike"], result["gap"], result["follow_up"], result["soak"]
    sides = ("ours", "llama_cpp.server", "llama-server")
    equal = (
        f"{form.partition(',')[0]} {found['same_texts']:.1%}"
        for form, found in alike.items()
        if "F" in form or "Q" in form
    )
    cells = {
        "longest pause of the stream, s": " / ".join(f"{gap[f'{side}, longest']:.2f}" for side in sides),
        "first token of the prompt, s": " / ".join(f"{gap[f'{side}, first of the long one']:.2f}" for side in sides),
        "follow-up, s": f"{times['follow-up, the same passages']:.2f} (rewritten by `Llama`: "
        f"{times['Llama, follow-up rewritten']:.2f})",
        f"answers, cancelled in {soak['seconds']:.0f} s": f"{soak['answers']:,}, {soak['stopped']:,}",
        "mixed up, failed": f"{soak['mixed']}, {soak['failed']}",
        "MB after a tenth, at the end": f"{soak['megabytes'][0]:,.0f}, {soak['megabytes'][-1]:,.0f}",
        "texts equal to transformers'": ", ".join(equal),
    }
    return rendering.table(cells, [cells.values()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--tokens", type=int, default=48, help="tokens per answer; twice as many for `talking`")
    parser.add_argument("--soak", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--alike", type=int, default=0, metavar="PROMPTS")
    parser.add_argument("--no-server", action="store_true")
    parser.add_argument("--llama-server", type=Path, metavar="FILE")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(getattr(Bench(args), args.one)()))
        return
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in args.only}
    for number in range(args.rounds):
        for name, rounds in parts.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rounds.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1}, {name}: {rounds[-1]}", file=sys.stderr, flush=True)
    bench = Bench(args)
    kept = measure.read("reader")
    about = _about(args)
    name = f"{about['machine']['processor']}, {re.split('[.-]', bench.file.name)[-2]}"
    found = kept.pop(name, {})
    if args.rounds:
        found |= about | {"rounds": args.rounds, "tokens": args.tokens}
        found |= {name: medians(rounds) for name, rounds in parts.items()}
    if args.soak:
        found["soak"] = about | soak(bench.file, args.threads, bench.prompts.together, args.soak)
    if args.alike:
        kept["alike"] = _about(args, "transformers", "torch") | alike(args.alike, args.threads)
    kept |= {name: found} if found else {}
    measure.save(kept, "reader")
    print(json.dumps(kept))


def _about(args: argparse.Namespace, *packages: str) -> dict[str, Any]:
    about = measure.about("reader", ("ragfm", "llama-cpp-python", "numpy", *packages))
    return about | {"threads": args.threads, "load": os.getloadavg()[0]}


if __name__ == "__main__":
    main()
