"""Whether citations that are shown as verified are right: up to 300 of them, each read and labelled.

    python benchmarks/bench_answers.py squad --keep KEEP      the answers
    python benchmarks/bench_cited.py --keep KEEP              samples, and writes labels/cited.jsonl to be labelled
    python benchmarks/bench_cited.py                          counts the labels

A citation is labelled by what the reader of an answer sees: the question, the sentence, and the words that are quoted
for it. `supports`: who reads the quote with the passage around it finds said what the sentence says, as an answer to
the question. `premise`: it does, but the question asks about something that the passage doesn't speak of, as the
unanswerable questions of SQuAD 2.0 do. `wrong`: it does not. The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench_answers import filled, squad_file
from measure import about, save

from ragfm import Collection, Rag
from ragfm.evaluate import AnsweredQuestion, load_questions, read_run
from ragfm.evaluate.measures import estimate_ratios
from ragfm.ground import grounded
from ragfm.ground.asked import doubted
from ragfm.verifier import shipped_verifier

LABELS = Path(__file__).parent / "labels" / "cited.jsonl"
COUNT, AROUND = 300, 300


def sample(keep: Path) -> list[dict[str, Any]]:
    """Of all verified citations in the answers, so many, in random order."""
    results = [AnsweredQuestion.from_json(record) for record in read_run(keep / "squad.jsonl")[1]]
    data = load_questions(squad_file(keep, tune=False), answers=True).sample(1000)
    with filled(data, keep) as collection:
        every = [case for result in results for case in verified(collection, result)]
    return random.Random(0).sample(every, min(COUNT, len(every)))


def verified(collection: Collection, result: AnsweredQuestion) -> Iterator[dict[str, Any]]:
    outcome = result.outcomes["retrieved"]
    rag = Rag(collection, reader="bundled")
    if not outcome.citations or not rag.calibration:
        return
    if rag.calibration.withholds(rag.calibration.confidence(outcome.signals, rag.calibration.embedder)):
        return  # it is withheld
    hits, _ = rag.choose(collection.search(result.question, 3 * rag.k))
    shown = rag.prompt(result.question, hits).shown
    readings = shipped_verifier().read(result.question, shown)
    sentences = grounded(result.question, outcome.answer, shown)
    for sentence in [doubted(one, readings) for one in sentences] if len(sentences) == 1 else sentences:
        for citation in sentence.citations:
            if citation.verified:
                text = collection.document(citation.uri).text
                yield {
                    "id": result.id, "question": result.question, "sentence": sentence.text.strip(),
                    "quote": citation.quote,
                    "around": text[max(0, citation.start - AROUND) : citation.end + AROUND],
                    "answers": list(result.answers), "label": None,
                }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="sample anew, from the answers kept there")
    args = parser.parse_args()
    if args.keep:
        LABELS.write_text("".join(json.dumps(case, ensure_ascii=False) + "\n" for case in sample(args.keep)))
    cases = [json.loads(line) for line in LABELS.read_text().splitlines()]
    labelled = [case for case in cases if case["label"]]
    if not labelled:
        raise SystemExit(f"Label the lines of {LABELS}, then run this again without --keep.")
    shares = {
        name: estimate_ratios([(float(case["label"] in labels), 1.0) for case in labelled])
        for name, labels in (("supports", ["supports"]), ("says what the sentence says", ["supports", "premise"]))
    }
    result = {
        **about("citations shown as verified, read", ["ragfm"]),
        "citations": len(cases), "labelled": len(labelled),
        "labels": dict(Counter(case["label"] for case in labelled)),
        **{name: asdict(found) for name, found in shares.items() if found},
    }  # fmt: skip
    save(result, "cited")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
