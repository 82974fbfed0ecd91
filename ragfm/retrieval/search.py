"""Retrieval: from a query to hits, in one snapshot of a collection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from ragfm.core.errors import UnsupportedError
from ragfm.core.types import Hit, embedded_text
from ragfm.retrieval.fusion_weight import USUAL, weight_for

if TYPE_CHECKING:
    from ragfm.core.config import Fusion, SearchSection
    from ragfm.core.types import Embedder, Ids, Reranker, Vectors
    from ragfm.store.catalog import Catalog
    from ragfm.store.snapshot import Allowed, Snapshot

RRF_K = 60
"""How much the first ranks stand out in reciprocal rank fusion; Cormack et al. chose it."""

Mode: TypeAlias = Literal["hybrid", "dense", "keyword"]


@dataclass(frozen=True, slots=True)
class Found:
    """Chunk ids in rank order, with their scores. *Shape:* all (n,); NaN where a chunk has no such score."""

    ids: Ids
    dense: Vectors
    keyword: Vectors
    fused: Vectors


def find(
    query: str,
    k: int,
    *,
    mode: Mode,
    snapshot: Snapshot,
    embedder: Callable[[], Embedder],
    allowed: Allowed | None,
    settings: SearchSection,
) -> Found:
    """The best `k` chunks of a snapshot for a query; fewer where there are fewer.

    `dense` ranks by cosine, `keyword` by BM25, `hybrid` by both, see `fuse`. `embedder` is asked for only where it is
    needed. Raises OvertakenError where compaction has passed the snapshot.
    """
    k = min(k, len(snapshot))
    if mode == "keyword":
        scores, ids = snapshot.search_keywords(query, k, allowed)
        return Found(ids, _none(ids), scores, _none(ids))
    vector = embedder().embed_queries([query])
    if mode == "dense":
        scores, ids = snapshot.search(vector, k, allowed)
        return Found(ids, scores, _none(ids), _none(ids))
    both = _candidates(query, vector, max(k, settings.candidates), snapshot, allowed)
    model, language = snapshot.generation.contract.get("weights"), snapshot.keywords().language
    weight = weight_for(query, settings, model=model, language=language)
    fused = fuse(both.dense, both.keyword, fusion=settings.fusion, weight=weight)
    order = np.lexsort((both.ids, -fused))[:k]
    return Found(both.ids[order], both.dense[order], both.keyword[order], fused[order])


def find_candidates(
    query: str, count: int, *, snapshot: Snapshot, embedder: Callable[[], Embedder], allowed: Allowed | None
) -> Found:
    """What `hybrid` chooses from: the best `count` chunks of each index, in order of id, with both scores."""
    return _candidates(query, embedder().embed_queries([query]), count, snapshot, allowed)


def _candidates(query: str, vector: Vectors, count: int, snapshot: Snapshot, allowed: Allowed | None) -> Found:
    """Each chunk has the score of the index that did not give it, too; BM25 is 0 where it shares no word."""
    count = min(count, len(snapshot))
    dense, dense_ids = snapshot.search(vector, count, allowed)
    keyword, keyword_ids = snapshot.search_keywords(query, count, allowed)
    ids = np.union1d(dense_ids, keyword_ids)
    cosines, bm25 = _none(ids), _none(ids)
    cosines[np.searchsorted(ids, dense_ids)] = dense
    bm25[np.searchsorted(ids, keyword_ids)] = keyword
    unknown = np.isnan(cosines)
    if unknown.any():
        cosines[unknown] = snapshot.cosines(vector, ids[unknown])
    unknown = np.isnan(bm25)
    if len(keyword_ids) < count:  # the others share no word
        bm25[unknown] = 0
    elif unknown.any():
        bm25[unknown] = snapshot.bm25(query, ids[unknown])
    return Found(ids, cosines, bm25, _none(ids))


def fuse(cosines: Vectors, bm25: Vectors, *, fusion: Fusion = "convex", weight: float = USUAL) -> Vectors:
    """One score of two for each candidate; higher is better. *Shape:* all (n,).

    convex    `weight` times the cosine plus the rest times BM25, each scaled to [0, 1] over the candidates: Bruch et
              al. 2023, https://arxiv.org/abs/2210.11934
    rrf       reciprocal rank fusion, the sum of 1 / (60 + rank), where `weight` plays no part; a chunk that shares no
              word has no rank by words: Cormack et al. 2009, https://doi.org/10.1145/1571941.1572114
    """
    if fusion == "rrf":
        fused: Vectors = _reciprocal_ranks(cosines) + _reciprocal_ranks(bm25) * (bm25 > 0)
    else:
        fused = weight * _scaled(cosines) + (1 - weight) * _scaled(bm25)
    return fused.astype(np.float32)


def _scaled(scores: Vectors) -> Vectors:
    low, high = (scores.min(), scores.max()) if len(scores) else (0, 0)
    if not high > low:  # all are the best, if there is anything to be good at
        return np.full_like(scores, high > 0)
    scaled: Vectors = ((scores - low) / (high - low)).astype(np.float32)
    return scaled


def _reciprocal_ranks(scores: Vectors) -> Vectors:
    """Equal scores share a rank."""
    ranks = 1 + np.searchsorted(np.sort(-scores), -scores)
    reciprocal: Vectors = (1 / (RRF_K + ranks)).astype(np.float32)
    return reciprocal


def _none(ids: Ids) -> Vectors:
    return np.full(len(ids), np.nan, dtype=np.float32)


def retrieve(found: Found, catalog: Catalog, snapshot: Snapshot) -> list[Hit]:
    """What was found, with its text. Raises OvertakenError where compaction has passed the snapshot."""
    rows = catalog.chunk_rows(found.ids.tolist())
    if len(rows) < len(found.ids):
        snapshot.blame("it has chunks that the catalog lacks")
    hits = []
    for at, chunk_id in enumerate(found.ids.tolist()):
        row, text = rows[chunk_id]
        scores = {name: _score(getattr(found, name)[at]) for name in ("dense", "keyword", "fused")}
        if scores["dense"] is not None:
            scores["dense"] = max(-1.0, min(1.0, scores["dense"]))  # rounding may carry it a little past
        hits.append(
            Hit(
                uri=row.uri,
                text=text,
                start=row.start,
                end=row.end,
                chunk_id=chunk_id,
                score=scores["dense"],
                scores=scores,
                page=row.page,
                place=row.place,
                headings=tuple(row.headings),
                context=row.context,
            )
        )
    return hits


def rerank(
    query: str, hits: Sequence[Hit], reranker: Reranker, budget_ms: float | None, weight: float = 1.0
) -> list[Hit]:  # fmt: skip
    """Hits in the order of a reranker's scores; after them, as they were, those that it did not score in time.

    With a `weight` below 1 the search's own scores count for the rest, both scaled to [0, 1] over the hits scored.
    """
    if not hits:
        return []
    scores = reranker.rerank(query, [embedded_text(hit.context, hit.text) for hit in hits], budget_ms=budget_ms)
    by = scores
    scored = ~np.isnan(scores)
    if weight < 1 and scored.any():
        own = np.array([_own_score(hit) for hit in hits], dtype=np.float32)
        by = np.full_like(scores, np.nan)
        by[scored] = weight * _scaled(scores[scored]) + (1 - weight) * _scaled(own[scored])
    order = np.argsort(-by, kind="stable").tolist()  # NaN comes last
    return [replace(hits[at], scores={**hits[at].scores, "rerank": _score(scores[at])}) for at in order]


def _own_score(hit: Hit) -> float:
    """What the search has ranked it by."""
    scores = (hit.scores.get(name) for name in ("fused", "dense", "keyword"))
    return next((score for score in scores if score is not None), 0.0)


def _score(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def check_mode(mode: str) -> None:
    """Raise UnsupportedError for a mode that there is not."""
    if mode not in ("hybrid", "dense", "keyword"):
        raise UnsupportedError(f"There is no search mode {mode!r}.", "Use `hybrid`, `dense` or `keyword`.")
