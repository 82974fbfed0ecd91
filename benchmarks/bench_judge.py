"""The judge on texts that nothing was trained or chosen on: answers, statements, claims and cells of tables.

    python benchmarks/bench_judge.py JUDGE BASE [--count 400] [--label NAME]

JUDGE is a folder with the judge's weights, BASE the embedding model that they belong to. Each set is a random sample of
`--count` questions or statements of the halves for reporting, see `judge_examples.py`. Intervals are 95 % bootstrap
intervals. The result, in JSON, is added to `results/judge.json` under NAME.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rendering
from judge_examples import (
    SUPPORTS,
    TUNED,
    Example,
    fool_me_twice,
    policies,
    table_pairs,
    tat_questions,
    whole,
    wice,
    written,
)
from measure import RESULTS, about, save

from ragfm.answering.judge import Evidence, Judge
from ragfm.evaluation.answer_matching import token_f1
from ragfm.evaluation.confidence_calibration import estimate_auc
from ragfm.evaluation.metrics import bootstrap

BATCH = 32
Reading = tuple[float, float, str]
"""How likely the text has the answer and supports the statement, in [0, 1], and the likeliest answer."""


def reporting(count: int) -> dict[str, list[Example]]:
    """A sample of each set."""
    chance = random.Random(0)

    def some(items: Sequence[Any]) -> list[Any]:
        return chance.sample(list(items), min(count, len(items)))

    pairs = some(table_pairs(reporting=True))
    return {
        "SQuAD 2.0, report articles": [whole(one) for one in some(written(TUNED, 35))],
        "PolicyQA": [whole(one) for one in some(policies(reporting=True))],
        "TAT-QA": some(tat_questions(reporting=True)),
        "FoolMeTwice": some(fool_me_twice(reporting=True)),
        "WiCE": some(wice(reporting=True)),
        "TabFact pairs": [example for pair in pairs for example in pair],
    }


def read_by(judge: Judge) -> Callable[[Sequence[Example]], Iterator[Reading]]:
    """A function that reads examples with a judge."""

    def read(examples: Sequence[Example]) -> Iterator[Reading]:
        evidence = [Evidence(one.text, one.question, one.statement, one.context) for one in examples]
        for one, judgement in zip(examples, judge.read(evidence, fast=True), strict=True):
            _, start, end = judgement.best((0, len(one.text)))
            yield judgement.answers, judgement.supports, one.text[start:end]

    return read


def measured(examples: Sequence[Example], readings: Sequence[Reading]) -> dict[str, Any]:
    """Token F1 of answers, AUC of "has an answer" and of "supports", and pairs told apart, where they apply."""
    found: dict[str, Any] = {"examples": len(examples)}
    there, supports = np.array([[one[0], one[1]] for one in readings]).T
    known = [n for n, one in enumerate(examples) if one.start is not None]
    has_answer = np.array([float((examples[n].start or 0) >= 0) for n in known])
    if known:
        f1 = [
            token_f1(readings[n][2], examples[n].text[examples[n].start : examples[n].end])
            for n, has in zip(known, has_answer, strict=True)
            if has
        ]
        found["f1, answerable"] = _mean(f1)
    if 0 < has_answer.sum() < len(known):
        found["auc, has an answer"] = _interval(estimate_auc(there[known], has_answer, 0))
    stated = np.array([float(one.stance == SUPPORTS) for one in examples])
    if any(one.stance is not None for one in examples):
        found["auc, supports"] = _interval(estimate_auc(supports, stated, 0))
        found["accuracy, supports"] = _mean(list((supports >= 0.5) == (stated == 1)))
        if stated.tolist() == [1, 0] * (len(examples) // 2):
            found["pairs told apart"] = _mean(list(supports[::2] > supports[1::2]))
    return found


def _mean(values: Sequence[float]) -> list[float]:
    column = np.array(values, dtype=float)[:, None]
    return _interval(bootstrap(column, lambda sample: sample.mean(axis=-2), 0)[0])


def _interval(estimate: Any) -> list[float]:
    return [round(value, 4) for value in (estimate.value, estimate.low, estimate.high)]


def table(results: rendering.Results) -> str:
    """A row for each set and measure, a column for each judge."""
    judges = results["judge"]["judges"]
    rows = [
        [name, measure, *(rendering.interval(one["sets"][name][measure]) for one in judges.values())]
        for name, of in next(iter(judges.values()))["sets"].items()
        for measure in of
        if measure != "examples" and not measure.startswith("accuracy")
    ]
    return rendering.table(("set", "measure", *judges), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judge", type=Path, help="Folder of the judge's weights")
    parser.add_argument("base", type=Path, help="Folder of the embedding model that they belong to")
    parser.add_argument("--count", type=int, default=400, help="Maximum number of questions or statements of a set")
    parser.add_argument("--label", help="Name in the result; default: that of the folder")
    args = parser.parse_args()
    read = read_by(Judge(args.judge, args.base))
    rows, begin = {}, time.monotonic()
    for name, examples in reporting(args.count).items():
        order = sorted(range(len(examples)), key=lambda n: len(examples[n].text))
        readings: dict[int, Reading] = {}
        for at in range(0, len(order), BATCH):
            batch = order[at : at + BATCH]
            readings |= zip(batch, read([examples[n] for n in batch]), strict=True)
        rows[name] = measured(examples, [readings[n] for n in range(len(examples))])
        print(name, json.dumps(rows[name]), file=sys.stderr, flush=True)
    file = RESULTS / "judge.json"
    judges = json.loads(file.read_text())["judges"] if file.exists() else {}
    label = args.label or args.judge.name
    judges[label] = {"seconds": round(time.monotonic() - begin), "sets": rows}
    result = {**about("judge", ["ragfm", "torch"]), "judges": judges}
    save(result, "judge")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
