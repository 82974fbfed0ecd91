"""A request, shared by the thread that asks and the thread that evaluates."""

from __future__ import annotations

import os
from collections.abc import Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from ragfm.core.errors import RagfmError
from ragfm.core.tracing import Span
from ragfm.core.types import CLOSED
from ragfm.generation.readers.engine import Adapter
from ragfm.generation.readers.prompt_lookup import PromptLookup

if TYPE_CHECKING:
    from ragfm.generation.readers.llama_sampler import GrammarSampler
    from ragfm.generation.readers.sampling import LogitsSampler

T = TypeVar("T")
TokenSampler: TypeAlias = "LogitsSampler | GrammarSampler"


class ResultQueue(Generic[T]):
    """Results from one thread for another one, until the first finishes or the second cancels."""

    def __init__(self) -> None:
        self.cancelled = False
        """Only ever set to True. A garbage collector may do so, in any thread and at any line: this takes no lock."""
        self.count = 0
        """Number of results so far."""
        self._results: SimpleQueue[T | Exception | None] = SimpleQueue()
        self._process = os.getpid()

    def results(self) -> Iterator[T]:
        """The results as they arrive. Cancels the request if the iteration is abandoned."""
        try:
            while True:
                if os.getpid() != self._process:
                    raise RagfmError(
                        "This stream belongs to the parent of this forked process.", "Ask again in this process."
                    )
                result = self._results.get()
                if result is None and self.cancelled:
                    raise RagfmError(CLOSED)  # by another thread, so the results are incomplete
                if result is None:
                    return
                if isinstance(result, Exception):
                    raise result
                yield result
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End the request soon. Any thread may call this."""
        self.cancelled = True

    def put(self, result: T) -> None:
        """Add a result."""
        self.count += 1
        self._results.put(result)

    def finish(self, error: Exception | None = None) -> None:
        """End the results, with an error if one is given."""
        self._results.put(error)


class GenerationRequest(ResultQueue[float]):
    """A prompt to complete with up to `max_tokens` tokens from `sampler`."""

    def __init__(
        self,
        prompt: list[int],
        adapter: Adapter | None,
        *,
        sampler: TokenSampler,
        max_tokens: int,
        scope: str = "",
    ) -> None:
        super().__init__()
        self.prompt, self.adapter, self.max_tokens = prompt, adapter, max_tokens
        self.cache_key = (adapter, scope)
        """Evaluated tokens are reused only among requests with the same key."""
        self.sampler = sampler
        self.logprobs: list[float] | None = None
        """Log-probabilities of the generated tokens, if requested."""
        self.cached_tokens = 0
        """Tokens of the prompt that were not evaluated again. Valid from the first result on."""
        self.lookup: PromptLookup | None = None
        """Drafts the next tokens while no other request runs."""
        self.span = Span()
