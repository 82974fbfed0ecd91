"""Measure the vector indexes with a million vectors, compared with raw FAISS with the same parameters.

    python benchmarks/bench_index.py [--count 1000000] [--kinds faiss-flat faiss-hnsw]

20,000 sentences of SQuAD train and of five BEIR corpora are embedded once and kept in the user's cache. Pairs of them
are mixed and jittered to get enough vectors; queries are 200 questions of SQuAD dev. "raw" is FAISS on the same file,
called as the index calls it with a prepared selector; both alternate, one query at a time and single-threaded. "plain"
is FAISS's own filter with the parameters of an unfiltered search. Recall is that of the best 10: as returned, and when
the best 40 are scored again with their vectors, as a collection does. Times are medians; "cpu" and the ratio of index
to raw use CPU time, which depends less on other load. Prints a table, and one JSON line last; a run of a million is
kept in benchmarks/results/index.json.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import math
import multiprocessing
import os
import platform
import random
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from data import DATA
from ragfm_indexes import faiss_hnsw  # noqa: TID251  it needs the parameters of the indexes
from ragfm_indexes.faiss_base import READ_FLAGS, FaissSelection  # noqa: TID251

from ragfm.core.registry import load_plugin
from ragfm.embedders import load_embedder

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ragfm" / "bench_index.npz"
SHARES = (1.0, 0.5, 0.01)
K, CANDIDATES = 10, 40
Search = Callable[[Any], tuple[Any, Any]]


# --- Data --------------------------------------------------------------------------------------------------------


def squad(name: str) -> list[Any]:
    with gzip.open(DATA / "squad" / name, "rt", encoding="utf-8") as file:
        return [paragraph for article in json.load(file)["data"] for paragraph in article["paragraphs"]]


def questions() -> list[str]:
    """200 questions of SQuAD dev."""
    asked = {qa["question"] for paragraph in squad("squad-v1.1-dev.json.gz") for qa in paragraph["qas"]}
    return random.Random(0).sample(sorted(asked), 200)


def real_embeddings() -> tuple[Any, Any]:
    """Embeddings of 20,000 sentences and 200 questions. *Shape:* (20000, 384) and (200, 384)."""
    if not CACHE.is_file():
        texts = [paragraph["context"] for paragraph in squad("squad-v1.0-train.json.gz")]
        for corpus in ("scifact", "npl", "cranfield", "cisi", "cacm"):
            with gzip.open(DATA / "beir" / corpus / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
                texts += [json.loads(line)["text"] for line in file]
        sentences = {part.strip() for text in texts for part in re.split(r"(?<=[.!?])\s+", text)}
        sentences = sorted(sentence for sentence in sentences if 40 <= len(sentence) <= 400)
        embedder = load_embedder()
        passages = embedder.embed_passages(random.Random(0).sample(sentences, 20_000))
        queries = embedder.embed_queries(questions())
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        np.savez(CACHE, passages=passages, queries=queries)
    kept = np.load(CACHE)
    return kept["passages"], kept["queries"]


def mix_vectors(real: Any, count: int) -> Any:
    """Random pairs of rows, mixed, jittered and scaled to length 1. *Shape:* (count, dim)."""
    generator, made = np.random.default_rng(0), np.empty((count, real.shape[1]), dtype=np.float32)
    for start in range(0, count, 50_000):
        block = made[start : start + 50_000]
        one, other = generator.integers(0, len(real), (2, len(block)))
        weight = generator.uniform(0.5, 1, (len(block), 1)).astype(np.float32)
        block[:] = weight * real[one] + (1 - weight) * real[other]
        block += 0.01 * generator.standard_normal(block.shape, dtype=np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return made


# --- What runs in processes of their own -------------------------------------------------------------------------


def build(kind: str, vectors_file: Path, folder: Path) -> dict[str, float]:
    vectors = np.load(vectors_file)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = peak_memory()
    start = time.perf_counter()
    index = load_plugin("indexes", kind).build(np.arange(len(vectors)), vectors)
    seconds = time.perf_counter() - start
    index.save(folder)
    peak = peak_memory() - before
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {"build_s": round(seconds, 1), "build_peak_mb": round(peak / 1024), "file_mb": round(size / 2**20)}


def peak_memory() -> int:
    """Peak memory of this process, in KiB."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def memory() -> tuple[int, int]:
    """Memory of this process in KiB: private, and of files, which processes that map the same files share."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return sizes["Anonymous"], sizes["Rss"] - sizes["Anonymous"]


def open_and_search(kind: str, folder: Path, queries: Any) -> dict[str, float]:
    index_class = load_plugin("indexes", kind)
    own, mapped = memory()
    start = time.perf_counter()
    index = index_class.load(folder)
    seconds = time.perf_counter() - start
    own_opened, mapped_opened = memory()
    for query in queries:
        index.search(query[np.newaxis], CANDIDATES)
    own_used, mapped_used = memory()
    return {
        "open_ms": round(1000 * seconds, 1),
        "own_mb": round((own_opened - own) / 1024, 1),
        "mapped_mb": round((mapped_opened - mapped) / 1024, 1),
        "own_mb_after_200": round((own_used - own) / 1024, 1),
        "mapped_mb_after_200": round((mapped_used - mapped) / 1024, 1),
    }


# --- Searches ----------------------------------------------------------------------------------------------------


def raw_search(kind: str, index: Any, selection: FaissSelection | None, *, plain: bool = False) -> Search:
    """FAISS as the index calls it, or (plain) with the parameters of an unfiltered search."""
    share, count = selection.share if selection else 1.0, index.ntotal
    selector = selection.selector if selection else None
    parameters: Any
    if kind == "faiss-flat":
        parameters = faiss.SearchParameters(sel=selector)
    else:
        widest = max(faiss_hnsw.MIN_EF_SEARCH, faiss_hnsw.EF_SEARCH_GROWTH * math.sqrt(count))
        breadth = math.ceil(widest / (1 if plain else math.sqrt(share)))
        scan = count * (1 if share == 1 else faiss_hnsw.FILTER_CHECK_COST + 2 * share)
        if breadth * faiss_hnsw.GRAPH_STEP_COST >= scan and not plain:
            index, parameters = faiss.downcast_index(index.storage), faiss.SearchParameters(sel=selector)
        else:
            parameters = faiss.SearchParametersHNSW(efSearch=breadth, sel=selector)
    return lambda query: index.search(query, CANDIDATES, params=parameters)


def recalls(vectors: Any, queries: Any, found: list[Any], best: Any) -> tuple[float, float]:
    """Recall of the results as returned, and with the candidates scored again."""
    as_they_come, rescored = [], []
    for query, ids, true in zip(queries, found, best, strict=True):
        ids = ids[ids >= 0]
        order = np.argsort(-(vectors[ids] @ query), kind="stable")
        as_they_come.append(np.isin(true, ids[:K]).mean())
        rescored.append(np.isin(true, ids[order[:K]]).mean())
    return round(float(np.mean(as_they_come)), 4), round(float(np.mean(rescored)), 4)


def time_interleaved(searches: dict[str, Search], queries: Any) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Wall and CPU milliseconds and the hits of each search, alternating query by query."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in searches}
    hits: dict[str, list[Any]] = {name: [] for name in searches}
    for number, query in enumerate(queries):
        for name in sorted(searches, reverse=number % 2 == 1):
            start, busy = time.perf_counter(), time.thread_time()
            found = searches[name](query[np.newaxis])
            times[name].append((1000 * (time.perf_counter() - start), 1000 * (time.thread_time() - busy)))
            hits[name].append(found[1][0])
    return times, hits


def measure(kind: str, folder: Path, vectors: Any, queries: Any, best: dict[float, tuple[Any, Any]]) -> dict[str, Any]:
    index_class = load_plugin("indexes", kind)
    index = index_class.load(folder)
    raw = faiss.read_index(str(folder / "index.faiss"), READ_FLAGS)
    queries = queries[:40] if kind == "faiss-flat" and len(vectors) > 200_000 else queries
    result: dict[str, Any] = {}
    for share, (allowed, true) in best.items():
        selection = None if allowed is None else FaissSelection(allowed, len(vectors))
        start = time.perf_counter()
        index.search(queries[:1], CANDIDATES, allowed=allowed)
        first = 1000 * (time.perf_counter() - start)
        searches: dict[str, Search] = {
            "seam": lambda query, allowed=allowed: index.search(query, CANDIDATES, allowed=allowed),  # type: ignore[misc]
            "raw": raw_search(kind, raw, selection),
        }
        if allowed is not None and kind != "faiss-flat":
            searches["plain"] = raw_search(kind, raw, selection, plain=True)
        time_interleaved(searches, queries[:20])  # warm up
        times, hits = time_interleaved(searches, queries)
        row: dict[str, Any] = {"first_ms": round(first, 2)}
        for name in searches:
            (p50, busy), (p95, _) = np.quantile(times[name], (0.5, 0.95), axis=0)
            as_they_come, rescored = recalls(vectors, queries, hits[name], true[: len(queries)])
            fewest = min(int((ids >= 0).sum()) for ids in hits[name])
            row[name] = {
                "p50_ms": round(float(p50), 3),
                "p95_ms": round(float(p95), 3),
                "cpu_ms": round(float(busy), 3),
                "recall": as_they_come,
                "recall_rescored": rescored,
                "fewest_found": fewest,
            }
        row["ratio"] = round(row["seam"]["cpu_ms"] / row["raw"]["cpu_ms"], 3)
        result[f"allowed {share:.0%}"] = row
    return result


def true_best(vectors: Any, queries: Any) -> dict[float, tuple[Any, Any]]:
    """For each share: the allowed ids (None for all) and the true best of them."""
    best: dict[float, tuple[Any, Any]] = {}
    for share in SHARES:
        if share == 1:
            best[share] = None, faiss.knn(queries, vectors, K, metric=faiss.METRIC_INNER_PRODUCT)[1]
            continue
        chosen = np.random.default_rng(1).random(len(vectors)) < share
        allowed = np.flatnonzero(chosen)
        allowed.flags.writeable = False
        found = np.concatenate(
            [
                part[faiss.knn(queries, vectors[part], K, metric=faiss.METRIC_INNER_PRODUCT)[1]]
                for part in np.array_split(allowed, max(1, len(allowed) // 100_000))
            ],
            axis=1,
        )
        scores = np.einsum("qd,qkd->qk", queries, vectors[found])
        best[share] = allowed, np.take_along_axis(found, np.argsort(-scores, axis=1)[:, :K], axis=1)
    return best


def show(kind: str, row: dict[str, Any]) -> None:
    figures = "  ".join(f"{key} {value}" for key, value in row.items() if not isinstance(value, dict))
    print(f"{kind}: {figures}")
    for case, cells in row.items():
        if isinstance(cells, dict):
            for name in ("seam", "raw", "plain"):
                if name in cells:
                    text = "  ".join(f"{key} {value:<6}" for key, value in cells[name].items())
                    print(f"    {case:12} {name:5} {text}" + (f"  ratio {cells['ratio']}" if name == "seam" else ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--kinds", nargs="+", default=["faiss-flat", "faiss-hnsw"])
    args = parser.parse_args()
    real, queries = real_embeddings()
    vectors = mix_vectors(real, args.count)
    best = true_best(vectors, queries)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        vectors_file = Path(place) / "vectors.npy"
        np.save(vectors_file, vectors)
        for kind in args.kinds:
            folder = Path(place) / kind
            folder.mkdir()
            row: dict[str, Any] = {}
            for job in ((build, kind, vectors_file, folder), (open_and_search, kind, folder, queries)):
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                    row |= pool.submit(*job).result()
            faiss.omp_set_num_threads(1)  # both sides search one query at a time
            rows[kind] = row | measure(kind, folder, vectors, queries, best)
            show(kind, rows[kind])
    result = {
        "benchmark": "index",
        "data": f"{args.count:,} mixtures of MiniLM embeddings of SQuAD and BEIR sentences, {vectors.shape[1]}-d",
        "peer": f"faiss-cpu {version('faiss-cpu')}",
        "versions": {name: version(name) for name in ("ragfm", "faiss-cpu", "numpy")},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "queries": len(queries),
        "k": K,
        "candidates": CANDIDATES,
        "kinds": rows,
    }
    if args.count == 1_000_000:
        Path(__file__).with_name("results").joinpath("index.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
