"""Shared parts of the benchmarks: evaluate a question set in each mode, describe the machine, keep results."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ragfm import Collection, Embedder, Settings
from ragfm.embedders import load_embedder
from ragfm.evaluation import QuestionSet, RetrievalReport, corpus_collection, evaluate_retrieval
from ragfm.evaluation.run_comparison import paired_differences

RESULTS = Path(__file__).parent / "results"
MODES = ("dense", "keyword", "hybrid")
VERSIONS = ("ragfm", "torch", "sentence-transformers", "faiss-cpu", "numpy")


def ask(
    data: QuestionSet, *, embedder: str = "bundled", keep: str | None = None, by: Embedder | None = None
) -> dict[str, Any]:
    """Ingest a set's documents with default settings, and search for all its questions in each mode.

    `keep` is a folder that keeps the collection. `by` embeds the questions instead of a new `embedder`. The result
    includes a comparison of hybrid search with the better of the other two.
    """
    with (
        corpus_collection(data, Settings(embedder=embedder), keep=keep) as (folder, _),
        Collection.open(folder, embedder=by or load_embedder(embedder)) as collection,
    ):
        status = collection.status()
        reports = {
            mode: evaluate_retrieval(collection, data.questions, mode=mode)  # type: ignore[arg-type]
            for mode in MODES
        }
    return {
        "documents": status.documents,
        "chunks": status.chunks,
        "questions": len(data.questions),
        "language": status.indexes[-1]["language"],
        "modes": {mode: _figures(report) for mode, report in reports.items()},
        "hybrid_beside_better": _compare_with_better(reports),
    }


def _figures(report: RetrievalReport) -> dict[str, Any]:
    return {
        "measures": {
            name: [round(value, 4) for value in (e.value, e.low, e.high)] for name, e in report.measures.items()
        },
        "search_ms": {key: round(e.value, 2) for key, e in report.latency_ms.items()},
        "all@5": round(sum(result.measures["recall@5"] == 1 for result in report.results) / len(report.results), 4),
        "failed": sum(result.error is not None for result in report.results),
    }


def _compare_with_better(reports: Mapping[str, RetrievalReport]) -> dict[str, Any]:
    """For each measure, the paired difference between hybrid search and the better of the other modes."""
    found = {}
    for name in reports["hybrid"].measures:
        values = {mode: _column(report, name) for mode, report in reports.items()}
        better = max((mode for mode in reports if mode != "hybrid"), key=lambda mode: values[mode].mean())
        (row,) = paired_differences([name], values[better], values["hybrid"])
        found[name] = {
            "better": better,
            "difference": [round(value, 4) for value in (row.difference, row.low, row.high)],
            "p": round(row.p, 4),
            "noise": row.noise,
        }
    return found


def _column(report: RetrievalReport, measure: str) -> Any:
    return np.array([[result.measures[measure]] for result in report.results], dtype=np.float64)


# --- Results -----------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Number of cores, processor and Python version."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return {"cores": os.cpu_count(), "processor": processor, "python": platform.python_version()}


def about(benchmark: str, packages: Iterable[str] = VERSIONS) -> dict[str, Any]:
    """The head of a result: date, commit, machine and package versions."""
    return {
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "machine": machine(),
        "versions": {name: found for name in packages if (found := _version(name))},
    }


def save(result: Mapping[str, Any], name: str) -> None:
    """Write a result to `results/`."""
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(name: str) -> dict[str, Any]:
    """A result from `results/`; empty if there is none."""
    path = RESULTS / f"{name}.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.strip() or None
