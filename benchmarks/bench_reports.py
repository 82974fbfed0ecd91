"""Retrieval and answers over reports that look alike: financebench, 25 filings of 13 companies, with 55 questions.

    python benchmarks/bench_reports.py retrieval [--keep FOLDER] [--label NAME]
    python benchmarks/bench_reports.py answers --reader NAME [--keep FOLDER] [--label NAME]

`retrieval`: the right document, and the page with the evidence, among the first 1, 5 and 10 hits of each mode, and of
what `ask` reads (`ask`: re-ranked). Lines 2, 4, … of the question file may be used for tuning; "reporting" are the
others.

`answers`: each answer is judged against the reference. Where the reference has a number, an answer is right if it has
the first number of the reference, up to rounding, at the scale that the question or the reference names; others are
judged by `labels/reports.jsonl`, a list of answers that people judged. An answer that is in no list counts as
`unjudged`, and is printed. The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import data
from measure import MODES, about, save

from ragfm import Collection, Hit, Rag

DATA = data.DATA / "financebench"
LABELS = Path(__file__).parent / "labels" / "reports.jsonl"
RANKS = (1, 5, 10)
_NUMBER = re.compile(
    r"(?<![\w.,])[-−(]?\$?\s?(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)\s?(%|thousand|million|billion|mn|bn)?"
)
_SCALES = {"thousand": 1e3, "million": 1e6, "mn": 1e6, "billion": 1e9, "bn": 1e9}


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
        searches["ask"] = lambda text: collection.search(text, 10, rerank="auto")
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


def numbers(text: str) -> list[tuple[float, float]]:
    """The numbers of a text with their scales; years, quarters and codes such as `10K` are left out."""
    found = []
    for match in _NUMBER.finditer(text):
        value = float(match[1].replace(",", ""))
        if not (match[1].isdigit() and 1990 <= value <= 2035):
            found.append((value, _SCALES.get(match[2] or "", 1.0)))
    return found


def judge(question: dict[str, Any], answer: str, labels: dict[tuple[str, str], str]) -> str:
    """`right`, `wrong` or `unjudged`."""
    label = labels.get((question["id"], " ".join(answer.split())))
    if label:
        return label
    reference = numbers(question["answer"])
    if not reference or not re.match(r"\W*\$?[\d.,]+\W*%?(?:\W|$)", question["answer"]):
        return "unjudged"
    value, scale = reference[0]
    for unit in ("thousand", "million", "billion"):
        if unit in question["question"]:
            scale = _SCALES[unit]
    for found, found_scale in numbers(answer):
        candidates = {found * found_scale, found * scale} if found_scale == 1 else {found * found_scale}
        if any(abs(one - value * scale) <= 0.006 * value * scale for one in candidates):
            return "right"
    return "wrong"


def report_labels() -> dict[tuple[str, str], str]:
    """The label of each answer that people judged, by question and answer."""
    entries = map(json.loads, LABELS.read_text(encoding="utf-8").splitlines())
    return {(entry["id"], entry["answer"]): entry["label"] for entry in entries}


def answers(folder: Path, reader: str) -> dict[str, Any]:
    """Ask all questions, and count what comes back."""
    labels = report_labels()
    counts: dict[str, Counter[str]] = {"all": Counter(), "reporting": Counter()}
    times, asked = [], []
    with Collection.open(folder / "collection") as collection:
        collection.sync(DATA / "pdfs", name="reports")
        rag = Rag(collection, reader=reader)
        for question in questions():
            begin = time.perf_counter()
            answer = rag.ask(question["question"])
            times.append(time.perf_counter() - begin)
            plain = re.sub(r"\s*\[[\d, ]+\]", "", answer.text)
            verdict = "not found" if answer.abstained else judge(question, plain, labels)
            if answer.status == "unsure":
                verdict = f"unsure, {verdict}"
            verified = any(citation.verified for citation in answer.citations)
            pages = {one["page"] for one in question["evidence"]}
            read = any(hit.n and hit.uri.endswith(question["document"]) and hit.page in pages for hit in answer.hits)
            outcome = [
                verdict,
                *([f"{verdict} and verified"] if verified else []),
                *(["evidence read"] if read else []),
            ]
            counts["all"].update(outcome)
            if not question["tuning"]:
                counts["reporting"].update(outcome)
            asked.append(
                {"id": question["id"], "answer": " ".join(plain.split()), "label": verdict, "verified": verified}
            )
            print(json.dumps(asked[-1] | {"reference": question["answer"][:100]}, ensure_ascii=False), flush=True)
    return {
        "reader": reader,
        "counts": {name: dict(sorted(found.items())) for name, found in counts.items()},
        "median_seconds": round(sorted(times)[len(times) // 2], 2),
        "answers": asked,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["retrieval", "answers"])
    parser.add_argument("--reader", default="bundled", help="reader of `answers`")
    parser.add_argument("--keep", type=Path, help="folder that keeps the collection")
    parser.add_argument("--label", help="name of the variant, to save the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        found = retrieval(folder) if options.part == "retrieval" else answers(folder, options.reader)
        result = about("reports") | {"part": options.part} | found
    if options.label:
        save(result, f"reports-{options.part}-{options.label}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
