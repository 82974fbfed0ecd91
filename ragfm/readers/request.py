"""A request, as the thread that asks and the thread that evaluates share it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING

from ragfm.errors import RagfmError

if TYPE_CHECKING:
    from ragfm.readers.context import Logits
    from ragfm.readers.sampler import Sampler

__all__ = ["Request"]


class Request:
    """A prompt, and what is wanted of it: `limit` tokens picked by `sampler`, or a score for each continuation."""

    def __init__(
        self, prompt: list[int], adapter: str | None, *, sampler: Sampler | None = None, limit: int = 0,
        continuations: Sequence[list[int]] = (),
    ) -> None:  # fmt: skip
        self.prompt, self.adapter, self.limit = prompt, adapter, limit
        self.sampler, self.continuations = sampler, continuations
        self.cached = 0
        """Tokens of the prompt that were not evaluated again; known with the first result."""
        self.cancelled = False
        """Nobody wants it any more. Only ever set: a garbage collector may do so, in any thread and at any line."""
        self.after_prompt: Logits | None = None
        """Log-probabilities of the token after the prompt, for scores."""
        self.given = 0
        """How many results there were."""
        self._results: SimpleQueue[float | Exception | None] = SimpleQueue()
        self._process = os.getpid()

    def results(self) -> Iterator[float]:
        """Tokens, or scores, as they come. Cancels the request where it is left early."""
        try:
            while True:
                if os.getpid() != self._process:
                    raise RagfmError("This stream belongs to the process that was forked.", "Ask again in this one.")
                result = self._results.get()
                if result is None:
                    return
                if isinstance(result, Exception):
                    raise result
                yield result
        finally:
            self.cancelled = True

    def give(self, result: float) -> None:
        """A token or a score."""
        self.given += 1
        self._results.put(result)

    def end(self, error: Exception | None = None) -> None:
        """There is no more to come, or an error instead."""
        self._results.put(error)
