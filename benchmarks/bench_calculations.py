"""Questions that need a calculation, over tables and paragraphs of financial reports: TAT-QA (Zhu et al. 2021).

    python benchmarks/bench_calculations.py [--judge NAME] [--tuning]

Each context is one passage: its table, as ragfm reads it from HTML, and its paragraphs. The operation is that of the
classifier, the operands those of `calculation.likely_operands`; no reader takes part. `tuning` is every second
context, to which both were fitted, `reporting` the others. An answer is right if it equals the expected number, rounded
as that is. `likely` are the answers that `ask` gives as answered; the others are unsure. `verified` are those that the
judge confirms. Of the questions that need no calculation, `as a calculation` were taken for one. `incomplete` are said
to lack a number. The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from html import escape
from typing import Any

import numpy as np
import rendering
from data import DATA
from judge_examples import tat_passages
from measure import about, save
from selectolax.lexbor import LexborHTMLParser

from ragfm import Hit
from ragfm.answering.calculation import LIKELY, CalculatedAnswer, MissingOperandError, calculate_answer
from ragfm.answering.grounding import Grounding
from ragfm.answering.judge import Judge, load_judge
from ragfm.core.table_rows import row_line
from ragfm.evaluation.metrics import bootstrap
from ragfm.parsing.own.web.html import read_table


def questions(*, reporting: bool) -> Iterator[tuple[Hit, dict[str, Any]]]:
    """The questions of every second context, each with its passage."""
    for entry in json.loads(gzip.decompress((DATA / "tatqa/dev.json.gz").read_bytes()))[int(reporting) :: 2]:
        table = read_table(LexborHTMLParser(as_html(entry["table"]["table"])).css_first("table"))
        lines = [row_line(row) for row in table.rows]
        lines.insert(1, row_line(["---"] * len(table.rows[0])))
        _, _, paragraphs = tat_passages(entry)
        text = "\n\n".join([*table.titles, "\n".join(lines), *paragraphs])
        for question in entry["questions"]:
            yield Hit("report", text, 0, len(text), 1, None, {}, n=1), question


def as_html(rows: Sequence[Sequence[str]]) -> str:
    """A table as HTML; the rows above the first label are its header."""
    head = next((number for number, row in enumerate(rows) if row[0].strip()), 1)
    tags = ["th" if number < max(1, head) else "td" for number in range(len(rows))]
    lines = (
        "".join(f"<{tag}>{escape(cell.strip())}</{tag}>" for cell in row) for tag, row in zip(tags, rows, strict=True)
    )
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def is_right(answer: CalculatedAnswer, question: dict[str, Any]) -> bool:
    """Whether a calculated number is the expected one, in the same scale."""
    if question["answer_type"] != "arithmetic":
        return False
    expected = Decimal(str(question["answer"]))
    return abs(answer.value.quantize(Decimal("0.01")) - expected) <= Decimal("0.011")


def measured(judge: Judge, *, reporting: bool) -> dict[str, Any]:
    """The counts of one half, and the share of right answers with its 95 % bootstrap interval."""
    right, found, incomplete = list[float](), Counter[str](), Counter[bool]()
    others = taken = 0
    for hit, question in questions(reporting=reporting):
        try:
            answer = calculate_answer(Grounding(question["question"], [hit], "en", judge))
        except MissingOperandError:
            answer = None
            incomplete[question["answer_type"] == "arithmetic"] += 1
        correct = answer is not None and is_right(answer, question)
        if answer:
            states = ["likely" if answer.confidence >= LIKELY else "unsure"]
            states += ["verified"] if all(one.verified for one in answer.citations) else []
            for state in states:
                found[state] += 1
                found[f"{state}, right"] += correct
        if question["answer_type"] == "arithmetic":
            right.append(float(correct))
        else:
            others, taken = others + 1, taken + (answer is not None)
    share = bootstrap(np.array(right)[:, None], lambda sample: sample.mean(axis=-2), 0)[0]
    return {
        "questions": len(right),
        "right": [round(one, 4) for one in (share.value, share.low, share.high)],
        **{state: found[state] for one in ("verified", "likely", "unsure") for state in (one, f"{one}, right")},
        "incomplete": incomplete[True],
        "others": others,
        "others, as a calculation": taken,
        "others, incomplete": incomplete[False],
    }


def table(results: rendering.Results) -> str:
    """The table of docs/benchmarks.md."""
    halves = results["calculations"]["halves"]
    return rendering.table(
        ["half", "right", "verified, right", "answered, right", "unsure, right", "others taken for a calculation"],
        [
            [
                f"{name} ({one['questions']})",
                rendering.interval(one["right"]),
                f"{one['verified, right']} of {one['verified']}",
                f"{one['likely, right']} of {one['likely']}",
                f"{one['unsure, right']} of {one['unsure']}",
                f"{one['others, as a calculation']} of {one['others']}",
            ]
            for name, one in halves.items()
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuning", action="store_true", help="measure the tuning half only, and save nothing")
    parser.add_argument("--judge", default="small", help="judge that reads the operands")
    options = parser.parse_args()
    judge, names = load_judge(options.judge), ("tuning",) if options.tuning else ("tuning", "reporting")
    halves = {name: measured(judge, reporting=name == "reporting") for name in names}
    if options.tuning:
        print(json.dumps(halves))
        return
    result = {**about("calculations", ["ragfm"]), "judge": options.judge, "halves": halves}
    save(result, "calculations")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
