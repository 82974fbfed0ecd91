"""Measure retrieval with default settings: SciFact, npl and SQuAD in each mode, and the sets that may be tuned on.

    python benchmarks/bench_retrieval.py [--keep DIR] [--sets 'npl,SQuAD dev']

Nothing is tuned on the reported sets. `--keep` keeps the embedded collections; `--sets` measures only these sets and
keeps the figures of the others. Prints a table, and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import rendering
from data import REPORTED, TUNING
from measure import about, ask, read, save

GOALS = {"SciFact test": 0.73, "SQuAD dev": 0.81}
"""That hybrid should reach, by the measure that counts."""
NOT_BELOW = ("SciFact test", "npl", "SQuAD dev")
"""Where hybrid should be at least as good as the better of dense and keyword."""


def goals(sets: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal with its result and whether it is reached."""
    found = []
    for name in [name for name in REPORTED if name in sets]:
        measure, modes = REPORTED[name][1], sets[name]["modes"]
        value = {mode: modes[mode]["measures"][measure][0] for mode in modes}
        if name in GOALS:
            found.append((f"{name}: {measure} ≥ {GOALS[name]}", value["hybrid"], value["hybrid"] >= GOALS[name]))
        if name in NOT_BELOW:
            better = max(value["dense"], value["keyword"])
            found.append((f"{name}: hybrid ≥ better of both ({better})", value["hybrid"], value["hybrid"] >= better))
    return [{"goal": goal, "value": value, "reached": reached} for goal, value, reached in found]


def show(name: str, entry: dict[str, Any]) -> None:
    print(f"\n{name}: {entry['documents']} documents, {entry['chunks']} chunks, {entry['questions']} questions")
    for mode, figures in entry["modes"].items():
        measures = "  ".join(f"{key} {value[0]:.3f}" for key, value in figures["measures"].items())
        print(f"  {mode:8} {measures}  p50 {figures['search_ms']['p50']} ms  p95 {figures['search_ms']['p95']} ms")
    row = entry["hybrid_beside_better"][entry["measure"]]
    print(f"  hybrid - {row['better']}: {row['difference']}, p {row['p']}", flush=True)


def table(results: rendering.Results) -> str:
    rows = []
    for name, entry in results["retrieval"]["sets"].items():
        if entry["role"] != "reported":
            continue
        measure, modes = entry["measure"], entry["modes"]
        row, times = entry["hybrid_beside_better"][measure], modes["hybrid"]["search_ms"]
        rows.append(
            [
                name,
                f"{entry['questions']:,} / {entry['documents']:,}",
                measure,
                *(f"{modes[mode]['measures'][measure][0]:.3f}" for mode in ("dense", "keyword")),
                rendering.interval(modes["hybrid"]["measures"][measure]),
                f"{row['difference'][0]:+.3f} ({rendering.p_value(row['p'])})",
                f"{times['p50']:.1f} / {times['p95']:.1f}",
            ]
        )
    head = ("set", "questions / documents", "measure", "dense", "keyword", "hybrid [95 %]", "hybrid − better (p)")
    return rendering.table((*head, "p50 / p95 ms"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", metavar="DIR")
    parser.add_argument("--sets", default=",".join({**REPORTED, **TUNING}), help="names, separated by commas")
    args = parser.parse_args()
    head = about("retrieval")
    sets: dict[str, Any] = read("retrieval").get("sets", {})
    for name in args.sets.split(","):
        load, measure = {**REPORTED, **TUNING}[name]
        entry = {"role": "tuning" if name in TUNING else "reported", "measure": measure, "commit": head["commit"]}
        sets[name] = entry | ask(load(), keep=args.keep)
        show(name, sets[name])
        keep(head, sets)
    result = read("retrieval")
    print()
    for goal in result["goals"]:
        print(f"{'reached' if goal['reached'] else 'MISSED':8} {goal['goal']}: {goal['value']}")
    print(json.dumps(result, ensure_ascii=False))


def keep(head: dict[str, Any], sets: dict[str, Any]) -> None:
    """Save the results so far, since a complete run takes long."""
    ordered = {name: sets[name] for name in {**REPORTED, **TUNING} if name in sets}
    save({**head, "embedder": "all-MiniLM-L6-v2", "goals": goals(ordered), "sets": ordered}, "retrieval")


if __name__ == "__main__":
    main()
