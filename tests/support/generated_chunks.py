"""Collections of generated chunks, for tests of search backends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragfm.core.config import Settings
from ragfm.core.types import Chunk, Document, Vectors
from ragfm.store.catalog import Source
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.collection_store import open_database
from ragfm.store.document_rows import NewDocument
from ragfm.store.filters import parse_filter, visible_to
from ragfm.store.search_backend import Predicate, SearchBackend
from ragfm.store.tables import text_hash

DIM, CHUNKS = 64, 100  # chunks per document


@contextmanager
def written(
    location: str | Path, count: int, backend: type[SearchBackend], settings: Settings
) -> Iterator[CatalogWriter]:
    """A collection with `count` chunks, a hundred per document; one more document has two. Odd documents are for hr."""
    database = open_database(location)
    with database.creating() as new:
        CatalogWriter.create(new, {"model": "m", "weights": "", "dim": DIM, "embedder": "m"})
    with database.lock():
        catalog = CatalogWriter(database)
        try:
            catalog.save_source(Source("s", "files", "s", "s"))
            add(catalog, [*range(count // CHUNKS)])
            add(catalog, [count // CHUNKS], chunks=2)
            backend.save(catalog, settings, language_changed=lambda *_: None)
            yield catalog
        finally:
            catalog.close()


def add(
    catalog: CatalogWriter, numbers: Sequence[int], *, version: int = 0, chunks: int = CHUNKS, equal: bool = False
) -> None:
    """Commit documents with vectors around common centres, or with one vector for all chunks."""
    random = np.random.default_rng(11)
    centres, random = random.standard_normal((200, DIM)), np.random.default_rng([version, *numbers[:1]])
    clusters = np.minimum(random.zipf(1.3, len(numbers) * chunks), 200) - 1
    rows = unit(centres[clusters] + random.normal(0, 0.5, (len(clusters), DIM)))
    if equal:
        rows[:] = rows[0]
    new, hashes = [], []
    for number in numbers:
        parts = [f"Text {number} {part} {version}.\n" for part in range(chunks)]
        offsets = np.cumsum([0, *map(len, parts)]).tolist()
        of_document = [Chunk(text, at, at + len(text)) for text, at in zip(parts, offsets, strict=False)]
        keys = [text_hash(chunk.embedded_text) for chunk in of_document]
        document = Document(f"s/{number}", "".join(parts), "text/plain", {"number": number})
        allow = ("hr",) if number % 2 else None
        new.append(NewDocument(str(number), "", f"{number} {version}", "", document, of_document, keys, allow))
        hashes += keys
    catalog.add_vectors(1, hashes, rows)
    catalog.commit(catalog.sources()[0], new, [])


def unit(rows: Any) -> Vectors:
    vectors: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return vectors


def predicate(catalog: CatalogWriter, text: str | None, groups: frozenset[str] | None = None) -> Predicate:
    conditions = [parse_filter(text).condition] if text else []
    conditions += [] if groups is None else [visible_to(groups)]
    return Predicate(text, groups, catalog.generation(), tuple(conditions))


def check_recall(snapshot: Any, catalog: CatalogWriter, where: Predicate | None, k: int, queries: Vectors) -> float:
    """The mean recall of searches, which have to return `k` hits with exact scores."""
    ids, stored = catalog.chunk_vectors(snapshot.generation)
    allowed = ids if where is None else catalog.chunk_ids(snapshot.generation.id, *where.conditions)
    rows, shares = stored[np.isin(ids, allowed)], []
    for query in queries:
        scores, found = snapshot.search(query[np.newaxis], k, where)
        assert len(found) == min(k, len(allowed))
        assert np.isin(found, allowed).all()
        exact = rows @ query
        assert scores == pytest.approx(exact[np.searchsorted(allowed, found)], abs=1e-6)
        shares.append(np.mean(scores >= np.sort(exact)[-len(found)] - 1e-6))
    return float(np.mean(shares))
