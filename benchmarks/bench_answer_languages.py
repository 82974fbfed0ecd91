"""Answers, confidence and statuses in languages that the verifier does not read: XQuAD with several readers.

    python benchmarks/bench_answer_languages.py ask --reader NAME [--language de] [--questions 48] [--keep FOLDER]
    python benchmarks/bench_answer_languages.py fit|report [--keep FOLDER]

XQuAD (Artetxe et al. 2020): 240 paragraphs about 48 articles, the same in each language. Every second question is asked
without the article that it is about, from the best passages of the other articles, so that it has no answer, unless one
of these has it. `ask` keeps passages and outputs in FOLDER/languages.jsonl, and continues there. The reader `none` says
nothing, so that the likeliest sentence answers, as it does where the bundled reader abstains.

`fit` fits `UNREAD`, the calibration for these languages, to German and Spanish, each reader and language with the same
weight, and tests it on each language and reader with a model that was not fitted to it. `report` compares the answers
with those before it: no confidence, every answer of a reader `answered`, and citations verified by their words alone.
The utility of an answer that is `answered` is 1 if it is right, else -1, that of others 0; its difference is paired by
question (95 % bootstrap interval). The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_confidence import CORRECTED, answer_record, make_hit, read_lines
from data import xquad
from measure import about, save

from ragfm import Collection, Hit, Rag, Settings
from ragfm.answering.confidence import UNREAD, answer_signals
from ragfm.answering.decision import decide
from ragfm.answering.grounding import Grounding, cite_answer
from ragfm.answering.judge import load_judge
from ragfm.answering.policy import LARGE, SMALL
from ragfm.core.abstention import ABSTENTION, is_abstention
from ragfm.core.config import AskSection
from ragfm.evaluation import corpus_collection
from ragfm.evaluation.answer_matching import contains_answer
from ragfm.evaluation.confidence_calibration import auc, fit_logistic_regression
from ragfm.evaluation.metrics import bootstrap
from ragfm.testing import ScriptedReader

LANGUAGES = ("de", "es", "ru", "zh", "ar")
TUNING = ("de", "es")
FILE = "languages.jsonl"
_MORE = 12  # hits that a question without its article is answered from the best of


def ask(keep: Path, reader: str, k: int | None, language: str, count: int) -> None:
    """Ask questions in a language, and keep passages and outputs."""
    file = keep / FILE
    label = Path(reader).stem
    done = {(one["reader"], one["language"], one["id"]) for one in read_lines(file)}
    data = xquad(language)
    asked = random.Random(1).sample(list(data.questions), len(data.questions))[:count]
    with corpus_collection(data, keep=keep, settings=Settings()) as (folder, _), Collection.open(folder) as collection:
        rag = Rag(collection, reader=ScriptedReader([ABSTENTION]) if reader == "none" else reader, k=k)
        rag.judge, rag.policy = None, LARGE  # the reader's own output, and nothing withheld
        for number, question in enumerate(asked):
            if (label, language, question.id) in done:
                continue
            hits: list[Hit] | None = None
            if number % 2:
                article = question.gold[0].uri.rpartition("/")[0]
                found = collection.search(question.text, rag.k + _MORE, rerank="auto")
                hits = [hit for hit in found if hit.uri.rpartition("/")[0] != article][: rag.k]
            record = {
                "reader": label,
                "language": language,
                "detected": collection.language,
                "unanswerable": bool(number % 2),
                **answer_record(rag, question, hits),
            }
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(record, default=str, ensure_ascii=False) + "\n")
        print(f"{label}: {language}, {len(asked)} questions", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Judged:
    """An answer before the calibration for other languages and now, and whether each is right and has a verified quote.

    `quoted`: the quote that is shown has the answer. `signals` are those of the answer now.
    """

    reader: str
    language: str
    answerable: bool
    before: str
    right_before: bool
    verified_before: bool
    now: str
    right: bool
    quoted: bool
    verified: bool
    confidence: float | None
    signals: dict[str, float]


def judge_record(record: dict[str, Any]) -> Judged:
    """Cite, check, score and decide, as `Rag` does, and as it did."""
    passages = [make_hit(one) for one in record["passages"]]
    policy = SMALL if record["reader"] in CORRECTED else LARGE
    question, output, language = (record[key] for key in ("question", "output", "detected"))
    answerable = any(contains_answer(passage.text, record["answers"]) for passage in passages)

    def is_right(text: str) -> bool:
        return answerable and not is_abstention(text) and contains_answer(text, record["answers"])

    grounding = Grounding(question, passages, language, load_judge("small"))
    words = cite_answer(grounding, output, corrects=False)
    cited = cite_answer(grounding, output, corrects=policy.corrects)
    signals = answer_signals(cited) if cited.sentences else {}
    confidence = UNREAD.confidence(signals)
    decision = decide(cited, confidence, policy, AskSection(), threshold=UNREAD.threshold)
    return Judged(
        record["reader"],
        record["language"],
        answerable,
        "answered" if words.sentences else "not_found",
        is_right(words.text),
        any(found.verified for sentence in words.sentences for found in sentence.evidence),
        decision.status,
        is_right(cited.text),
        bool(decision.quote and is_right(decision.quote.quote)),
        any(citation.verified for citation in decision.answer.citations),
        confidence,
        signals,
    )


def report(keep: Path) -> dict[str, Any]:
    """Count, for each reader and language."""
    judged = [judge_record(record) for record in read_lines(keep / FILE)]
    rows = []
    for reader, language in dict.fromkeys((one.reader, one.language) for one in judged):
        of_set = [one for one in judged if (one.reader, one.language) == (reader, language)]
        rows.append({"reader": reader, "language": language, **_figures(of_set)})
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    others = [one for one in judged if one.language not in TUNING]
    held_out = {
        reader: _figures([one for one in others if one.reader == reader])
        for reader in dict.fromkeys(one.reader for one in others)
    }
    return {"rows": rows, "languages that were not fitted to": held_out}


def _figures(judged: Sequence[Judged]) -> dict[str, Any]:
    right, rest = [one for one in judged if one.right], [one for one in judged if not one.right]
    without = [one for one in judged if not one.answerable]

    def utility(right: bool, status: str) -> int:
        return 0 if status != "answered" else 1 if right else -1

    pairs = [(utility(one.right_before, one.before), utility(one.right, one.now)) for one in judged]
    difference = bootstrap(np.array(pairs, float), lambda of: (of[..., 1] - of[..., 0]).mean(-1, keepdims=True), 0)[0]
    return {
        "questions": len(judged),
        "answerable": sum(one.answerable for one in judged),
        "right before": sum(one.right_before for one in judged),
        "right": len(right),
        "right, answered": sum(one.now == "answered" for one in right),
        "right, shown": sum(one.now != "not_found" for one in right),
        "right quote shown": sum(one.quoted for one in judged),
        "wrong": len(rest),
        "wrong, answered before": sum(one.before == "answered" and not one.right_before for one in judged),
        "wrong, answered": sum(one.now == "answered" for one in rest),
        "no answer": len(without),
        "noticed before": sum(one.before != "answered" for one in without),
        "noticed": sum(one.now != "answered" for one in without),
        "verified before": sum(one.verified_before for one in judged),
        "verified before, right": sum(one.verified_before and one.right_before for one in judged),
        "verified": sum(one.verified for one in judged),
        "verified, right": sum(one.verified and one.right for one in judged),
        "auc": _auc(judged, [one.confidence or 0.0 for one in judged]),
        "utility": [round(value, 3) for value in (difference.value, difference.low, difference.high)],
    }


def fit(keep: Path) -> dict[str, Any]:
    """Fit the calibration, and test it on what each model was not fitted to."""
    judged = [one for one in map(judge_record, read_lines(keep / FILE)) if one.signals]
    rows = []
    for kind in ("language", "reader"):
        for left_out in dict.fromkeys(getattr(one, kind) for one in judged):
            tested = [one for one in judged if getattr(one, kind) == left_out]
            model = _Model([one for one in judged if one.language in TUNING and getattr(one, kind) != left_out])
            scores = model.scores(tested)
            shown = [one.right for one, score in zip(tested, scores, strict=True) if score >= 0]  # likely right
            row = {"left out": left_out, "answers": len(tested), "right": sum(one.right for one in tested)}
            row |= {
                "auc": _auc(tested, scores),
                "right, answered": sum(shown),
                "wrong, answered": len(shown) - sum(shown),
            }
            rows.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    model = _Model([one for one in judged if one.language in TUNING])
    return {
        "bias": round(model.bias, 4),
        "weights": dict(zip(UNREAD.weights, model.weights.round(4).tolist(), strict=True)),
        "means": dict(zip(UNREAD.weights, model.means.round(4).tolist(), strict=True)),
        "left out": rows,
    }


class _Model:
    """A logistic model of the signals of some answers; each language of a reader has the same weight in it."""

    def __init__(self, judged: Sequence[Judged]) -> None:
        x = np.array([[one.signals.get(key, np.nan) for key in UNREAD.weights] for one in judged])
        self.means = np.nanmean(x, axis=0)
        sizes = Counter((one.reader, one.language) for one in judged)
        importance = np.array([len(judged) / len(sizes) / sizes[one.reader, one.language] for one in judged])
        right = np.array([float(one.right) for one in judged])
        self.bias, self.weights = fit_logistic_regression(np.nan_to_num(x - self.means), right, importance)

    def scores(self, judged: Sequence[Judged]) -> list[float]:
        """The log-odds that each answer is right."""
        x = np.array([[one.signals.get(key, np.nan) for key in UNREAD.weights] for one in judged])
        scores: list[float] = (self.bias + np.nan_to_num(x - self.means) @ self.weights).tolist()
        return scores


def _auc(judged: Sequence[Judged], scores: Sequence[float]) -> float | None:
    right = np.array([float(one.right) for one in judged])
    return round(float(auc(np.array(scores), right)), 3) if 0 < right.sum() < len(right) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ask", "fit", "report"))
    parser.add_argument("--reader", default="bundled")
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--language", action="append", choices=LANGUAGES, dest="languages")
    parser.add_argument("--questions", type=int, default=48, help="per language")
    parser.add_argument("--keep", type=Path, default=Path("/tmp/ragfm-bench-answer-languages"))
    args = parser.parse_args()
    args.keep.mkdir(parents=True, exist_ok=True)
    if args.what == "ask":
        for language in args.languages or LANGUAGES:
            ask(args.keep, args.reader, args.k, language, args.questions)
        return
    what, label = (fit, "answer_languages_fit") if args.what == "fit" else (report, "answer_languages")
    result = {**about("answers in other languages"), **what(args.keep)}
    save(result, label)
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
