"""Compare the adapted reader of 135 M parameters with one of 0.5 B, untuned and adapted: quality, time, memory, cost.

    python benchmarks/bench_reader_sizes.py ask [--reader GGUF [--adapter GGUF]] [--set SET] [--questions N] [--untimed]
    python benchmarks/bench_reader_sizes.py reuse --confidence FOLDER
    python benchmarks/bench_reader_sizes.py report

`ask` answers the questions of `squad` (25 articles of SQuAD 2.0 dev), `reports` (the reporting half of financebench),
`canal` and `handbook` as `ragfm ask` does, with all defaults, and keeps each answer in --keep; it continues there. A
reader has a process of its own, since its peak memory is recorded. With --untimed no times are kept, for use next to
other programs; the same command without it asks again, and keeps them. `reuse` takes the outputs that
`bench_confidence.py` keeps in FOLDER, cited and decided by the current code, and the answers over reports from
results/reports-answers-*.json; they have no times. `report` measures what is kept, writes results/reader_sizes.json,
and draws docs/reader-sizes.svg.

"alone" is the same reader's raw output, without the judge, confidence and statuses; the CPU seconds of the check are
then left out. F1 counts a right abstention as 1. Over reports an answer is judged by its number or by a label, see
`bench_reports.py`; the measure is the share of right answers. CPU seconds include the search; they depend less on other
load than seconds do. The cost is that of the CPU seconds at --price per core hour. The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import rendering
from bench_confidence import DOMAINS, cite_record
from bench_confidence import read_answers as read_confidence
from bench_reports import judge, report_labels
from bench_reports import questions as report_questions
from measure import about, read, save

from ragfm import Rag
from ragfm.answering.confidence import DEFAULT, answer_signals
from ragfm.answering.decision import decide
from ragfm.answering.policy import LARGE, SMALL
from ragfm.core.abstention import is_abstention
from ragfm.core.config import AskSection
from ragfm.evaluation import Question
from ragfm.evaluation.answer_matching import contains_answer, token_f1
from ragfm.evaluation.metrics import Estimate, estimate_means, estimate_percentiles
from ragfm.evaluation.run_comparison import paired_differences

SETS = {"squad": 80, "reports": 28, "canal": 60, "handbook": 30}
PLOT = Path(__file__).parents[1] / "docs" / "reader-sizes.svg"
ADAPTED, ALONE = ", adapted", ", alone"
COUNTS = ("right", "right, unsure", "wrong", "wrong, unsure", "not found", "not found, rightly")


def ask(
    keep: Path, reader: str, adapter: str | None, names: Sequence[str], count: int, minutes: float, *, timed: bool
) -> None:
    """Answer questions in a random order, the same for each reader, until the time is over.

    Those that are kept without times are asked again, unless this run keeps none either.
    """
    file, label = keep / "answers.jsonl", Path(reader).stem + ADAPTED * bool(adapter)
    done = {(one["reader"], one["set"], one["id"]) for one in read_answers(keep) if "cpu" in one or not timed}
    end = time.monotonic() + 60 * minutes
    for name in names:
        with DOMAINS[name].open(keep) as (collection, questions):
            rag = Rag(collection, reader=reader, adapter=adapter)
            rag.log = None
            rag.ask("Is this a question to warm up with?")
            asked = random.Random(1).sample(list(questions), len(questions))[: min(SETS[name], count)]
            for question in asked:
                if (label, name, question.id) in done:
                    continue
                if time.monotonic() > end:
                    return
                record = {"reader": label, "set": name, **answer(rag, question)}
                for key in () if timed else ("seconds", "cpu", "check", "peak_mb"):
                    del record[key]
                with file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(record, ensure_ascii=False) + "\n")
        print(f"{label}: {name}, {len(asked)} questions", file=sys.stderr, flush=True)


def answer(rag: Rag, question: Question) -> dict[str, Any]:
    """The answer of a reader, and its times. `check` are the CPU seconds of the judge and the citations."""
    begin, cpu = time.perf_counter(), time.process_time()
    stream = rag.stream(question.text)
    check, checking = 0.0, False
    before = time.process_time()
    while stream.step() is not None:
        now = time.process_time()
        check += now - before if checking else 0.0
        before, checking = now, stream.checking
    found = stream.answer
    return {
        "id": question.id,
        "question": question.text,
        "answers": question.answers,
        "unanswerable": question.unanswerable,
        "text": found.text,
        "said": found.text if found.said is None else found.said,
        "status": found.status,
        "confidence": found.confidence,
        "seconds": round(time.perf_counter() - begin, 3),
        "cpu": round(time.process_time() - cpu, 3),
        "check": round(check, 3),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def reuse(keep: Path, folder: Path) -> None:
    """Keep answers that other benchmarks have."""
    done = {(one["reader"], one["set"], one["id"]) for one in read_answers(keep)}
    found = []
    for record in read_confidence(folder):
        if record["set"] not in SETS or record["reader"] == "none":
            continue
        if (record["reader"], record["set"], record["id"]) in done:
            continue
        policy = SMALL if record["reader"] == "bundled" else LARGE
        cited = cite_record(record)
        signals = answer_signals(cited) if cited.readings else {}
        confidence = DEFAULT.confidence(signals)
        decision = decide(cited, confidence, policy, AskSection(), threshold=DEFAULT.threshold)
        kept = {key: record[key] for key in ("reader", "set", "id", "question", "answers", "unanswerable")}
        answered = {"text": decision.answer.text, "status": decision.status, "confidence": confidence}
        found.append({**kept, **answered, "said": record["output"]})
    halves = {one["id"]: one["tuning"] for one in report_questions()}
    for name, reader in (("bundled", "bundled"), ("qwen2.5-coder-0.5b", "qwen2.5-coder-0.5b-q4_k_m")):
        for one in read(f"reports-answers-{name}")["answers"]:
            status = {"not found": "not_found", "unsure": "unsure"}.get(one["label"].partition(",")[0], "answered")
            kept = {"reader": reader, "set": "reports", "id": one["id"], "unanswerable": False, "answers": []}
            if not halves[one["id"]]:
                found.append({**kept, "text": one["answer"], "status": status})
    with (keep / "answers.jsonl").open("a", encoding="utf-8") as out:
        for record in found:
            if (key := (record["reader"], record["set"], record["id"])) not in done:
                done.add(key)
                out.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_answers(keep: Path) -> list[dict[str, Any]]:
    """The kept answers; of two to the same question, the later."""
    file = keep / "answers.jsonl"
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    return list({(one["reader"], one["set"], one["id"]): one for one in records}.values())


def judge_answer(record: dict[str, Any], *, alone: bool, labels: dict[tuple[str, str], str]) -> dict[str, Any]:
    """The outcome of an answer: one of `COUNTS`, its quality in [0, 1] and its times."""
    text = record.get("said", "") if alone else record["text"]
    plain = re.sub(r"\s*\[[\d, ]+\]", "", text)
    abstains = not plain.strip() or is_abstention(text)
    status = record["status"] if not alone else "not_found" if abstains else "answered"
    if record["set"] == "reports":
        asked = next(one for one in report_questions() if one["id"] == record["id"])
        verdict = "wrong" if status == "not_found" else judge(asked, plain, labels)
        if verdict == "unjudged":
            print(json.dumps({"id": record["id"], "answer": " ".join(plain.split()), "reference": asked["answer"]}))
        right = verdict == "right"
        quality = float(right)
    else:
        right = not record["unanswerable"] and contains_answer(plain, record["answers"])
        quality = max((token_f1(text, one) for one in record["answers"]), default=0.0)
        if record["unanswerable"] or status == "not_found":
            quality = float(record["unanswerable"] and status == "not_found")
    if status == "not_found":
        outcome = "not found" + (", rightly" if record["unanswerable"] else "")
    else:
        outcome = ("right" if right else "wrong") + (", unsure" if status == "unsure" else "")
    return {"outcome": outcome, "quality": quality}


def report(keep: Path, price: float) -> dict[str, Any]:
    """Measure all readers, each over the questions that all of them have answered."""
    records, labels = read_answers(keep), report_labels()
    readers = sorted({one["reader"] for one in records})  # the bundled one first; the others are compared with it
    kept = {(one["reader"], one["set"], one["id"]): one for one in records}
    rows = []
    for name in SETS:
        common = [
            one["id"]
            for one in records
            if (one["reader"], one["set"]) == (readers[0], name)
            and all((reader, name, one["id"]) in kept for reader in readers)
        ]
        qualities: dict[str, Any] = {}
        for reader, alone in [(reader, alone) for alone in (False, True) for reader in readers]:
            of_set = [kept[reader, name, key] for key in common]
            if not of_set or (alone and any("said" not in one for one in of_set)):
                continue
            found = [judge_answer(one, alone=alone, labels=labels) for one in of_set]
            quality = np.array([[one["quality"]] for one in found])
            label = reader + ALONE * alone
            qualities[label] = quality
            untuned = qualities.get(label.replace(ADAPTED, ""))
            outcomes = [one["outcome"] for one in found]
            timed = [one for one in records if (one["reader"], one["set"]) == (reader, name) and "cpu" in one]
            cpu = [one["cpu"] - alone * one["check"] for one in timed]
            row = {
                "set": name,
                "reader": label,
                "questions": len(found),
                "unanswerable": sum(one["unanswerable"] for one in of_set),
                "measure": "right" if name == "reports" else "F1",
                "quality": _rounded(estimate_means(quality)[0]),
                "difference": _difference(next(iter(qualities.values())), quality),
                "outcomes": {key: outcomes.count(key) for key in COUNTS},
                "timed": len(timed),
            }
            if ADAPTED in reader and untuned is not None:
                row["gain"] = _difference(untuned, quality)
            if timed:
                mean = sum(cpu) / len(cpu)
                row["p50 cpu seconds"] = _rounded(estimate_percentiles(cpu)["p50"])
                row["p50 seconds"] = _rounded(estimate_percentiles([one["seconds"] for one in timed])["p50"])
                row["mean cpu seconds"] = round(mean, 3)
                row["peak_mb"] = max(one["peak_mb"] for one in timed)
                row["cost of 1,000"] = round(1000 * mean / 3600 * price, 4)
            rows.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return {"price of a core hour": price, "rows": rows}


def _difference(before: Any, after: Any) -> list[float]:
    (found,) = paired_differences(["quality"], before, after)
    return [round(value, 4) for value in (found.difference, found.low, found.high, found.p)]


def _rounded(estimate: Estimate) -> list[float]:
    return [round(value, 4) for value in asdict(estimate).values()]


# --- The plot ----------------------------------------------------------------------------------------------------

_PANEL, _GAP, _TALL, _TOP, _SIDE = 190, 34, 240, 106, 48  # of the view box
_COLOURS = ("#0b6e4f", "#7fb8a4", "#b23a48", "#e0a3aa", "#2b5c9e", "#a3bbdc")
_TITLES = {
    "squad": "SQuAD 2.0",
    "reports": "annual reports",
    "bundled": "135 M, adapted",
    "qwen2.5-coder-0.5b-q4_k_m": "0.5 B, untuned",
    "qwen2.5-coder-0.5b-q4_k_m, adapted": "0.5 B, adapted",
}


def plot(rows: Sequence[dict[str, Any]], machine: str) -> str:
    """An SVG file: quality against CPU seconds, a panel for each set and a point with its interval for each reader."""
    readers = list(dict.fromkeys(row["reader"] for row in rows))
    readers.sort(key=lambda reader: (reader.removesuffix(ALONE), reader))  # the same reader alone comes second
    rows = [row for row in rows if row["timed"]]
    names = list(dict.fromkeys(row["set"] for row in rows))
    right = max(row["p50 cpu seconds"][0] for row in rows) * 1.1
    width = 2 * _SIDE + len(names) * (_PANEL + _GAP) - _GAP
    parts = [
        drawing.label(
            _SIDE, 24, "Quality of answers against their CPU seconds (median), with 95 % intervals", "start", 15
        ),
    ]
    for number, reader in enumerate(readers):
        x = _SIDE + number // 2 * (width - 2 * _SIDE) / 3
        y = 46 + number % 2 * 22.0
        name = reader.removesuffix(ALONE)
        label = _TITLES.get(name, name) + (" (reader alone)" if reader.endswith(ALONE) else " (as shown)")
        parts += [drawing.dot(x + 5, y, _COLOURS[number]), drawing.label(x + 16, y + 4, label, "start", 12)]
    for column, name in enumerate(names):
        left = _SIDE + column * (_PANEL + _GAP)
        of_set = [row for row in rows if row["set"] == name]
        measure = "share right" if of_set[0]["measure"] == "right" else of_set[0]["measure"]
        title = f"{_TITLES.get(name, name)} ({of_set[0]['questions']}): {measure}"
        parts.append(drawing.label(left + _PANEL / 2, _TOP - 10, title, "middle", 13))
        for tick in range(5):
            y = _TOP + _TALL * (1 - tick / 4)
            parts.append(drawing.stroke(left, y, left + _PANEL, y, "#ddd"))
            if not column:
                parts.append(drawing.label(left - 6, y + 4, f"{tick / 4:g}", "end"))
        for second in range(0, int(right) + 1, max(1, round(right / 5))):
            x = left + _PANEL * second / right
            parts += [
                drawing.stroke(x, _TOP + _TALL, x, _TOP + _TALL + 4, "#888"),
                drawing.label(x, _TOP + _TALL + 18, str(second), "middle"),
            ]
        for row in of_set:
            colour = _COLOURS[readers.index(row["reader"])]
            x = left + _PANEL * row["p50 cpu seconds"][0] / right
            value, low, high = (_TOP + _TALL * (1 - share) for share in row["quality"])
            parts += [drawing.stroke(x, low, x, high, colour, 2), drawing.dot(x, value, colour)]
    parts.append(drawing.label(width / 2, _TOP + _TALL + 44, f"CPU seconds per answer, {machine}", "middle", 12))
    return drawing.picture(width, _TOP + _TALL + 64, parts)


def table(results: rendering.Results) -> str:
    """A row for each set, a column for each reader."""
    by_set: dict[str, dict[str, str]] = {}
    for row in results["reader_sizes"]["rows"]:
        if row["reader"].endswith("alone"):
            continue
        found = row["outcomes"]
        right, wrong = (f"{found[key]} + {found[f'{key}, unsure']}" for key in ("right", "wrong"))
        p = f" ({rendering.p_value(row['difference'][3])})" if any(row["difference"][:3]) else ""
        costs = f"{row['p50 cpu seconds'][0]:.1f} s; {row['peak_mb']:,} MB"
        name = f"{row['set']} ({row['questions']}), {row['measure']}"
        by_set.setdefault(name, {})[row["reader"].replace("-q4_k_m", "")] = "; ".join(
            (f"{rendering.interval(row['quality'])}{p}", right, wrong, costs)
        )
    readers = next(iter(by_set.values()))
    rows = [[name, *(cells[one] for one in readers)] for name, cells in by_set.items()]
    return rendering.table(("quality (p); right + unsure; wrong + unsure; CPU; memory", *readers), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ask", "reuse", "report"))
    parser.add_argument("--reader", default="bundled")
    parser.add_argument("--adapter", help="adapter of the reader; `none` for the bundled one without its own")
    parser.add_argument("--set", action="append", choices=SETS, dest="sets", help="may be repeated; default: all")
    parser.add_argument("--questions", type=int, default=100, help="maximum per set")
    parser.add_argument("--minutes", type=float, default=1e6, help="time limit of `ask`")
    parser.add_argument("--untimed", action="store_true", help="keep no times")
    parser.add_argument("--confidence", type=Path, help="folder of `bench_confidence.py`, for `reuse`")
    parser.add_argument("--price", type=float, default=0.04, help="of a core hour, in dollars")
    parser.add_argument("--keep", type=Path, default=Path("/tmp/ragfm-bench-reader-sizes"))
    args = parser.parse_args()
    args.keep.mkdir(parents=True, exist_ok=True)
    if args.what == "ask":
        names = args.sets or list(SETS)
        ask(args.keep, args.reader, args.adapter, names, args.questions, args.minutes, timed=not args.untimed)
        return
    if args.what == "reuse":
        reuse(args.keep, args.confidence)
        return
    result = {**about("readers of two sizes", ["ragfm", "llama-cpp-python"]), **report(args.keep, args.price)}
    save(result, "reader_sizes")
    if any(row["timed"] for row in result["rows"]):
        PLOT.write_text(
            plot(result["rows"], f"{result['machine']['cores']} cores of {result['machine']['processor']}"),
            encoding="utf-8",
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
