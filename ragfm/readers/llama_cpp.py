"""A reader for GGUF models, through llama.cpp."""

from __future__ import annotations

import os
import threading
import weakref
from codecs import getincrementaldecoder
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Literal

from ragfm.errors import UnsupportedError
from ragfm.gguf_file import check_gguf, read_header
from ragfm.llama import physical_cores
from ragfm.models import find_model
from ragfm.readers import completion_room, speak
from ragfm.readers.batching import Batcher
from ragfm.readers.llama_model import LlamaModel
from ragfm.readers.optimize import optimized
from ragfm.readers.request import Request
from ragfm.readers.sampler import Sampler
from ragfm.types import Message, Sampling, Stream, Usage

__all__ = ["LlamaCppReader"]


class LlamaCppReader:
    """A GGUF model with its own chat template. Requests of any number of threads are evaluated together.

    Each request has `context_tokens` for itself, whatever else runs; they are cut to what the model was trained for.
    Up to `slots` requests run at once, up to `waiting` more wait for one of them to end. There is memory for one at
    first, and for as many as have run at once later. `threads` defaults to the physical cores. Layers go to the GPU
    where llama.cpp was built for one. `Sampling.adapter` is a LoRA adapter as a GGUF file.

    A forked process has a model of its own; streams stay with the process that began them.
    """

    def __init__(
        self, model: str = "bundled", *, context_tokens: int = 4096, slots: int = 8, waiting: int = 64,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        path = find_model(model, "reader")
        if not path.is_file():
            raise UnsupportedError(f"llama-cpp reads GGUF files, and {path} is a folder.", "Use transformers:NAME.")
        check_gguf(path)
        self._path = path
        self._asked_tokens, self._slots, self._waiting = context_tokens, slots, waiting
        self._threads = threads or physical_cores()
        self._loading = threading.Lock()
        self._loaded: _Engine | None = None
        _readers.add(self)

    @property
    def context_tokens(self) -> int:
        """Tokens that prompt and completion of a request may have together."""
        return self._engine.context_tokens

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt, after the model's own chat template."""
        return len(self._engine.model.prompt(messages))

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        """Generate the next assistant message. It begins now, and goes on whether or not its text is taken.

        Raises ContextOverflowError, ReaderBusyError, ConfigError for a grammar that can't be read, UnsupportedError for
        messages that the template refuses, ModelNotFoundError or DamagedModelError for an adapter.
        """
        engine = self._engine
        prompt = engine.model.prompt(messages)
        limit = completion_room(len(prompt), engine.context_tokens, sampling.max_tokens)
        adapter = _adapter(sampling)
        request = Request(prompt, adapter, sampler=Sampler(engine.model.vocab, sampling), limit=limit)
        pieces = _text(engine, request, sampling.stop)
        next(pieces)  # up to where closing it, by hand or by the garbage collector, cancels the request
        return Stream(pieces)

    def score(
        self, messages: Sequence[Message], continuations: Sequence[str], *, adapter: str | None = None
    ) -> list[float]:
        """How likely the model would answer each of `continuations`: natural logarithms, sums over their tokens.

        That it would end there is not counted. Raises what `stream` does.
        """
        engine = self._engine
        prompt = engine.model.prompt(messages)
        tokens = [engine.model.tokens(text, special=False) for text in continuations]
        completion_room(len(prompt) + max(map(len, tokens), default=0) - 1, engine.context_tokens, None)
        request = Request(prompt, _adapter(Sampling(adapter=adapter)), continuations=tokens)
        if tokens:
            engine.batcher.submit(request)
        return list(request.results()) if tokens else []

    @property
    def _engine(self) -> _Engine:
        with self._loading:
            if self._loaded is None:
                model = LlamaModel(optimized(self._path) or self._path)
                window = min(self._asked_tokens, model.trained_tokens)
                batcher = Batcher(model, window=window, slots=self._slots, waiting=self._waiting, threads=self._threads)
                self._loaded = _Engine(model, batcher, window)
            return self._loaded

    def _forget(self) -> None:
        """In a forked process: the thread that evaluates is not there, and a lock may be held for ever."""
        self._loading = threading.Lock()
        self._loaded = None


class _Engine:
    """A loaded model and the thread that serves it."""

    def __init__(self, model: LlamaModel, batcher: Batcher, context_tokens: int) -> None:
        self.model, self.batcher, self.context_tokens = model, batcher, context_tokens


def _adapter(sampling: Sampling) -> str | None:
    """The path of the adapter, if there is one, in full."""
    if not sampling.adapter:
        return None
    path = Path(sampling.adapter).expanduser()
    read_header(path)
    return str(path.resolve())


def _text(
    engine: _Engine, request: Request, stop: Sequence[str]
) -> Generator[str, None, tuple[Usage, Literal["stop", "length"]]]:
    """An empty piece once the request is on its way, then its text."""
    engine.batcher.submit(request)
    results = request.results()
    try:
        yield ""
        tokens, reason = yield from speak(_pieces(engine.model, results), request.limit, stop)
    finally:
        request.cancelled = True
    return Usage(len(request.prompt), request.cached, tokens), reason


def _pieces(model: LlamaModel, tokens: Iterator[float]) -> Iterator[str]:
    """The text of each token: the whole characters that end in it."""
    text = getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        yield text.decode(model.piece(int(token)))


_readers: weakref.WeakSet[LlamaCppReader] = weakref.WeakSet()


def _forget_all() -> None:
    for reader in list(_readers):
        reader._forget()  # noqa: SLF001  one of its own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
