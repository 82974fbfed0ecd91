"""Measure a collection of a million chunks: fill, open, search and update it.

    python benchmarks/bench_collection.py [--count N…] [--index KIND]

Vectors are those of bench_index.py (real embeddings, mixed and jittered). Texts are 40 words drawn by their frequency
in SQuAD train, queries are questions of SQuAD dev, and a document has 20 chunks. They are committed as a sync does,
without parsing and embedding; the embedding of queries is not measured either. Every second document has the tag `half
= yes`, one in a hundred `rare = yes`. Searches are single-threaded calls of `Collection.search`, including text and
metadata of the hits. "first" is the first search of a new process after its imports, including opening: "disk" with no
file of the collection in the page cache, "memory" with all of them, as for all other figures. Prints a table, and one
JSON line last. The sizes that were measured replace those in benchmarks/results/collection.json; the others stay, with
their own dates. Default: 100,000 and a million, which take ten minutes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np
import rendering
from bench_index import mix_vectors, questions, real_embeddings, squad
from measure import about, read, save

from ragfm import Collection, Settings
from ragfm.core.types import Chunk, Document
from ragfm.store.catalog import Source
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.document_rows import NewDocument
from ragfm.store.tables import text_hash

CHUNKS, WORDS = 20, 40
BATCH = 500  # documents per commit
FILTERS = {"all": None, "50 %": "half = yes", "1 %": "rare = yes"}


class PrecomputedEmbedder:
    """An embedder that returns given vectors for questions."""

    dim, max_tokens = 384, 256
    fingerprint: ClassVar = {"model": "given", "weights": "", "dim": 384, "pooling": "", "max_tokens": 256}

    def __init__(self, queries: Any) -> None:
        self._queries = dict(zip(["", *questions()], [queries[0], *queries], strict=True))

    def tokenize(self, texts: Sequence[str]) -> list[Any]:
        raise NotImplementedError

    def embed_passages(self, texts: Sequence[str]) -> Any:
        raise NotImplementedError

    def embed_queries(self, texts: Sequence[str]) -> Any:
        return np.stack([self._queries[text] for text in texts])


def texts(count: int, seed: int) -> Iterator[str]:
    counts = Counter(
        re.findall(r"\w+", " ".join(part["context"] for part in squad("squad-v1.0-train.json.gz")).lower())
    )
    words, bounds = list(counts), np.cumsum(list(counts.values()))
    generator = np.random.default_rng(seed)
    for _ in range(count // 1000 + 1):
        drawn = np.searchsorted(bounds, generator.integers(bounds[-1], size=(1000, WORDS)), side="right")
        yield from (" ".join([words[at] for at in row]) for row in drawn.tolist())


def fill(catalog: CatalogWriter, vectors: Any, seed: int, name: str) -> float:
    """Commit the vectors with texts. Returns the seconds, without those for making the texts."""
    source = catalog.save_source(Source(name, "files", name, name))
    contract, made, seconds = catalog.at().contract_id, texts(len(vectors), seed), 0.0
    for start in range(0, len(vectors), BATCH * CHUNKS):
        block = vectors[start : start + BATCH * CHUNKS]
        parts = [f"{start + at}: {next(made)}" for at in range(len(block))]
        begun = time.perf_counter()
        hashes = [text_hash(part) for part in parts]
        catalog.add_vectors(contract, hashes, block)
        documents = []
        for at in range(0, len(parts), CHUNKS):
            number, place, chunks = (start + at) // CHUNKS, 0, []
            for part in parts[at : at + CHUNKS]:
                chunks.append(Chunk(part, place, place + len(part)))
                place += len(part) + 1
            tags = {
                "number": number,
                "half": "yes" if number % 2 else "no",
                "rare": "yes" if number % 100 == 7 else "no",
            }
            document = Document(f"{name}/{number}", "\n".join(parts[at : at + CHUNKS]), "text/plain", tags)
            keys = hashes[at : at + CHUNKS]
            documents.append(NewDocument(str(number), "r", "d", "{}", document, chunks, keys))
        catalog.commit(source, documents, [])
        seconds += time.perf_counter() - begun
    return seconds


def memory() -> dict[str, int]:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return {"own_mb": sizes["Anonymous"] // 1024, "mapped_mb": (sizes["Rss"] - sizes["Anonymous"]) // 1024}


def load_page_cache(folder: Path, *, in_memory: bool) -> None:
    """Load the files into the page cache, or evict them."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while in_memory and file.read(1 << 24):
                    pass
                if not in_memory:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def search(folder: Path, queries_file: Path, index: str, *, first: bool = False) -> dict[str, Any]:
    """Measure in a new process: its `first` search, or all of them."""
    faiss.omp_set_num_threads(1)
    queries, asked = np.load(queries_file), questions()
    collection = Collection.open(folder, settings=Settings(index=index), embedder=PrecomputedEmbedder(queries))
    for module in ("ragfm.store.collection_store", "ragfm_indexes.bm25"):
        importlib.import_module(module)
    found: dict[str, Any] = {"before": memory()}
    start = time.perf_counter()
    collection.search(asked[0], k=10)
    found["first_ms"] = round(1000 * (time.perf_counter() - start))
    if first:
        return found
    for mode in ("dense", "keyword", "hybrid"):
        for share, given in FILTERS.items():
            start = time.perf_counter()
            collection.search(asked[0], k=10, mode=mode, filter=given)
            once, times = 1000 * (time.perf_counter() - start), []
            for query in asked:
                start = time.perf_counter()
                hits = collection.search(query, k=10, mode=mode, filter=given)
                times.append(1000 * (time.perf_counter() - start))
                assert len(hits) == 10 or mode == "keyword"
            found[f"{mode}, {share}"] = {
                "first_ms": round(once, 1),
                "p50_ms": round(statistics.median(times), 2),
                "p95_ms": round(float(np.percentile(times, 95)), 2),
            }
    found["after"] = memory()
    found["index"] = collection.status().indexes[0]
    return found


def recall(folder: Path, vectors: Any, queries: Any, index: str) -> float:
    collection = Collection.open(folder, settings=Settings(index=index), embedder=PrecomputedEmbedder(queries))
    ids = collection._store.catalog.chunk_ids(collection.status().generation)
    best = np.argpartition(-(queries @ vectors.T), 10, axis=1)[:, :10]
    found = [{hit.chunk_id for hit in collection.search(question, k=10, mode="dense")} for question in questions()]
    return float(np.mean([len(found[at] & set(ids[best[at]].tolist())) / 10 for at in range(len(queries))]))


def add(folder: Path, vectors: Any, seed: int, embedder: PrecomputedEmbedder) -> dict[str, float]:
    """Add 1,000 chunks in an open handle and search them."""
    load_page_cache(folder, in_memory=True)
    collection = Collection.open(folder, settings=Settings(), embedder=embedder)
    collection.search(questions()[0], k=10)
    with collection._store.writing() as catalog:
        seconds = fill(catalog, vectors, seed, f"added{seed}")
        start = time.perf_counter()
        collection._store.save_view(catalog)
        saved = time.perf_counter() - start
    start = time.perf_counter()
    collection.search(questions()[0], k=10)
    return {
        "commit_ms": round(1000 * seconds),
        "view_ms": round(1000 * saved),
        "next_search_ms": round(1000 * (time.perf_counter() - start)),
    }


def measure(folder: Path, count: int, index: str) -> dict[str, Any]:
    passages, queries = real_embeddings()
    vectors = mix_vectors(passages, count)
    queries_file = folder.with_name("queries.npy")
    np.save(queries_file, queries)
    embedder, settings = PrecomputedEmbedder(queries), Settings(index=index)
    collection = Collection.open(folder, settings=settings, embedder=embedder)
    done: dict[str, Any] = {}
    with collection._store.writing() as catalog:
        done["commit_s"] = round(fill(catalog, vectors, 1, "first"), 1)
        start = time.perf_counter()
        collection._store.save_view(catalog)
        done["view_s"] = round(time.perf_counter() - start, 1)
    collection.close()
    sizes = {
        name: sum(p.stat().st_size for p in folder.rglob(name)) >> 20
        for name in ("catalog.db*", "vectors/*", "keywords/*")
    }
    done["size_mb"] = sizes
    command = [sys.executable, __file__, "--search", str(folder), str(queries_file), index]

    def run(*option: str) -> dict[str, Any]:
        said = subprocess.run([*command, *option], check=True, stdout=subprocess.PIPE, text=True).stdout
        found: dict[str, Any] = json.loads(said)
        return found

    load_page_cache(folder, in_memory=False)
    done["first from disk_ms"] = run("--first")["first_ms"]
    load_page_cache(folder, in_memory=True)
    found = run()
    done["first from memory_ms"] = found.pop("first_ms")
    done |= found
    done["recall@10"] = round(recall(folder, vectors, queries, index), 4)
    done["add 1,000"] = add(folder, mix_vectors(passages, 1000), count, embedder)
    return done


def table(results: rendering.Results) -> str:
    sizes = results["collection"]["results"]
    columns = [(size, share) for size in sizes for share in ("all", "50 %", "1 %")]
    rows = []
    for mode in rendering.MODES:
        times = (sizes[size][f"{mode}, {share}"] for size, share in columns)
        rows.append([mode, *(f"{one['first_ms']:.0f} / {one['p50_ms']:.1f} / {one['p95_ms']:.1f}" for one in times)])
    return rendering.table(("first / p50 / p95 ms", *(f"{int(size):,}, {share}" for size, share in columns)), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--index", default="auto", help="Kind of the vector index.")
    parser.add_argument("--search", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--first", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.search:
        folder, queries, index = given.search
        print(json.dumps(search(Path(folder), Path(queries), index, first=given.first)))
        return
    head = about("collection", ("ragfm", "faiss-cpu", "numpy", "sqlalchemy", "pysqlite3"))
    name = "collection" if given.index == "auto" else f"collection-{given.index}"
    results = read(name).get("results", {})
    for count in given.count:
        with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
            measured = measure(Path(place) / ".ragfm", count, given.index)
        results[str(count)] = {"date": head["date"], "load": round(os.getloadavg()[0], 1), **measured}
        print(f"{count:,} chunks")
        for key, value in measured.items():
            print(f"  {key:16} {value}")
    results = dict(sorted(results.items(), key=lambda one: int(one[0])))
    result = {**head, "index": given.index, "results": results}
    save(result, name)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
