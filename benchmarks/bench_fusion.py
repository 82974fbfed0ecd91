"""Measure the effect of weight, candidates and reciprocal rank fusion on hybrid search, on sets that may be tuned on.

    python benchmarks/bench_fusion.py --keep /var/tmp/ragfm-bench [--only cranfield …]

The settings are those that `ragfm tune` chooses among; `bench_ranking.py` tries other ways to rank.

Each question is searched once, for 200 candidates of each index; all settings are computed from them, as `ragfm tune`
does. nDCG@10; p is that of the paired test against the defaults. "codes" are the questions with a code, to which
`code_weight` applies. Then the look-alikes of tests/support/lookalike_documents.py: the number of questions whose text
is not first. The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from data import TUNING
from measure import about, save

from ragfm import Collection, Settings
from ragfm.core.config import SearchSection
from ragfm.core.errors import TooLongError
from ragfm.evaluation import Gold, Question, corpus_collection
from ragfm.evaluation.run_comparison import paired_differences
from ragfm.evaluation.search_tuning import CandidatePool
from ragfm.retrieval.fusion_weight import weight_for
from ragfm.retrieval.search import candidate_hits

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.lookalike_documents import questions as lookalike_questions
from support.lookalike_documents import texts as lookalikes

DEPTH = 200
NOW = (0.6, 100)
CHOICES = {
    "default": NOW,
    **{f"weight {weight}": (weight, 100) for weight in (0.0, 0.3, 0.4, 0.5, 0.7, 0.8, 1.0)},
    **{f"{count} candidates": (0.6, count) for count in (25, 50, 200)},
}
"""Weight of the cosine and number of candidates."""
CODE_WEIGHTS = (0.2, 0.3, 0.4, 0.5, 0.6)


def candidate_pools(collection: Collection, questions: Any) -> list[tuple[Question, list[Any]]]:
    """Each question with its candidates; questions too long for the embedder are skipped."""
    found = []
    for question in questions:
        try:
            found.append((question, candidate_hits(collection.store, question.text, DEPTH)))
        except TooLongError:
            continue
    return found


def values(found: list[tuple[Question, list[Any]]], choice: tuple[float, int], code_weight: float) -> Any:
    """The nDCG@10 of each question. *Shape:* (n_questions, 1)."""
    settings = SearchSection(code_weight=code_weight)
    return np.array([[CandidatePool(question, hits, settings).value(*choice)] for question, hits in found])


def compare(plain: Any, other: Any) -> dict[str, float]:
    (row,) = paired_differences(["nDCG@10"], plain, other)
    return {"value": round(row.b, 4), "difference": round(row.difference, 4), "p": round(row.p, 4)}


def measure(found: list[tuple[Question, list[Any]]]) -> dict[str, Any]:
    # Without `code_weight`, so that one weight applies to all questions.
    plain = values(found, NOW, 1.0)
    rows: dict[str, Any] = {"questions": len(found)}
    rows |= {name: compare(plain, values(found, choice, 1.0)) for name, choice in CHOICES.items()}
    rows["code_weight 0.4"] = compare(plain, values(found, NOW, 0.4))
    codes = [pair for pair in found if weight_for(pair[0].text, SearchSection()) < NOW[0]]
    rows["codes"] = {"questions": len(codes)}
    if codes:
        plain = values(codes, NOW, 1.0)
        rows["codes"] |= {f"{weight}": compare(plain, values(codes, NOW, weight)) for weight in CODE_WEIGHTS}
    return rows


def count_wrong() -> dict[str, Any]:
    """Look-alike questions whose text is not first, by the weight of the cosine."""
    with tempfile.TemporaryDirectory() as place:
        docs = Path(place) / "docs"
        docs.mkdir()
        for number, (_, _, text) in enumerate(lookalikes()):
            (docs / f"{number:03}.txt").write_text(text, encoding="utf-8")
        with Collection.open(Path(place) / ".ragfm", settings=Settings()) as collection:
            collection.sync(docs)
            asked = [
                Question(str(at), text, (Gold(f"docs/{number:03}.txt"),))
                for at, (text, number) in enumerate(lookalike_questions())
            ]
            found = candidate_pools(collection, asked)
    weights = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
    counts = {f"{w}": int((values(found, (w, 100), 1.0) < 1).sum()) for w in weights}
    return {"questions": len(found), "wrong": counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", metavar="DIR", help="Folder to keep the collections in.")
    parser.add_argument("--only", nargs="+", choices=list(TUNING), default=list(TUNING))
    args = parser.parse_args()
    result: dict[str, Any] = {**about("fusion"), "sets": {}, "lookalikes": count_wrong()}
    print(result["lookalikes"])
    for name in args.only:
        data = TUNING[name][0]()
        with corpus_collection(data, Settings(), keep=args.keep) as (folder, _), Collection.open(folder) as collection:
            result["sets"][name] = measure(candidate_pools(collection, data.questions))
        print(f"\n{name}")
        for setting, row in result["sets"][name].items():
            print(f"  {setting:16} {row}")
    save(result, "fusion")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
