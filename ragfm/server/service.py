"""What all routes and tools share: models, limits, metrics, uploads, and the way an answer is generated.

    open_stream ─→ a slot of the reader, or QueueFullError ─→ Rag.stream in a thread ─→ pieces ─→ record_usage
                                                                  └── disconnect, time-out, shutdown: stream.close()

Closing a stream frees the reader's slot, whatever its thread is waiting for.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar, cast

from fastapi import Header, Request

from ragfm.async_rag import AsyncAnswerStream
from ragfm.collection import Collection
from ragfm.core.errors import CollectionError, CollectionUnavailableError, LogError, LostCommitError, RagfmError
from ragfm.core.types import Answer
from ragfm.generation.answer_log import Origin
from ragfm.generation.answer_stream import AnswerStream
from ragfm.rag import Rag
from ragfm.server.api_errors import ApiError, not_found, shutting_down
from ragfm.server.api_keys import Key
from ragfm.server.api_models import AnswerDetails
from ragfm.server.commit_watch import CommitWatch
from ragfm.server.index_supervisor import IndexSupervisor
from ragfm.server.json_logging import log_event
from ragfm.server.prometheus_metrics import Metrics
from ragfm.server.request_guard import Limits
from ragfm.server.served_models import Model, ServedModels
from ragfm.server.source_scheduler import SourceScheduler

if TYPE_CHECKING:
    from ragfm.server.sign_in import SignIn

T = TypeVar("T")
COMMIT_HEADER = "x-ragfm-commit"
Commit: TypeAlias = Annotated[
    str, Header(alias=COMMIT_HEADER, description="A commit, as `ragfm ingest --json` returns it, to wait for.")
]
_CHECK_SECONDS = 10.0  # between two checks of the readers' servers
_log = logging.getLogger(__name__)


class Service:
    """The state of one server."""

    def __init__(self, served: ServedModels, limits: Limits) -> None:
        self.served, self.limits = served, limits
        self.metrics = Metrics(
            running=lambda: self.running,
            waiting=lambda: sum(queue.waiting for queue in served.queues),
        )
        self.uploads = served.uploads
        self.index_supervisors = {
            name: IndexSupervisor(location, self.uploads[name], served.handles[name])
            for name, location in served.locations.items()
        }
        self.source_schedulers = {
            name: SourceScheduler(location, served.handles[name]) for name, location in served.locations.items()
        }
        self.warm = False  # whether the models are loaded
        self.ending = False
        """Whether the server shuts down. It may accept requests for a while."""
        self.closing = False
        """Whether it has ended the answers that were still running."""
        self._streams: set[AnswerStream] = set()
        self.commit_waits: Counter[str] = Counter()
        """By key, the requests that wait for a commit."""
        self._commit_watches = {
            name: CommitWatch(partial(served.run, handles.newest)) for name, handles in served.handles.items()
        }
        self._readiness = ""

    @property
    def running(self) -> int:
        """Number of running answers, searches and other requests with a slot."""
        return sum(queue.running.total() for queue in self.served.queues) - self.served.answer_steps

    async def databases(self) -> dict[str, bool]:
        """Of each collection on PostgreSQL, whether its server answers."""
        collections = {model.collection: model.rag.collection for model in self.served.models.values()}
        up = {}
        for name, collection in collections.items():
            if name in self.served.on_server:
                try:
                    await self.served.run(getattr, collection, "state")
                    up[name] = True
                except CollectionUnavailableError:
                    up[name] = False
        return up

    async def readiness(self) -> str:
        """`ready`, or why the server cannot answer now. A change is logged."""
        status = "ready" if self.warm else "loading models"
        if self.warm and not all((await self.databases()).values()):
            status = "database unavailable"
        elif self.warm and not self.served.readers_available:
            status = "reader unavailable"
        if self.ending:
            status = "ending"
        if status != self._readiness:
            self._readiness = status
            log_event(_log, logging.INFO, "readiness", status=status)
        return status

    async def update_gauges(self) -> None:
        """Bring those metrics up to date that are not counted."""
        metrics = self.metrics
        for name, up in (await self.databases()).items():
            metrics.database_up.labels(name).set(up)
        for server, up in self.served.reader_servers().items():
            metrics.reader_server_up.labels(server).set(up)
        for name, supervisor in self.index_supervisors.items():
            metrics.index_lag.labels(name).set(supervisor.lag)
            metrics.index_failing.labels(name).set(supervisor.error is not None)
            with suppress(CollectionError):  # `database_up` says so
                failing = await self.served.run(self.source_schedulers[name].count_failing)
                metrics.sources_failing.labels(name).set(failing)
                metrics.generation.labels(name).set(await self.served.run(self.served.handles[name].newest))

    async def watch_readers(self) -> None:
        """Check the servers of readers until cancelled. Without requests, nobody would notice that one is down."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            await self.served.run(self.served.check_readers)

    async def reload(self, sign_in: SignIn | None) -> None:
        """Read the settings of all collections again, and log what has changed and what needs a restart."""
        for name in self.served.locations:
            try:
                changed, kept = await self.served.run(self.served.reload, name)
                if sign_in is not None and name == next(iter(self.served.locations)):
                    sign_in.reload(self.served.handles[name].store.settings.server.oidc)
            except RagfmError as error:
                log_event(_log, logging.ERROR, "reload_failed", str(error), collection=name)
                continue
            log_event(_log, logging.INFO, "reload", collection=name, changed=changed)
            for key in kept:
                log_event(_log, logging.WARNING, "restart_needed", f"restart needed: setting {key}", collection=name)

    def warm_up(self) -> None:
        """Load the models, which takes seconds."""
        try:
            self.served.check_readers()
            self.served.warm_up()
        except Exception as error:  # each request will report it
            if not self.closing:
                log_event(_log, logging.ERROR, "models_failed", f"The models cannot be loaded: {error}")
            return
        # With models loaded, looking through all objects stops all threads for a tenth of a second. Those so far stay.
        gc.collect()
        gc.freeze()
        self.warm = True

    def model(self, key: Key, name: str | None) -> Model:
        """The model of that name. Raises ApiError if there is none or the key may not use it."""
        model = self.served.find(key, name)
        if model is None:
            raise not_found("model", name or "")
        return model

    def handle(self, request: Request, model: Model, groups: Sequence[str] | None, param: str) -> Collection:
        """The collection as the request's key sees it, or only those of its `groups` that the request names.

        Raises ApiError for a group that the key does not have.
        """
        key: Key = request.state.key
        if groups is None:
            return model.handle(key)
        named = groups_of_key(key, groups, param)
        request.state.log_fields["groups"] = sorted(named)
        return model.handle(key, named)

    async def read_files(self, request: Request, model: str | None, read: Callable[[Key, Model], T]) -> T:
        """What `read` finds in the documents of a collection, when it is the turn of the request's key."""
        key: Key = request.state.key
        target = self.model(key, model)
        async with self.served.document_queue.slot(key.name):
            return await self.served.run_to_end(read, key, target)

    def rag(self, model: Model, handle: Collection, origin: Origin, *, k: int | None = None, **sampling: Any) -> Rag:
        """The model over a handle, with the given sampling parameters, within the limits."""
        given = {name: value for name, value in sampling.items() if value is not None}
        changed, limit = replace(model.rag.sampling, **given), self.limits.answer_tokens
        changed = replace(changed, max_tokens=min(changed.max_tokens or limit, limit))
        return model.rag.with_options(collection=handle, k=k, sampling=changed, origin=origin)

    async def wait_for(self, key: Key, model: Model, handle: Collection, commit: str) -> None:
        """Wait until a collection has the commit that a client wants to see, see `Collection.wait_for`.

        Raises ApiError.
        """

        def check_limit() -> None:
            if self.commit_waits[key.name] >= self.limits.commit_waits:
                message = f"The key has {self.limits.commit_waits} requests that wait for a commit, which is its limit."
                raise ApiError(429, message, code="too_many_waits", retry_after=1)

        if not commit:
            return
        try:
            check_limit()  # before the database is asked
            if await self.served.compute(key, handle.wait_for, commit, 0):
                return
            check_limit()  # others may have come meanwhile
            self.commit_waits[key.name] += 1
            try:
                async with (
                    asyncio.timeout(self.limits.commit_seconds),
                    aclosing(self._commit_watches[model.collection].changes()) as changes,
                ):
                    async for _ in changes:
                        if await self.served.compute(key, handle.wait_for, commit, 0, refusable=False):
                            return
            finally:
                self.commit_waits[key.name] -= 1
        except TimeoutError as error:
            message = f"This server has not received the commit {commit!r} yet."
            raise ApiError(503, message, code="commit_not_received", retry_after=1) from error
        except LostCommitError as error:
            message = (
                f"The collection has another commit in the place of {commit!r}: it was lost, or is of another one."
            )
            raise ApiError(400, message, code="commit_lost", param=COMMIT_HEADER) from error
        except ValueError as error:
            raise ApiError(400, f"{error}.", code="invalid_request", param=COMMIT_HEADER) from error

    @asynccontextmanager
    async def open_stream(
        self, key: Key, model: Model, start_stream: Callable[[], AnswerStream]
    ) -> AsyncIterator[AnswerStream]:
        """Wait for a slot of the reader, start a stream, and close it at the end of the block.

        Raises QueueFullError if there is no place to wait, TimeoutError after the time limit of an answer.
        """
        async with asyncio.timeout(self.limits.answer_seconds), model.queue.slot(key.name):
            stream = await self.served.compute(key, start_stream, of_answer=True)
            self._streams.add(stream)
            try:
                if self.closing:
                    raise shutting_down()
                yield stream
            except Exception as error:
                if self.closing:  # `stop` has closed the stream
                    raise shutting_down() from error
                raise
            finally:
                self._streams.discard(stream)
                stream.close()

    async def pieces(self, key: Key, stream: AnswerStream, start: float) -> AsyncIterator[str]:
        """The pieces of an answer. `start` is the time of the request (`monotonic`)."""

        def run(step: Callable[[], T]) -> Awaitable[T]:
            if stream.checking:
                return self.served.compute(key, step, refusable=False, of_answer=True)
            return self.served.run(step)

        first = True
        async for piece in AsyncAnswerStream(stream, run):
            if first:
                first = False
                self.metrics.first_token.observe(monotonic() - start)
            yield piece

    async def details(self, answer: Answer, model: Model) -> AnswerDetails:
        """An answer for the client, with the id for its rating if it is in the answer log."""
        rating, log = None, model.rag.log
        if answer.log_id is not None and log is not None:
            with suppress(LogError):  # an error of the log never costs an answer
                rating = f"{model.collection}/{await self.served.run(log.rating_id, answer.log_id)}"
        return AnswerDetails.of(answer, rating)

    def record_usage(self, answer: Answer) -> dict[str, int]:
        """Count an answer in the metrics. Returns fields for the request log."""
        usage, metrics = answer.usage, self.metrics
        metrics.tokens.labels("prompt").inc(usage.prompt_tokens)
        metrics.tokens.labels("cached").inc(usage.cached_tokens)
        metrics.tokens.labels("completion").inc(usage.completion_tokens)
        metrics.tokens.labels("drafted").inc(usage.drafted_tokens)
        metrics.tokens.labels("accepted").inc(usage.accepted_tokens)
        metrics.answers.labels(answer.status).inc()
        return {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}

    def stop(self) -> None:
        """End all running answers."""
        self.closing = True
        for stream in list(self._streams):
            stream.close()


def groups_of_key(key: Key, groups: Sequence[str], param: str) -> frozenset[str]:
    """The groups that a request names. Raises ApiError for one that its key does not have."""
    for group in groups:
        if group not in key.groups:
            raise ApiError(400, f"The key has no group {group!r}.", code="invalid_request", param=param)
    return frozenset(groups)


def service_of(request: Request) -> Service:
    """The service of the application that handles a request."""
    return cast("Service", request.app.state.service)
