"""Retrieval over reports that look alike: financebench, 25 filings of 13 companies, with 55 questions.

    python benchmarks/bench_reports.py retrieval [--keep FOLDER] [--label NAME]

The right document, and the page with the evidence, among the first 1, 5 and 10 hits of each mode, and of what `ask`
reads (`ask`: re-ranked). Lines 2, 4, … of the question file may be used for tuning; "reporting" are the others. The
last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measure import MODES, about, save

from ragfm import Collection, Hit

DATA = Path(os.environ.get("RAGFM_DATA", Path(__file__).parents[2] / "shared" / "data")) / "financebench"
RANKS = (1, 5, 10)


def questions() -> list[dict[str, Any]]:
    """Question, answer, document and evidence pages; `tuning` for every second line."""
    lines = (DATA / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) | {"tuning": number % 2 == 0} for number, line in enumerate(lines, 1)]


def figures(asked: Sequence[dict[str, Any]], found: Sequence[Sequence[Hit]]) -> dict[str, float]:
    """Share of questions with the right document, and with a page of the evidence, among the first hits."""
    shares = {}
    for rank in RANKS:
        documents = pages = 0
        for question, hits in zip(asked, found, strict=True):
            right = [hit for hit in hits[:rank] if hit.uri.endswith(question["document"])]
            documents += bool(right)
            pages += any(hit.page in {one["page"] for one in question["evidence"]} for hit in right)
        shares |= {f"document@{rank}": documents / len(asked), f"page@{rank}": pages / len(asked)}
    return {name: round(share, 3) for name, share in sorted(shares.items())}


def retrieval(folder: Path) -> dict[str, Any]:
    """Ingest the filings, and search for all questions in each mode."""
    asked = questions()
    with Collection.open(folder / "collection") as collection:
        begin = time.perf_counter()
        report = collection.sync(DATA / "pdfs", name="reports")
        seconds = time.perf_counter() - begin
        result: dict[str, Any] = {"chunks": collection.status().chunks, "failed": len(report.failed)}
        result["ingest_seconds"] = round(seconds, 1) if report.added else None
        searches: dict[str, Callable[[str], Sequence[Hit]]] = {
            mode: lambda text, mode=mode: collection.search(text, 10, mode=mode)  # type: ignore[misc]
            for mode in MODES
        }
        if hasattr(collection, "passages"):
            searches["ask"] = lambda text: collection.passages(text, 10)
        for name, search in searches.items():
            times, found = [], []
            search("warm up")
            for question in asked:
                begin = time.perf_counter()
                found.append(search(question["question"]))
                times.append(time.perf_counter() - begin)
            held_out = [number for number, question in enumerate(asked) if not question["tuning"]]
            result[name] = figures(asked, found) | {
                "reporting": figures([asked[n] for n in held_out], [found[n] for n in held_out]),
                "median_ms": round(sorted(times)[len(times) // 2] * 1000, 1),
            }
            print(f"{name:8}", "  ".join(f"{key} {value}" for key, value in result[name].items()), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["retrieval"])
    parser.add_argument("--keep", type=Path, help="folder that keeps the collection")
    parser.add_argument("--label", help="name of the variant, to save the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = about("reports") | {"part": options.part} | retrieval(options.keep or Path(temporary))
    if options.label:
        save(result, f"reports-{options.part}-{options.label}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
