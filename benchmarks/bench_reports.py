"""Retrieval and answers over reports that look alike: financebench, 25 filings of 13 companies, with 55 questions.

    python benchmarks/bench_reports.py retrieval [--keep FOLDER] [--label NAME]
    python benchmarks/bench_reports.py prompts --reader NAME [--keep FOLDER] [--label NAME]
    python benchmarks/bench_reports.py answers --reader NAME [--evidence] [--keep FOLDER] [--label NAME]
    python benchmarks/bench_reports.py label --label NAME
    python benchmarks/bench_reports.py peers --reader NAME --python PEERS/bin/python --keep FOLDER [--label NAME]

`retrieval`: the right document, and the page with the evidence, among the first 1, 5 and 10 hits of each mode, and of
what `ask` reads (`ask`: re-ranked). Lines 2, 4, … of the question file may be used for tuning; "reporting" are the
others.

`prompts`: the share of the numbers of the evidence (of four characters or more; no years) that a reader is shown in the
right document, and the tokens of the prompt: from 5 and 8 hits only, with the chunks next to them, and with their
tables.

`answers`: each answer is judged against the reference. Where the reference has a number, an answer is right if it has
the first number of the reference, up to rounding, at the scale that the question or the reference names; others are
judged by `labels/reports.jsonl`, a list of answers that people judged. An answer that is in no list counts as
`unjudged`, and is printed. With `--evidence`, readers are shown the pages with the evidence instead of what is found:
what they can do if retrieval makes no mistake.

`label`: judges the saved answers again, after new ones were added to the list.

`peers`: LlamaIndex and Haystack compared with ragfm (`baselines/filings.py`), with the same embedding model and reader:
the pages that they find, and their answers to the reporting half. Each answers from the search with which it finds most
pages among the first five for the tuning half. PEERS is an environment with ragfm, llama-index-core,
llama-index-readers-file, llama-index-retrievers-bm25 and haystack-ai. Results in `--keep`, down to single answers, are
not computed again.

The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import data
import numpy as np
import rendering
from measure import MODES, about, read, save

from ragfm import Collection, Hit, Rag
from ragfm.core.types import Message, Sampling
from ragfm.evaluation.metrics import estimate_means
from ragfm.generation.readers import MANY_PASSAGES, load_reader

DATA = data.DATA / "financebench"
LABELS = Path(__file__).parent / "labels" / "reports.jsonl"
RANKS = (1, 5, 10)
PEERS = {"llamaindex": "LlamaIndex", "haystack": "Haystack"}
PEER_WINDOW = 16_384  # tokens: ten passages of 200 words with many numbers
PEER_TOKENS = 256  # of an answer, as ragfm's default; without a limit, a small reader may not end
Passage: TypeAlias = tuple[str, Sequence[int | None]]
"""A file, and the pages that a passage is from."""
_NUMBER = re.compile(
    r"(?<![\w.,])[-−(]?\$?\s?(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)\s?(%|thousand|million|billion|mn|bn)?"
)
_SCALES = {"thousand": 1e3, "million": 1e6, "mn": 1e6, "billion": 1e9, "bn": 1e9}


def questions() -> list[dict[str, Any]]:
    """Question, answer, document and evidence pages; `tuning` for every second line."""
    lines = (DATA / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) | {"tuning": number % 2 == 0} for number, line in enumerate(lines, 1)]


def figures(asked: Sequence[dict[str, Any]], found: Sequence[Sequence[Passage]]) -> dict[str, float]:
    """Share of questions with the right document, and with a page of the evidence, among the first passages."""
    shares = {}
    for rank in RANKS:
        documents = pages = 0
        for question, passages in zip(asked, found, strict=True):
            documents += any(name == question["document"] for name, _ in passages[:rank])
            pages += has_evidence(question, passages[:rank])
        shares |= {f"document@{rank}": documents / len(asked), f"page@{rank}": pages / len(asked)}
    return {name: round(share, 3) for name, share in sorted(shares.items())}


def halves(asked: Sequence[dict[str, Any]], found: Sequence[Sequence[Passage]]) -> dict[str, Any]:
    """`figures` of all questions and of each half."""
    parts = {
        part: [number for number, question in enumerate(asked) if question["tuning"] == (part == "tuning")]
        for part in ("tuning", "reporting")
    }
    return figures(asked, found) | {
        part: figures([asked[n] for n in numbers], [found[n] for n in numbers]) for part, numbers in parts.items()
    }


def has_evidence(question: dict[str, Any], passages: Sequence[Passage]) -> bool:
    wanted = {one["page"] for one in question["evidence"]}
    return any(name == question["document"] and not wanted.isdisjoint(pages) for name, pages in passages)


def passages_of(hits: Sequence[Hit]) -> list[Passage]:
    return [(hit.uri.rpartition("/")[2], [hit.page]) for hit in hits]


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
            result[name] = halves(asked, list(map(passages_of, found)))
            result[name]["median_ms"] = round(sorted(times)[len(times) // 2] * 1000, 1)
            print(f"{name:8}", "  ".join(f"{key} {value}" for key, value in result[name].items()), flush=True)
    return result


def long_numbers(text: str) -> set[str]:
    """The numbers of four characters or more, without separators of thousands; years are left out."""
    found = (one.replace(",", "") for one in re.findall(r"\d[\d,]*(?:\.\d+)?", text))
    return {one for one in found if len(one) > 3 and not re.fullmatch(r"(19|20)\d\d", one)}


def prompts(folder: Path, reader: str) -> dict[str, Any]:
    """What of the evidence is in the prompts, by what they show around the hits."""
    asked = [
        (question, long_numbers(" ".join(one["text"] for one in question["evidence"]))) for question in questions()
    ]
    asked = [(question, wanted) for question, wanted in asked if wanted]
    ways: dict[str, Any] = {}
    with Collection.open(folder / "collection") as collection:
        collection.sync(DATA / "pdfs", name="reports")
        base = load_reader(reader)
        for k in (5, MANY_PASSAGES):
            rag = Rag(collection, reader=base, k=k)
            room = k * collection.embedder.max_tokens
            tables, chunks = (collection.table_chunks, 2 * room), (collection.neighbours, room)
            for name, parts in (("hits", ()), ("and chunks next to them", (chunks,)), ("and tables", (tables, chunks))):
                rag._widening = lambda parts=parts: parts  # type: ignore[method-assign,misc]
                shares, tokens = [], []
                for question, wanted in asked:
                    prompt = rag._build_prompt(rag._retrieve(question["question"], (), None, None), documents_only=True)
                    assert prompt
                    of_document = (hit.text for hit in prompt.shown if hit.uri.endswith(question["document"]))
                    shares.append(len(wanted & long_numbers(" ".join(of_document))) / len(wanted))
                    tokens.append(rag.reader.count_tokens(prompt.messages))
                share = estimate_means(np.array(shares)[:, None])[0]
                ways[f"{k} {name}"] = {
                    "share": [share.value, share.low, share.high],
                    "tokens": int(np.median(tokens)),
                    "most tokens": max(tokens),
                }
                print(f"{k} {name}", ways[f"{k} {name}"], flush=True)
    return {"reader": Path(reader).name, "questions": len(asked), "ways": ways}


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


def evidence_pages(question: dict[str, Any], collection: Collection) -> list[Hit]:
    """All chunks of the pages with the evidence, in their order."""
    names = (document.uri for document in collection.documents())
    uri = next(name for name in names if name.endswith(question["document"]))
    pages = {one["page"] for one in question["evidence"]}
    hits = collection.search(question["question"], 2000, filter=f"uri = '{uri}'")
    return sorted((hit for hit in hits if hit.page in pages), key=lambda hit: hit.start)


def answers(folder: Path, reader: str, *, evidence: bool = False) -> dict[str, Any]:
    """Ask all questions, and count what comes back; with `evidence`, about the pages that have it."""
    labels = report_labels()
    counts, reporting = Counter[str](), Counter[str]()
    times, asked = [], []
    with Collection.open(folder / "collection") as collection:
        collection.sync(DATA / "pdfs", name="reports")
        rag = Rag(collection, reader=reader)
        for question in questions():
            hits = evidence_pages(question, collection) if evidence else None
            begin = time.perf_counter()
            answer = rag.ask(question["question"], hits=hits)
            times.append(time.perf_counter() - begin)
            plain = re.sub(r"\s*\[[\d, ]+\]", "", answer.text)
            verdict = "not found" if answer.abstained else judge(question, plain, labels)
            if answer.status == "unsure":
                verdict = f"unsure, {verdict}"
            verified = any(citation.verified for citation in answer.citations)
            shown = has_evidence(question, passages_of([hit for hit in answer.hits if hit.n]))
            counts.update(["evidence read"] * shown)
            if not question["tuning"]:
                reporting.update(["evidence read"] * shown)
            asked.append(
                {"id": question["id"], "answer": " ".join(plain.split()), "label": verdict, "verified": verified}
            )
            print(json.dumps(asked[-1] | {"reference": question["answer"][:100]}, ensure_ascii=False), flush=True)
    return {
        "reader": reader,
        "counts": {"all": outcomes(asked) | counts, "reporting": outcomes(asked, reporting=True) | reporting},
        "median_seconds": round(sorted(times)[len(times) // 2], 2),
        "answers": asked,
    }


def outcomes(asked: Sequence[dict[str, Any]], *, reporting: bool = False) -> dict[str, int]:
    """How many answers have each label, and how many of them are verified; of all questions, or the reporting half."""
    half = {question["id"] for question in questions() if not question["tuning"]}
    of_half = [one for one in asked if not reporting or one["id"] in half]
    counts = Counter(one["label"] for one in of_half)
    counts.update(f"{one['label']} and verified" for one in of_half if one["verified"])
    return dict(sorted(counts.items()))


def label_again(name: str) -> dict[str, Any]:
    """The saved result of `answers` with the labels of today."""
    found, labels, by_id = read(name), report_labels(), {question["id"]: question for question in questions()}
    for one in found["answers"]:
        if "not found" not in one["label"]:
            unsure, _, _ = one["label"].rpartition(", ")
            one["label"] = ", ".join(filter(None, (unsure, judge(by_id[one["id"]], one["answer"], labels))))
    for part in ("all", "reporting"):
        read_pages = {"evidence read": found["counts"][part].get("evidence read", 0)}
        found["counts"][part] = outcomes(found["answers"], reporting=part == "reporting") | read_pages
    return found


# --- Peers -------------------------------------------------------------------------------------------------------


class PeerProcess:
    """A peer in its own process, which asks this one for the reader's answers."""

    def __init__(self, peer: str, python: str, keep: Path) -> None:
        self._command = [python, str(Path(__file__).parent / "baselines" / "filings.py"), peer]
        self._keep = keep / peer

    def run(self, asked: Sequence[str], reader: Any, **task: Any) -> Iterator[dict[str, Any]]:
        """The results of `baselines/filings.py` as they come."""
        task = {
            "pdfs": str(DATA / "pdfs"),
            "keep": str(self._keep),
            "questions": asked,
            "answer": "",
            **task,
        }
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HAYSTACK_TELEMETRY_ENABLED": "False"}
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(task, file)
            file.flush()
            process = subprocess.Popen(
                [*self._command, file.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | quiet,
            )
            assert process.stdin
            assert process.stdout
            for line in process.stdout:
                if not line.startswith("{"):  # a message of a library
                    continue
                told: dict[str, Any] = json.loads(line)
                if "messages" in told:
                    messages = [Message(one["role"], one["content"]) for one in told["messages"]]
                    text = "".join(reader.stream(messages, Sampling(max_tokens=PEER_TOKENS)))
                    process.stdin.write(json.dumps({"text": text}) + "\n")
                    process.stdin.flush()
                else:
                    yield told
            if process.wait():
                raise SystemExit("The process of a peer failed; see its output above.")


def peers(keep: Path, python: str, reader: str, count: int) -> dict[str, Any]:
    """Pages found by ragfm and the peers for all questions, and their answers to `count` of the reporting half."""
    asked = questions()
    texts = [question["question"] for question in asked]
    half = [question for question in asked if not question["tuning"]][:count]
    pages_file, answers_file = keep / "peer-pages.json", keep / "peer-answers.jsonl"
    entries: dict[str, Any] = json.loads(pages_file.read_text(encoding="utf-8")) if pages_file.exists() else {}
    known = (
        list(map(json.loads, answers_file.read_text(encoding="utf-8").splitlines())) if answers_file.exists() else []
    )

    def missing(framework: str) -> list[str]:
        done = {one["question"] for one in known if one["framework"] == framework}
        return [question["question"] for question in half if question["question"] not in done]

    def add(framework: str, question: str, text: str, read: Sequence[Passage], status: str = "answered") -> None:
        known.append({"framework": framework, "question": question, "text": text, "read": read, "status": status})
        with answers_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(known[-1]) + "\n")
        print(framework, json.dumps(text), flush=True)

    with Collection.open(keep / "collection") as collection:
        collection.sync(DATA / "pdfs", name="reports")
        if "ragfm" not in entries:
            ways = {
                "hybrid (default)": [passages_of(collection.search(text, 10)) for text in texts],
                "reranked, as in ask": [passages_of(collection.search(text, 10, rerank="auto")) for text in texts],
            }
            entries["ragfm"] = {"ways": {way: halves(asked, found) for way, found in ways.items()}}
            entries["ragfm"]["answers from"] = "reranked, as in ask"
            pages_file.write_text(json.dumps(entries), encoding="utf-8")
        rag = Rag(collection, reader=reader)
        for question in missing("ragfm"):
            answer = rag.ask(question)
            plain = re.sub(r"\s*\[[\d, ]+\]", "", answer.text)
            add("ragfm", question, plain, passages_of([hit for hit in answer.hits if hit.n]), answer.status)
    for peer, framework in PEERS.items():
        process = PeerProcess(peer, python, keep)
        if framework not in entries:
            entry: dict[str, Any] = {"ways": {}}
            for told in process.run(texts, None):
                if "way" in told:
                    entry["ways"][told["way"]] = halves(asked, told["found"])
                entry |= {key: told[key] for key in ("versions", "chunks") if key in told}
            entry["answers from"] = max(entry["ways"], key=lambda way: entry["ways"][way]["tuning"]["page@5"])
            entries[framework] = entry
            pages_file.write_text(json.dumps(entries), encoding="utf-8")
        if waiting := missing(framework):
            wide = load_reader(reader, context_tokens=PEER_WINDOW)
            for told in process.run(waiting, wide, answer=entries[framework]["answers from"]):
                if "text" in told:
                    add(framework, told["question"], told["text"], told["read"])
    labels = report_labels()
    for framework, entry in entries.items():
        counts: Counter[str] = Counter()
        found = {one["question"]: one for one in known if one["framework"] == framework}
        entry["answers"] = []
        for question in half:
            one = found[question["question"]]
            verdict = "not found" if one["status"] == "not_found" else judge(question, one["text"], labels)
            counts.update([verdict, *(["evidence read"] if has_evidence(question, one["read"]) else [])])
            entry["answers"].append({"id": question["id"], "answer": " ".join(one["text"].split()), "label": verdict})
        entry["counts"] = dict(sorted(counts.items()))
        for way, shares in entry["ways"].items():
            print(f"{framework:10} {way:40}", *(f"{key} {shares[key]}" for key in shares if "@" in key), flush=True)
        print(framework, entry["counts"], flush=True)
    return {"reader": Path(reader).name, "questions": len(asked), "answered": len(half), "frameworks": entries}


def table(results: rendering.Results) -> str:
    keys = ("document@1", "document@5", "page@1", "page@5", "page@10")
    rows = []
    for framework, entry in results["reports-peers"]["frameworks"].items():
        for way, found in entry["ways"].items():
            cells = (f"{found[key]:.2f} ({found['reporting'][key]:.2f})" for key in keys)
            answered = way == entry.get("answers from") and entry.get("answers")
            right = f"{entry['counts'].get('right', 0)} of {len(entry['answers'])}" if answered else "-"
            rows.append([f"{framework}, {way}", *cells, right])
    return rendering.table(("framework, search", *keys, "right answers"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["retrieval", "prompts", "answers", "label", "peers"])
    parser.add_argument("--reader", default="bundled", help="reader of `prompts`, `answers` and `peers`")
    parser.add_argument("--evidence", action="store_true", help="show `answers` the pages of the evidence")
    parser.add_argument("--python", default=sys.executable, help="Python of the environment of `peers`")
    parser.add_argument("--answers", type=int, default=28, help="number of questions that `peers` asks the readers")
    parser.add_argument("--keep", type=Path, help="folder that keeps the collection")
    parser.add_argument("--label", help="name of the variant, to save the result")
    options = parser.parse_args()
    if options.part == "label":
        save(label_again(f"reports-answers-{options.label}"), f"reports-answers-{options.label}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        if options.part == "retrieval":
            found = retrieval(folder)
        elif options.part == "peers":
            found = peers(folder, options.python, options.reader, options.answers)
        elif options.part == "prompts":
            found = prompts(folder, options.reader)
        else:
            found = answers(folder, options.reader, evidence=options.evidence)
        result = about("reports") | {"part": options.part} | found
    if options.label:
        save(result, f"reports-{options.part}-{options.label}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
