"""Search: from a query to hits, in one snapshot of a collection.

`find` ranks chunk ids, `fuse` combines two scores, `load_hits` reads the texts, `rerank_hits` reorders hits by a model.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from ragfm.core.document_name import context_names
from ragfm.core.errors import UnsupportedError
from ragfm.core.text import IDENTIFIER, line_range
from ragfm.core.tracing import span
from ragfm.core.types import Hit, embedded_text
from ragfm.parsing.formats import WITH_LINES
from ragfm.retrieval.fusion_weight import DEFAULT_WEIGHT, weight_for

if TYPE_CHECKING:
    from ragfm.core.config import SearchSection
    from ragfm.core.types import Embedder, Ids, Reranker, Vectors
    from ragfm.store.catalog import Catalog
    from ragfm.store.collection_store import Store
    from ragfm.store.search_backend import Predicate, SearchBackend

DOCUMENT_SHARE = 0.05
"""Share of the document's score in the fused score of a chunk."""
_DOCUMENT_CHUNKS = 10  # the best chunks that a document is scored by
NEIGHBOUR_SHARE = 0.1
"""Share of a neighbour's likelihood that a chunk gains in reranking, and amount that it loses near a better chunk."""
_NEAR = 3  # chunks
NAME_SHARE = 0.2
"""What a chunk gains in the fused score, from 0 to 1, if the query has the whole name of its document."""
IDENTIFIER_SHARE = 0.1
"""What a chunk gains in reranking if its heading has an identifier of the query: it is likely its definition."""
_WORD = re.compile(r"[^\W\d_]+|\d+")
_SHORT_YEAR = re.compile(r"(?<=[^\W\d_]|['’])\d\d(?!\d)")  # FY22, '22

Mode: TypeAlias = Literal["hybrid", "dense", "keyword"]


@dataclass(frozen=True, slots=True)
class RankedChunks:
    """Chunk ids in rank order with their scores. *Shape:* all (n,); NaN for a score that a chunk does not have."""

    ids: Ids
    dense: Vectors
    keyword: Vectors
    fused: Vectors


def unscored(ids: Sequence[int]) -> RankedChunks:
    """Chunks that were not searched for."""
    array = np.array(ids, dtype=np.int64)
    return RankedChunks(array, _no_scores(array), _no_scores(array), _no_scores(array))


def find(
    query: str,
    k: int,
    *,
    mode: Mode,
    snapshot: SearchBackend,
    embedder: Callable[[], Embedder],
    where: Predicate | None,
    settings: SearchSection,
) -> RankedChunks:
    """The best `k` chunks of a snapshot.

    `dense` ranks by cosine, `keyword` by BM25, `hybrid` by both (see `fuse`). `embedder` is called only if needed.
    Raises StaleReadError if compaction has removed the snapshot.
    """
    k = min(k, len(snapshot))
    if mode == "keyword":
        scores, ids = snapshot.search_keywords(query, k, where)
        return RankedChunks(ids, _no_scores(ids), scores, _no_scores(ids))
    if mode == "dense":
        scores, ids = snapshot.search(query_vectors(embedder(), [query]), k, where)
        return RankedChunks(ids, scores, _no_scores(ids), _no_scores(ids))
    count = max(k, settings.candidates)
    candidates = find_candidates(query, count, snapshot=snapshot, embedder=embedder, where=where)
    model, language = snapshot.generation.contract.get("weights"), snapshot.language
    weight = weight_for(query, settings, model=model, language=language)
    documents, contexts = snapshot.documents_of(candidates.ids)
    fused = fuse(
        candidates.dense,
        candidates.keyword,
        documents,
        match_names(query, documents, contexts),
        weight=weight,
    )
    order = np.lexsort((candidates.ids, -fused))[:k]
    return RankedChunks(candidates.ids[order], candidates.dense[order], candidates.keyword[order], fused[order])


def query_vectors(embedder: Embedder, queries: Sequence[str]) -> Vectors:
    """Embed queries. *Shape:* (len(queries), dim). Raises TooLongError."""
    with span("embed", texts=len(queries), dimensions=lambda: embedder.dim) as active:
        active.set(model=lambda: str(embedder.fingerprint["model"]))
        active.set(input_tokens=lambda: sum(map(len, embedder.tokenize(queries))))
        return embedder.embed_queries(queries)


def candidate_hits(store: Store, query: str, count: int) -> list[Hit]:
    """The hits of `find_candidates` in the newest generation, for the owner of a collection."""

    def found(snapshot: SearchBackend) -> list[Hit]:
        embedder = partial(store.embedder, snapshot.generation)
        ranked = find_candidates(query, count, snapshot=snapshot, embedder=embedder, where=None)
        return load_hits(ranked, store.catalog, snapshot)

    return store.read(found)


def find_candidates(
    query: str,
    count: int,
    *,
    snapshot: SearchBackend,
    embedder: Callable[[], Embedder],
    where: Predicate | None,
) -> RankedChunks:
    """The candidates of `hybrid`: the best `count` chunks of each index, in order of id, with all scores.

    Scores that only one index returned are computed for the others; BM25 is 0 if chunk and query share no word.
    """
    vector = query_vectors(embedder(), [query])
    count = min(count, len(snapshot))
    dense, dense_ids = snapshot.search(vector, count, where)
    keyword, keyword_ids = snapshot.search_keywords(query, count, where)
    ids = np.union1d(dense_ids, keyword_ids)
    cosines, bm25 = _no_scores(ids), _no_scores(ids)
    cosines[np.searchsorted(ids, dense_ids)] = dense
    bm25[np.searchsorted(ids, keyword_ids)] = keyword
    unknown = np.isnan(cosines)
    if unknown.any():
        cosines[unknown] = snapshot.cosines(vector, ids[unknown])
    unknown = np.isnan(bm25)
    if len(keyword_ids) < count:  # the rest share no word with the query
        bm25[unknown] = 0
    elif unknown.any():
        bm25[unknown] = snapshot.bm25(query, ids[unknown])
    return RankedChunks(ids, cosines, bm25, _no_scores(ids))


def fuse(
    cosines: Vectors,
    bm25: Vectors,
    documents: Ids | None = None,
    names: Vectors | None = None,
    *,
    weight: float = DEFAULT_WEIGHT,
) -> Vectors:
    """Combine cosine and BM25 into one score per candidate; higher is better. *Shape:* all (n,).

    `weight` · cosine + (1 - `weight`) · BM25, each scaled to [0, 1] over the candidates (Bruch et al. 2023,
    https://arxiv.org/abs/2210.11934). With `documents`, the ids of their documents, a twentieth is the score of the
    chunk's document: the mean of its ten best candidates and of the average one, scaled likewise. `names`, as
    `match_names` gives them, add up to a fifth.
    """
    fused: Vectors = weight * min_max(cosines) + (1 - weight) * min_max(bm25)
    if documents is not None and len(fused):
        _, document = np.unique(documents, return_inverse=True)
        order = np.lexsort((-fused, document))
        rank = np.arange(len(order)) - np.searchsorted(document[order], document[order])
        best = order[rank < _DOCUMENT_CHUNKS]
        # The average candidate keeps a document with one good chunk from outranking one with many.
        of_document = (np.bincount(document[best], fused[best]) + fused.mean()) / (np.bincount(document[best]) + 1)
        fused = (1 - DOCUMENT_SHARE) * fused + DOCUMENT_SHARE * min_max(of_document)[document]
    if names is None or not names.any():
        return fused.astype(np.float32)
    return ((fused + NAME_SHARE * names) / (1 + NAME_SHARE)).astype(np.float32)


def min_max(scores: Vectors) -> Vectors:
    """Scores scaled to [0, 1]; equal ones are all 1 if they are above 0, else 0."""
    low, high = (scores.min(), scores.max()) if len(scores) else (0, 0)
    if not high > low:  # all are equal: the best if they score at all
        return np.full_like(scores, high > 0)
    scaled: Vectors = ((scores - low) / (high - low)).astype(np.float32)
    return scaled


def _no_scores(ids: Ids) -> Vectors:
    return np.full(len(ids), np.nan, dtype=np.float32)


def load_hits(ranked: RankedChunks, catalog: Catalog, snapshot: SearchBackend) -> list[Hit]:
    """Read the texts of ranked chunks. Raises StaleReadError if compaction has removed the snapshot."""
    rows, names = catalog.chunk_rows(ranked.ids.tolist()), catalog.display_names()
    if len(rows) < len(ranked.ids):
        snapshot.report_missing_chunks(ranked.ids)
    hits = []
    for at, chunk_id in enumerate(ranked.ids.tolist()):
        row, text, document = rows[chunk_id]
        has_lines = row.media_type in WITH_LINES and row.parsed_by is None
        scores = {name: _score(getattr(ranked, name)[at]) for name in ("dense", "keyword", "fused")}
        if scores["dense"] is not None:
            scores["dense"] = max(-1.0, min(1.0, scores["dense"]))  # rounding may exceed the range
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
                name=names.name_of(row.uri),
                lines=line_range(document, row.start, row.end) if has_lines else None,
                image=row.image,
                box=row.box and tuple(row.box),
            )
        )
    return hits


def rerank_hits(query: str, hits: Sequence[Hit], reranker: Reranker, weight: float | None = None) -> list[Hit]:
    """Reorder hits by a reranker's scores.

    With a `weight` below 1, the search scores have the rest, both scaled to [0, 1] over the hits. The scores of a
    reranker with `calibrated` are likelihoods, which are not scaled: where all are low, the order of the search
    counts. The search scores are then relative to the highest, and `match_identifiers` and `weigh_neighbours` apply.
    Default: the reranker's own weight, else 1.
    """
    if not hits:
        return []
    if weight is None:
        weight = getattr(reranker, "weight", 1.0)
    with span("rerank", reranker=type(reranker).__name__, texts=len(hits)):
        scores = sort_keys = reranker.rerank(query, [embedded_text(hit.context, hit.text) for hit in hits])
    if weight < 1:
        searched = [[hit.scores.get(name) for name in ("fused", "dense", "keyword")] for hit in hits]
        own = np.array([next((s for s in of_hit if s is not None), 0.0) for of_hit in searched], dtype=np.float32)
        if getattr(reranker, "calibrated", False):
            relative = own.clip(min=0) / max(own.max(), 1e-9)  # cosines may be negative
            sums = weight * scores + (1 - weight) * relative + IDENTIFIER_SHARE * match_identifiers(query, hits)
            ids = np.array([hit.chunk_id for hit in hits], dtype=np.int64)
            documents = np.unique([hit.uri for hit in hits], return_inverse=True)[1]
            sort_keys = weigh_neighbours(sums, scores, ids, documents)
        else:
            sort_keys = weight * min_max(scores) + (1 - weight) * min_max(own)
    order = np.argsort(-sort_keys, kind="stable").tolist()
    return [replace(hits[at], scores={**hits[at].scores, "rerank": float(scores[at])}) for at in order]


def match_names(query: str, documents: Ids, contexts: Sequence[str]) -> Vectors:
    """How well the query names the document of each chunk, in [0, 1]. *Shape:* all (n,).

    The share of the query's words in names of documents that this one's name has, times the square root of the share of
    its name that the query has. A word or number counts by how few of the documents have it in their name: "Amcor"
    tells reports of companies apart, and "report" does not. `FY22` and `'22` stand for the years 1922 and 2022, too.
    """
    context_of = dict(zip(documents.tolist(), contexts, strict=True))  # one of each document: all begin with its name
    names = {
        document: set(_WORD.findall(context_names(context)[0].lower())) for document, context in context_of.items()
    }
    counts = Counter(word for name in names.values() for word in name)
    rarity = {word: math.log(len(names) / count) for word, count in counts.items()}
    asked = set(_WORD.findall(query.lower()))
    asked |= {f"{century}{year}" for year in _SHORT_YEAR.findall(query) for century in (19, 20)}

    def weigh(words: Set[str]) -> float:
        return sum(rarity[word] for word in words)

    named = weigh(asked & rarity.keys())
    if not named:
        return np.zeros(len(documents), dtype=np.float32)
    match = {
        document: found / named * math.sqrt(found / weigh(name)) if (found := weigh(asked & name)) else 0.0
        for document, name in names.items()
    }
    return np.array([match[document] for document in documents.tolist()], dtype=np.float32)


def match_identifiers(query: str, hits: Sequence[Hit]) -> Vectors:
    """1 for hits whose innermost heading has an identifier of the query, such as `shared_buffers`. *Shape:* (n,)."""
    asked = set(IDENTIFIER.findall(query))
    found = [not asked.isdisjoint(IDENTIFIER.findall(hit.headings[-1])) if hit.headings else False for hit in hits]
    return np.array(found, dtype=np.float32)


def weigh_neighbours(
    scores: Vectors, likelihoods: Vectors, ids: Ids, documents: Ids, share: float = NEIGHBOUR_SHARE
) -> Vectors:
    """Scores of chunks, with the evidence of the chunks around them in the same document. *Shape:* all (n,).

    A chunk gains a `share` of the likelihood of the likelier chunk directly before or after it: the answer is often
    near text about the question. It loses `share` if a better chunk is at most three chunks away, so that the first
    hits come from several places.
    """
    distance, same = np.abs(ids[:, None] - ids), documents[:, None] == documents
    scores = scores + share * np.where(same & (distance == 1), likelihoods, 0).max(axis=1)
    near_better = (same & (distance <= _NEAR) & (scores > scores[:, None])).any(axis=1)
    weighed: Vectors = (scores - share * near_better).astype(np.float32)
    return weighed


def _score(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def check_mode(mode: str) -> None:
    """Raise UnsupportedError for an unknown mode."""
    if mode not in ("hybrid", "dense", "keyword"):
        raise UnsupportedError(f"There is no search mode {mode!r}.", "Use `hybrid`, `dense` or `keyword`.")
