"""`/v1/review`: verified citations to label as right or wrong, as `ragfm log review` does.

They are for owners, whose keys have the scope `metrics`, and of answers whose documents the key may all see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field

from ragfm.core.errors import LogError
from ragfm.generation.answer_log import AnswerLog
from ragfm.generation.log_entries import LogEntry
from ragfm.server.api_errors import ApiError, not_found, refuse_unknown_parameters
from ragfm.server.api_models import OwnRequest
from ragfm.server.document_routes import CONTENT_HEADERS, ModelName
from ragfm.server.service import service_of

T = TypeVar("T")
_BATCH = 50  # citations in a response
router = APIRouter(prefix="/v1/review", dependencies=[Depends(refuse_unknown_parameters)])


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


async def _use_log(
    request: Request, model: str | None, use: Callable[[AnswerLog, Callable[[LogEntry], bool]], T]
) -> tuple[str, T]:
    """The collection, and what `use` makes of its log and of a check whether the key may see an entry's documents.

    Raises ApiError for keys without the scope, and without a log.
    """
    service, key = service_of(request), request.state.key
    if not key.is_owner:
        raise ApiError(403, "The key does not have the scope metrics: labels are for owners.", code="missing_scope")
    target = service.model(key, model)
    request.state.log_fields = {"model": target.collection}

    def run() -> T:
        known = {info.uri for info in target.handle(key).documents()}
        log = target.handle(key).answer_log
        return use(log, lambda entry: entry.read_uris <= known)

    try:
        return target.collection, await service.served.compute(key, run)
    except LogError as error:
        message = f"{target.collection!r} has no answers to label. Set `log = true` under `[ask]` in ragfm.toml."
        raise ApiError(404, message, code="no_answer_log") from error


@router.get("")
async def citations_to_review(
    request: Request,
    response: Response,
    model: ModelName = None,
    seed: Annotated[int, Query(ge=0, lt=2**31, description="Seed of the random order.")] = 0,
) -> ReviewList:
    """Verified citations without a label, in random order."""
    response.headers.update(CONTENT_HEADERS)
    collection, found = await _use_log(
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


@router.post("")
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

    await _use_log(request, body.model, store)
    return Labelled(by=by)
