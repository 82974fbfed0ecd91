"""Fills a collection with the SQuAD 1.1 dev articles and asks it 500 of their questions.

    python benchmarks/bench_squad.py [--questions 500]

One text file an article; a question is answered when a chunk among the top k holds a gold answer. Prints a table, and
one JSON line last.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import random
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from ragfm import Collection, Settings

DATA = Path(os.environ.get("RAGFM_DATA", Path(__file__).parents[2] / "shared" / "data"))


def write_articles(folder: Path) -> list[dict[str, Any]]:
    """Write each article as a text file, a blank line between paragraphs; gives all questions."""
    with gzip.open(DATA / "squad" / "squad-v1.1-dev.json.gz", "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    folder.mkdir()
    for article in articles:
        text = "\n\n".join(paragraph["context"] for paragraph in article["paragraphs"])
        (folder / f"{re.sub(r'[^A-Za-z0-9]+', '_', article['title'])}.txt").write_text(text, encoding="utf-8")
    return [qa for article in articles for paragraph in article["paragraphs"] for qa in paragraph["qas"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=500)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        questions = random.Random(0).sample(write_articles(Path(place) / "squad"), args.questions)
        collection = Collection.open(Path(place) / "collection", settings=Settings())
        first = collection.sync(Path(place) / "squad")
        again = collection.sync(Path(place) / "squad")
        ranks, seconds = [], []
        for qa in questions:
            start = time.perf_counter()
            hits = collection.search(qa["question"], k=10, mode="dense")
            seconds.append(time.perf_counter() - start)
            gold = [answer["text"] for answer in qa["answers"]]
            ranks.append(next((rank for rank, hit in enumerate(hits, 1) if any(g in hit.text for g in gold)), 99))
    result = {
        "benchmark": "squad",
        "data": "SQuAD 1.1 dev, 48 articles",
        "embedder": "all-MiniLM-L6-v2",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "documents": first.added,
        "chunks": first.chunks,
        "chunks_per_second": round(first.chunks / first.seconds, 1),
        "seconds_again": again.seconds,
        "chunks_again": again.chunks,
        "questions": len(questions),
        **{f"recall@{k}": round(sum(rank <= k for rank in ranks) / len(ranks), 3) for k in (1, 3, 5, 10)},
        "query_ms_median": round(1000 * statistics.median(seconds), 1),
    }
    for key, value in result.items():
        print(f"{key:18} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
