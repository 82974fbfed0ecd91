"""Measure the quality of the bundled reader's answers and of their confidence on SQuAD 2.0 dev.

    python benchmarks/bench_answers.py tune [--questions 600]      three articles, which the defaults are fitted to
    python benchmarks/bench_answers.py squad [--questions 1000]    25 other articles, as `ragfm eval answers` does
    python benchmarks/bench_answers.py beside [--questions 1000]   the same with the right passage, and with none
    python benchmarks/bench_answers.py forms [--questions 200]     the adapter in both readers, with the right passage
    python benchmarks/bench_answers.py sizes [--questions 100] [--reader GGUF]   comparison with readers not fine-tuned

Runs are kept in --keep and continue there. Each command writes its part of results/answers.json and prints it as the
last line. "At the threshold" is computed from the same answers, counting those of lower confidence as abstentions. The
environment variable ADAPTER=none runs without the adapter and without the judge's corrections.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import rendering
from data import DATA
from measure import about, read, save

from ragfm import Collection, Rag, Settings
from ragfm.answering.confidence import DEFAULT
from ragfm.answering.policy import LARGE, SMALL
from ragfm.core.calibration import Calibration
from ragfm.core.config import AskSection
from ragfm.core.progress import Progress
from ragfm.evaluation import (
    AnsweredQuestion,
    Question,
    QuestionSet,
    corpus_collection,
    evaluate_answers,
    load_questions,
    read_run,
)
from ragfm.evaluation.answer_evaluation import CONTEXTS, AnswersReport, Context, answer_measures, build_answers_report
from ragfm.evaluation.confidence_calibration import (
    accept_all_calibration,
    estimate_auc,
    expected_calibration_error,
    fit_calibration,
)
from ragfm.evaluation.metrics import estimate_ratios
from ragfm.evaluation.run_comparison import paired_differences
from ragfm.evaluation.run_file import parse_records
from ragfm.models.adapters import GGUF, NO_ADAPTER, RECORD, SHIPPED
from ragfm.training.adapter_export import export_adapter

LEARNED, TUNED = (
    7,
    10,
)  # articles by title: the judge was trained on the first ones, and those after TUNED are reported on
KEEP = 0.75  # share of right answers to keep; a higher share means fewer abstentions on unanswerable questions
ADAPTER = os.environ.get("ADAPTER")  # `none` for the reader without an adapter; default: the bundled adapter
NOT_WITHHELD = Settings(ask=AskSection(min_confidence=0))


def squad_file(keep: Path, *, tune: bool) -> Path:
    data = json.loads(gzip.decompress((DATA / "squad" / "squad-v2.0-dev.json.gz").read_bytes()))
    articles = sorted(data["data"], key=lambda article: str(article["title"]))
    data["data"] = articles[LEARNED:TUNED] if tune else articles[TUNED:]
    path = keep / f"squad-v2.0-dev-{'tune' if tune else 'report'}.json"
    path.write_text(json.dumps(data))
    return path


@contextlib.contextmanager
def filled_collection(data: QuestionSet, keep: Path) -> Iterator[Collection]:
    """A collection of the questions' documents; no answers are withheld."""
    with (
        corpus_collection(data, NOT_WITHHELD, keep=keep) as (folder, _),
        Collection.open(folder, settings=NOT_WITHHELD) as collection,
    ):
        yield collection


class _TimeUpError(Exception):
    """The time limit is reached."""


def ask_questions(
    rag: Rag, questions: Sequence[Question], contexts: Sequence[Context], out: Path, minutes: float
) -> list[AnsweredQuestion]:
    """Ask the questions in random order, so that an incomplete run is a random sample; a second run continues."""
    end = time.monotonic() + 60 * minutes

    def check_time(progress: Progress) -> None:
        print_progress(progress)
        if time.monotonic() > end:
            raise _TimeUpError

    shuffled = random.Random(0).sample(list(questions), len(questions))
    with contextlib.suppress(_TimeUpError):
        evaluate_answers(rag, shuffled, contexts=contexts, out=out, progress=check_time)
    return parse_records(AnsweredQuestion, read_run(out)[1])


def tune(keep: Path, count: int, minutes: float) -> dict[str, Any]:
    data = load_questions(squad_file(keep, tune=True), answers=True).sample(count)
    with filled_collection(data, keep) as collection:
        rag = Rag(collection, reader="bundled", adapter=ADAPTER)
        rag.calibration, rag.policy = accept_all_calibration(), LARGE if ADAPTER == "none" else SMALL
        results = ask_questions(rag, data.questions, ["retrieved"], keep / "tune.jsonl", minutes)
        report = fit_calibration(rag, results, {}, keep=KEEP)
    return {"questions": len(results), "of": count, **asdict(report)}


def squad(keep: Path, count: int, minutes: float, contexts: Sequence[Context]) -> dict[str, Any]:
    """As `ragfm eval answers FILE --limit COUNT --seed 0`, with no answers withheld."""
    data = load_questions(squad_file(keep, tune=False), answers=True).sample(count)
    with filled_collection(data, keep) as collection:
        rag = Rag(collection, reader="bundled", adapter=ADAPTER)
        rag.calibration, rag.policy = accept_all_calibration(), LARGE if ADAPTER == "none" else SMALL
        results = ask_questions(rag, data.questions, contexts, keep / "squad.jsonl", minutes)
    results = [_with_confidence(result, DEFAULT) for result in results]
    report = build_answers_report({**read_run(keep / "squad.jsonl")[0], "data": data.name}, results, contexts)
    return {
        "questions": len(results),
        "of": count,
        "unanswerable": sum(result.unanswerable for result in results),
        **measures_of(report),
        "latency_ms": {
            context: _rounded({k: asdict(v) for k, v in values.items()}, 0)
            for context, values in report.latency_ms.items()
        },
        **_at_threshold(results, DEFAULT),
    }


def given_passages(keep: Path, count: int, minutes: float) -> dict[str, Any]:
    """The questions of `squad`, each with its own passage and with none; no answers are withheld."""
    data = load_questions(squad_file(keep, tune=False), answers=True).sample(count)
    contexts: tuple[Context, ...] = ("gold", "none")
    with filled_collection(data, keep) as collection:
        results = ask_questions(
            Rag(collection, reader="bundled", adapter=ADAPTER), data.questions, contexts, keep / "beside.jsonl", minutes
        )
    report = build_answers_report({}, results, contexts)
    return {"questions": len(results), "of": count, **measures_of(report)}


def adapter_formats(keep: Path, count: int) -> dict[str, Any]:
    """The reader's raw output: llama.cpp with the GGUF adapter, and transformers with the PEFT adapter."""
    data = load_questions(squad_file(keep, tune=False), answers=True).sample(count)
    peft = keep / "peft"
    if not (peft / RECORD).exists():
        export_adapter(SHIPPED / GGUF, "peft", out=peft, base="bundled")
    runs = {}
    with filled_collection(data, keep) as collection:
        for form, adapter in (("bundled", None), ("transformers:bundled", str(peft))):
            rag = Rag(collection, reader=form, adapter=adapter)
            rag.judge, rag.policy = None, LARGE
            path = keep / f"forms-{form.partition(':')[0]}.jsonl"
            runs[form] = evaluate_answers(
                rag, data.questions, contexts=("gold",), out=path, progress=print_progress
            ).results
    gguf, hf = ([result.outcomes["gold"] for result in results] for results in runs.values())
    f1 = {form: np.array([[result.outcomes["gold"].f1] for result in results]) for form, results in runs.items()}
    (difference,) = paired_differences(["f1"], *f1.values())
    return {
        "questions": len(gguf),
        "f1": {form: round(float(values.mean()), 4) for form, values in f1.items()},
        "difference": [round(value, 4) for value in (difference.difference, difference.low, difference.high)],
        "same text": round(sum(a.answer == b.answer for a, b in zip(gguf, hf, strict=True)) / len(gguf), 4),
        "seconds": {
            form: round(sum(r.outcomes["gold"].seconds for r in results) / len(results), 2)
            for form, results in runs.items()
        },
    }


def sizes(keep: Path, count: int, readers: Sequence[str]) -> dict[str, Any]:
    """Compare the bundled reader, with and without its adapter, and readers not fine-tuned, by `ragfm compare`."""
    command = [
        sys.executable,
        "-c",
        "from ragfm.cli import main; main()",
        "compare",
        str(squad_file(keep, tune=False)),
        "--limit",
        str(count),
        "--keep",
        str(keep),
        "--json",
    ]
    runs = [["--reader", "bundled"], ["--reader", "bundled", "--adapter", NO_ADAPTER]]
    runs += [["--reader", reader] for reader in readers]
    rows = {}
    for which in runs:
        done = subprocess.run([*command, *which, "--out", str(keep / "compare")], stdout=subprocess.PIPE, check=True)
        for entry in json.loads(done.stdout)["entries"]:
            reader, adapter = (entry["contender"][key] for key in ("reader", "adapter"))
            name = Path(reader).name + (", as it comes" if reader == "bundled" and not adapter else ", untuned")
            f1 = entry["quality"]["f1, all"]["value"]
            rows[name] = {
                **_rounded({key: entry["quality"][key] for key in ("f1, answerable", "f1, all")}),
                "latency_ms": _rounded(entry["latency_ms"], 0),
                "seconds": round(entry["seconds"], 2),
                "peak_mb": entry["peak_mb"],
                "f1 per second": round(f1 / entry["seconds"], 4),
                "f1 per GB": round(f1 / entry["peak_mb"] * 1024, 4),
            }
    return {"questions": count, "rows": rows}


def _with_confidence(result: AnsweredQuestion, by: Calibration | None) -> AnsweredQuestion:
    """Confidence from the stored signals by the current calibration."""
    outcome = result.outcomes["retrieved"]
    confidence = by.confidence(outcome.signals, by.embedder) if by and outcome.signals else None
    return replace(result, outcomes={**result.outcomes, "retrieved": replace(outcome, confidence=confidence)})


def confidence_of(result: AnsweredQuestion, default: float) -> float:
    """The confidence of an answer from retrieved passages, `default` if it is unknown."""
    confidence = result.outcomes["retrieved"].confidence
    return default if confidence is None else confidence


def _at_threshold(results: Sequence[AnsweredQuestion], by: Calibration | None) -> dict[str, Any]:
    """Quality of the confidence on these questions. It was fitted to other questions."""
    if by is None:
        return {}
    given = [r for r in results if not (o := r.outcomes["retrieved"]).abstained and o.confidence is not None]
    confidence = np.array([r.outcomes["retrieved"].confidence for r in given], dtype=np.float64)
    right = np.array([r.kind == "right" for r in given], dtype=np.float64)
    cut = [withhold_answer(r, confidence_of(r, default=1.0) < by.threshold) for r in results]
    shares = {
        name: [(float(confidence_of(r, default=1.0) >= by.threshold), 1.0) for r in given if belongs(r)]
        for name, belongs in (
            ("right", lambda r: r.kind == "right"),
            ("wrong", lambda r: r.kind != "right" and not r.unanswerable),
            ("to unanswerable questions", lambda r: r.unanswerable),
        )
    }
    return {
        "confidence": {
            "auc": asdict(estimate_auc(confidence, right, 0)),
            "error": round(expected_calibration_error(confidence, right), 4),
            "threshold": by.threshold,
            "still given": {name: asdict(found) for name, pairs in shares.items() if (found := estimate_ratios(pairs))},
        },
        "at the threshold": _rounded(
            {
                name: asdict(value)
                for name, value in answer_measures([(r, r.outcomes["retrieved"]) for r in cut], passages=True).items()
            }
        ),
    }


def withhold_answer(result: AnsweredQuestion, withhold: bool) -> AnsweredQuestion:
    outcome = result.outcomes["retrieved"]
    if outcome.abstained or not withhold:
        return result
    value = float(result.unanswerable)
    nothing = replace(
        outcome,
        abstained=True,
        exact=value,
        f1=value,
        contained=value,
        citations=0,
        holding=0,
        sentences=0,
        supported=0,
    )
    return replace(result, outcomes={**result.outcomes, "retrieved": nothing})


def measures_of(report: AnswersReport) -> dict[str, Any]:
    return {
        "kinds": report.kinds,
        "measures": {
            context: _rounded({k: asdict(v) for k, v in values.items()}) for context, values in report.measures.items()
        },
    }


def _rounded(values: dict[str, Any], digits: int = 4) -> dict[str, list[float]]:
    return {name: [round(value[key], digits) for key in ("value", "low", "high")] for name, value in values.items()}


def print_progress(progress: Progress) -> None:
    if progress.done % 20 == 0 or progress.done == progress.total:
        print(f"{progress.done} of {progress.total}", file=sys.stderr, flush=True)


def table(results: rendering.Results) -> str:
    result = results["answers"]
    part, given, bare = result["squad"], result["beside"]["measures"], result["squad without adapter"]
    columns = {
        f"bare ({bare['questions']})": bare["measures"]["retrieved"],
        "nothing withheld": part["measures"]["retrieved"],
        "as shipped": part["at the threshold"],
        "nothing withheld, right passage": given["gold"],
        "no passage": given["none"],
    }
    names = ("f1, answerable", "f1, all", "abstention recall", "abstention precision", "citation precision")
    rows = [
        [name, *(rendering.interval(measures.get(name)) for measures in columns.values())]
        for name in (*names, "citation recall")
    ]
    return rendering.table((f"measure ({part['questions']} questions)", *columns), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tune", "squad", "beside", "forms", "sizes"))
    parser.add_argument("--questions", type=int)
    parser.add_argument("--keep", type=Path, default=Path("/tmp/ragfm-bench-answers"))
    parser.add_argument("--context", action="append", choices=CONTEXTS, help="squad: may be repeated; default: all")
    parser.add_argument("--reader", action="append", default=[], help="sizes: may be repeated")
    parser.add_argument("--minutes", type=float, default=1e6, help="time limit; reports the finished questions")
    args = parser.parse_args()
    args.keep.mkdir(parents=True, exist_ok=True)
    part = {
        "tune": lambda: tune(args.keep, args.questions or 600, args.minutes),
        "squad": lambda: squad(args.keep, args.questions or 1000, args.minutes, args.context or CONTEXTS),
        "beside": lambda: given_passages(args.keep, args.questions or 1000, args.minutes),
        "forms": lambda: adapter_formats(args.keep, args.questions or 200),
        "sizes": lambda: sizes(args.keep, args.questions or 100, args.reader),
    }[args.what]()
    name = args.what + (" without adapter" if ADAPTER == "none" else "")
    facts = about(f"answers, {name}", ["ragfm", "llama-cpp-python"])
    result = {**read("answers"), name: {**facts, **part}}
    save(result, "answers")
    print(json.dumps(part))


if __name__ == "__main__":
    main()
