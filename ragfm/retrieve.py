"""Retrieval: from a query to hits, in one snapshot of a collection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from ragfm.errors import UnsupportedError
from ragfm.types import Hit

if TYPE_CHECKING:
    from ragfm.store.catalog import Catalog
    from ragfm.store.snapshot import Allowed, Snapshot
    from ragfm.types import Embedder, Ids, Vectors

CANDIDATES = 100
"""Chunks that each index gives to `hybrid`."""
WEIGHT = 0.6
"""Of the cosines in `hybrid`; the rest is BM25's."""

Mode: TypeAlias = Literal["hybrid", "dense", "keyword"]


@dataclass(frozen=True, slots=True)
class Found:
    """Chunk ids in rank order, with their scores. *Shape:* all (n,); NaN where a chunk has no such score."""

    ids: Ids
    dense: Vectors
    keyword: Vectors
    fused: Vectors


def find(
    query: str, k: int, mode: Mode, snapshot: Snapshot, embedder: Callable[[], Embedder], allowed: Allowed | None
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
    wanted = min(max(k, CANDIDATES), len(snapshot))
    dense, dense_ids = snapshot.search(vector, wanted, allowed)
    keyword, keyword_ids = snapshot.search_keywords(query, wanted, allowed)
    ids = np.union1d(dense_ids, keyword_ids)
    cosines, bm25 = _none(ids), np.zeros(len(ids), dtype=np.float32)
    cosines[np.searchsorted(ids, dense_ids)] = dense
    bm25[np.searchsorted(ids, keyword_ids)] = keyword
    unknown = np.isnan(cosines)
    if unknown.any():
        cosines[unknown] = snapshot.cosines(vector, ids[unknown])
    fused = fuse(cosines, bm25)
    order = np.lexsort((ids, -fused))[:k]
    return Found(ids[order], cosines[order], bm25[order], fused[order])


def fuse(cosines: Vectors, bm25: Vectors, weight: float = WEIGHT) -> Vectors:
    """The convex combination of two scores, each scaled to [0, 1] over the candidates (Bruch et al. 2023).

    *Shape:* all (n,). See https://arxiv.org/abs/2210.11934. `weight` is that of the cosines.
    """
    fused: Vectors = weight * _scaled(cosines) + (1 - weight) * _scaled(bm25)
    return fused


def _scaled(scores: Vectors) -> Vectors:
    low, high = (scores.min(), scores.max()) if len(scores) else (0, 0)
    if not high > low:
        return np.zeros_like(scores)
    scaled: Vectors = ((scores - low) / (high - low)).astype(np.float32)
    return scaled


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


def _score(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def check_mode(mode: str) -> None:
    """Raise UnsupportedError for a mode that there is not."""
    if mode not in ("hybrid", "dense", "keyword"):
        raise UnsupportedError(f"There is no search mode {mode!r}.", "Use `hybrid`, `dense` or `keyword`.")
