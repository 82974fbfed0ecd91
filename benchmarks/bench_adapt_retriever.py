"""Measure the effect of fine-tuning the retriever: trained on SciFact's train split only, tested on its test split.

    python benchmarks/bench_adapt_retriever.py [--keep DIR] [--epochs 4 --rate …]

A tenth of the train claims are held out; they select the epoch. The test claims are
searched before and after, and select nothing. Runs and models are kept in --keep, and a second run continues there.

Prints a table, and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import numpy as np
import rendering
from data import beir
from measure import about, read, save

from ragfm import Collection, Settings
from ragfm.core.progress import Progress
from ragfm.evaluation import corpus_collection, read_run
from ragfm.evaluation.metrics import Estimate, estimate_means
from ragfm.training.hard_negatives import QuestionSplit, split_questions
from ragfm.training.retriever_training import RECORD, RetrieverReport, adapt_retriever

GOAL = 0.76
CHOOSING = 0.2  # twice the share of the validation questions: `parted` would keep the other half for testing


def ndcg_interval(run: Path) -> list[float]:
    """nDCG@10 of a run with its confidence interval."""
    values = np.array([[record["measures"]["nDCG@10"]] for record in read_run(run)[1]])
    (estimate,) = estimate_means(values)
    return _rounded(estimate)


def _rounded(estimate: Estimate) -> list[float]:
    return [round(value, 4) for value in astuple(estimate)]


def result_entry(report: RetrieverReport, folder: Path) -> dict[str, Any]:
    runs = {"hybrid": ("before.run", "after.run"), "dense": ("dense-before.run", "dense-after.run")}
    differences = {"hybrid": report.differences[0]} | ({"dense": report.dense[0]} if report.dense else {})
    return {
        "settings": asdict(report.settings),
        "questions": dict(report.questions),
        "lessons": report.lessons,
        "numbers": dict(report.numbers),
        "seconds": report.seconds,
        "ndcg": {
            mode: {
                "before": ndcg_interval(folder / runs[mode][0]),
                "after": ndcg_interval(folder / runs[mode][1]),
                "difference": [round(value, 4) for value in (row.difference, row.low, row.high)],
                "p": round(row.p, 4),
                "noise": row.noise,
            }
            for mode, row in differences.items()
        },
        "all": {row.measure: [round(row.a, 4), round(row.b, 4), round(row.p, 4)] for row in report.differences},
    }


def table(results: rendering.Results) -> str:
    rows = []
    for part, entry in results["adapt_retriever"]["parts"].items():
        for mode, row in entry["ndcg"].items():
            values = (rendering.interval(row[key]) for key in ("before", "after"))
            minutes = f"{entry['processor_seconds'] / 60:.0f}"
            rows.append([f"{part}, {mode}: nDCG@10, claims", *values, rendering.difference(row["difference"]), minutes])
    return rendering.table(
        ("trained model, search: measure, questions", "before [95 %]", "after", "difference", "CPU minutes"), rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", metavar="DIR", default="adapt-retriever")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rate", type=float, default=3e-5)
    parser.add_argument("--negatives", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learn", type=int, help="maximum number of training questions, for a quick trial")
    parser.add_argument("--test", type=int, help="maximum number of test questions, for a quick trial")
    given = parser.parse_args()
    keep = Path(given.keep)
    train, test = beir("scifact", "train"), beir("scifact", "test")
    own = split_questions(train.questions, CHOOSING, given.seed)
    parts = QuestionSplit((*own.learn, *own.test)[: given.learn], own.choose, test.questions[: given.test])
    result = {**about("adapt_retriever"), "goal": GOAL, "parts": read("adapt_retriever").get("parts", {})}
    with (
        corpus_collection(train, Settings(), keep=keep) as (folder, _),
        Collection.open(folder, settings=Settings()) as collection,
    ):
        settings = {name: getattr(given, name) for name in ("epochs", "rate", "negatives", "seed")}
        out = keep / f"embedder-{given.seed}-{given.epochs}-{given.rate}-{given.negatives}"
        if not (out / RECORD).exists() or "embedder" not in result["parts"]:
            start = time.process_time()
            report = adapt_retriever(collection, parts, out, **settings, progress=print_progress)
            entry = {**result_entry(report, out), "processor_seconds": round(time.process_time() - start)}
            result["parts"]["embedder"] = entry
            if not (given.learn or given.test):
                save(result, "adapt_retriever")
    for part, found in result["parts"].items():
        for mode, row in found["ndcg"].items():
            reached = "reached" if row["after"][0] >= GOAL else "missed"
            print(
                f"{part:9} {mode:7} {row['before'][0]:.3f} → {row['after'][0]:.3f} {row['after'][1:]}, p {row['p']}, "
                f"goal {GOAL} {reached}"
            )
    print(json.dumps(result))


_last = ["", 0.0]


def print_progress(progress: Progress) -> None:
    """Print a line when a stage begins, and every 30 seconds."""
    now = time.monotonic()
    if progress.stage != _last[0] or now - float(_last[1]) > 30:
        _last[:] = [progress.stage, now]
        print(f"{time.strftime('%H:%M:%S')} {progress.stage}: {progress.done} of {progress.total}", flush=True)


if __name__ == "__main__":
    main()
