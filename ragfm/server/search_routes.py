"""Routes that read: models, searches, embeddings; and ratings of answers."""

from __future__ import annotations

import base64
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from fastapi import APIRouter, Request

from ragfm.core.errors import LogError
from ragfm.core.text import check_characters
from ragfm.server.api_errors import ApiError, not_found
from ragfm.server.api_models import (
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
from ragfm.server.service import service_of

if TYPE_CHECKING:
    from ragfm.core.types import Embedder, Vectors
    from ragfm.rag import Rag
    from ragfm.server.api_keys import Key

__all__ = ["router"]

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> ModelList:
    """The collections that the key may ask, and their readers."""
    served = service_of(request).served
    return ModelList(data=[ModelCard(id=m.name, created=served.since) for m in served.for_key(request.state.key)])


@router.get("/v1/models/{model}")
async def model(request: Request, model: str) -> ModelCard:
    """One of them."""
    service = service_of(request)
    return ModelCard(id=service.model(request.state.key, model).name, created=service.served.since)


@router.post("/v1/search")
async def search(request: Request, asked: SearchRequest) -> SearchResult:
    """The passages nearest to a query."""
    service, key = service_of(request), request.state.key
    model = service.model(key, asked.model)
    request.state.noted = {"model": model.collection}
    if not asked.query.strip():
        raise ApiError(400, "The query is empty.", code="invalid_request", param="query")
    find = partial(model.handle(key).search, asked.query, asked.k, mode=asked.mode, filter=asked.filter)
    async with service.searches(key):
        hits = await service.served.run(find)
    return SearchResult(model=model.collection, query=asked.query, data=hits)


@router.post("/v1/embeddings")
async def embeddings(request: Request, asked: EmbeddingRequest) -> EmbeddingList:
    """Vectors of texts, by the collection's embedder."""
    service, key = service_of(request), request.state.key
    model = service.model(key, asked.model)
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    for text in texts:
        check_characters("input", text)
    request.state.noted = {"model": model.collection, "texts": len(texts)}
    async with service.searches(key):
        embedder = await service.served.run(lambda: model.handle(key).embedder)
        if asked.dimensions not in (None, embedder.dim):
            raise ApiError(400, f"The vectors have {embedder.dim} dimensions.", code="unsupported", param="dimensions")
        vectors, tokens = await service.served.run(_embedded, embedder, texts, asked.input_type)
    as_base64 = asked.encoding_format == "base64"
    data = [
        EmbeddingItem(index=at, embedding=base64.b64encode(row.tobytes()).decode() if as_base64 else row.tolist())
        for at, row in enumerate(vectors)
    ]
    return EmbeddingList(model=asked.model, data=data, usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens))


@router.post("/v1/ratings")
async def rate(request: Request, asked: RatingRequest) -> Rated:
    """Keep what a user thought of an answer that the same key got; the last word counts."""
    service, key = service_of(request), request.state.key
    collection, _, number = asked.rating.rpartition("/")
    model = service.served.find(key, collection) if collection else None
    if model is None or not number.isdecimal() or len(number) > 18:  # SQLite's integers
        raise not_found("rating", asked.rating)
    await service.served.run(_rate, model.rag, key, int(number), asked)
    return Rated(rating=asked.rating, thumbs=asked.thumbs)


def _embedded(embedder: Embedder, texts: list[str], what: str) -> tuple[Vectors, int]:
    """The vectors, as little-endian float32; and how many tokens they are of."""
    vectors = embedder.embed_queries(texts) if what == "query" else embedder.embed_passages(texts)
    return np.ascontiguousarray(vectors, dtype="<f4"), sum(map(len, embedder.tokenize(texts)))


def _rate(rag: Rag, key: Key, number: int, asked: RatingRequest) -> None:
    """An entry is a key's own where its handle had the group that no other key has."""
    try:
        if rag.log is None or key.own_group not in (rag.log.entry(number).groups or ()):
            raise not_found("rating", asked.rating)
        rag.log.rate(number, asked.thumbs, asked.correction)
    except LogError as error:
        raise not_found("rating", asked.rating) from error
