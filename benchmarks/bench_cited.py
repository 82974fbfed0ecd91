"""Measure whether citations shown as verified are right, by labels of a human reader.

    python benchmarks/bench_cited.py --keep KEEP     ask the questions, and write labels/cited.jsonl for labelling
    python benchmarks/bench_cited.py                 count the labels

The questions of the 25 reported articles are asked in random order, with the bundled models and their defaults, until
there are 300 citations or no more questions. A question is skipped if no retrieved sentence has all of its words: of a
one-sentence answer, as this reader gives, no citation could be verified.

The label depends on what a user sees: the question, the sentence and its quote. `supports`: the quote, with the passage
around it, states the sentence as an answer to the question. `premise`: it does, but the question assumes something that
the passage does not mention, as the unanswerable questions of SQuAD 2.0 do. `wrong`: it does not. The last line is the
result in JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench_answers import squad_file
from measure import about, save

from ragfm import Collection, Rag, Settings
from ragfm.citations.support import passage_windows
from ragfm.citations.text_match import denies, matches_question, without_denials
from ragfm.core.types import Hit
from ragfm.evaluation import QuestionSet, corpus_collection, load_questions
from ragfm.evaluation.metrics import estimate_ratios

LABELS = Path(__file__).parent / "labels" / "cited.jsonl"
COUNT, AROUND = 300, 300


def report_questions(keep: Path) -> QuestionSet:
    return load_questions(squad_file(keep, tune=False), answers=True)


def sample(keep: Path, before: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The first verified citations, up to the wanted number, without those of an earlier run."""
    data = report_questions(keep)
    questions = random.Random(0).sample(data.questions, len(data.questions))
    with corpus_collection(data, Settings(), keep=keep) as (folder, _), Collection.open(folder) as collection:
        rag, found, done = Rag(collection, reader="bundled"), len(before), before[-1]["asked"] if before else 0
        for number, question in enumerate(questions[done:], done + 1):
            hits, _ = rag.choose(collection.search(question.text, 3 * rag.k))
            if not any(map(partial(may_be_verified, question.text), rag.prompt(question.text, hits).shown)):
                continue
            answer = rag.ask(question.text)
            for citation in answer.citations:
                if citation.verified and found < COUNT:
                    found += 1
                    text = collection.document(citation.uri).text
                    yield {
                        "id": question.id,
                        "question": question.text,
                        "sentence": answer.text,
                        "quote": citation.quote,
                        "around": text[max(0, citation.start - AROUND) : citation.end + AROUND],
                        "answers": list(question.answers),
                        "label": None,
                        "asked": number,
                    }
            if found == COUNT:
                return


def may_be_verified(question: str, hit: Hit) -> bool:
    """Whether a sentence of the passage could be a verified quote, assuming that the answer states all of it."""

    def speaks(text: str, known: frozenset[str]) -> bool:
        return matches_question(question, text, text if denies(question) else without_denials(text), known)

    return any(speaks(hit.text[window.start : window.end], window.terms) for window in passage_windows(hit))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder for the answers; asks the questions, or continues")
    args = parser.parse_args()
    if args.keep:
        part = args.keep / LABELS.name
        before = list(map(json.loads, part.read_text("utf-8").splitlines())) if part.exists() else []
        with part.open("a", encoding="utf-8") as file:
            for case in sample(args.keep, before):
                print(json.dumps(case, ensure_ascii=False), file=file, flush=True)
        shutil.copy(part, LABELS)
    cases = [json.loads(line) for line in LABELS.read_text().splitlines()]
    labelled = [case for case in cases if case["label"]]
    if not labelled:
        raise SystemExit(f"Label the lines of {LABELS}, then run the command again without --keep.")
    shares = {
        name: estimate_ratios([(float(case["label"] in labels), 1.0) for case in labelled])
        for name, labels in (("supports", ["supports"]), ("says what the sentence says", ["supports", "premise"]))
    }
    with TemporaryDirectory() as folder:
        every = len(report_questions(Path(folder)).questions)
    result = {
        **about("citations shown as verified, read", ["ragfm"]),
        "citations": len(cases),
        "labelled": len(labelled),
        "of questions": cases[-1]["asked"] if len(cases) == COUNT else every,
        "labels": dict(Counter(case["label"] for case in labelled)),
        **{name: asdict(found) for name, found in shares.items() if found},
    }
    save(result, "cited")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
