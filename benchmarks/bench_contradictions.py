"""Answers from passages of which some say the opposite: how often the reader is misled, and how often it is said.

    python benchmarks/bench_contradictions.py [--reader NAME] [--limit N]

RGB's `en_fact` (Chen et al. 2024): 100 questions, each with passages that say what is true and the same passages with
the answer exchanged for a false one. The reader is given two of either, the false ones first, by `Rag.ask`. "misled":
the answer has the false word and not the true one; "noticed": it says that another passage says otherwise. Without the
step, `ask.contradictions` is off. "oracle" asks no reader: the true and the false word are taken for its answer; and
where all four passages say what is true, what is noticed is a false alarm. The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

from data import DATA
from measure import about, save

from ragfm import Collection, Hit, Rag, Settings
from ragfm.config import AskSection
from ragfm.evaluate.matching import holds
from ragfm.evaluate.measures import estimate_ratios
from ragfm.ground import composed, grounded
from ragfm.testing import HashingEmbedder


def questions(limit: int | None) -> list[dict[str, Any]]:
    with gzip.open(DATA / "rgb" / "en_fact.json.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file][:limit]


def names(answer: Any) -> list[str]:
    """All spellings of an answer; lists within the list are alternatives too."""
    return [answer] if isinstance(answer, str) else [one for part in answer for one in names(part)]


def hits(texts: list[str]) -> list[Hit]:
    return [Hit(f"passages/{at}.txt", text, 0, len(text), at, 0.5, {"fused": 0.5}) for at, text in enumerate(texts, 1)]


def verdict(text: str, row: dict[str, Any]) -> dict[str, bool]:
    said = text.partition(" But [")[0]
    true, false = holds(said, names(row["answer"])), holds(said, names(row["fakeanswer"]))
    return {"right": true and not false, "misled": false and not true, "noticed": " says otherwise" in text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", default="bundled")
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    rows = [row for row in questions(args.limit) if len(row["positive"]) >= 2 and len(row["positive_wrong"]) >= 2]
    outcomes: dict[str, list[dict[str, bool]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        rags = {}
        for name, step in (("without the step", False), ("with the step", True)):
            settings = Settings(ask=AskSection(contradictions=step))
            collection = Collection.open(Path(folder) / "none", settings=settings, embedder=HashingEmbedder())
            rags[name] = Rag(collection, reader=args.reader if not rags else next(iter(rags.values())).reader)
        for number, row in enumerate(rows, 1):
            mixed = hits([*row["positive_wrong"][:2], *row["positive"][:2]])
            for name, rag in rags.items():
                answer = rag.ask(row["query"], hits=mixed).text
                outcomes.setdefault(name, []).append(verdict(answer, row))
            shown = [
                Hit(h.uri, h.text, h.start, h.end, h.chunk_id, h.score, h.scores, n=n) for n, h in enumerate(mixed, 1)
            ]
            for name, word in (("oracle, true word", row["answer"]), ("oracle, false word", row["fakeanswer"])):
                text = composed(grounded(row["query"], names(word)[0], shown))[0]
                outcomes.setdefault(name, []).append(verdict(text, row))
            true = [Hit(h.uri, h.text, h.start, h.end, h.chunk_id, h.score, h.scores, n=n)
                    for n, h in enumerate(hits(row["positive"][:4]), 1)]  # fmt: skip
            text = composed(grounded(row["query"], names(row["answer"])[0], true))[0]
            outcomes.setdefault("oracle, nothing false", []).append(verdict(text, row))
            if number % 20 == 0:
                print(f"{number} of {len(rows)}", flush=True)
    result = {**about("contradictions"), "reader": args.reader, "questions": len(rows), "outcomes": {}}
    for name, found in outcomes.items():
        shares = {}
        for what in ("right", "misled", "noticed"):
            estimate = estimate_ratios([(one[what], 1) for one in found])
            assert estimate is not None
            shares[what] = [round(value, 3) for value in (estimate.value, estimate.low, estimate.high)]
        result["outcomes"][name] = shares
        print(
            f"{name:24}"
            + "  ".join(f"{what} {value:.2f} [{low:.2f}, {high:.2f}]" for what, (value, low, high) in shares.items())
        )
    if args.reader == "bundled" and args.limit is None:
        save(result, "contradictions")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
