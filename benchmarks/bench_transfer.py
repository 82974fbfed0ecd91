"""Measure whether the bundled adapter helps on data it was not trained on: answers before and after.

    python benchmarks/bench_transfer.py [SET…] [--questions 100] [--keep DIR]
    python benchmarks/bench_transfer.py pubmedqa --train 500      with an adapter of its own, which is trained first

    canal      60 questions on 9 documents about an invented place; 20 have no answer there (transfer/)
    handbook   30 on the 12 documents of `ragfm demo`; 10 have none
    hotpotqa   100 whose answer requires two passages
    pubmedqa   yes, no or maybe, by grammar

"before" is the raw output of the bundled reader without an adapter, "adapter" with the bundled one; "after" is what a
user gets, corrected by the verifier and without answers of low confidence; "every answer" includes these. PubMedQA is
asked with adapters only; "own" is trained on --train of the 500 questions that are not its test. Runs are kept in
--keep and continue there; a changed adapter is asked again. Each set is a part of results/transfer.json; the last line
is what was measured. With fewer than 30 --questions, nothing is saved.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from bench_answers import (
    NOT_WITHHELD,
    confidence_of,
    filled_collection,
    measures_of,
    print_progress,
    withhold_answer,
)
from data import hotpotqa, pubmedqa
from measure import about, read, save

from ragfm import Collection, Rag
from ragfm.answering.confidence import adapter_hash
from ragfm.answering.policy import LARGE
from ragfm.core.calibration import Calibration
from ragfm.evaluation import AnswersReport, Question, QuestionSet, evaluate_answers, load_questions
from ragfm.evaluation.answer_evaluation import build_answers_report
from ragfm.evaluation.run_comparison import paired_differences
from ragfm.models.adapters import GGUF, NO_ADAPTER
from ragfm.samples import HANDBOOK

HERE = Path(__file__).parent / "transfer"
VERDICTS = ("yes", "no", "maybe")
LEAST = 30  # minimum questions of a run whose result is saved
GRAMMAR = 'root ::= "Yes" | "No" | "Maybe"'  # capitalized, as the adapters were trained to begin

Asked = tuple[Collection, QuestionSet]


@contextlib.contextmanager
def files(folder: Path, keep: Path) -> Iterator[Asked]:
    """Documents of a folder, and the questions about them in transfer/."""
    with Collection.open(keep / folder.name / ".ragfm", settings=NOT_WITHHELD) as collection:
        collection.sync(folder, name=folder.name)
        yield collection, load_questions(HERE / f"{folder.name}.jsonl", answers=True)


@contextlib.contextmanager
def corpus(data: QuestionSet, keep: Path) -> Iterator[Asked]:
    with filled_collection(data, keep) as collection:
        yield collection, data


SETS: dict[str, Callable[[Path], contextlib.AbstractContextManager[Asked]]] = {
    "canal": lambda keep: files(HERE / "canal", keep),
    "handbook": lambda keep: files(HANDBOOK, keep),
    "hotpotqa": lambda keep: corpus(hotpotqa(), keep),
    "pubmedqa": lambda keep: corpus(pubmedqa(test=True), keep),
}


def measure_set(name: str, keep: Path, count: int, own: str | None) -> dict[str, Any]:
    """Answers to one set, before and after, and the difference."""
    reports: dict[str, AnswersReport] = {}
    by_grammar = name == "pubmedqa"
    contenders = {"before": NO_ADAPTER, "adapter": None, **({"own": own} if own else {})}
    with SETS[name](keep) as (collection, data):
        asked = data.sample(count).questions
        for how, adapter in (contenders if by_grammar else {**contenders, "after": None}).items():
            rag = Rag(collection, reader="bundled", adapter=adapter)
            calibration = rag.calibration
            if how != "after":
                rag.judge, rag.policy = None, LARGE  # raw output
            if by_grammar:
                rag = rag.with_options(sampling=replace(rag.sampling, max_tokens=8, grammar=GRAMMAR))
            print(f"{name}, {how}", file=sys.stderr, flush=True)
            learned = (adapter_hash(rag.sampling.adapter) or NO_ADAPTER)[:8]
            run = keep / f"{name}-{len(asked)}-{learned}{'-as-it-comes' if how == 'after' else ''}.run"
            reports[how] = evaluate_answers(rag, asked, contexts=["retrieved"], out=run, progress=print_progress)
    if "after" in reports:
        reports["every answer"] = reports["after"]
        reports["after"] = withheld(reports["after"], calibration)
    return {
        "questions": len(asked),
        "unanswerable": sum(question.unanswerable for question in asked),
        **{how: {**measures_of(report), **(verdicts(report) if by_grammar else {})} for how, report in reports.items()},
        "differences": {
            how: differences(reports["before"], report) for how, report in reports.items() if how != "before"
        },
    }


def withheld(report: AnswersReport, by: Calibration | None) -> AnswersReport:
    """The same answers, without those that are withheld from a user for low confidence."""
    threshold = by.threshold if by else 0.0
    results = [withhold_answer(r, confidence_of(r, default=1.0) < threshold) for r in report.results]
    return build_answers_report(report.about, results, ["retrieved"])


def differences(a: AnswersReport, b: AnswersReport) -> dict[str, list[float]]:
    """Differences of b from a, paired by question: mean, interval and p."""
    pairs = list(zip(a.results, b.results, strict=True))
    without = [pair for pair in pairs if pair[0].unanswerable]
    having = [pair for pair in pairs if not pair[0].unanswerable]
    found = {}
    for measure, those, what in (
        ("f1, answerable", having, "f1"),
        ("contained, answerable", having, "contained"),
        ("exact, answerable", having, "exact"),
        ("f1, all", pairs, "f1"),
        ("abstention recall", without, "f1"),
    ):
        if those:
            values = np.array([[getattr(result.outcomes["retrieved"], what) for result in pair] for pair in those])
            (row,) = paired_differences([measure], values[:, :1], values[:, 1:])
            found[measure] = [round(value, 4) for value in (row.difference, row.low, row.high, row.p)]
    return found


def verdicts(report: AnswersReport) -> dict[str, Any]:
    """Counts of the answers, the mean F1 of the three words, and the accuracy of always answering the most frequent."""
    pairs = [(r.outcomes["retrieved"].answer.lower().rstrip("."), r.answers[0]) for r in report.results]
    return {
        "macro_f1": round(sum(_f1(pairs, word) for word in VERDICTS) / len(VERDICTS), 4),
        "said": dict(Counter(said for said, _ in pairs)),
        "majority": round(max(Counter(right for _, right in pairs).values()) / len(pairs), 4),
    }


def _f1(pairs: Sequence[tuple[str, str]], word: str) -> float:
    named = sum(one == word for pair in pairs for one in pair)
    return 2 * sum(pair == (word, word) for pair in pairs) / named if named else 0.0


# --- An adapter for PubMedQA -------------------------------------------------------------------------------------


def trained_adapter(keep: Path, count: int) -> str:
    """Folder of an adapter trained on `count` questions that are not in the test, with ragfm's own commands.

    An existing adapter is used as it is, and an interrupted training run continues.
    """
    learn, test = (keep / f"pubmedqa-{what}.jsonl" for what in ("learn", "test"))
    write_jsonl(learn, pubmedqa(test=False).questions)
    write_jsonl(test, pubmedqa(test=True).questions)
    examples, adapter = (keep / f"pubmedqa-{what}-{count}" for what in ("examples", "adapter"))
    with filled_collection(pubmedqa(test=True), keep) as collection:
        where = str(collection.path)
    if not (examples / "card.json").exists():
        _ragfm(
            "adapt",
            "data",
            str(learn),
            "-c",
            where,
            "--limit",
            str(count),
            "--abstain",
            "0",
            "--exclude-data",
            str(test),
            "--licence",
            "MIT",
            "--out",
            str(examples),
        )
    if not (adapter / GGUF).exists():
        _ragfm("adapt", "train", str(examples), "--batch", "8", "--licence", "MIT", "--out", str(adapter))
        _ragfm("adapt", "export", str(adapter))
    return str(adapter)


def write_jsonl(path: Path, questions: Sequence[Question]) -> None:
    """Write questions in the format of `ragfm adapt data` and `ragfm eval answers`."""
    lines = [{"id": q.id, "question": q.text, "uri": q.gold[0].uri, "answers": q.answers} for q in questions]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _ragfm(*words: str) -> None:
    subprocess.run([sys.executable, "-c", "from ragfm.cli import main; main()", *words], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"one of {', '.join(SETS)}; default: all")
    parser.add_argument("--questions", type=int, default=100, help="maximum per set, a random sample")
    parser.add_argument("--keep", type=Path, default=Path("/tmp/ragfm-bench-transfer"))
    parser.add_argument("--train", type=int, metavar="N", help="train an adapter for pubmedqa on N of its questions")
    args = parser.parse_args()
    if unknown := set(args.sets) - set(SETS):
        parser.error(f"unknown set '{min(unknown)}'; choose from {', '.join(SETS)}")
    args.keep.mkdir(parents=True, exist_ok=True)
    facts = about("transfer", ["ragfm", "llama-cpp-python"])
    result: dict[str, Any] = {}
    for name in args.sets or SETS:
        own = trained_adapter(args.keep, args.train) if args.train and name == "pubmedqa" else None
        result[name] = {**facts, **measure_set(name, args.keep, args.questions, own)}
        if args.questions >= LEAST:
            save({**read("transfer"), **result}, "transfer")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
