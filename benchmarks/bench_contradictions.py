"""Measure answers from contradicting passages: how often the reader is misled, and how often a contradiction is shown.

    python benchmarks/bench_contradictions.py reader [--reader NAME] [--limit N]
    python benchmarks/bench_contradictions.py oracle

RGB's `en_fact` (Chen et al. 2024): 100 questions, each with true passages and the same passages with the answer
replaced by a false one. `Rag.ask` gets two of each, the false ones first. "misled": the answer contains the false word
and not the true one; "noticed": it reports that another passage says otherwise; "answered": its status is `answered`.
"without the step" sets `ask.contradictions` to off. "oracle" uses no reader, but the true and the false word as answers
of a large one; "one false" has one false passage before two true ones. A contradiction is a false alarm if all four
passages are true, or if the false ones are about a different subject: with the names and numbers of the question
replaced by those of a different question. The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rendering
from data import DATA
from measure import about, read, save

from ragfm import Answer, Collection, Hit, Rag, Settings
from ragfm.answering.confidence import DEFAULT, answer_signals
from ragfm.answering.decision import ComposedAnswer, decide
from ragfm.answering.grounding import Grounding, cite_answer
from ragfm.answering.judge import load_judge
from ragfm.answering.policy import LARGE
from ragfm.core.config import AskSection
from ragfm.evaluation.answer_matching import contains_answer
from ragfm.evaluation.metrics import estimate_ratios
from ragfm.testing import HashingEmbedder

SUBJECT = re.compile(r"(?<!^)\b(?:[A-Z][\w-]+|\d+)\b")  # names and numbers; the first word of a question is not a name


def questions(limit: int | None) -> list[dict[str, Any]]:
    with gzip.open(DATA / "rgb" / "en_fact.json.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file][:limit]


def names(answer: Any) -> list[str]:
    """All spellings of an answer; nested lists are alternatives as well."""
    return [answer] if isinstance(answer, str) else [one for part in answer for one in names(part)]


def hits(texts: list[str]) -> list[Hit]:
    return [
        Hit(f"passages/{n}.txt", text, 0, len(text), n, 0.5, {"fused": 0.5}, n=n) for n, text in enumerate(texts, 1)
    ]


def verdict(answer: Answer | ComposedAnswer, status: str, row: dict[str, Any]) -> dict[str, bool]:
    true, false = (
        contains_answer(answer.text, names(row["answer"])),
        contains_answer(answer.text, names(row["fakeanswer"])),
    )
    return {
        "right": true and not false,
        "misled": false and not true,
        "noticed": bool(answer.contradictions),
        "answered": status == "answered",
    }


def about_other_subject(texts: list[str], row: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """The texts about a different subject: names and numbers of the question are replaced by those of a later one."""
    ours = SUBJECT.findall(row["query"])
    at = rows.index(row)
    theirs = [name for other in rows[at + 1 :] + rows[:at] for name in SUBJECT.findall(other["query"])]
    exchanged = dict(zip(ours, [name for name in theirs if name not in ours], strict=False))
    return [SUBJECT.sub(lambda match: exchanged.get(match[0], match[0]), text) for text in texts]


def with_reader(rows: list[dict[str, Any]], reader: str) -> Iterator[tuple[str, dict[str, bool]]]:
    """Answers to each question, by row of the table: without the step and with it."""
    with tempfile.TemporaryDirectory() as folder:
        documents = Path(folder) / "documents"  # not searched; they determine the language
        documents.mkdir()
        (documents / "passages.txt").write_text("\n\n".join(row["positive"][0] for row in rows), encoding="utf-8")
        place, embedder = Path(folder) / "collection", HashingEmbedder()
        with Collection.open(place, embedder=embedder) as collection:
            collection.sync(documents)
        rags = dict[str, Rag]()
        for name, step in (("without the step", False), ("with the step", True)):
            settings = Settings(ask=AskSection(contradictions=step))
            rags[name] = Rag(Collection.open(place, settings=settings, embedder=embedder), reader=reader)
        for number, row in enumerate(rows, 1):
            mixed = hits([*row["positive_wrong"][:2], *row["positive"][:2]])
            for name, rag in rags.items():
                answer = rag.ask(row["query"], hits=mixed)
                yield name, verdict(answer, answer.status, row)
            if number % 20 == 0:
                print(f"{number} of {len(rows)}", flush=True)


def with_oracle(rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, bool]]]:
    """The same for given right and wrong answers."""
    for row in rows:
        true, false = row["positive"], row["positive_wrong"][:2]
        for name, word, texts in (
            ("oracle, true word", row["answer"], [*false, *true[:2]]),
            ("oracle, false word", row["fakeanswer"], [*false, *true[:2]]),
            ("oracle, true word, one false", row["answer"], [false[0], *true[:2]]),
            ("oracle, false word, one false", row["fakeanswer"], [false[0], *true[:2]]),
            ("oracle, nothing false", row["answer"], true[:4]),
            ("oracle, another subject", row["answer"], [*about_other_subject(false, row, rows), *true[:2]]),
        ):
            shown = hits(texts)
            cited = cite_answer(
                Grounding(row["query"], shown, "en", load_judge("small")), names(word)[0], corrects=False
            )
            confidence = DEFAULT.confidence(answer_signals(cited))
            for step in (False, True):
                settings = AskSection(contradictions=step, min_confidence=0)
                decision = decide(cited, confidence, LARGE, settings, threshold=0.0)
                yield f"{name}{'' if step else ', without the step'}", verdict(decision.answer, decision.status, row)


def table(results: rendering.Results) -> str:
    """How often the step notices a contradiction, and how many answers are `answered` with it and without it."""
    result, without = results["contradictions"], ", without the step"
    outcomes = result["oracle"]["outcomes"]
    rows = [["bundled reader", *_cells(result["reader"]["outcomes"]["with the step"]["noticed"]), "", ""]]
    for name, shares in outcomes.items():
        if not name.endswith(without):
            cells = _cells(shares["noticed"], shares["answered"], outcomes[name + without]["answered"])
            rows.append([name.removeprefix("oracle, "), *cells])
    return rendering.table(("answer", "noticed", "answered", "answered without the step"), rows)


def _cells(*estimates: list[float]) -> list[str]:
    return [f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in estimates]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("reader", "oracle"))
    parser.add_argument("--reader", default="bundled")
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    rows = [row for row in questions(args.limit) if len(row["positive"]) >= 2 and len(row["positive_wrong"]) >= 2]
    outcomes: dict[str, list[dict[str, bool]]] = {}
    for name, outcome in with_oracle(rows) if args.what == "oracle" else with_reader(rows, args.reader):
        outcomes.setdefault(name, []).append(outcome)
    part: dict[str, Any] = {**about("contradictions"), "questions": len(rows), "outcomes": {}}
    if args.what == "reader":
        part["reader"] = args.reader
    for name, found in outcomes.items():
        shares = {}
        for what in ("right", "misled", "noticed", "answered"):
            estimate = estimate_ratios([(one[what], 1) for one in found])
            assert estimate is not None
            shares[what] = [round(value, 3) for value in (estimate.value, estimate.low, estimate.high)]
        part["outcomes"][name] = shares
        print(
            f"{name:46}"
            + "  ".join(f"{what} {value:.2f} [{low:.2f}, {high:.2f}]" for what, (value, low, high) in shares.items())
        )
    if args.reader == "bundled" and args.limit is None:
        save({**read("contradictions"), args.what: part}, "contradictions")
    print(json.dumps(part))


if __name__ == "__main__":
    main()
