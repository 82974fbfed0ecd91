"""`/v1/chat/completions`: from a request to the reader, and its pieces back as they come, in OpenAI's form."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from difflib import SequenceMatcher
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias
from urllib.parse import quote

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from ragfm.core.types import Message
from ragfm.server.api_errors import ApiError, as_api_error
from ragfm.server.api_models import (
    Annotation,
    AnswerDetails,
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    ChatUsage,
    ChunkChoice,
    Delta,
    PromptDetails,
    UrlCitation,
)
from ragfm.server.event_stream import EventStream, event
from ragfm.server.footnotes import footnotes, without_footnotes
from ragfm.server.service import Service, service_of

if TYPE_CHECKING:
    from ragfm.core.types import Answer
    from ragfm.generation.answer_stream import AnswerStream
    from ragfm.server.api_keys import Key
    from ragfm.server.served_models import Model

__all__ = ["router"]

router = APIRouter()
_CHUNK = {"$ref": "#/components/schemas/ChatChunk"}
_SAID = {"user", "assistant"}
Footnotes: TypeAlias = Annotated[
    bool,
    Header(description="Whether the citations stand under the answer's text, too, for clients that show no others."),
]


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}, "itemSchema": _CHUNK}},
                     "description": "The answer; with `stream`, events that hold a `ChatChunk` each, then `[DONE]`."}},
)  # fmt: skip
async def chat(request: Request, asked: ChatRequest, x_ragfm_footnotes: Footnotes = False) -> Response:
    """Answer the last message from the documents, with citations."""
    answering = _Answering(request, asked, notes=x_ragfm_footnotes)
    if asked.stream:
        return EventStream(answering.events(), answering.failed)
    return Response(await answering.whole(), media_type="application/json")


class _Answering:
    """One request for an answer. Raises ApiError where it can't be given."""

    def __init__(self, request: Request, asked: ChatRequest, *, notes: bool) -> None:
        self._service: Service = service_of(request)
        self._key: Key = request.state.key
        self._model: Model = self._service.model(self._key, asked.model)
        self._asked, self._notes = asked, notes
        self._question, self._history = _turns_of(asked.messages)
        self._base = str(request.base_url)
        self._noted: dict[str, Any] = {"model": self._model.name, "stream": bool(asked.stream)}
        self._state = request.state
        self._state.noted = self._noted
        self._start = monotonic()
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    async def whole(self) -> str:
        """The answer as one JSON."""
        async with self._begun() as stream:
            async for _ in self._service.pieces(stream, self._start):
                pass
            answer = self._done(stream)
        content = answer.text + self._footnotes(answer)
        message = AnswerMessage(content=content, annotations=self._annotations(answer, answer.text))
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._asked.model,
            choices=[ChatChoice(message=message, finish_reason=answer.finish_reason)],
            usage=_usage(answer),
            ragfm=self._details(answer),
        ).model_dump_json()

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as events."""
        said = ""
        async with self._begun() as stream:
            async for piece in self._service.pieces(stream, self._start):
                yield self._event(Delta(role=None if said else "assistant", content=piece))
                said += piece
            answer = self._done(stream)
        if notes := self._footnotes(answer):
            yield self._event(Delta(content=notes))
        end = ChunkChoice(delta=Delta(annotations=self._annotations(answer, said)), finish_reason=answer.finish_reason)
        last: dict[str, Any] = {"usage": _usage(answer), "ragfm": self._details(answer)}
        options = self._asked.stream_options
        if options and options.include_usage:
            yield self._chunk([end])
            yield self._chunk([], **last)
        else:
            yield self._chunk([end], **last)
        yield event("[DONE]")

    def failed(self, error: Exception) -> bytes:
        """The event that says what went wrong; the log says it, too."""
        self._state.error = error
        return event(as_api_error(error).body.model_dump_json())

    def _begun(self) -> AbstractAsyncContextManager[AnswerStream]:
        """The answer's stream, for as long as the block lasts."""
        asked, options = self._asked, self._asked.ragfm
        stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
        rag = self._service.rag(
            self._key, self._model, k=options.k if options else None,
            max_tokens=asked.max_completion_tokens or asked.max_tokens, temperature=asked.temperature,
            top_p=asked.top_p, seed=asked.seed, stop=stop or None,
        )  # fmt: skip
        filter = options.filter if options else None
        begin = partial(rag.stream, self._question, history=self._history, filter=filter)
        return self._service.answering(self._key, self._model, begin)

    def _done(self, stream: AnswerStream) -> Answer:
        self._noted |= self._service.counted(stream.answer)
        return stream.answer

    def _details(self, answer: Answer) -> AnswerDetails:
        return AnswerDetails.of(answer, self._model.collection)

    def _footnotes(self, answer: Answer) -> str:
        return footnotes(answer) if self._notes else ""

    def _annotations(self, answer: Answer, said: str) -> list[Annotation]:
        """The citations in OpenAI's form, at their places in what was said."""
        return [
            Annotation(url_citation=UrlCitation(start_index=start, end_index=end, title=title, url=self._url(uri)))
            for start, end, title, uri in _places(answer, said)
        ]

    def _url(self, uri: str) -> str:
        if "://" in uri:
            return uri
        return f"{self._base}v1/documents/{quote(uri)}?model={quote(self._model.collection)}"

    def _event(self, delta: Delta) -> bytes:
        return self._chunk([ChunkChoice(delta=delta)])

    def _chunk(self, choices: list[ChunkChoice], **more: Any) -> bytes:
        chunk = ChatChunk(id=self._id, created=self._created, model=self._asked.model, choices=choices, **more)
        return event(chunk.model_dump_json())


def _turns_of(messages: Sequence[ChatMessage]) -> tuple[str, list[Message]]:
    """The question, which is the last message, and what users and assistants said before it."""
    said = [message for message in messages if message.role in _SAID]
    if not said or said[-1].role != "user" or not said[-1].text.strip():
        raise ApiError(400, "The last message must be a user's question.", code="invalid_request", param="messages")
    history = [
        Message("user", m.text) if m.role == "user" else Message("assistant", without_footnotes(m.text))
        for m in said[:-1]
        if m.text.strip()
    ]
    return said[-1].text, history


def _usage(answer: Answer) -> ChatUsage:
    usage = answer.usage
    return ChatUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens=usage.cached_tokens),
    )


def _places(answer: Answer, said: str) -> list[tuple[int, int, str, str]]:
    """Of each citation where its marker stands in what was said, the title and the uri.

    What was streamed may lack markers that the answer has: then it is where they would stand.
    """
    blocks = SequenceMatcher(None, answer.text, said, autojunk=False).get_matching_blocks()

    def moved(place: int) -> int:
        before = [block for block in blocks if block.a <= place]
        return before[-1].b + min(place - before[-1].a, before[-1].size) if before else 0

    places, at = [], 0
    for citation in answer.citations:
        start = answer.text.find(f"[{citation.n}]", at)
        if start < 0:
            continue
        at = start + len(f"[{citation.n}]")
        title = f"{citation.uri}, page {citation.page}" if citation.page else citation.uri
        places.append((moved(start), moved(at), title, citation.uri))
    return places
