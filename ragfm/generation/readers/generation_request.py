"""A request, as the thread that asks and the thread that serves it share it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Generic, TypeVar

from ragfm.core.errors import RagfmError
from ragfm.core.types import CLOSED

if TYPE_CHECKING:
    from ragfm.generation.readers.engine import Adapter, Logits, Picks

__all__ = ["Request", "Results"]

T = TypeVar("T")


class Results(Generic[T]):
    """What one thread gives and another one takes, until there is no more or nobody wants it."""

    def __init__(self) -> None:
        self.cancelled = False
        """Nobody wants it any more. Only ever set: a garbage collector may do so, in any thread and at any line."""
        self.given = 0
        """How many results there were."""
        self._results: SimpleQueue[T | Exception | None] = SimpleQueue()
        self._process = os.getpid()

    def results(self) -> Iterator[T]:
        """The results as they come. Cancels the request where it is left early."""
        try:
            while True:
                if os.getpid() != self._process:
                    raise RagfmError("This stream belongs to the process that was forked.", "Ask again in this one.")
                result = self._results.get()
                if result is None and self.cancelled:
                    raise RagfmError(CLOSED)  # by another thread: what has come is not the whole
                if result is None:
                    return
                if isinstance(result, Exception):
                    raise result
                yield result
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Let it end soon; any thread may say so."""
        self.cancelled = True

    def give(self, result: T) -> None:
        """One more."""
        self.given += 1
        self._results.put(result)

    def end(self, error: Exception | None = None) -> None:
        """There is no more to come, or an error instead."""
        self._results.put(error)


class Request(Results[float]):
    """A prompt, and what is wanted of it: `limit` tokens picked by `sampler`, or a score for each continuation."""

    def __init__(
        self, prompt: list[int], adapter: Adapter | None, *, sampler: Picks | None = None, limit: int = 0,
        continuations: Sequence[list[int]] = (), scope: str = "",
    ) -> None:  # fmt: skip
        super().__init__()
        self.prompt, self.adapter, self.limit = prompt, adapter, limit
        self.kind = (adapter, scope)
        """What is evaluated is used again among requests of the same kind only."""
        self.sampler, self.continuations = sampler, continuations
        self.logprobs: list[float] | None = None
        """Of the tokens that were given, where they are wanted."""
        self.cached = 0
        """Tokens of the prompt that were not evaluated again; known with the first result."""
        self.after_prompt: Logits | None = None
        """Log-probabilities of the token after the prompt, for scores."""
