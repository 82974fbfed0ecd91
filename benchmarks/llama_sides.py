"""Peers of `bench_reader.py`: llama-cpp-python's server and high-level API, and llama.cpp's own server."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragfm.core.types import Message

SLOTS = 8


@dataclass(frozen=True)
class Side:
    """A program that answers. `ask` returns the number of tokens of an answer, `pieces` streams its text."""

    ask: Callable[[Sequence[Message], int], int]
    pieces: Callable[[Sequence[Message], int], Iterator[str]]


def turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def llama_cpp_server(file: Path, threads: int, context: int) -> contextlib.AbstractContextManager[Side]:
    """`python -m llama_cpp.server`, which answers sequentially. By default a request interrupts the previous one."""
    words = [sys.executable, "-m", "llama_cpp.server", "--model", str(file), "--n_ctx", str(context)]
    words += ["--n_threads", str(threads), "--n_threads_batch", str(threads), "--interrupt_requests", "False"]
    return _served([*words, "--verbose", "False"])


def llama_server(program: Path, file: Path, threads: int, context: int) -> contextlib.AbstractContextManager[Side]:
    """llama.cpp's own server with `SLOTS` slots, and a unified KV cache with a full window for each."""
    words = [str(program), "--model", str(file), "--ctx-size", str(SLOTS * context), "--parallel", str(SLOTS)]
    words += ["--kv-unified", "--threads", str(threads), "--threads-batch", str(threads), "--no-webui"]
    return _served(words)


def high_level(file: Path, threads: int, context: int) -> Any:
    """llama-cpp-python's `Llama`, as LangChain and LlamaIndex use it."""
    import llama_cpp

    return llama_cpp.Llama(str(file), n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False)


def of_llama(model: Any) -> Side:
    """Wrap a `Llama` as a side."""
    how = {"temperature": 0, "repeat_penalty": 1.0}

    def ask(messages: Sequence[Message], tokens: int) -> int:
        reply = model.create_chat_completion(turns(messages), max_tokens=tokens, **how)
        return int(reply["usage"]["completion_tokens"])

    def pieces(messages: Sequence[Message], tokens: int) -> Iterator[str]:
        for part in model.create_chat_completion(turns(messages), max_tokens=tokens, stream=True, **how):
            if piece := part["choices"][0]["delta"].get("content"):
                yield piece

    return Side(ask, pieces)


@contextlib.contextmanager
def _served(words: Sequence[str]) -> Iterator[Side]:
    """Start a server on a free port, and wait for its first answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([*words, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def open_(messages: Sequence[Message], tokens: int, stream: bool) -> Any:
        asked = {"messages": turns(messages), "max_tokens": tokens, "temperature": 0, "repeat_penalty": 1.0}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json.dumps(asked | {"stream": stream}).encode(),
            {"Content-Type": "application/json"},
        )
        return urllib.request.urlopen(request, timeout=600)

    def ask(messages: Sequence[Message], tokens: int) -> int:
        with open_(messages, tokens, stream=False) as reply:
            return int(json.load(reply)["usage"]["completion_tokens"])

    def pieces(messages: Sequence[Message], tokens: int) -> Iterator[str]:
        with open_(messages, tokens, stream=True) as reply:
            for line in reply:
                if line.startswith(b"data: {"):
                    choices = json.loads(line[6:])["choices"]
                    if choices and (piece := choices[0]["delta"].get("content")):
                        yield piece

    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, f"{words[0]} did not start"
            try:
                ask([Message("user", "Hi")], 1)
                break
            except OSError:
                assert time.monotonic() < deadline, f"{words[0]} does not answer"
                time.sleep(0.3)
        yield Side(ask, pieces)
    finally:
        process.terminate()
        process.wait()
