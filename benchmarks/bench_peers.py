"""Compare ragfm with LlamaIndex, Haystack, LangChain and txtai: same model, texts, questions, threads; no tuning.

    python benchmarks/bench_peers.py --python PEERS/bin/python [--keep DIR] [--sets 'SQuAD dev'] [--peers ours,txtai]

PEERS is a virtual environment with the packages that `baselines/` names; ragfm runs in the current one. Each peer is
filled and searched in its own process, with its documented defaults and its documented hybrid searches. `--keep DIR`
keeps a peer's results there and does not run it again. `--untimed`, for a busy machine, omits memory and times other
than CPU time of the peers that are run. The result of a choice of peers is kept under their names. Prints a table, and
one JSON line last.

`--reranker FOLDER` adds the best hybrid search of each with its own reranker and this cross-encoder, over 20 passages;
`--questions N` limits the questions. The result is kept as `peers_reranked`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rendering
from data import DATA, beir, every_second, hotpotqa, musique
from measure import about, save

from ragfm.evaluation import QuestionSet, Ranked, load_questions
from ragfm.evaluation.metrics import estimate_means, ranking_measures
from ragfm.evaluation.run_comparison import paired_differences
from ragfm.models.model_lookup import find_model

RUNNER = Path(__file__).parent / "baselines" / "runner.py"
PEERS = {
    "ours": "ragfm",
    "llamaindex": "LlamaIndex",
    "haystack": "Haystack",
    "langchain": "LangChain",
    "txtai": "txtai",
}
TIMES = (
    "ingest_s",
    "documents_per_s",
    "documents_per_cpu_s",
    "peak_mb",
    "import_s",
    "p50_ms",
    "p95_ms",
    "cpu_ms",
)
MEASURES = ("nDCG@10", "MRR@10", "recall@5", "recall@10")
CORPUS = "corpus/"


def squad_dev() -> QuestionSet:
    """Every twentieth question of SQuAD 1.1 dev over its own 2,067 paragraphs: few enough to be timed."""
    data = load_questions(DATA / "squad" / "squad-v1.1-dev.json.gz")
    return replace(data, questions=data.questions[::20])


SETS: dict[str, Callable[[], QuestionSet]] = {
    "SQuAD dev": squad_dev,
    "SciFact test": lambda: beir("scifact", "test"),
    "HotpotQA": hotpotqa,
    "MuSiQue": musique,
    "HotpotQA odd": lambda: every_second(hotpotqa(), even=False),
    "MuSiQue odd": lambda: every_second(musique(), even=False),
}


def run(
    peer: str, python: str, data: QuestionSet, *, threads: int, timed: bool = True, reranker: str | None = None
) -> dict[str, Any]:
    """The runner's output for one peer."""
    task = {
        "reranker": reranker,
        "model": str(find_model("bundled", "embedder")),
        "documents": data.documents,
        "queries": {question.id: question.text for question in data.questions},
    }
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    limits["OMP_WAIT_POLICY"] = "PASSIVE"  # waiting threads do not use CPU time
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "task.json"
        path.write_text(json.dumps(task), encoding="utf-8")
        command = [sys.executable if peer == "ours" else python, str(RUNNER), peer, str(path)]
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HAYSTACK_TELEMETRY_ENABLED": "False"}
        done = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, text=True, cwd=place, env={**os.environ, **limits, **quiet}
        )
    if done.returncode:
        raise SystemExit(f"{peer} failed; see its output above.")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for figures in () if timed else (result, *result["ways"].values()):
        for key in TIMES:
            if "cpu" not in key:
                figures.pop(key, None)
    head = about("peers")
    return result | {"date": head["date"], "commit": head["commit"], "load": round(os.getloadavg()[0], 1)}


def values(data: QuestionSet, found: dict[str, list[str]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """*Shape:* (n_questions, n_measures)."""
    rows = []
    for question in data.questions:
        numbers = {gold.uri.removeprefix(CORPUS): number for number, gold in enumerate(question.gold)}
        places = [Ranked(uri, 0, 0, None, numbers.get(uri)) for uri in found[question.id]]
        measured = ranking_measures(places, {number: gold.grade for number, gold in enumerate(question.gold)}, 10)
        rows.append([measured[name] for name in MEASURES])
    return np.array(rows, dtype=np.float64)


def measured(
    data: QuestionSet, result: dict[str, Any], ours: dict[bool, Any]
) -> tuple[dict[str, Any], dict[bool, Any]]:
    """A peer's entry, and the values of its first search and of the reranked one. `ours`: those of ragfm.

    What is reranked is compared with what is reranked.
    """
    entry = {key: value for key, value in result.items() if key not in ("ways", "versions", "installed_mb")}
    entry["ways"], first = {}, dict[bool, Any]()
    for way, asked in result["ways"].items():
        got, reranked = values(data, asked.pop("found")), way == result.get("reranked")
        first.setdefault(reranked, got)
        estimates = zip(MEASURES, estimate_means(got), strict=True)
        entry["ways"][way] = asked | {
            "measures": {name: [round(value, 4) for value in (e.value, e.low, e.high)] for name, e in estimates}
        }
        if ours:
            rows = paired_differences(MEASURES, got, ours[reranked])
            entry["ways"][way]["ragfm_minus_this"] = {
                row.measure: [round(value, 4) for value in (row.difference, row.low, row.high, row.p)] for row in rows
            }
    return entry, first


def show(name: str, entry: dict[str, Any]) -> None:
    times = "  ".join(f"{key} {entry[key]}" for key in TIMES if key in entry)
    print(f"{name:12} {times}")
    for way, figures in entry["ways"].items():
        quality = "  ".join(f"{key} {value[0]:.3f}" for key, value in figures["measures"].items())
        print(f"    {way:26} {quality}  p50 {figures.get('p50_ms')} ms  p95 {figures.get('p95_ms')} ms", flush=True)


def table(results: rendering.Results) -> str:
    """nDCG@10 and MRR@10 of each framework and search, a column for each set."""
    sets = results["peers"]["sets"]
    rows = []
    for peer, figures in sets["SQuAD dev"]["peers"].items():
        for search in figures["ways"]:
            cells = []
            for entry in sets.values():
                run = entry["peers"][peer]["ways"][search]
                minus = run.get("ragfm_minus_this", {}).get("nDCG@10")
                values = " / ".join(f"{run['measures'][key][0]:.3f}" for key in ("nDCG@10", "MRR@10"))
                cells.append(values + (f" ({rendering.p_value(minus[3])})" if minus else ""))
            rows.append([f"{peer}, {search}", *cells])
    return rendering.table(("nDCG@10 / MRR@10 (p)", *(f"{name}, {sets[name]['questions']}" for name in sets)), rows)


def cost_table(results: rendering.Results) -> str:
    result, rows = results["peers"], []
    for peer, figures in result["sets"]["SQuAD dev"]["peers"].items():
        installed = result["installed"][peer]
        sizes = installed["mb"]
        searches = (f"{way['p50_ms']:.1f} / {way['p95_ms']:.1f}" for way in figures["ways"].values())
        rows.append(
            [
                f"{peer} {next(iter(installed['versions'].values()))}",
                f"{figures['documents_per_s']:.1f}",
                ", ".join(searches),
                f"{figures['peak_mb']:,}",
                f"{sum(sizes.values()) - sizes.get('torch', 0):,.0f}",
            ]
        )
    head = ("framework", "paragraphs/s", "searches, p50 / p95 ms", "peak MB", "installed MB without torch")
    return rendering.table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="Python of the peers' environment")
    parser.add_argument("--keep", metavar="DIR", type=Path)
    parser.add_argument("--sets", default=",".join(name for name in SETS if "odd" not in name))
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--untimed", action="store_true")
    parser.add_argument("--reranker", metavar="FOLDER")
    parser.add_argument("--questions", type=int, help="number of questions")
    args = parser.parse_args()
    result_name = "peers_reranked" if args.reranker else "peers"
    if args.peers != ",".join(PEERS):
        result_name += "-" + args.peers.replace(",", "-")
    sets: dict[str, Any] = {}
    installs: dict[str, Any] = {}
    for name in args.sets.split(","):
        data, entries, ours = SETS[name](), {}, dict[bool, Any]()
        if args.questions:
            step = -(-len(data.questions) // args.questions)
            data = replace(data, questions=data.questions[::step])
        print(f"\n{name}: {len(data.documents or ())} documents, {len(data.questions)} questions")
        for peer in args.peers.split(","):
            kept = args.keep / f"{name}, {peer}.json" if args.keep else None
            if kept and kept.exists():
                result = json.loads(kept.read_text(encoding="utf-8"))
            else:
                result = run(
                    peer, args.python, data, threads=args.threads, timed=not args.untimed, reranker=args.reranker
                )
                if kept:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_text(json.dumps(result), encoding="utf-8")
            installs[PEERS[peer]] = {"versions": result["versions"], "mb": result["installed_mb"]}
            entries[PEERS[peer]], first = measured(data, result, ours)
            ours = first if peer == "ours" else ours
            show(PEERS[peer], entries[PEERS[peer]])
        sets[name] = {"documents": len(data.documents or ()), "questions": len(data.questions), "peers": entries}
    result = {**about(result_name), "threads": args.threads, "sets": sets, "installed": installs}
    save(result, result_name)
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
