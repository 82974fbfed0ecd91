"""`/v1/insights`: what the log of a collection says about its questions; `/v1/insights/{id}`: one of them.

Owners, whose keys have the scope `metrics`, see the questions of all keys, others their own. An answer is shown to keys
that may see all documents that its reader read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from ragfm.core.errors import CollectionError, LogError
from ragfm.core.types import Document
from ragfm.evaluation.log_insights import insights
from ragfm.evaluation.log_questions import questions_from_log
from ragfm.generation.answer_log import AnswerLog
from ragfm.generation.log_entries import LogEntry, LogFilter
from ragfm.generation.prompt import neutralize_markers
from ragfm.server.api_errors import ApiError, not_found, refuse_unknown_parameters
from ragfm.server.api_keys import Key
from ragfm.server.api_models import InsightList, LoggedAnswer, LoggedPassage
from ragfm.server.document_routes import CONTENT_HEADERS, ModelName
from ragfm.server.served_models import Model
from ragfm.server.service import service_of

T = TypeVar("T")
LogId = Annotated[int, Path(ge=1, lt=2**63)]
router = APIRouter(dependencies=[Depends(refuse_unknown_parameters)])


async def _read(request: Request, model: str | None, read: Callable[[Key, Model, AnswerLog], T]) -> T:
    """What `read` finds in a collection's log. Raises ApiError if there is none."""
    service, key = service_of(request), request.state.key
    target = service.model(key, model)
    request.state.log_fields = {"model": target.collection}
    try:
        if target.rag.log is not None:
            return await service.served.compute(key, read, key, target, target.rag.log)
    except LogError as error:
        request.state.log_fields |= {"why": type(error).__name__}
    message = (
        f"{target.collection!r} has no logged answer. To log answers, set `log = true` under `[ask]` in ragfm.toml."
    )
    raise ApiError(404, message, code="no_answer_log")


def _visible(key: Key, **conditions: Any) -> LogFilter:
    """Selects the entries that a key may see."""
    own: dict[str, Any] = {} if key.is_owner else {"key": key.name, "groups": key.visible_groups}
    return LogFilter(**own, **conditions)


@router.get("/v1/insights", response_model=InsightList)
async def list_insights(
    request: Request,
    model: ModelName = None,
    days: Annotated[int, Query(ge=1, le=36_500, description="Only questions of the last days.")] = 30,
) -> Response:
    """What was asked: by day, near-duplicates together, bad answers first; documents cited, and times."""

    def read(key: Key, target: Model, log: AnswerLog) -> str:
        documents = [info.uri for info in target.handle(key).documents()]
        found = insights(log.overview(_visible(key, newer_than=timedelta(days=days))), documents)
        return InsightList(model=target.collection, everybody=key.is_owner, data=found).model_dump_json()

    return Response(await _read(request, model, read), media_type="application/json", headers=CONTENT_HEADERS)


@router.get("/v1/insights/export", response_class=Response, responses={200: {"content": {"application/jsonl": {}}}})
async def export(
    request: Request,
    model: ModelName = None,
    form: Annotated[
        Literal["questions", "labels"],
        Query(description="Rated answers for `ragfm eval answers`, or labels of citations for `ragfm log review`."),
    ] = "questions",
) -> Response:
    """Export what users rated, as JSON lines."""

    def read(key: Key, target: Model, log: AnswerLog) -> list[dict[str, Any]]:
        if form == "labels":
            own = None if key.is_owner else {row[0] for row in log.overview(_visible(key))}
            return [asdict(label) for label in log.labels() if own is None or label.entry in own]
        entries = log.entries(_visible(key, rated=True))
        known = {info.uri for info in target.handle(key).documents()}
        return list(questions_from_log(entry for entry in entries if entry.read_uris <= known))

    lines = await _read(request, model, read)
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return Response(content, media_type="application/jsonl", headers=CONTENT_HEADERS)


@router.get("/v1/insights/{number}")
async def logged_answer(request: Request, response: Response, number: LogId, model: ModelName = None) -> LoggedAnswer:
    """A question with its answer and the passages that the reader read, as far as the key may see them."""
    response.headers.update(CONTENT_HEADERS)

    def read(key: Key, target: Model, log: AnswerLog) -> LoggedAnswer:
        entries = log.entries(_visible(key, ids=[number]))
        if not entries:
            raise not_found("question", str(number))
        entry, handle, documents = entries[0], target.handle(key), dict[str, Document]()
        for uri in entry.read_uris:
            try:
                documents[uri] = handle.document(uri)
            except CollectionError:  # removed, or hidden from this key
                continue
        return _answer(entry, documents)

    return await _read(request, model, read)


def _answer(entry: LogEntry, documents: dict[str, Document]) -> LoggedAnswer:
    prompt, passages = "\n".join(message["content"] for message in entry.prompt), list[LoggedPassage]()
    for passage in entry.passages:
        if passage["n"] is not None and passage["uri"] in documents:
            text = documents[passage["uri"]].text[passage["start"] : passage["end"]]
            changed = neutralize_markers(text) not in prompt
            shown = {name: passage[name] for name in ("uri", "n", "start", "end", "page")}
            passages.append(LoggedPassage(**shown, text="" if changed else text, changed=changed))
    names: tuple[str, ...] = ("id", "at", "question", "query", "status", "thumbs", "confidence", "seconds", "key")
    said = {}
    if entry.read_uris <= documents.keys():
        said = {"answer": entry.answer if entry.shown is None else entry.shown}
        names += ("correction", "citations", "contradictions")
    passages.sort(key=lambda passage: passage.n)
    return LoggedAnswer(**{name: getattr(entry, name) for name in names}, **said, passages=passages)
