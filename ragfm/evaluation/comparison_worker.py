"""The process in which one contender of `compare_readers` answers: `python -m ragfm.evaluation.comparison_worker`.

Standard input is the job as one JSON object: `contender` (a `Contender`), `source` (a `QuestionSource`) and `out`, the
run file. Standard output is JSON lines, each with one key:

    {"progress": {"done", "total"}}              after each question
    {"result": {"measures", "latency_ms", "statuses", "adapter", "data_goes", "peak_mb"}}
    {"error": {"type", "message", "hint"}}       instead of a result
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ragfm.collection import Collection
from ragfm.core.config import load_settings
from ragfm.core.errors import RagfmError
from ragfm.core.progress import ProgressCallback
from ragfm.embedders import load_embedder
from ragfm.evaluation.answer_evaluation import evaluate_answers
from ragfm.evaluation.corpus import corpus_collection
from ragfm.evaluation.question_sets import load_questions
from ragfm.evaluation.reader_comparison import INTERRUPTED, Contender, QuestionSource
from ragfm.rag import Rag


def run_job(job: Mapping[str, Any], progress: ProgressCallback) -> dict[str, Any]:
    """Answer the questions of a job and return its result. `peak_mb` is the peak memory of this process."""
    contender, source = Contender(**job["contender"]), QuestionSource(**job["source"])
    data = load_questions(source.data, split=source.split, answers=True)
    about: dict[str, Any] = {"reader": contender.reader}
    if source.limit:
        data = data.sample(source.limit)
        about |= {"limit": source.limit, "seed": 0}
    about |= {"data": data.name, "left_out": dict(data.left_out)}

    folder: str | Path = source.collection
    settings = load_settings(Collection.open(folder).settings_file, embedder=source.embedder)
    with ExitStack() as stack:
        if data.documents is not None:
            folder, _ = stack.enter_context(corpus_collection(data, settings, keep=source.keep))
        with Collection.open(folder, settings=settings) as collection:
            embedder = load_embedder(str(collection.status().embedder["embedder"]))
        collection = stack.enter_context(Collection.open(folder, settings=settings, embedder=embedder))
        rag = Rag(collection, **asdict(contender))
        data_goes = getattr(rag.reader, "data_goes", None)
        if data_goes:
            about["data_goes"] = data_goes
        report = evaluate_answers(
            rag, data.questions, contexts=("retrieved",), out=job["out"], about=about, progress=progress
        )
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "measures": {name: asdict(estimate) for name, estimate in report.measures["retrieved"].items()},
        "latency_ms": {name: asdict(estimate) for name, estimate in report.latency_ms["retrieved"].items()},
        "statuses": {name: asdict(count) for name, count in report.statuses.items()},
        "adapter": report.about["adapter"],
        "data_goes": data_goes,
        "peak_mb": max(usage.ru_maxrss for usage in usages) // 1024,
    }


def main() -> int:
    """Run the job on standard input; returns the exit code."""
    # Libraries may print to standard output, so it becomes standard error for all but the lines for the parent.
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(key: str, value: Mapping[str, Any]) -> None:
        lines.write(json.dumps({key: value}) + "\n")
        lines.flush()

    try:
        job = json.load(sys.stdin)
        send("result", run_job(job, lambda now: send("progress", {"done": now.done, "total": now.total})))
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return INTERRUPTED
    except BrokenPipeError:  # the parent has ended
        return 1
    except RagfmError as error:
        send("error", {"type": type(error).__name__, "message": error.message, "hint": error.hint})
        return 1
    except Exception as error:
        traceback.print_exc()
        message, hint = f"{type(error).__name__}: {error}.", "This is a bug in ragfm."
        if isinstance(error, OSError):
            hint = "Check the path, its permissions and the free space."
        send("error", {"type": type(error).__name__, "message": message, "hint": hint})
        return 1


if __name__ == "__main__":
    sys.exit(main())
