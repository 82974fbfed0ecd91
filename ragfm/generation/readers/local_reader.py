"""What readers have in common that evaluate a model in this process: all but the model itself."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from ragfm.core.types import Message, Sampling, Stream
from ragfm.generation.readers import ScopedReader, completion_room, whole
from ragfm.generation.readers.continuous_batching import Batcher
from ragfm.generation.readers.engine import Adapter, Model, Picks
from ragfm.generation.readers.generation_request import Request

__all__ = ["LocalReader"]

M = TypeVar("M", bound=Model)


class _Engine(NamedTuple):
    """A loaded model and the thread that serves it."""

    model: Any
    batcher: Batcher
    context_tokens: int


class LocalReader(Generic[M]):
    """A model with its own chat template. Requests of any number of threads are evaluated together.

    Each request has `context_tokens` for itself, whatever else runs; they are cut to what the model was trained for.
    Up to `slots` requests run at once, up to `waiting` more wait for one of them to end. A forked process has a model
    of its own; streams stay with the process that began them.
    """

    def __init__(self, path: Path, context_tokens: int, slots: int, waiting: int, threads: int = 0) -> None:
        self._path, self.slots = path, whole("slots", slots, 1)
        self._asked_tokens, self._waiting = whole("context_tokens", context_tokens, 1), whole("waiting", waiting, 0)
        self._threads = threads
        self._loading = threading.Lock()
        self._loaded: _Engine | None = None
        _readers.add(self)

    def _load(self) -> M:
        """The model; called once."""
        raise NotImplementedError

    def _picker(self, model: M, sampling: Sampling) -> Picks:
        """What picks the tokens of a request."""
        raise NotImplementedError

    def _checked(self, sampling: Sampling) -> Sampling:
        """The sampling as this reader takes it. Raises ConfigError, UnsupportedError."""
        return sampling

    def _check_adapter(self, path: Path) -> None:
        """Raises ModelNotFoundError or DamagedModelError for what is none."""

    def scoped(self, scope: str) -> ScopedReader:
        """The same reader, for those who may see the same: with others it shares no memory."""
        return ScopedReader(self, scope)

    @property
    def context_tokens(self) -> int:
        """Tokens that prompt and completion of a request may have together."""
        return self._engine.context_tokens

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt, after the model's own chat template."""
        return len(self._engine.model.prompt(messages))

    def stream(
        self, messages: Sequence[Message], sampling: Sampling = Sampling(), *, scope: str = ""
    ) -> Stream:  # fmt: skip
        """Generate the next assistant message. It begins now, and goes on whether or not its text is taken.

        Requests of another `scope` learn nothing of it, not by their time either: they share no memory.

        Raises ContextOverflowError, ReaderBusyError, ConfigError for a grammar or schema that can't be read,
        UnsupportedError for one that the reader can't use and for messages that the template refuses,
        ModelNotFoundError or DamagedModelError for an adapter.
        """
        sampling = self._checked(sampling)
        model, batcher, context_tokens = self._engine
        prompt = model.prompt(messages)
        limit = completion_room(len(prompt), context_tokens, sampling.max_tokens)
        adapter = self._adapter(sampling.adapter)
        request = Request(prompt, adapter, sampler=self._picker(model, sampling), limit=limit, scope=scope)
        request.logprobs = [] if sampling.logprobs else None
        return batcher.stream(request, sampling.stop)

    def score(
        self, messages: Sequence[Message], continuations: Sequence[str], *, adapter: str | None = None, scope: str = ""
    ) -> list[float]:
        """How likely the model would answer each of `continuations`: natural logarithms, sums over their tokens.

        That it would end there is not counted. Raises what `stream` does.
        """
        model, batcher, _ = self._engine
        tokens = [model.tokens(text) for text in continuations]
        request = Request(model.prompt(messages), self._adapter(adapter), continuations=tokens, scope=scope)
        return batcher.score(request)

    def _adapter(self, adapter: str | None) -> Adapter | None:
        """The adapter of a path, if there is one, as it is now."""
        if not adapter:
            return None
        path = Path(adapter).expanduser()
        self._check_adapter(path)
        return Adapter.at(path)

    @property
    def _engine(self) -> _Engine:
        with self._loading:
            if self._loaded is None:
                model = self._load()
                window = min(self._asked_tokens, model.trained_tokens or self._asked_tokens)
                slots = self.slots if model.parallel else 1
                waiting = self._waiting + self.slots - slots
                batcher = Batcher(model, window=window, slots=slots, waiting=waiting, threads=self._threads)
                self._loaded = _Engine(model, batcher, window)
            return self._loaded

    def _forget(self) -> None:
        """In a forked process: the thread that evaluates is not there, and a lock may be held for ever."""
        self._loading = threading.Lock()
        self._loaded = None


_readers: weakref.WeakSet[LocalReader[Any]] = weakref.WeakSet()


def _forget_all() -> None:
    for reader in list(_readers):
        reader._forget()  # noqa: SLF001  one of its own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
