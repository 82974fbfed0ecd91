"""Learn which calculation a question asks for: a linear classifier over the bundled embedding of the question.

    python benchmarks/train_operations.py [--out FILE]

Operations are those of the derivations of TAT-QA's arithmetic questions (every second context; Zhu et al. 2021). Its
other questions, and those of SQuAD, HotpotQA and PolicyQA, need none. The regularisation is chosen by cross-validation
over contexts. The figures are of the other half of TAT-QA, and of questions of SQuAD's report articles and the samples'
handbook, which need no calculation. The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench_transfer import HERE
from data import DATA, hotpotqa
from judge_examples import TUNED, asked, policies, written
from measure import about, save
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from ragfm.answering.operations import NONE, SHIPPED
from ragfm.embedders import load_embedder

FORMS = {
    "N-N": "difference",
    "(N-N)/N": "percentage change",
    "N/N-N": "percentage change",
    "N+N": "sum",
    "N+N+N": "sum",
    "N+N+N+N": "sum",
    "(N+N)/N": "mean",
    "(N+N+N)/N": "mean",
    "(N+N+N+N)/N": "mean",
    "N/N": "ratio",
}
"""The operation of a derivation, in which N stands for a number without its sign."""


TEMPLATES = {
    "percentage change": """
        By what percentage did {a} grow from {x} to {y}?
        By how many percent did {a} fall between {x} and {y}?
        How much did {a} increase in percent from {x} to {y}?
        What was the growth of {a} from {x} to {y} in percent?
        How many percent higher was {a} in {y} than in {x}?
        What is the year-over-year change of {a} in {y}, in percent?
        How much, as a percentage, did {a} change compared with {x}?
        What is the relative change in {a} since {x}?
        By what percent has {a} declined since {x}?
        What was the rate of increase of {a} in {y}?
    """,
    "difference": """
        How much higher was {a} in {y} than in {x}?
        How much lower was {a} in {x} than in {y}?
        By how much did {a} increase from {x} to {y}?
        By how much did {a} change between {x} and {y}?
        How much more did {a} amount to than {b} in {y}?
        How much larger is {a} than {b}?
        What is {a} minus {b} in {y}?
        What is left of {a} after {b} in {y}?
        How many more {a} were there in {y} than in {x}?
        What was the absolute change in {a} from {x} to {y}?
    """,
    "mean": """
        What was the mean of {a} in {x} and {y}?
        What is the average of {a} and {b} in {y}?
        On average, how high was {a} from {x} to {y}?
        How much was {a} per year on average between {x} and {y}?
        What was the average {a} over the last three years?
        What is the yearly average of {a}?
    """,
    "sum": """
        What are {a} and {b} together in {y}?
        How much are {a} and {b} combined in {y}?
        What is the sum of {a} and {b}?
        How much did {a} amount to in {x} and {y} together?
        What is the combined {a} of {x} and {y}?
        How high was {a} from {x} to {y} in total?
        Add up {a} and {b} for {y}.
    """,
    "share": """
        What is {a} as a percentage of {b} in {y}?
        What percentage of {b} was {a} in {y}?
        Which share of {b} came from {a} in {y}?
        How many percent of {b} is {a}?
        What share of {b} did {a} make up in {y}?
        What was the proportion of {a} in {b} in percent?
        How large was {a} relative to {b} in {y}, in percent?
    """,
    "ratio": """
        What is the ratio of {a} to {b} in {y}?
        How many times as high as {b} was {a} in {y}?
        What is {a} divided by {b} in {y}?
        What is the quotient of {a} and {b} in {y}?
        How many times larger is {a} than {b}?
    """,
    "growth rate": """
        What is the compound annual growth rate of {a} from {x} to {y}?
        What was the CAGR of {a} between {x} and {y}?
        At what annual rate did {a} grow from {x} to {y}?
        How fast did {a} grow per year from {x} to {y}?
    """,
    NONE: """
        What was {a} in {y}?
        How high was {a} at the end of {y}?
        What were {a} and {b} in {y}?
        What is the total {a}?
        What drove the increase in {a} in {y}?
        Why did {a} fall from {x} to {y}?
        Did {a} increase in {y}?
        Is {a} expected to grow in {y}?
        When did {a} change?
        What is included in {a}?
        How is {a} calculated?
        How is the average {a} defined?
        What percentage is {a}?
        What is the {a} rate?
        How many {a} are there?
        How many days of {a} are there per year?
        What is the maximum of {a}?
        Who is responsible for {a}?
        Which years does {a} cover?
        What does the difference in {a} come from?
        How often is {a} reviewed?
        What was the reason for the change in {a}?
        How did {a} develop?
        How does {a} in {y} compare with {x}?
    """,
}
"""Questions in words that TAT-QA's annotators did not use. {a} and {b} are labels of rows, {x} and {y} years."""


def templated(count: int, chance: random.Random) -> list[tuple[str, str]]:
    """Questions from templates with their operation, over row labels of every second context of TAT-QA."""
    data = json.loads(gzip.decompress((DATA / "tatqa/dev.json.gz").read_bytes()))[0::2]
    rows = {row[0].strip().rstrip(":*") for entry in data for row in entry["table"]["table"]}
    labels = sorted(row for row in rows if 3 < len(row) < 45 and not re.search(r"\d", row))
    found = []
    for name, lines in TEMPLATES.items():
        for template in filter(None, map(str.strip, lines.splitlines())):
            for _ in range(count):
                a, b = (label if chance.random() < 0.5 else label.lower() for label in chance.sample(labels, 2))
                year = chance.randint(2010, 2024)
                later = year + chance.choice((1, 1, 1, 2, 4))
                x, y = (f"FY{n}" if chance.random() < 0.1 else str(n) for n in (year, later))
                found.append((name, template.format(a=a, b=b, x=x, y=y)))
    return found


def operation(question: dict[str, Any]) -> str | None:
    """The operation of a question of TAT-QA; None if it is another one."""
    if question["answer_type"] != "arithmetic":
        return NONE
    form = re.sub(r"[\d.,]+%?", "N", re.sub(r"[\s$]", "", question["derivation"]))
    form = re.sub(r"-?\((-?N)\)", r"\1", form)
    form = re.sub(r"(^|[-+/(])-N", r"\1N", form)
    form = re.sub(r"^\((.*)\)$", r"\1", form) if form.count("(") == 1 and form.endswith(")") else form
    found = FORMS.get(form)
    return "share" if found == "ratio" and question["scale"] == "percent" else found


def tat(*, reporting: bool) -> list[tuple[int, str, str]]:
    """Context, question and operation of every second context."""
    data = json.loads(gzip.decompress((DATA / "tatqa/dev.json.gz").read_bytes()))[int(reporting) :: 2]
    return [
        (number, question["question"], found)
        for number, entry in enumerate(data)
        for question in entry["questions"]
        if (found := operation(question))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="File for the weights")
    args = parser.parse_args()
    chance = random.Random(0)
    train = [one.question for one in asked("squad/squad-v1.0-train.json.gz")]
    others = chance.sample(train, 2_500)
    others += [one for one in train if re.match(r"how (many|much)|what percent", one.lower())][:1_500:2]
    others += [one.text for one in hotpotqa().questions][:100] + [one.question for one in policies(reporting=False)][
        :200
    ]
    learned = [*tat(reporting=False), *((-number, text, NONE) for number, text in enumerate(others, 1))]
    learned += [(-len(others) - number, text, name) for number, (name, text) in enumerate(templated(6, chance), 1)]
    groups, texts, labels = zip(*learned, strict=True)
    embedder = load_embedder("bundled")

    def features(questions: Sequence[str]) -> Any:
        return embedder.embed_queries(list(questions)).astype(np.float64)

    x, y = features(texts), np.array(labels)
    weights = np.where(np.array(groups) < 0, 0.3, 1.0)  # each question of TAT-QA counts more than the others
    scores = {}
    for strength in (1.0, 3.0, 10.0, 30.0, 100.0):
        right = []
        for fit, test in GroupKFold(5).split(x, y, [group if group >= 0 else -(-group % 97) - 1 for group in groups]):
            model = LogisticRegression(C=strength, max_iter=2_000).fit(x[fit], y[fit], weights[fit])
            ours = [n for n in test if groups[n] >= 0]
            right += list(model.predict(x[ours]) == y[ours])
        scores[strength] = round(float(np.mean(right)), 4)
        print(f"C {strength}: {scores[strength]}", file=sys.stderr)
    best = max(scores, key=lambda one: scores[one])
    model = LogisticRegression(C=best, max_iter=2_000).fit(x, y, weights)
    names = list(model.classes_)
    order = [names.index(NONE), *(n for n, name in enumerate(names) if name != NONE)]
    save_file(
        {"weights": model.coef_[order].astype(np.float16), "bias": model.intercept_[order].astype(np.float32)},
        str(args.out),
        {"operations": json.dumps([names[n] for n in order])},
    )
    result: dict[str, Any] = {**about("operations", ["ragfm"]), "examples": Counter(labels), "cross-validation": scores}
    held_out = tat(reporting=True)
    guessed = model.predict(features([text for _, text, _ in held_out]))
    wanted = np.array([label for *_, label in held_out])
    result["TAT-QA, other half"] = {
        "questions": len(wanted),
        "right": round(float((guessed == wanted).mean()), 4),
        "needs one, noticed": round(float((guessed != NONE)[wanted != NONE].mean()), 4),
        "needs none, noticed": round(float((guessed == NONE)[wanted == NONE].mean()), 4),
        "operation right": round(float((guessed == wanted)[wanted != NONE].mean()), 4),
        "confused": Counter(
            f"{w} as {g}" for w, g in zip(wanted.tolist(), guessed.tolist(), strict=True) if w != g
        ).most_common(8),
    }
    prose = {
        "SQuAD, report articles": [one.question for one in chance.sample(written(TUNED, 35), 1_000)],
        "handbook and canal": [
            json.loads(line)["question"]
            for name in ("handbook", "canal")
            for line in (HERE / f"{name}.jsonl").read_text().splitlines()
        ],
    }
    for name, questions in prose.items():
        of_set = model.predict(features(questions))
        result[name] = {
            "questions": len(questions),
            "as a calculation": round(float((of_set != NONE).mean()), 4),
            "examples": [q for q, g in zip(questions, of_set, strict=True) if g != NONE][:5],
        }
    save(result, "operations")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
