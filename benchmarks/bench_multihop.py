"""Measure questions whose answer takes several passages: how many of these are among the first five.

    python benchmarks/bench_multihop.py [--keep DIR]

HotpotQA and MuSiQue, 100 questions each over the passages that belong to them. `all@5` is the share of questions with
all of their passages among the first five. Prints a table, and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from data import hotpotqa, musique
from measure import about, ask, save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", metavar="DIR")
    args = parser.parse_args()
    sets: dict[str, Any] = {}
    for data in (hotpotqa(), musique()):
        entry = sets[data.name] = ask(data, keep=args.keep)
        print(f"\n{data.name}: {entry['documents']} passages, {entry['questions']} questions")
        for mode, figures in entry["modes"].items():
            recall = figures["measures"]["recall@5"]
            print(
                f"  {mode:8} recall@5 {recall[0]:.3f} [{recall[1]:.3f}, {recall[2]:.3f}]  all@5 {figures['all@5']:.2f}"
            )
    result = {**about("multihop"), "embedder": "all-MiniLM-L6-v2", "sets": sets}
    save(result, "multihop")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
