"""Measure follow-ups: whether the right document is found, and whether a change of topic is left unchanged.

    python benchmarks/bench_followups.py [--answers]

The questions of tests/generation/followups, about the bundled handbook and a second, invented topic in one collection.
Compares the question as it is, the previous question followed by it, and the one of the two that is nearer to the
documents. The gain from which they are joined was chosen on the "dev" questions.

With --answers, the bundled reader with its adapter answers all follow-ups: as `Rag` asks it, from the previous turn's
passages and new ones; from the question's own passages alone; and without a conversation, with the stand-alone form.
The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from measure import about, save

from ragfm import Collection, Message, Rag
from ragfm.evaluation.answer_matching import contains_answer
from ragfm.generation.followups import stand_alone
from ragfm.samples import copy_handbook

QUESTIONS = Path(__file__).parents[1] / "tests" / "generation" / "followups"
K = 3


def load() -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (QUESTIONS / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        roles = ("user", "assistant") * len(row["history"])
        row["messages"] = [Message(role, text) for role, text in zip(roles, row["history"], strict=False)]
    return rows


def ingest_collection(folder: Path) -> Collection:
    collection = Collection.open(folder / ".ragfm")
    shutil.copytree(QUESTIONS / "toolshed", folder / "toolshed")
    collection.sync(copy_handbook(folder), folder / "toolshed")
    return collection


def closeness(collection: Collection, text: str) -> float:
    """The cosine of a text and the chunk nearest to it."""
    (nearest,) = collection.search(text, 1, mode="dense", rerank="none")
    return nearest.score or 0.0


def count_found(
    collection: Collection, rows: Sequence[dict[str, Any]], form: Callable[[dict[str, Any]], str]
) -> dict[str, Any]:
    """Counts of questions: right document first, answer in the passages, question unchanged."""
    counts: dict[str, list[int]] = {}
    misses = []

    def count(what: str, value: bool) -> None:
        right, of = counts.setdefault(what, [0, 0])
        counts[what] = [right + value, of + 1]

    for row in rows:
        query = form(row)
        hits = collection.search(query, K)
        right = hits[0].uri == row["uri"]
        if row.get("alone"):
            count("topic changes left alone", query == row["question"])
            if row["uri"]:
                count("topic changes, right document first", right)
        else:
            count("follow-ups, right document first", right)
            count("follow-ups, answer in the passages", any(contains_answer(hit.text, row["answers"]) for hit in hits))
        if not right or (row.get("alone") and query != row["question"]):
            misses.append([row["id"], query, hits[0].uri])
    return {**counts, "misses": misses}


def count_answers(collection: Collection, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of answers that are right and that abstain, and the tokens used."""
    rag = Rag(collection, k=K, reader="bundled")
    follow_ups = [row for row in rows if not row.get("alone")]
    became: dict[str, Counter[str]] = {}
    for done, row in enumerate(follow_ups, 1):
        said, history = row["question"], row["messages"]
        alone = stand_alone(said, history, partial(closeness, collection))
        own, _ = rag.choose(collection.search(alone, 3 * K))
        for way, ask in (
            ("with those before", partial(rag.ask, said, history=history)),
            ("own passages alone", partial(rag.ask, said, history=history, hits=own)),
            ("no conversation", partial(rag.ask, alone)),
        ):
            rag.ask(history[-2].content, history=history[:-2])  # so that the prefix is in the reader's cache
            answer, counts = ask(), became.setdefault(way, Counter())
            counts["right"] += contains_answer(answer.text, row["answers"])
            counts["unknown"] += answer.abstained
            counts["prompt tokens"] += answer.usage.prompt_tokens
            counts["evaluated"] += answer.usage.prompt_tokens - answer.usage.cached_tokens
        print(f"{done}/{len(follow_ups)}", became, flush=True)
    return {"questions": len(follow_ups), **became}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--answers", action="store_true")
    options = parser.parse_args()
    rows = load()
    result: dict[str, Any] = {**about("followups"), "search": {}}
    with tempfile.TemporaryDirectory() as folder:
        collection = ingest_collection(Path(folder))
        near = partial(closeness, collection)
        forms: dict[str, Callable[[dict[str, Any]], str]] = {
            "as it stands": lambda row: row["question"],
            "both questions": lambda row: f"{row['history'][-2]} {row['question']}",
            "nearer": lambda row: stand_alone(row["question"], row["messages"], near),
        }
        for split in ("dev", "held out"):
            part = [row for row in rows if row["split"] == split]
            result["search"][split] = {name: count_found(collection, part, form) for name, form in forms.items()}
            for name, value in result["search"][split].items():
                figures = "  ".join(f"{what} {n}/{of}" for what, (n, of) in list(value.items())[:-1])
                print(f"{split:9} {name:15} {figures}", flush=True)
        if options.answers:
            result["answers"] = count_answers(collection, rows)
    save(result, "followups")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
