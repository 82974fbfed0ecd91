"""Compare speed, size and quality of the keyword index with bm25s and tantivy.

    python benchmarks/bench_bm25.py --texts 1000000

Quality: nDCG@10 on SciFact test and npl (title and text, one text per document), MRR@10 on every tenth question of
SQuAD 1.1 dev over the paragraphs of dev and train. Speed: synthetic texts of 20 to 60 words with Zipfian frequencies,
and queries of 2 to 6 of their words. Each peer runs in its own process, with its English stemmer and stop words and one
thread per search, and returns the ids of the best 10. Peers that are not installed are skipped. The last line is the
result in JSON.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from data import DATA

from ragfm.core.registry import load_plugin

PEERS = {"ragfm": "ragfm", "bm25s": "bm25s", "tantivy": "tantivy"}


class Ragfm:
    """The index of this project."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def build(self, n: int, texts: Iterator[str]) -> None:
        load_plugin("keyword_indexes", "bm25").build(np.arange(n), texts, language="en").save(self.folder)

    def open(self) -> None:
        self.index = load_plugin("keyword_indexes", "bm25").load(self.folder)

    def search(self, query: str, allowed: Any = None) -> list[int]:
        _, ids = self.index.search([query], 10, allowed=allowed)
        return [found for found in ids[0].tolist() if found >= 0]


class Bm25s:
    """bm25s with PyStemmer; it filters by a mask of weights and needs all tokens in memory."""

    def __init__(self, folder: Path) -> None:
        import bm25s
        import Stemmer

        self.folder, self.bm25s, self.stemmer = folder, bm25s, Stemmer.Stemmer("english")

    def tokens(self, texts: list[str], **how: Any) -> Any:
        return self.bm25s.tokenize(texts, stopwords="en", stemmer=self.stemmer, show_progress=False, **how)

    def build(self, n: int, texts: Iterator[str]) -> None:
        self.n = n
        index = self.bm25s.BM25(k1=1.2, b=0.75)
        index.index(self.tokens(list(texts)), show_progress=False)
        index.save(self.folder)

    def open(self) -> None:
        self.index = self.bm25s.BM25.load(self.folder, mmap=True)

    def search(self, query: str, allowed: Any = None) -> list[int]:
        mask = None
        if allowed is not None:
            mask = np.zeros(self.n, dtype=np.float32)
            mask[allowed] = 1
        tokens = self.tokens([query], return_ids=False)
        if not tokens[0]:
            return []
        rows, scores = self.index.retrieve(tokens, k=10, weight_mask=mask, show_progress=False)
        return [int(row) for row, score in zip(rows[0], scores[0], strict=True) if score > 0]


class Tantivy:
    """tantivy with the same stemmer and its own English stop words; it filters by a query that lists the ids."""

    def __init__(self, folder: Path) -> None:
        import tantivy

        self.folder, self.tantivy = folder, tantivy
        builder = tantivy.SchemaBuilder()
        builder.add_integer_field("id", stored=True, indexed=True, fast=True)
        builder.add_text_field("text", stored=False, tokenizer_name="english")
        self.schema = builder.build()
        words = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        for step in (
            tantivy.Filter.lowercase(),
            tantivy.Filter.stopword("english"),
            tantivy.Filter.stemmer("english"),
        ):
            words = words.filter(step)
        self.analyzer = words.build()

    def build(self, n: int, texts: Iterator[str]) -> None:
        index = self.tantivy.Index(self.schema, path=str(self.folder))
        index.register_tokenizer("english", self.analyzer)
        writer = index.writer(heap_size=512 << 20, num_threads=1)
        for number, text in enumerate(texts):
            writer.add_document(self.tantivy.Document(id=number, text=text))
        writer.commit()
        writer.wait_merging_threads()

    def open(self) -> None:
        self.index = self.tantivy.Index.open(str(self.folder))
        self.index.register_tokenizer("english", self.analyzer)
        self.searcher = self.index.searcher()

    def search(self, query: str, allowed: Any = None) -> list[int]:
        tantivy = self.tantivy
        terms = [tantivy.Query.term_query(self.schema, "text", term) for term in self.analyzer.analyze(query)]
        parsed = tantivy.Query.boolean_query([(tantivy.Occur.Should, term) for term in terms])
        if allowed is not None:
            inside = tantivy.Query.term_set_query(self.schema, "id", allowed.tolist())
            inside = tantivy.Query.const_score_query(inside, 0.0)
            parsed = tantivy.Query.boolean_query([(tantivy.Occur.Must, parsed), (tantivy.Occur.Must, inside)])
        return [self.searcher.doc(address)["id"][0] for _, address in self.searcher.search(parsed, 10).hits]


CLASSES = {"ragfm": Ragfm, "bm25s": Bm25s, "tantivy": Tantivy}


# --- Data --------------------------------------------------------------------------------------------------------


def beir(name: str, qrels: str) -> tuple[list[str], list[str], dict[str, str], dict[str, dict[str, int]]]:
    folder = DATA / "beir" / name
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        documents = [json.loads(line) for line in file]
    judged: dict[str, dict[str, int]] = {}
    for line in (folder / qrels).read_text(encoding="utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        if int(grade) > 0:
            judged.setdefault(query, {})[document] = int(grade)
    lines = (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    queries = {str(query["_id"]): query["text"] for query in map(json.loads, lines)}
    texts = [f"{document.get('title', '')} {document['text']}".strip() for document in documents]
    return [str(document["_id"]) for document in documents], texts, queries, judged


def squad() -> tuple[list[str], list[tuple[str, int]]]:
    paragraphs: list[str] = []
    questions: list[tuple[str, int]] = []
    for name in ("squad-v1.1-dev", "squad-v1.0-train"):
        with gzip.open(DATA / "squad" / f"{name}.json.gz", "rt", encoding="utf-8") as file:
            for article in json.load(file)["data"]:
                for paragraph in article["paragraphs"]:
                    if "dev" in name:
                        questions += [(qa["question"], len(paragraphs)) for qa in paragraph["qas"]]
                    paragraphs.append(paragraph["context"])
    return paragraphs, questions[::10]


def synthetic(n: int, vocabulary: int = 300_000) -> tuple[Callable[[], Iterator[str]], list[str]]:
    """A stream of texts, identical each time, and 300 queries."""
    letters = np.array(list("etaoinshrdlucmfw"))
    names = ["".join(letters[[(number >> shift) & 15 for shift in range(0, 20, 4)]]) for number in range(vocabulary)]
    shares = 1 / (np.arange(vocabulary) + 10.0)
    bounds = np.cumsum(shares / shares.sum())

    def texts() -> Iterator[str]:
        random = np.random.default_rng(0)
        for length in random.integers(20, 61, n):
            yield " ".join([names[rank] for rank in np.searchsorted(bounds, random.random(length)).tolist()])

    random = np.random.default_rng(1)
    picked = [np.searchsorted(bounds, random.random(length)) for length in random.integers(2, 7, 300)]
    return texts, [" ".join(names[rank] for rank in ranks) for ranks in picked]


# --- Measuring ---------------------------------------------------------------------------------------------------


def ndcg(found: list[str], grades: dict[str, int]) -> float:
    gains = [grades.get(document, 0) / math.log2(rank + 2) for rank, document in enumerate(found)]
    best = sorted(grades.values(), reverse=True)[:10]
    return sum(gains) / sum(grade / math.log2(rank + 2) for rank, grade in enumerate(best))


def quality(kind: Callable[[Path], Any]) -> dict[str, float]:
    result = {}
    for name, qrels in (("scifact", "qrels/test.tsv"), ("npl", "qrels.tsv")):
        names, texts, queries, judged = beir(name, qrels)
        with tempfile.TemporaryDirectory() as folder:
            index = kind(Path(folder))
            index.build(len(texts), iter(texts))
            index.open()
            found = {query: [names[row] for row in index.search(queries[query])] for query in judged}
        result[f"{name} nDCG@10"] = round(float(np.mean([ndcg(found[q], judged[q]) for q in judged])), 4)
    paragraphs, questions = squad()
    with tempfile.TemporaryDirectory() as folder:
        index = kind(Path(folder))
        start = time.perf_counter()
        index.build(len(paragraphs), iter(paragraphs))
        result["SQuAD build s"] = round(time.perf_counter() - start, 2)
        index.open()
        found_rows = [index.search(question) for question, _ in questions]
        ranks = [
            rows.index(row) + 1 if row in rows else 0 for rows, (_, row) in zip(found_rows, questions, strict=True)
        ]
        result["SQuAD MRR@10"] = round(sum(1 / rank for rank in ranks if rank) / len(ranks), 4)
        result |= latency(index, [question for question, _ in questions[:300]], "SQuAD")
    return result


def latency(index: Any, queries: list[str], what: str, allowed: Any = None) -> dict[str, float]:
    seconds = []
    for query in queries:
        start = time.perf_counter()
        index.search(query, allowed)
        seconds.append(time.perf_counter() - start)
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    return {f"{what} p50 ms": round(float(p50), 2), f"{what} p95 ms": round(float(p95), 2)}


def speed(kind: Callable[[Path], Any], n: int) -> dict[str, float]:
    texts, queries = synthetic(n)
    start = time.perf_counter()
    made = sum(1 for _ in texts())
    making = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        index = kind(Path(folder))
        start = time.perf_counter()
        index.build(made, texts())
        result = {"build s": round(time.perf_counter() - start - making, 1)}
        result["peak MB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        result["size MB"] = round(sum(path.stat().st_size for path in Path(folder).rglob("*")) / 2**20)
        start = time.perf_counter()
        index.open()
        result["open s"] = round(time.perf_counter() - start, 3)
        start = time.perf_counter()
        index.search(queries[0])
        result["first ms"] = round(1000 * (time.perf_counter() - start), 1)
        result |= latency(index, queries, "all")
        for share in (0.01, 0.5):
            allowed = np.sort(np.random.default_rng(2).permutation(n)[: int(n * share)]).astype(np.int64)
            allowed.flags.writeable = False  # like the filters of the store
            result |= latency(index, queries[:60], f"{share:.0%} allowed", allowed)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--peer", choices=PEERS, help="measure only this peer, in this process")
    args = parser.parse_args()
    if args.peer:
        kind = CLASSES[args.peer]
        result = {"version": version(args.peer)} | (quality(kind) if DATA.is_dir() else {}) | speed(kind, args.texts)
        print(json.dumps(result))
        return
    result = {"benchmark": "bm25", "texts": args.texts, "machine": f"{os.cpu_count()} cores, {platform.machine()}"}
    for peer, module in PEERS.items():
        if importlib.util.find_spec(module) is None:
            continue
        command = [sys.executable, __file__, "--peer", peer, "--texts", str(args.texts)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result[peer] = json.loads(done.stdout.splitlines()[-1])
    rows = dict.fromkeys(key for peer in PEERS for key in result.get(peer, {}))
    print(f"{'':22}", *(f"{peer:>10}" for peer in PEERS if peer in result))
    for row in rows:
        print(f"{row:22}", *(f"{result[peer].get(row, ''):>10}" for peer in PEERS if peer in result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
