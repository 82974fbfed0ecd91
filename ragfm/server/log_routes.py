"""The answer log of a collection: what it says about the questions, and labels of citations.

    /v1/insights        questions by day and group, documents cited, times; /v1/insights/{id}: one of the questions
    /v1/review          verified citations to label as right or wrong, as `ragfm log review` does

Owners, whose keys have the scope `metrics`, see the questions of all keys, others their own. Only owners label. An
answer is shown to keys that may see all documents that its reader read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, Field

from ragfm.core.errors import CollectionError, LogError
from ragfm.core.types import Document
from ragfm.evaluation.log_insights import insights
from ragfm.evaluation.log_questions import questions_from_log
from ragfm.generation.answer_log import AnswerLog
from ragfm.generation.log_entries import LogEntry, LogFilter
from ragfm.generation.prompt import neutralize_markers
from ragfm.server.api_errors import ApiError, not_found, refuse_unknown_parameters
from ragfm.server.api_keys import Key
from ragfm.server.api_models import InsightList, LoggedAnswer, LoggedPassage, OwnRequest
from ragfm.server.document_routes import CONTENT_HEADERS, ModelName
from ragfm.server.served_models import Model
from ragfm.server.service import service_of

T = TypeVar("T")
LogId = Annotated[int, Path(ge=1, lt=2**63)]
_BATCH = 50  # citations in a response
router = APIRouter(dependencies=[Depends(refuse_unknown_parameters)])


async def _read(request: Request, model: str | None, read: Callable[[Key, Model, AnswerLog], T]) -> T:
    """What `read` finds in a collection's log. Raises ApiError if there is none."""
    service, key = service_of(request), request.state.key
    target = service.model(key, model)
    request.state.log_fields = {"model": target.collection}
    try:
        return await service.served.compute(key, lambda: read(key, target, target.handle(key).answer_log))
    except LogError as error:
        request.state.log_fields |= {"why": type(error).__name__}
        message = (
            f"{target.collection!r} has no logged answer. To log answers, set `log = true` under `[ask]` in ragfm.toml."
        )
        raise ApiError(404, message, code="no_answer_log") from error


def _documents(key: Key, target: Model) -> dict[str, None]:
    """The URIs of the documents that a key may see, in order."""
    return {info.uri: None for info in target.handle(key).documents()}


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
        rows = log.overview(_visible(key, newer_than=timedelta(days=days)))
        found = insights(rows, list(_documents(key, target)))
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
        known = _documents(key, target).keys()
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


class ReviewedCitation(BaseModel):
    """Citation number `citation` (from 1) of a log entry. Its probability is left out: it would influence the label."""

    entry: int
    citation: int
    question: str
    sentence: str
    quote: str
    uri: str
    name: str
    page: int | None
    start: int
    end: int


class ReviewList(BaseModel):
    """The first of the `waiting` citations without a label, in random order."""

    model: str
    waiting: int
    data: list[ReviewedCitation]


class LabelRequest(OwnRequest):
    """Whether the quote of a citation states what question and sentence say together."""

    model: str | None = Field(None, max_length=200, description="The collection. Default: the key's first one.")
    entry: int = Field(ge=1, lt=2**63)
    citation: int = Field(ge=1, le=10_000)
    right: bool


class Labelled(BaseModel):
    """Who gave the label that was stored: the name of the key or user."""

    by: str


async def _review(
    request: Request, model: str | None, use: Callable[[AnswerLog, Callable[[LogEntry], bool]], T]
) -> tuple[str, T]:
    """The collection, and what `use` makes of its log and of a check whether the key may see an entry's documents.

    Raises ApiError for keys without the scope, and without a log.
    """
    if not request.state.key.is_owner:
        raise ApiError(403, "The key does not have the scope metrics: labels are for owners.", code="missing_scope")

    def read(key: Key, target: Model, log: AnswerLog) -> tuple[str, T]:
        known = _documents(key, target).keys()
        return target.collection, use(log, lambda entry: entry.read_uris <= known)

    return await _read(request, model, read)


@router.get("/v1/review")
async def citations_to_review(
    request: Request,
    response: Response,
    model: ModelName = None,
    seed: Annotated[int, Query(ge=0, lt=2**31, description="Seed of the random order.")] = 0,
) -> ReviewList:
    """Verified citations without a label, in random order."""
    response.headers.update(CONTENT_HEADERS)
    collection, found = await _review(
        request, model, lambda log, may_see: [one for one in log.to_review(seed) if may_see(one[0])]
    )
    data = []
    for entry, number in found[:_BATCH]:
        cited = entry.citations[number - 1]
        values = {name: cited[name] for name in ("quote", "uri", "page", "start", "end")}
        values |= {"sentence": entry.answer[cited["answer_start"] : cited["answer_end"]], "question": entry.question}
        name = cited["name"] or cited["uri"]
        data.append(ReviewedCitation(entry=entry.id, citation=number, name=name, **values))
    return ReviewList(model=collection, waiting=len(found), data=data)


@router.post("/v1/review")
async def label_citation(request: Request, body: LabelRequest) -> Labelled:
    """Store whether a citation is right. A later label replaces an earlier one."""
    by = request.state.key.name

    def store(log: AnswerLog, may_see: Callable[[LogEntry], bool]) -> None:
        entry = log.find(body.entry)
        if entry is None or not may_see(entry):
            raise not_found("entry", str(body.entry))
        try:
            log.label(entry, body.citation, right=body.right, by=by)
        except LogError as error:
            raise ApiError(400, error.message, code="invalid_request", param="citation") from error

    await _review(request, body.model, store)
    return Labelled(by=by)
