"""What all routes and tools share: the models, limits, figures, uploads, and how an answer is given.

    answering ─→ a turn at the reader, or Busy ─→ Rag.stream in a thread ─→ pieces ─→ counted
                                                       └── gone, late, ending: stream.close()

A stream that is closed frees the reader's slot, wherever its thread waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from fastapi import Request

from ragfm.server.api_errors import ApiError, not_found
from ragfm.server.index_supervisor import Indexer
from ragfm.server.prometheus_metrics import Metrics
from ragfm.server.request_guard import Limits
from ragfm.server.uploads import Uploads

if TYPE_CHECKING:
    from ragfm.core.types import Answer
    from ragfm.generation.answer_stream import AnswerStream
    from ragfm.rag import Rag
    from ragfm.server.api_keys import Key
    from ragfm.server.served_models import Model, Served

__all__ = ["Service", "service_of"]

_log = logging.getLogger(__name__)


class Service:
    """One server."""

    def __init__(self, served: Served, limits: Limits) -> None:
        self.served, self.limits = served, limits
        self.metrics = Metrics(
            running=lambda: sum(turns.running.total() for turns in served.turns),
            waiting=lambda: sum(turns.waiting for turns in served.turns),
        )
        self.uploads = {name: Uploads(folder) for name, folder in served.folders.items()}
        self.indexers = {name: Indexer(folder, self.uploads[name]) for name, folder in served.folders.items()}
        self.warm = False
        """Whether the models are loaded."""
        self.closing = False
        self._streams: set[AnswerStream] = set()

    def warm_up(self) -> None:
        """Load the models, which takes seconds."""
        try:
            self.served.warm_up()
        except Exception as error:  # each question will say so
            _log.error("The models can't be loaded: %s", error)
            return
        self.warm = True

    def model(self, key: Key, name: str | None) -> Model:
        """A key's model; raises ApiError where it has none of that name."""
        model = self.served.find(key, name)
        if model is None:
            raise not_found("model", name or "")
        return model

    def searches(self, key: Key) -> AbstractAsyncContextManager[None]:
        """A turn at searching or embedding."""
        return self.served.searches.turn(key.name)

    def rag(self, key: Key, model: Model, *, k: int | None = None, **sampling: Any) -> Rag:
        """The model over what a key sees, with what it asks for of the sampling, within the limits."""
        rag, most = model.for_key(key), self.limits.answer_tokens
        usual = replace(rag.sampling, **{name: value for name, value in sampling.items() if value is not None})
        return rag.with_options(k=k, sampling=replace(usual, max_tokens=min(usual.max_tokens or most, most)))

    @asynccontextmanager
    async def answering(self, key: Key, model: Model, begin: Callable[[], AnswerStream]) -> AsyncIterator[AnswerStream]:
        """The stream that `begin` makes when it is the key's turn, for as long as the block lasts; then it is closed.

        Raises Busy where there is no place to wait, TimeoutError after the time that an answer may take.
        """
        async with asyncio.timeout(self.limits.answer_seconds), model.turns.turn(key.name):
            stream = await self.served.run(begin)
            with self._holding(stream):
                yield stream

    async def pieces(self, stream: AnswerStream, since: float) -> AsyncIterator[str]:
        """The pieces of an answer that was asked for at `since`."""
        first = True
        while (piece := await self.served.run(next, stream, None)) is not None:
            if first and piece:
                first = False
                self.metrics.first.observe(monotonic() - since)
            if piece:
                yield piece

    def counted(self, answer: Answer) -> dict[str, int]:
        """Count an answer; gives what the log says of it."""
        usage, metrics = answer.usage, self.metrics
        metrics.tokens.labels("prompt").inc(usage.prompt_tokens)
        metrics.tokens.labels("cached").inc(usage.cached_tokens)
        metrics.tokens.labels("completion").inc(usage.completion_tokens)
        metrics.answers.labels("abstained" if answer.abstained else "answered").inc()
        return {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}

    @contextmanager
    def _holding(self, stream: AnswerStream) -> Iterator[None]:
        """Close an answer's stream at the end of the block, or when the server ends."""
        if self.closing:
            raise _ending()
        self._streams.add(stream)
        try:
            yield
        except Exception as error:
            if self.closing:
                raise _ending() from error
            raise
        finally:
            self._streams.discard(stream)
            stream.close()

    def stop(self) -> None:
        """End the answers that are being given: there is no more time."""
        self.closing = True
        for stream in list(self._streams):
            stream.close()


def _ending() -> ApiError:
    return ApiError(503, "The server is ending.", code="ending", retry_after=5)


def service_of(request: Request) -> Service:
    """The service that a request has come to."""
    return cast("Service", request.app.state.service)
