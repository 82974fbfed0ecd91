"""Tools by the Model Context Protocol: search, ask, and what there is, for programs that have a model of their own.

The same tools over both transports: standard input and output, for the one who started the process (`run_stdio`), and
streamable HTTP at `/mcp` of a server, where each call has the key of its request (`mount`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field
from starlette.routing import Route

from ragfm import __version__
from ragfm.collection import DocumentInfo
from ragfm.core.errors import RagfmError
from ragfm.core.types import Hit
from ragfm.server.api_models import AnswerDetails
from ragfm.server.fair_queue import Busy
from ragfm.server.request_guard import Limits
from ragfm.server.service import Service

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import Receive, Scope, Send

    from ragfm.server.api_keys import Key
    from ragfm.server.served_models import Model, Served

__all__ = ["mount", "run_stdio", "tool_server"]

_PAGE = 100  # documents in one list
_PATIENCE = 3600.0  # seconds that an answer may take for one whose own process it is
_USE = (
    "Documents of the user, kept on the user's own machines. `search` finds passages to read yourself; `ask` has a "
    "small model there answer from them, with citations. Cite documents by their `uri`, and `page` where there is one."
)
_log = logging.getLogger(__name__)

Named: TypeAlias = Annotated[
    str | None, Field(max_length=200, description="Which collection; the first one if not given.")
]
Filter: TypeAlias = Annotated[
    str | None,
    Field(max_length=2000, description="Only documents whose metadata meets it: `year >= 2024 and team in (hr, it)`."),
]
Question: TypeAlias = Annotated[str, Field(min_length=1, max_length=10_000)]


class Found(BaseModel):
    """Passages, best first. `text` is a slice of the document; `score` is a cosine, null by words alone."""

    collection: str
    hits: list[Hit]


class Listed(BaseModel):
    """Documents in order of uri; `next` is the `after` of those that follow, null at the end."""

    collection: str
    documents: list[DocumentInfo]
    next: str | None


class Collections(BaseModel):
    """What can be named as `collection`: a collection, or `collection:reader` for another model that answers."""

    collections: list[str]


class _Tools:
    """The tools, for whoever `key_of` says that a call is from."""

    def __init__(
        self, service: Service, key_of: Callable[[Context[Any, Any]], Key], words: Callable[[Exception], str]
    ) -> None:
        self._service, self._served, self._key_of, self._words = service, service.served, key_of, words

    async def search(
        self,
        ctx: Context[Any, Any],
        query: Annotated[Question, Field(description="What to look for, in the words of a question or of the text.")],
        collection: Named = None,
        k: Annotated[int, Field(ge=1, le=50, description="How many passages.")] = 5,
        mode: Annotated[
            Literal["hybrid", "dense", "keyword"], Field(description="By meaning and words, meaning, or words.")
        ] = "hybrid",
        filter: Filter = None,
    ) -> Found:
        """Find the passages of the documents that are nearest to a query."""
        async with self._call(ctx, collection, query=query) as (key, model):
            find = partial(model.handle(key).search, query, k, mode=mode, filter=filter)
            async with self._service.searches(key):
                return Found(collection=model.collection, hits=await self._served.run(find))

    async def ask(
        self,
        ctx: Context[Any, Any],
        question: Annotated[Question, Field(description="A question that stands alone.")],
        collection: Named = None,
        k: Annotated[int | None, Field(ge=1, le=50, description="How many passages are read, at most.")] = None,
        filter: Filter = None,
    ) -> AnswerDetails:
        """Have a question answered from the documents alone, with citations that were checked against their text.

        `abstained`: the documents don't say. Don't rely on a citation with a `fault`; with `uncertain` it says what its
        sentence says, which may not be what was asked for.
        """
        async with self._call(ctx, collection, question=question) as (key, model):
            begin = partial(self._service.rag(key, model, k=k).stream, question, filter=filter)
            since = monotonic()
            async with self._service.answering(key, model, begin) as stream:
                async for _ in self._service.pieces(stream, since):
                    pass
                answer = stream.answer
            _note(ctx, model=model.name, **self._service.counted(answer))
            return AnswerDetails.of(answer, model.collection)

    async def list_documents(
        self,
        ctx: Context[Any, Any],
        collection: Named = None,
        filter: Filter = None,
        after: Annotated[str | None, Field(max_length=2000, description="Only those behind this uri.")] = None,
    ) -> Listed:
        """List the documents, with what is known of each."""
        async with self._call(ctx, collection) as (key, model):
            listed = partial(model.handle(key).documents, filter, after=after, limit=_PAGE + 1)
            found = await self._served.run(listed)
            more = found[_PAGE - 1].uri if len(found) > _PAGE else None
            return Listed(collection=model.collection, documents=found[:_PAGE], next=more)

    async def list_collections(self, ctx: Context[Any, Any]) -> Collections:
        """List the collections of documents that there are."""
        return Collections(collections=[model.name for model in self._served.for_key(self._key_of(ctx))])

    @asynccontextmanager
    async def _call(
        self, ctx: Context[Any, Any], collection: str | None, **words: str
    ) -> AsyncIterator[tuple[Key, Model]]:
        """Whose call it is, and what model it names. What fails in the block is said in words."""
        key = self._key_of(ctx)
        model = self._served.find(key, collection)
        if model is None:
            named = ", ".join(model.name for model in self._served.for_key(key)) or "none"
            raise ToolError(f"There is no collection {collection!r}. There are: {named}.")
        if empty := next((name for name, text in words.items() if not text.strip()), None):
            raise ToolError(f"The {empty} is empty.")
        try:
            yield key, model
        except Exception as error:
            if ctx.request_context.request is not None:
                ctx.request_context.request.state.error = error  # for the guard's log
            raise ToolError(self._words(error)) from error


def tool_server(
    service: Service, key_of: Callable[[Context[Any, Any]], Key], *, words: Callable[[Exception], str]
) -> MCPServer:
    """The server of the tools, for any transport.

    `key_of` says whose a call is, `words` what is said of an error.
    """
    server = MCPServer(
        "ragfm", title="Your documents", instructions=_USE, version=__version__, log_level="WARNING",
        subscriptions=False,
    )  # fmt: skip
    tools = _Tools(service, key_of, words)
    reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    for tool in (tools.search, tools.ask, tools.list_documents, tools.list_collections):
        server.tool(annotations=reads)(tool)
    return server


def run_stdio(served: Served, key: Key) -> None:
    """Serve one client over standard input and output, until it goes away. Models are loaded meanwhile."""

    async def serve() -> None:
        service = Service(served, Limits(answer_seconds=_PATIENCE))
        warming = asyncio.create_task(served.run(service.warm_up))
        await tool_server(service, lambda _: key, words=_own_words).run_stdio_async()
        warming.cancel()

    try:
        asyncio.run(serve())
    finally:
        served.close()


def mount(app: FastAPI, service: Service, words: Callable[[Exception], str]) -> AbstractAsyncContextManager[None]:
    """Add the route `/mcp`; each call has the key that the guard has found. Returns what has to run with the server."""
    server = tool_server(service, _key_of_request, words=words)
    # The guard has checked who asks, from where, and how much; without sessions none can be another key's.
    server.streamable_http_app(
        stateless_http=True, json_response=True,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )  # fmt: skip
    app.routes.append(Route(_Endpoint.path, endpoint=_Endpoint(server)))
    return server.session_manager.run()


def _note(ctx: Context[Any, Any], **what: Any) -> None:
    """Leave something for the guard's log, if there is one."""
    if ctx.request_context.request is not None:
        ctx.request_context.request.state.noted = what


def _key_of_request(ctx: Context[Any, Any]) -> Key:
    request = ctx.request_context.request
    assert request is not None
    key: Key = request.state.key
    return key


class _Endpoint:
    """An ASGI application at a route, which the guard's log shall name."""

    path = "/mcp"

    def __init__(self, server: MCPServer) -> None:
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self
        await self._server.session_manager.handle_request(scope, receive, send)


def _own_words(error: Exception) -> str:
    """What is said of an error to the one whose process it is."""
    if isinstance(error, RagfmError | Busy):
        return str(error)
    _log.error("A tool failed.", exc_info=error)
    return f"It failed, by a mistake in ragfm: {type(error).__name__}: {error}"
