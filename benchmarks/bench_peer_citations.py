"""Compare citations with LlamaIndex's CitationQueryEngine and Haystack's AnswerBuilder.

    python benchmarks/bench_peer_citations.py --python PEERS/bin/python [--questions 100]

Answerable questions of SQuAD 2.0 dev (the 25 articles), the bundled reader, and the three passages that ragfm finds. A
citation holds if its passage has a right answer. "cited": by a marker in the text, with ragfm those shown as verified;
"listed": the sources returned with the answer. Haystack gets ragfm's raw output, since it has no prompt of its own;
LlamaIndex uses the same reader with its own prompt. The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench_answers import filled_collection, squad_file
from measure import about, save, weights

from ragfm import Rag
from ragfm.core.types import Message, Sampling
from ragfm.evaluation import Question, load_questions
from ragfm.evaluation.answer_matching import contains_answer
from ragfm.evaluation.metrics import estimate_ratios

RUNNER = Path(__file__).parent / "baselines" / "citing.py"


def run_ragfm(rag: Rag, questions: list[Question]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Input of the peers, and ragfm's citations."""
    items, found = [], []
    for question in questions:
        stream = rag.stream(question.text)
        reply = "".join(stream)
        passages = {hit.n: hit.text for hit in stream.prompt.shown} if stream.prompt else {}
        items.append({"question": question.text, "passages": list(passages.values()), "reply": reply})
        cited = {citation.n for citation in stream.answer.citations if citation.supports}
        found.append(
            {
                "text": stream.answer.text,
                "cited": [passages[n] for n in sorted(cited)],
                "listed": list(passages.values()),
            }
        )
        print(f"{len(found)} of {len(questions)}", file=sys.stderr, flush=True)
    return items, found


def run_peers(rag: Rag, python: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    """Run the peers' process, with answers of the bundled reader."""
    sampling = Sampling(max_tokens=128)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as task:
        json.dump({"items": items}, task)
        task.flush()
        process = subprocess.Popen(
            [python, str(RUNNER), task.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin
        assert process.stdout
        for line in process.stdout:
            told: dict[str, Any] = json.loads(line)
            if "prompt" not in told:
                process.wait()
                return told
            text = "".join(rag.reader.stream([Message("user", told["prompt"])], sampling))
            process.stdin.write(json.dumps({"text": text}) + "\n")
            process.stdin.flush()
    raise SystemExit("the peers' process ended without a result")


def share(found: list[dict[str, Any]], questions: list[Question]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for which in ("cited", "listed"):
        pairs = [
            (sum(contains_answer(text, q.answers) for text in one[which]), float(len(one[which])))
            for one, q in zip(found, questions, strict=True)
        ]
        estimate = estimate_ratios(pairs)
        told[which] = {
            "citations": int(sum(of for _, of in pairs)),
            "answers with one": sum(of > 0 for _, of in pairs),
            "hold": asdict(estimate) if estimate else None,
        }
    told["right"] = sum(contains_answer(one["text"], q.answers) for one, q in zip(found, questions, strict=True))
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--keep", type=Path, default=Path("/tmp/ragfm-bench-answers"))
    args = parser.parse_args()
    args.keep.mkdir(parents=True, exist_ok=True)
    data = load_questions(squad_file(args.keep, tune=False), answers=True)
    answerable = [question for question in data.sample(3 * args.questions).questions if not question.unanswerable]
    questions = answerable[: args.questions]
    with filled_collection(data, args.keep / "squad") as collection:
        rag = Rag(collection, reader="bundled")
        items, mine = run_ragfm(rag, questions)
        told = run_peers(rag, args.python, items)
    result = {
        **about("peer citations", ["ragfm", "llama-cpp-python"]),
        "peers": told["versions"],
        "weights": weights(),
        "questions": len(questions),
        "ragfm": share(mine, questions),
        **{name: share(found, questions) for name, found in told["result"].items()},
    }
    save(result, "peer_citations")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
