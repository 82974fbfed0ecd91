"""`/v1/chat/completions`: answers in OpenAI's form, whole or streamed."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from time import monotonic
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import quote

from fastapi import APIRouter, Header, Request
from fastapi.sse import format_sse_event
from starlette.responses import Response

from ragfm.core.text import displayed_name, escape_markers
from ragfm.core.types import Answer, Citation, Contradiction, Message
from ragfm.generation.answer_log import Origin
from ragfm.generation.answer_stream import AnswerStream
from ragfm.server.answer_markdown import AnswerMarkdown, inert
from ragfm.server.api_errors import ApiError, as_api_error
from ragfm.server.api_keys import Key
from ragfm.server.api_models import (
    Annotation,
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatOptions,
    ChatRequest,
    ChatUsage,
    ChunkChoice,
    Delta,
    PromptDetails,
    UrlCitation,
)
from ragfm.server.event_stream import EventStream
from ragfm.server.served_models import Model
from ragfm.server.service import Commit, Service, service_of

router = APIRouter()
_ADDED_LINES = re.compile(
    r"(?:\n\nBut \[\d+\] says otherwise[^\n]*(?:\nBut \[\d+\] says otherwise[^\n]*)*)?"
    r"(?:\n\nSources:(?:\n\[\d+\] [^\n]*)+)?\Z"
)
_EVENTS = {"schema": {"type": "string"}, "itemSchema": {"$ref": "#/components/schemas/ChatChunk"}}
_RESPONSE = {
    "description": "The answer. With `stream`, events that hold a `ChatChunk` each, then `[DONE]`.",
    "content": {"text/event-stream": _EVENTS},
}
Footnotes: TypeAlias = Annotated[
    bool, Header(description="Whether to list the citations below the text, for clients that show nothing else.")
]


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses={200: _RESPONSE})
async def chat(
    request: Request, body: ChatRequest, x_ragfm_footnotes: Footnotes = False, commit: Commit = ""
) -> Response:
    """Answer the last message from the documents, with citations."""
    chat_answer = _ChatAnswer(request, body, with_footnotes=x_ragfm_footnotes)
    await chat_answer.wait_for(commit)
    if body.stream:
        return EventStream(chat_answer.events(), chat_answer.error_event, body.warning_headers)
    completion = await chat_answer.completion()
    headers = {"x-ragfm-status": completion.ragfm.status, **body.warning_headers}
    return Response(completion.model_dump_json(), media_type="application/json", headers=headers)


class _ChatAnswer:
    """The answer to one request. Raises ApiError if the request cannot be answered."""

    def __init__(self, request: Request, body: ChatRequest, *, with_footnotes: bool) -> None:
        self._service: Service = service_of(request)
        self._key: Key = request.state.key
        self._model: Model = self._service.model(self._key, body.model)
        self._body, self._with_footnotes = body, with_footnotes
        self._is_safe = self._model.rag.collection.settings.server.markdown == "safe"
        self._content = AnswerMarkdown(is_safe=self._is_safe)
        turns = [message for message in body.messages if message.role in ("user", "assistant")]
        if not turns or turns[-1].role != "user" or not turns[-1].text.strip():
            raise ApiError(400, "The last message must be a user's question.", code="invalid_request", param="messages")
        sees = getattr(self._model.rag.base_reader, "vision", False)
        for at, turn in enumerate(turns):
            try:
                unusable = turn.images and (turn.role != "user" or not sees)
            except ValueError as error:
                raise ApiError(400, f"{error}.", code="invalid_request", param="messages") from error
            if unusable:
                why = "Only a user's messages may have images" if sees else f"{self._model.name!r} cannot see images"
                raise ApiError(400, f"{why}.", code="unsupported", param=f"messages.{at}.content")
        self._question, self._images, self._history = turns[-1].text, turns[-1].images, list[Message]()
        for turn in turns[:-1]:
            if turn.role == "user" and (turn.images or turn.text.strip()):
                self._history.append(Message("user", (turn.text, *turn.images) if turn.images else turn.text))
            elif turn.text.strip():
                self._history.append(Message("assistant", without_footnotes(turn.text)))
        self._base_url = str(request.base_url)
        self._state = request.state
        self._state.log_fields = {"model": self._model.name, "stream": bool(body.stream)}
        self._options = body.ragfm or ChatOptions()
        self._handle = self._service.handle(request, self._model, self._options.groups, "ragfm.groups")
        self._start = monotonic()
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    async def wait_for(self, commit: str) -> None:
        """Wait until the collection has a commit."""
        await self._service.wait_for(self._key, self._model, self._handle, commit)

    async def completion(self) -> ChatCompletion:
        async with self._open_stream() as stream:
            async for _ in self._service.pieces(self._key, stream, self._start):
                pass
            answer = stream.answer
            self._state.log_fields |= self._service.record_usage(answer)
        spans = [(citation.answer_start, citation.answer_end) for citation in answer.citations]
        content = self._content.feed(answer.shown)
        added, annotations = self._end(answer, len(answer.shown), spans)
        message = AnswerMessage(content=content + added, annotations=annotations)
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._body.model,
            choices=[ChatChoice(message=message, finish_reason=answer.finish_reason)],
            usage=_usage(answer),
            ragfm=await self._service.details(answer, self._model),
        )

    async def events(self) -> AsyncGenerator[bytes, None]:
        length = 0
        role: Literal["assistant"] | None = "assistant"
        async with self._open_stream() as stream:
            async for piece in self._service.pieces(self._key, stream, self._start):
                length += len(piece)
                if content := self._content.feed(piece):
                    yield self._chunk([ChunkChoice(delta=Delta(role=role, content=content))])
                    role = None
            answer, spans = stream.answer, stream.cited_spans
            self._state.log_fields |= self._service.record_usage(answer)
        added, annotations = self._end(answer, length, spans)
        if added:
            yield self._chunk([ChunkChoice(delta=Delta(role=role, content=added))])
        end = ChunkChoice(delta=Delta(annotations=annotations), finish_reason=answer.finish_reason)
        last = {"usage": _usage(answer), "ragfm": await self._service.details(answer, self._model)}
        options = self._body.stream_options
        if options and options.include_usage:
            yield self._chunk([end])
            yield self._chunk([], **last)
        else:
            yield self._chunk([end], **last)
        yield format_sse_event(data_str="[DONE]")

    def error_event(self, error: Exception) -> bytes:
        """The event of an error. Leaves the exception for the request log."""
        self._state.error = error
        return format_sse_event(data_str=as_api_error(error).body.model_dump_json())

    def _open_stream(self) -> AbstractAsyncContextManager[AnswerStream]:
        body, options = self._body, self._options
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        rag = self._service.rag(
            self._model,
            self._handle,
            Origin(self._key.name, self._state.request_id),
            k=options.k,
            max_tokens=body.max_completion_tokens or body.max_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            seed=body.seed,
            stop=stop or None,
        )
        start_stream = partial(
            rag.stream, self._question, history=self._history, filter=options.filter, images=self._images
        )
        return self._service.open_stream(self._key, self._model, start_stream)

    def _end(self, answer: Answer, length: int, spans: Sequence[tuple[int, int]]) -> tuple[str, list[Annotation]]:
        """The rest of the content after an answer of `length` characters, and its evidence in OpenAI's form.

        The first lines are the table row that the answer quotes, below its header. `spans` are the cited sentences. A
        contradiction's span is its line, and that of a quote in place of the answer is everything.
        """
        added, spans, citations = "", list(spans), answer.citations
        if answer.quoted_row:
            added = f"\n\n{escape_markers(answer.quoted_row.markdown)}"
        if answer.quote and not answer.shows_text:
            citations, spans = (answer.quote,), [(0, length)]
        for at, contradiction in enumerate(answer.contradictions):
            added += "\n" if at else "\n\n"
            spans.append((length + len(added), length + len(added) + len(contradiction.sentence)))
            added += contradiction.sentence
        if self._with_footnotes:
            added += footnotes(answer)
        content = self._content.feed(added, last=True)
        sources: tuple[Citation | Contradiction, ...] = (*citations, *answer.contradictions)
        annotations = []
        for source, (start, end) in zip(sources, spans, strict=True):
            name = displayed_name(source.name or source.uri)
            if self._is_safe:
                name = inert(name)
            title = f"{name}, page {source.page}" if source.page else name
            url = source.uri
            if not url.startswith(("http://", "https://")):  # others, such as javascript://, are no addresses of pages
                url = f"{self._base_url}v1/documents/{quote(url)}?model={quote(self._model.collection)}"
            start, end = self._content.offset(start), self._content.offset(end)
            citation = UrlCitation(start_index=start, end_index=end, title=title, url=url)
            annotations.append(Annotation(url_citation=citation))
        return content, annotations

    def _chunk(self, choices: list[ChunkChoice], **fields: Any) -> bytes:
        chunk = ChatChunk(id=self._id, created=self._created, model=self._body.model, choices=choices, **fields)
        return format_sse_event(data_str=chunk.model_dump_json())


def _usage(answer: Answer) -> ChatUsage:
    usage = answer.usage
    return ChatUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens=usage.cached_tokens),
    )


def footnotes(answer: Answer) -> str:
    """The heading `Sources:` and a line with the quote for each citation and contradiction; empty if there is none."""
    quoted = (answer.quote,) if answer.quote else ()
    sources: tuple[Citation | Contradiction, ...] = (*answer.citations, *quoted, *answer.contradictions)
    lines = []
    for source in sources:
        page = f", page {source.page}" if source.page else ""
        page += f", {source.date}" if source.date else ""
        name = displayed_name(" ".join((source.name or source.uri).split()))
        lines.append(f"[{source.n}] {name}{page}: {source.displayed}")
    return "\n".join(["\n\nSources:", *dict.fromkeys(lines)]) if lines else ""


def without_footnotes(text: str) -> str:
    """The answer's own text, from a text that a client sends back."""
    return _ADDED_LINES.sub("", text.rstrip())
