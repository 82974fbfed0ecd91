"""Retrieval: from a query to hits, in one snapshot of a collection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from ragfm.errors import UnsupportedError
from ragfm.types import Hit

if TYPE_CHECKING:
    from ragfm.catalog import Catalog
    from ragfm.snapshot import Allowed, Snapshot
    from ragfm.types import Embedder

Mode: TypeAlias = Literal["hybrid", "dense", "keyword"]


def retrieve(
    query: str, k: int, *, catalog: Catalog, snapshot: Snapshot, embedder: Embedder, allowed: Allowed | None = None
) -> list[Hit]:
    """The `k` chunks of the snapshot nearest to the query, best first; fewer where there are fewer.

    `score` is the cosine in [-1, 1]. `allowed` restricts the search, inside the index. Raises OvertakenError where
    compaction has passed the snapshot.
    """
    scores, ids = snapshot.search(embedder.embed_queries([query]), k, allowed)
    rows = catalog.chunk_rows(ids.tolist())
    if len(rows) < len(ids):
        snapshot.blame("it has chunks that the catalog lacks")
    hits = []
    for score, chunk_id in zip(scores.tolist(), ids.tolist(), strict=True):
        row, text = rows[chunk_id]
        cosine = max(-1.0, min(1.0, score))  # rounding may carry it a little past
        hits.append(
            Hit(
                uri=row.uri,
                text=text,
                start=row.start,
                end=row.end,
                chunk_id=chunk_id,
                score=cosine,
                scores={"dense": cosine, "keyword": None, "fused": None},
                page=row.page,
                place=row.place,
                headings=tuple(row.headings),
                context=row.context,
            )
        )
    return hits


def check_mode(mode: str) -> None:
    """Raise for a mode that there is no index for.

    `hybrid` asks all indexes that a collection has. There is only the vector index yet, so it is the same as `dense`.
    """
    if mode == "keyword":
        raise UnsupportedError("There is no keyword index yet.", "Use `dense` or `hybrid`.")
    if mode not in ("hybrid", "dense"):
        raise UnsupportedError(f"There is no search mode {mode!r}.", "Use `hybrid`, `dense` or `keyword`.")
