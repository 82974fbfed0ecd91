"""Tools of the Model Context Protocol: search, ask, read and check, for programs that have their own model.

The same tools are available over standard input and output, for the user who starts the process (`run_stdio`), and over
streamable HTTP at `/mcp` of a server, where each call has the key of its request (`mount_mcp`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from time import monotonic
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from fastapi import FastAPI
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ragfm import __version__
from ragfm.collection import DocumentInfo
from ragfm.core.errors import RagfmError
from ragfm.core.types import Document, Hit
from ragfm.generation.answer_log import Origin
from ragfm.integrations.answer_check import MAX_ANSWER, check
from ragfm.server.api_errors import ApiError
from ragfm.server.api_keys import Key
from ragfm.server.api_models import AnswerDetails, CheckResult, Outline, TextPlaces
from ragfm.server.document_parts import find_text, outline, part_span, read_document
from ragfm.server.fair_queue import QueueFullError
from ragfm.server.request_guard import Limits
from ragfm.server.served_models import Model, ServedModels
from ragfm.server.service import Service

_PAGE_SIZE = 100  # documents
_READ_AT_ONCE = 20_000  # characters
MAX_STREAMS = 4
"""Maximum number of open streams of a key, by `GET /mcp`."""
_STDIO_ANSWER_SECONDS = 3600.0
_INSTRUCTIONS = (
    "Documents of the user, kept on the user's own machines. `search` finds passages to read yourself; `ask` has a "
    "small model there answer from them, with citations. `outline`, `read_page` and `find_in_document` read one "
    "document; `verify` checks an answer that you have written. Cite documents by their `name`, and `page` or `lines` "
    "where there are any."
)
_log = logging.getLogger(__name__)

T = TypeVar("T")
CallContext: TypeAlias = Context[Any, Any]
CollectionName: TypeAlias = Annotated[
    str | None, Field(max_length=200, description="Name of the collection. Default: the first one.")
]
Filter: TypeAlias = Annotated[
    str | None,
    Field(max_length=2000, description="Filter on metadata, for example `year >= 2024 and uri like '%report%'`."),
]
Uri: TypeAlias = Annotated[
    str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00]*$", description="`uri` or `name` of the document.")
]
Start: TypeAlias = Annotated[
    int | None, Field(ge=0, le=2**31, description="First character; `next` of the call before continues there.")
]
Question: TypeAlias = Annotated[str, Field(min_length=1, max_length=10_000)]


class SearchResults(BaseModel):
    """Passages, best first. `text` is a slice of the document. `score` is a cosine, null in keyword mode."""

    collection: str
    hits: list[Hit]


class DocumentPage(BaseModel):
    """Documents in order of URI. `next` is `after` of the next page, null at the end."""

    collection: str
    documents: list[DocumentInfo]
    next: str | None


class DocumentPart(BaseModel):
    """Characters of a document. `next` is `start` of what follows in the page or section, null at its end."""

    uri: str
    start: int
    end: int
    text: str
    next: int | None


class Collections(BaseModel):
    """Values for `collection`: a collection, or `collection:reader` for another model that answers."""

    collections: list[str]


class _Tools:
    def __init__(
        self, service: Service, key_of: Callable[[CallContext], Key], describe: Callable[[Exception], str]
    ) -> None:
        self._service, self._served, self._key_of, self._describe = service, service.served, key_of, describe

    async def search(
        self,
        ctx: CallContext,
        query: Annotated[Question, Field(description="A question, or words from the text.")],
        collection: CollectionName = None,
        k: Annotated[int | None, Field(ge=1, le=50, description="Number of passages. Default: a few.")] = None,
        mode: Annotated[
            Literal["hybrid", "dense", "keyword"] | None,
            Field(description="`dense` finds similar meaning, `keyword` the words, `hybrid` (the default) both."),
        ] = None,
        filter: Filter = None,
    ) -> SearchResults:
        """Find the passages that match a query best."""
        async with self._call(ctx, collection, query=query) as (key, model):
            run_search = partial(model.handle(key).search, query, k, mode=mode or "hybrid", filter=filter or None)
            return SearchResults(collection=model.collection, hits=await self._served.compute(key, run_search))

    async def ask(
        self,
        ctx: CallContext,
        question: Annotated[Question, Field(description="A question that is complete without a conversation.")],
        collection: CollectionName = None,
        k: Annotated[int | None, Field(ge=1, le=50, description="Maximum number of passages for the reader.")] = None,
        filter: Filter = None,
    ) -> AnswerDetails:
        """Answer a question from the documents only, with citations that were checked against their text.

        `status`: `answered`; `unsure`, the answer may be wrong, so rely on the `quote`, or documents disagree, see
        `contradictions`; or `not_found`, the documents do not have the answer, and `nearest` are the sentences that
        come nearest to one. Do not rely on a citation with a `fault`. With the fault `unclear` or `subject`, the
        quote supports the sentence, but this is not certain, or the quote may be about another subject.
        """
        async with self._call(ctx, collection, question=question) as (key, model):
            request = ctx.request_context.request
            origin = Origin(key.name, request.state.request_id if request is not None else None)
            rag = self._service.rag(model, model.handle(key), origin, k=k)
            start_stream = partial(rag.stream, question, filter=filter or None)
            start = monotonic()
            async with self._service.open_stream(key, model, start_stream) as stream:
                async for _ in self._service.pieces(key, stream, start):
                    pass
                answer = stream.answer
            if request is not None:
                request.state.log_fields = {"model": model.name, **self._service.record_usage(answer)}
            details = await self._service.details(answer, model)
            if answer.contradictions:
                details.answer += "\n\n" + "\n".join(contradiction.sentence for contradiction in answer.contradictions)
            return details

    async def list_documents(
        self,
        ctx: CallContext,
        collection: CollectionName = None,
        filter: Filter = None,
        after: Annotated[
            str | None, Field(max_length=2000, pattern=r"^[^\x00]*$", description="Only documents after this URI.")
        ] = None,
    ) -> DocumentPage:
        """List the documents with their metadata."""
        async with self._call(ctx, collection) as (key, model):
            list_documents = partial(model.handle(key).documents, filter or None, after=after, limit=_PAGE_SIZE + 1)
            documents = await self._served.compute(key, list_documents)
            await self._served.run(model.handles.saw_newest, key)
            following = documents[_PAGE_SIZE - 1].uri if len(documents) > _PAGE_SIZE else None
            return DocumentPage(collection=model.collection, documents=documents[:_PAGE_SIZE], next=following)

    async def outline(
        self, ctx: CallContext, uri: Uri, collection: CollectionName = None, start: Start = None
    ) -> Outline:
        """List the headings of a document, with the characters and pages of their sections."""
        return await self._read(ctx, uri, collection, lambda document: outline(document, start or 0))

    async def read_page(
        self,
        ctx: CallContext,
        uri: Uri,
        page: Annotated[int | None, Field(ge=1, le=100_000, description="Page, from 1.")] = None,
        section: Annotated[
            str | None, Field(max_length=2000, description="Heading of a section, or several: `Leave > Parents`.")
        ] = None,
        collection: CollectionName = None,
        start: Start = None,
    ) -> DocumentPart:
        """Read a page or section of a document, or without them the document from its beginning."""

        def read_part(document: Document) -> DocumentPart:
            first, end = part_span(document, page, section or None)
            first = min(max(first, start or 0), end)
            last = min(first + _READ_AT_ONCE, end)
            text, following = document.text[first:last], last if last < end else None
            return DocumentPart(uri=document.uri, start=first, end=last, text=text, next=following)

        return await self._read(ctx, uri, collection, read_part)

    async def find_in_document(
        self,
        ctx: CallContext,
        uri: Uri,
        text: Annotated[str, Field(min_length=1, max_length=1000, description="Words as in the text, in any case.")],
        collection: CollectionName = None,
        start: Start = None,
    ) -> TextPlaces:
        """Find the places where a text occurs in a document, word by word."""
        return await self._read(ctx, uri, collection, lambda document: find_text(document, text, start or 0))

    async def verify(
        self,
        ctx: CallContext,
        answer: Annotated[str, Field(min_length=1, max_length=MAX_ANSWER, description="The answer to check.")],
        question: Annotated[str | None, Field(max_length=10_000, description="The question that it answers.")] = None,
        passages: Annotated[
            list[str | dict[str, Any]] | None,
            Field(max_length=1000, description="Texts to check it against. Default: what the collection has on it."),
        ] = None,
        collection: CollectionName = None,
    ) -> CheckResult:
        """Check an answer sentence by sentence, for example your own, against the documents.

        `status`: `supported`, see the quotes in `citations`; `contradicted`, see the quote in `contradiction`; or
        `not_found`, no passage says so. Do not rely on a citation with a `fault`. Each sentence is checked by itself:
        write complete sentences in the language of the documents, and keep their numbers and names.
        """
        async with self._call(ctx, collection, answer=answer) as (key, model):
            against = model.handle(key) if passages is None else passages
            run_check = partial(check, answer, against, question=question or "")
            return CheckResult(data=await self._served.compute(key, run_check))

    async def list_collections(self, ctx: CallContext) -> Collections:
        """List the collections of documents."""
        return Collections(collections=[model.name for model in self._served.for_key(self._key_of(ctx))])

    async def _read(self, ctx: CallContext, uri: str, collection: str | None, read: Callable[[Document], T]) -> T:
        """What is read from a document, as far as the key of a call may see it."""
        async with self._call(ctx, collection) as (key, model), self._served.document_queue.slot(key.name):
            return await self._served.run_to_end(lambda: read(read_document(model, key, uri)))

    @asynccontextmanager
    async def _call(self, ctx: CallContext, collection: str | None, **texts: str) -> AsyncIterator[tuple[Key, Model]]:
        """The key and model of a call. Errors, also those in the block, become a ToolError; texts must not be empty."""
        key, request = self._key_of(ctx), ctx.request_context.request
        try:
            model = self._served.find(key, collection or None)  # language models leave out an argument as ""
            if model is None:
                names = ", ".join(model.name for model in self._served.for_key(key)) or "none"
                raise ToolError(f"There is no collection {collection!r}. There are: {names}.")
            for name, text in texts.items():
                if not text.strip():
                    raise ToolError(f"The {name} is empty.")
            yield key, model
        except Exception as error:
            wrong_call = isinstance(error, ToolError)
            message = str(error) if wrong_call else self._describe(error)
            if request is not None:
                message += f" (Request {request.state.request_id}.)"  # a language model sees no header
                if not wrong_call:
                    request.state.error = error  # for the request log
            raise ToolError(message) from error


def tool_server(
    service: Service, key_of: Callable[[CallContext], Key], *, describe: Callable[[Exception], str]
) -> MCPServer:
    """The MCP server for any transport. `key_of` returns the key of a call, `describe` the text for an error."""
    server = MCPServer(
        "ragfm",
        title="Your documents",
        instructions=_INSTRUCTIONS,
        version=__version__,
        log_level="WARNING",
        subscriptions=False,
    )
    tools = _Tools(service, key_of, describe)
    annotations = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    for tool in (
        tools.search,
        tools.ask,
        tools.verify,
        tools.list_documents,
        tools.outline,
        tools.read_page,
        tools.find_in_document,
        tools.list_collections,
    ):
        server.tool(annotations=annotations)(tool)
    return server


def run_stdio(served: ServedModels, key: Key) -> None:
    """Serve one client over standard input and output until it disconnects. Models load in the background."""

    async def serve() -> None:
        service = Service(served, Limits(answer_seconds=_STDIO_ANSWER_SECONDS))
        warm_up = asyncio.create_task(served.run(service.warm_up))
        await tool_server(service, lambda _: key, describe=_describe_to_owner).run_stdio_async()
        service.stop()
        warm_up.cancel()

    try:
        asyncio.run(serve())
    finally:
        served.close()


def mount_mcp(
    app: FastAPI, service: Service, describe: Callable[[Exception], str]
) -> AbstractAsyncContextManager[None]:
    """Add the route `/mcp`. Each call has the key that the guard has checked. Returns what runs with the server."""

    def key_of_request(ctx: CallContext) -> Key:
        request = ctx.request_context.request
        assert request is not None
        key: Key = request.state.key
        return key

    server = tool_server(service, key_of_request, describe=describe)
    # The guard has checked host and key. Without sessions, no call can use the session of a different key.
    security = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    server.streamable_http_app(stateless_http=True, json_response=True, transport_security=security)
    app.routes.append(Route(_Endpoint.path, endpoint=_Endpoint(server)))
    return server.session_manager.run()


class _Endpoint:
    """The ASGI application of the route. `path` is the route's name in the request log."""

    path = "/mcp"

    def __init__(self, server: MCPServer) -> None:
        self._server = server
        self._streams: Counter[str] = Counter()  # by key, open streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a call, or with GET a stream for messages of the server, which stays open until the client leaves."""
        scope["route"] = self
        key = scope["state"]["key"].name
        if scope["method"] == "GET" and self._streams[key] >= MAX_STREAMS:
            message = f"The key has {MAX_STREAMS} open streams, which is its limit. Close one of them."
            raise ApiError(429, message, code="too_many_streams", retry_after=10)
        self._streams[key] += scope["method"] == "GET"
        try:
            await self._server.session_manager.handle_request(scope, receive, send)
        finally:
            self._streams[key] -= scope["method"] == "GET"


def _describe_to_owner(error: Exception) -> str:
    """The text of an error for the user who started the process."""
    if isinstance(error, ApiError):
        return error.detail
    if isinstance(error, RagfmError | QueueFullError):
        return str(error)
    _log.error("A tool failed.", exc_info=error)
    return f"The tool failed. This is a bug in ragfm: {type(error).__name__}: {error}"
