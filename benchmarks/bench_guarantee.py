"""Promises about verified citations: simulated with known error rates, and over sets of questions.

    python benchmarks/bench_guarantee.py simulate [--runs 2000]
    python benchmarks/bench_guarantee.py plot
    python benchmarks/bench_guarantee.py ask --reader NAME [--questions 200] [--keep FOLDER]
    python benchmarks/bench_guarantee.py sets [--judge base] [--keep FOLDER]

`ask` keeps a reader's outputs to questions of each set over their passages, and continues there: a paragraph of SQuAD
2.0 dev (reporting articles; half of the questions have no answer) or PolicyQA, the table and paragraphs of TAT-QA, and
what the search finds in the sample handbook.
`sets` cites them, and calls a verified citation right if both sentence and quote have a right answer. It takes half of
the documents to give a promise, and the other half to count the errors: for each set, and for the promise of one set
over the others, where nothing is promised. It was run three times, with 570, 1,163 and
2,271 outputs, with 0, 1 and 2 promises. The first run also counted citations below the threshold of `verified`, and
promised 10 and 20 %: no labels sufficed. 30 % and the restriction to verified citations are of later.

`simulate`: the probabilities of the judge are uniform in [0, 1], and a citation is wrong with a chance that falls with
them: not at all, linearly or steeply. For each number of labels and each shape: the share of runs with a promise, the
share in which the true error is at most the promised one (a run without a promise counts, too), and the mean coverage,
the share of citations that stay verified. Then a year of later labels, one a day, looked at each day: the share of true
promises that lapse, and where citations are wrong three times as often, the share that lapses and the median day. No
model is loaded. The last line is the result in JSON. `plot` draws its result as docs/guarantee.svg.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import drawing
import numpy as np
import rendering
from bench_confidence import answer_record, cite_record, read_lines
from data import DATA
from judge_examples import TUNED, Asked, is_single_span, policies, tat_passages, with_rule, written
from measure import about, read, save
from numpy.typing import NDArray

from ragfm import Collection, Hit, Rag
from ragfm.answering.policy import LARGE
from ragfm.answering.risk_control import choose_threshold, evidence_against
from ragfm.evaluation import Question
from ragfm.evaluation.answer_matching import contains_answer
from ragfm.generation.citation_labels import EVIDENCE
from ragfm.samples import HANDBOOK

ERROR, CONFIDENCE = 0.1, 0.95
ERRORS = (0.1, 0.2, 0.3)  # promised over sets
LABELS = (50, 100, 200, 400, 800)
DAYS = 365
PLOT = Path(__file__).parents[1] / "docs" / "guarantee.svg"
DRIFT = 3.0
Floats = NDArray[np.float64]
# The chance of being wrong at a probability, and its mean over all probabilities from a threshold on.
SHAPES: dict[str, tuple[Callable[[Floats], Floats], Callable[[float], float]]] = {
    "flat, 5 %": (lambda scores: np.full_like(scores, 0.05), lambda _: 0.05),
    "flat, 11 %": (lambda scores: np.full_like(scores, 0.11), lambda _: 0.11),
    "linear": (lambda scores: 0.3 * (1 - scores), lambda threshold: 0.15 * (1 - threshold)),
    "steep": (lambda scores: (1 - scores) ** 4, lambda threshold: (1 - threshold) ** 4 / 5),
}


def simulate(shape: str, labels: int, runs: int, rng: np.random.Generator) -> dict[str, float]:
    """The shares of one shape and number of labels."""
    chance, mean = SHAPES[shape]
    given = kept = lapsed = 0
    coverage = 0.0
    days: list[float] = []
    for _ in range(runs):
        scores = rng.random(labels)
        wrong = rng.random(labels) < chance(scores)
        promise = choose_threshold(scores.tolist(), wrong.tolist(), error=ERROR, confidence=CONFIDENCE)
        if promise is None:
            kept += 1
            continue
        given += 1
        coverage += 1 - promise.threshold
        later = promise.threshold + (1 - promise.threshold) * rng.random(DAYS)
        drawn = rng.random(DAYS)
        if mean(promise.threshold) <= ERROR:
            kept += 1
            lapsed += lapse_day(drawn < chance(later)) <= DAYS
        days.append(lapse_day(drawn < np.minimum(1, DRIFT * chance(later))))
    return {
        "promise": given / runs,
        "holds": kept / runs,
        "coverage": coverage / runs,
        "true ones that lapse": lapsed / max(1, kept - (runs - given)),
        "drift: lapsed": float(np.mean(np.array(days) <= DAYS)) if days else 0.0,
        "drift: median day": float(np.median(days)) if days else 0.0,
    }


def lapse_day(wrong: NDArray[np.bool_]) -> float:
    """The day from 1 on which the evidence ends the promise; after the last day if none does."""
    reached = np.flatnonzero(evidence_against(wrong.tolist(), ERROR) >= EVIDENCE)
    return float(reached[0] + 1) if len(reached) else DAYS + 1.0


def table(results: rendering.Results) -> str:
    """The table of docs/benchmarks.md."""
    shapes = results["guarantee"]["shapes"]
    return rendering.table(
        ["promised; of all citations, verified with it", *(f"{labels} labels" for labels in LABELS)],
        [
            [
                shape,
                *(f"{row['promise']:.0%}; {row['coverage'] / max(row['promise'], 1e-9):.0%}" for row in rows.values()),
            ]
            for shape, rows in shapes.items()
        ],
    )


def plot(shapes: dict[str, Any]) -> str:
    """An SVG file: for each shape, the share of runs with a promise against the number of labels."""
    left, top, wide, tall = 60, 44, 420, 240
    parts = [drawing.label(left, 24, "How often labels suffice for a promise of at most 10 % wrong", "start", 15)]
    for tick in range(5):
        y = top + tall * (1 - tick / 4)
        parts += [
            drawing.stroke(left, y, left + wide, y, "#ddd"),
            drawing.label(left - 8, y + 4, f"{tick / 4:.0%}", "end"),
        ]
    places = {labels: left + wide * n / (len(LABELS) - 1) for n, labels in enumerate(LABELS)}
    for labels, x in places.items():
        parts.append(drawing.label(x, top + tall + 20, str(labels), "middle"))
    parts.append(drawing.label(left + wide / 2, top + tall + 44, "labels", "middle", 12))
    for (shape, rows), colour in zip(shapes.items(), ("#0b6e4f", "#b23a48", "#2b5c9e", "#c98a1b"), strict=True):
        points = [(places[labels], top + tall * (1 - rows[str(labels)]["promise"])) for labels in LABELS]
        parts += [drawing.stroke(*one, *other, colour, 2) for one, other in pairwise(points)]
        parts += [drawing.dot(*point, colour) for point in points]
        y = top + 60 + 24 * list(shapes).index(shape)
        parts += [drawing.dot(left + wide + 30, y, colour), drawing.label(left + wide + 42, y + 4, shape, "start", 12)]
    return drawing.picture(left + wide + 150, top + tall + 60, parts)


@dataclass(frozen=True, slots=True)
class Given:
    """A question, its right answers, if any, and the passages that a reader is shown: None for those of a search."""

    document: str
    question: str
    answers: Sequence[str]
    passages: Sequence[tuple[str, str]] | None  # context and text


def squad() -> list[Given]:
    """Questions of SQuAD 2.0 dev over their paragraph, of articles for reporting."""
    return [_over_paragraph(one) for one in written(TUNED, 99)]


def policyqa() -> list[Given]:
    """Questions of PolicyQA over their paragraph, of sites for reporting."""
    return [_over_paragraph(one) for one in policies(reporting=True)]


def _over_paragraph(one: Asked) -> Given:
    return Given(one.title, one.question, [one.answer] if one.answer else [], [(one.title, one.context)])


def tatqa() -> list[Given]:
    """Questions of TAT-QA for reporting with one span as answer, over table and paragraphs."""
    data = json.loads(gzip.decompress((DATA / "tatqa/dev.json.gz").read_bytes()))[1::2]
    found = []
    for number, entry in enumerate(data):
        header, table, paragraphs = tat_passages(entry)
        passages = [("", f"{with_rule(header)}\n{table}"), *(("", text) for text in paragraphs)]
        found += [
            Given(str(number), one["question"], [str(one["answer"][0])], passages)
            for one in entry["questions"]
            if is_single_span(one)
        ]
    return found


def handbook() -> list[Given]:
    """30 questions about the sample handbook, over what the search finds."""
    lines = (Path(__file__).parent / "transfer" / "handbook.jsonl").read_text(encoding="utf-8").splitlines()
    return [Given(one["uri"], one["question"], one.get("answers", []), None) for one in map(json.loads, lines)]


SETS = {"SQuAD 2.0": squad, "PolicyQA": policyqa, "TAT-QA": tatqa, "handbook": handbook}


def ask(reader: str, count: int, keep: Path) -> None:
    """Keep the outputs of a reader."""
    keep.mkdir(parents=True, exist_ok=True)
    file, label = keep / "outputs.jsonl", Path(reader).stem
    done = {(one["reader"], one["set"], one["number"]) for one in read_lines(file)}
    with Collection.open(keep / ".ragfm") as collection:
        collection.sync(HANDBOOK, name="handbook")  # the passages are given, but a reader needs a collection
        rag = Rag(collection, reader=reader)
        rag.judge, rag.policy = None, LARGE  # the reader's own output, and nothing withheld
        for name, questions in SETS.items():
            every = questions()
            for number in random.Random(1).sample(range(len(every)), len(every))[:count]:
                if (label, name, number) in done:
                    continue
                given = every[number]
                hits = given.passages and [
                    Hit(f"{name}/{n}", text, 0, len(text), n, None, {}, context=context)
                    for n, (context, text) in enumerate(given.passages)
                ]
                question = Question(str(number), given.question, (), tuple(given.answers))
                record = {"reader": label, "set": name, "number": number, "language": "en"}
                record |= answer_record(rag, question, hits)
                with file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(record, default=str, ensure_ascii=False) + "\n")
            print(f"{label}: {name}", file=sys.stderr, flush=True)


def labelled(record: dict[str, Any], given: Given, judge: str) -> list[tuple[float, bool]]:
    """The probability of each verified citation, which `ragfm log review` would ask for, and whether it is wrong."""
    return [
        (
            one.probability or 0.0,
            not contains_answer(sentence.plain, given.answers) or not contains_answer(one.unit.text, given.answers),
        )
        for sentence in cite_record(record, judge).sentences
        for one in sentence.evidence
        if one.verified
    ]


def promises(keep: Path, judge: str) -> list[dict[str, Any]]:
    """For each reader and set, the promise by half of its documents, and what is observed in other halves."""
    halves: dict[tuple[str, str, bool], list[tuple[float, bool]]] = {}
    every = {name: questions() for name, questions in SETS.items()}
    records = read_lines(keep / "outputs.jsonl")
    for number, record in enumerate(records, 1):
        given = every[record["set"]][record["number"]]
        half = halves.setdefault((record["reader"], record["set"], crc32(given.document.encode()) % 2 == 0), [])
        half += labelled(record, given, judge)
        if number % 100 == 0:
            print(f"{number} of {len(records)} outputs", file=sys.stderr, flush=True)
    rows = []
    for (reader, name, tuned), labels in halves.items():
        if not tuned:
            continue
        scores, wrong = [score for score, _ in labels], [wrong for _, wrong in labels]
        row: dict[str, Any] = {"reader": reader, "labels of": name, "labels": len(wrong), "wrong": sum(wrong)}
        tested = {other: halves.get((reader, other, False), []) for other in SETS}
        row["without a promise"] = {other: observed(citations, 0.0) for other, citations in tested.items()}
        for error in ERRORS:
            promise = choose_threshold(scores, wrong, error=error, confidence=CONFIDENCE)
            row[f"{error:.0%}"] = promise and {
                "threshold": round(promise.threshold, 4),
                "bound": round(promise.bound, 4),
                "labels": promise.labels,
                **{other: observed(citations, promise.threshold) for other, citations in tested.items()},
            }
        rows.append(row)
    return rows


def observed(citations: Sequence[tuple[float, bool]], threshold: float) -> dict[str, int]:
    """How many citations are verified from a threshold on, and how many of these are wrong."""
    kept = [wrong for score, wrong in citations if score >= threshold]
    return {"verified": len(kept), "wrong": sum(kept)}


def sets_table(results: rendering.Results) -> str:
    """For each reader: its labels, then same set and others, without a promise and with the strictest possible one."""

    def counts(given: dict[str, Any], name: str) -> str:
        rest = [given[other] for other in SETS if other != name]
        wrong, verified = sum(one["wrong"] for one in rest), sum(one["verified"] for one in rest)
        return f"{given[name]['wrong']} of {given[name]['verified']}; {wrong} of {verified}"

    rows = results["guarantee_sets_base"]["rows"]
    by_set: dict[str, list[str]] = {}
    for row in rows:
        name = row["labels of"]
        promised = [f"{error:.0%}" for error in ERRORS if row[f"{error:.0%}"]]
        promise = f"{promised[0]}: {counts(row[promised[0]], name)}" if promised else "-"
        by_set.setdefault(name, []).extend(
            [f"{row['wrong']} of {row['labels']}", counts(row["without a promise"], name), promise]
        )
    readers = dict.fromkeys(row["reader"].split("-")[2] for row in rows)
    head = [f"{reader}: {what}" for reader in readers for what in ("labels", "no promise", "promised")]
    return rendering.table(["labels of", *head], [[name, *cells] for name, cells in by_set.items()])


def main() -> None:
    """Simulate all shapes and numbers of labels, or measure sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("simulate", "plot", "ask", "sets"))
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--reader", default="bundled")
    parser.add_argument("--questions", type=int, default=200, help="maximum per set")
    parser.add_argument("--judge", default="base")
    parser.add_argument("--keep", type=Path, default=Path("/tmp/ragfm-bench-guarantee"))
    options = parser.parse_args()
    if options.what == "ask":
        ask(options.reader, options.questions, options.keep)
        return
    if options.what == "sets":
        rows = promises(options.keep, options.judge)
        result = {**about("promises over sets"), "judge": options.judge, "confidence": CONFIDENCE, "rows": rows}
        save(result, f"guarantee_sets_{options.judge}")
        print(json.dumps(result))
        return
    if options.what == "plot":
        PLOT.write_text(plot(read("guarantee")["shapes"]), encoding="utf-8")
        return
    rng = np.random.default_rng(0)
    shapes: dict[str, Any] = {}
    for shape in SHAPES:
        shapes[shape] = {}
        for labels in LABELS:
            shapes[shape][str(labels)] = row = simulate(shape, labels, options.runs, rng)
            print(f"{shape:<11}{labels:>5} labels  " + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    worst = min(row["holds"] for rows in shapes.values() for row in rows.values())
    result = {
        **about("guarantee"),
        "runs": options.runs,
        "error": ERROR,
        "confidence": CONFIDENCE,
        "worst": worst,
        "shapes": shapes,
    }
    save(result, "guarantee")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
