"""Measure questions whose answer requires several passages: how many of these passages are among the first five.

    python benchmarks/bench_multihop.py [--keep DIR] [--only SET]

HotpotQA and MuSiQue, 100 questions each over the passages that belong to them. `all@5` is the share of questions with
all of their passages among the first five. Then hybrid search in several hops: on the odd lines of these sets, since
the even ones were used to fit it, and on SQuAD, whose questions need one passage. Milliseconds are CPU time of a
search, embedding included. `--only` measures the hops of one set, and keeps the other results. Prints tables, and one
JSON line last.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from typing import Any

import numpy as np
from data import DATA, hotpotqa, musique
from measure import about, ask, read, save

from ragfm import Collection, Settings
from ragfm.core.types import SearchStep
from ragfm.evaluation import QuestionSet, corpus_collection, load_questions
from ragfm.evaluation.run_comparison import paired_differences

HOPS = (1, 2, 3, "auto")


def hop_sets() -> list[QuestionSet]:
    """The odd lines of the sets that need several passages, and questions of SQuAD, which need one."""
    several = [replace(data, questions=data.questions[::2]) for data in (hotpotqa(), musique())]  # lines 1, 3, …
    squad = load_questions(DATA / "squad" / "squad-v1.1-dev.json.gz")
    return [*several, replace(squad, name="SQuAD 1.1 dev", questions=squad.questions[::100])]


def several_hops(data: QuestionSet, keep: str | None) -> dict[str, Any]:
    """For each number of hops: recall@5, all@5 and MRR@10, the difference to one hop, and the cost."""
    questions, found = data.questions, dict[str, Any]()
    values: dict[str, Any] = {}
    with corpus_collection(data, Settings(), keep=keep) as (folder, _), Collection.open(folder) as collection:
        collection.search(questions[0].text, hops=2)  # load the model and the indexes
        for hops in HOPS:
            rows, rounds, searches = [], [], []
            start = time.process_time()
            for question in questions:
                steps: list[SearchStep] = []
                hits = collection.search(question.text, 10, hops=hops, record=steps.append)  # type: ignore[arg-type]
                of_gold = [[gold.overlaps(hit) for hit in hits] for gold in question.gold]
                recall = np.mean([any(of_one[:5]) for of_one in of_gold])
                first = next((rank for rank, of_hit in enumerate(zip(*of_gold, strict=True), 1) if any(of_hit)), None)
                rows.append([recall, recall == 1, 1 / first if first else 0])
                rounds.append(max(step.round for step in steps))
                searches.append(len(steps))
            seconds = time.process_time() - start
            values[str(hops)] = np.array(rows, dtype=np.float64)
            found[str(hops)] = {
                "cpu_ms": round(1000 * seconds / len(questions), 1),
                "second_round": round(float(np.mean([number > 1 for number in rounds])), 3),
                "searches": round(float(np.mean(searches)), 1),
                **{
                    row.measure: {
                        "value": round(row.b, 4),
                        "difference": [round(value, 4) for value in (row.difference, row.low, row.high)],
                        "p": round(row.p, 4),
                    }
                    for row in paired_differences(["recall@5", "all@5", "MRR@10"], values["1"], values[str(hops)])
                },
            }
    return {"questions": len(questions), "hops": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", metavar="DIR")
    parser.add_argument("--only", metavar="SET")
    args = parser.parse_args()
    before = read("multihop") if args.only else {}
    sets: dict[str, Any] = before.get("sets", {})
    for data in () if args.only else (hotpotqa(), musique()):
        entry = sets[data.name] = ask(data, keep=args.keep)
        print(f"\n{data.name}: {entry['documents']} passages, {entry['questions']} questions")
        for mode, figures in entry["modes"].items():
            recall = figures["measures"]["recall@5"]
            print(
                f"  {mode:8} recall@5 {recall[0]:.3f} [{recall[1]:.3f}, {recall[2]:.3f}]  all@5 {figures['all@5']:.2f}"
            )
    several: dict[str, Any] = before.get("several_hops", {})
    for data in hop_sets():
        if args.only not in (None, data.name):
            continue
        entry = several[data.name] = several_hops(data, args.keep)
        print(f"\n{data.name}: {entry['questions']} questions")
        for hops, figures in entry["hops"].items():
            shown = "  ".join(f"{name} {figures[name]['value']:.3f}" for name in ("recall@5", "all@5", "MRR@10"))
            print(f"  hops {hops:4}  {shown}  {figures['cpu_ms']} ms", flush=True)
    result = {**about("multihop"), "embedder": "all-MiniLM-L6-v2", "sets": sets, "several_hops": several}
    save(result, "multihop")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
