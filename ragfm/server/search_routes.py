"""Routes for models, search, checks of answers, embeddings and ratings."""

from __future__ import annotations

import base64
from functools import partial

import numpy as np
from fastapi import APIRouter, Request, Response

from ragfm.core.errors import LogError
from ragfm.core.text import check_characters
from ragfm.core.tracing import span
from ragfm.integrations.answer_check import check
from ragfm.server.api_errors import ApiError, not_found
from ragfm.server.api_models import (
    CheckRequest,
    CheckResult,
    EmbeddingItem,
    EmbeddingList,
    EmbeddingRequest,
    EmbeddingUsage,
    ModelCard,
    ModelList,
    Rated,
    RatingRequest,
    SearchRequest,
    SearchResult,
)
from ragfm.server.service import Commit, service_of

router = APIRouter()
_EMBEDDING_BATCH = 16  # texts


@router.get("/v1/models")
async def models(request: Request) -> ModelList:
    """List the models that the key may use."""
    served = service_of(request).served
    return ModelList(data=[ModelCard(id=m.name, created=served.since) for m in served.for_key(request.state.key)])


@router.get("/v1/models/{model}")
async def model(request: Request, model: str) -> ModelCard:
    """One model."""
    service = service_of(request)
    return ModelCard(id=service.model(request.state.key, model).name, created=service.served.since)


@router.post("/v1/search")
async def search(request: Request, body: SearchRequest, commit: Commit = "") -> SearchResult:
    """Find the passages that match a query best."""
    service, key = service_of(request), request.state.key
    target = service.model(key, body.model)
    request.state.log_fields = {"model": target.collection}
    if not body.query.strip():
        raise ApiError(400, "The query is empty.", code="invalid_request", param="query")
    handle = service.handle(request, target, body.groups, "groups")
    await service.wait_for(key, target, handle, commit)
    run_search = partial(handle.search, body.query, body.k, mode=body.mode, filter=body.filter)
    hits = await service.served.compute(key, run_search)
    return SearchResult(model=target.collection, query=body.query, data=hits)


@router.post("/v1/check")
async def check_answer(request: Request, body: CheckRequest, commit: Commit = "") -> CheckResult:
    """Check the answer of any system, sentence by sentence, against passages or the collection."""
    service, key = service_of(request), request.state.key
    target = service.model(key, body.model)
    request.state.log_fields = {"model": target.collection}
    handle = service.handle(request, target, body.groups, "groups")
    await service.wait_for(key, target, handle, commit)
    passages = handle if body.passages is None else body.passages
    run_check = partial(check, body.answer, passages, question=body.question, k=body.k)
    return CheckResult(data=await service.served.compute(key, run_check))


@router.post("/v1/embeddings", response_model=EmbeddingList)
async def embeddings(request: Request, body: EmbeddingRequest) -> Response:
    """Embed texts with the collection's embedder."""
    service, key = service_of(request), request.state.key
    target = service.model(key, body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    for text in texts:
        check_characters("input", text)
    request.state.log_fields = {"model": target.collection, "texts": len(texts)}
    data, tokens = list[EmbeddingItem](), 0
    async with service.served.embedding_queue.slot(key.name):
        embedder = await service.served.run_to_end(lambda: target.handle(key).embedder)
        if body.dimensions not in (None, embedder.dim):
            raise ApiError(400, f"The vectors have {embedder.dim} dimensions.", code="unsupported", param="dimensions")
        embed = embedder.embed_queries if body.input_type == "query" else embedder.embed_passages

        def embed_batch(batch: list[str], start: int) -> int:
            """Append the vectors of a batch. Returns its number of tokens."""
            with span("embed", model=lambda: str(embedder.fingerprint["model"]), texts=len(batch)) as active:
                vectors = np.ascontiguousarray(embed(batch), dtype="<f4")
                count = sum(map(len, embedder.tokenize(batch)))
                active.set(dimensions=embedder.dim, input_tokens=count)
            for index, row in enumerate(vectors, start):
                encoded = base64.b64encode(row.tobytes()).decode() if body.encoding_format == "base64" else row.tolist()
                data.append(EmbeddingItem(index=index, embedding=encoded))
            return count

        # Between two batches, the request ends if its client has gone.
        for start in range(0, len(texts), _EMBEDDING_BATCH):
            tokens += await service.served.compute(key, embed_batch, texts[start : start + _EMBEDDING_BATCH], start)
        usage = EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
        result = EmbeddingList.model_construct(model=body.model, data=data, usage=usage)
        # Not by the event loop, which all requests share.
        content = await service.served.compute(key, result.model_dump_json)
    return Response(content, media_type="application/json", headers=body.warning_headers)


@router.post("/v1/ratings")
async def rate(request: Request, body: RatingRequest) -> Rated:
    """Store a rating of an answer that the same key received. A later rating replaces an earlier one."""
    service, key = service_of(request), request.state.key
    collection, _, rating_id = body.rating.rpartition("/")
    target = service.served.find(key, collection) if collection else None
    if target is None:
        raise not_found("rating", body.rating)
    log = target.rag.log

    def store_rating() -> None:
        entry = log.entry_of_rating(rating_id, key.visible_groups) if log else None
        if log is None or entry is None or key.name != entry.key:
            raise not_found("rating", body.rating)
        log.rate(entry.id, body.thumbs, body.correction)

    try:
        await service.served.run(store_rating)
    except LogError as error:
        raise not_found("rating", body.rating) from error
    return Rated(rating=body.rating, thumbs=body.thumbs)
