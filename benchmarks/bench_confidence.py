"""Confidence and `verified` for every reader: answers of several readers to questions of several domains.

    python benchmarks/bench_confidence.py ask --reader NAME [--adapter none] [--k K] [--set SET] [--keep FOLDER]
    python benchmarks/bench_confidence.py report [--verifier JUDGE] [--keep FOLDER] [--label NAME]
    python benchmarks/bench_confidence.py fit [--verifier JUDGE] [--set SET] [--keep FOLDER]
    python benchmarks/bench_confidence.py limits [--keep FOLDER]
    python benchmarks/bench_confidence.py unlabelled [--keep FOLDER]

`ask` keeps the passages and the output of each question in FOLDER/answers.jsonl, and continues there. `report` computes
citations, confidence and status from them, so that a change of these needs no reader. For each reader and set it counts
the right answers, those with the status `answered`, the questions without an answer that are noticed, and how many
verified citations belong to a right answer. `refit` is the AUC of a model of the same signals that was fitted to
the tuning sets and readers other than those of the row.

`fit` fits a calibration to the readers and the tuning sets (or those of them that `--set` names), each with the same
weight, and tests the signals on each set and each reader with a model that was fitted to the other sets or readers. The
calibration that ships was fitted to the answers of `bundled` and `none`. The reader `none` says nothing, so that the
judge answers alone, as it does where the bundled reader abstains.

`labels/citations.jsonl` has a label for each citation that somebody has judged by reading question, sentence and quote
with what stands above it: does the quote state what question and sentence say together? Verified ones that do, of all
verified ones with a label, are the precision of `verified`; of all that do, its recall. `unlabelled` prints those
without a label, without saying which are verified. The file has hashes, not texts. `report` also sums up the labelled
citations of all readers and sets, with the AUC of their probabilities and its interval.

`limits` shows the outcome for other thresholds of the confidence, chosen in hindsight, and for a perfect confidence, by
which exactly the right answers are `answered`. Its precision is that of noticing: of the answers that are not
`answered`, the share to questions without an answer.

Where a set has only questions with an answer, every second one is asked without the passages of its gold documents: it
has no answer, unless another passage has it. An answer is right if it has a right answer in it; over reports, by
`bench_reports.py`. The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rendering
from bench_answers import squad_file
from bench_reports import DATA as REPORTS
from bench_reports import judge, report_labels
from bench_reports import questions as report_questions
from bench_transfer import HERE
from data import DATA, hotpotqa, musique, pubmedqa
from measure import about, save

from ragfm import Collection, Hit, Rag, Settings
from ragfm.answering.confidence import DEFAULT, answer_signals
from ragfm.answering.decision import decide
from ragfm.answering.grounding import CitedAnswer, Grounding, cite_answer
from ragfm.answering.judge import load_judge
from ragfm.answering.policy import LARGE, SMALL
from ragfm.core.abstention import ABSTENTION, is_abstention
from ragfm.core.config import AskSection
from ragfm.evaluation import Gold, Question, QuestionSet, corpus_collection, load_questions
from ragfm.evaluation.answer_matching import contains_answer
from ragfm.evaluation.confidence_calibration import auc, estimate_auc, fit_logistic_regression
from ragfm.samples import HANDBOOK
from ragfm.testing import ScriptedReader

WEIGHED = ("answers", "first", "supports", "agrees", "exact")
CORRECTED = ("bundled", "none")
"""Readers that the judge corrects."""
LABELS = Path(__file__).parent / "labels" / "citations.jsonl"
THRESHOLDS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
_ABOVE = 250  # characters above a quote that `unlabelled` prints
_MORE = 12  # hits that a question without its gold passages is answered from the best of


@dataclass(frozen=True)
class Domain:
    """A set of questions over a collection. `tuning` may be fitted to; `paired`: every second one loses its gold."""

    open: Callable[[Path], contextlib.AbstractContextManager[tuple[Collection, Sequence[Question]]]]
    tuning: bool
    count: int
    paired: bool = False


@contextlib.contextmanager
def _corpus(data: QuestionSet, keep: Path) -> Iterator[tuple[Collection, Sequence[Question]]]:
    with corpus_collection(data, keep=keep, settings=Settings()) as (folder, _), Collection.open(folder) as collection:
        yield collection, data.questions


@contextlib.contextmanager
def _files(folder: Path, keep: Path) -> Iterator[tuple[Collection, Sequence[Question]]]:
    with Collection.open(keep / folder.name / ".ragfm") as collection:
        collection.sync(folder, name=folder.name)
        yield collection, load_questions(HERE / f"{folder.name}.jsonl", answers=True).questions


@contextlib.contextmanager
def _reports(keep: Path, *, tuning: bool) -> Iterator[tuple[Collection, Sequence[Question]]]:
    with Collection.open(keep / "collection") as collection:
        collection.sync(REPORTS / "pdfs", name="reports")
        yield (
            collection,
            [
                Question(one["id"], one["question"], (Gold(one["document"]),), (one["answer"],))
                for one in report_questions()
                if one["tuning"] == tuning
            ],
        )


def rgb() -> QuestionSet:
    """RGB (Chen et al. 2024), English with facts: 100 questions over the snippets of all of them."""
    with gzip.open(DATA / "rgb" / "en_fact.json.gz", "rt", encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
    documents, questions = {}, []
    for entry in entries:
        gold = []
        for kind in ("positive", "negative"):
            for number, text in enumerate(entry[kind]):
                path = f"{entry['id']}-{kind}-{number}.txt"
                documents[path] = text
                if kind == "positive":
                    gold.append(Gold(f"corpus/{path}"))
        answers = entry["answer"] if isinstance(entry["answer"], list) else [entry["answer"]]
        names = [name for one in answers for name in (one if isinstance(one, list) else [one])]
        questions.append(Question(str(entry["id"]), entry["query"], tuple(gold), tuple(names)))
    return QuestionSet("RGB", tuple(questions), documents=documents)


def _squad(keep: Path, *, tune: bool) -> contextlib.AbstractContextManager[tuple[Collection, Sequence[Question]]]:
    return _corpus(load_questions(squad_file(keep, tune=tune), answers=True), keep)


DOMAINS = {
    "squad tuning": Domain(lambda keep: _squad(keep, tune=True), tuning=True, count=200),
    "hotpotqa": Domain(lambda keep: _corpus(hotpotqa(), keep), tuning=True, count=40, paired=True),
    "musique": Domain(lambda keep: _corpus(musique(), keep), tuning=True, count=40, paired=True),
    "rgb": Domain(lambda keep: _corpus(rgb(), keep), tuning=True, count=40, paired=True),
    "pubmedqa": Domain(lambda keep: _corpus(pubmedqa(test=False), keep), tuning=True, count=40, paired=True),
    "reports tuning": Domain(lambda keep: _reports(keep, tuning=True), tuning=True, count=60),
    "squad": Domain(lambda keep: _squad(keep, tune=False), tuning=False, count=80),
    "canal": Domain(lambda keep: _files(HERE / "canal", keep), tuning=False, count=60),
    "handbook": Domain(lambda keep: _files(HANDBOOK, keep), tuning=False, count=60),
    "reports": Domain(lambda keep: _reports(keep, tuning=False), tuning=False, count=60),
}


def answer_record(rag: Rag, question: Question, hits: Sequence[Hit] | None) -> dict[str, Any]:
    """Ask a question, and return it with the output, the hits, and the passages that the reader was shown."""
    begin = time.perf_counter()
    stream = rag.stream(question.text, hits=hits)
    output = "".join(stream)
    return {
        "id": question.id,
        "question": question.text,
        "answers": question.answers,
        "output": output,
        "seconds": round(time.perf_counter() - begin, 2),
        "hits": [asdict(hit) for hit in stream.answer.hits],
        "passages": [asdict(hit) for hit in stream.prompt.shown] if stream.prompt else [],
    }


def ask(keep: Path, reader: str, adapter: str | None, k: int | None, names: Sequence[str], count: int) -> None:
    """Ask the questions of the sets, and keep passages and outputs."""
    file = keep / "answers.jsonl"
    label = Path(reader).stem + ("" if adapter is None else f", adapter {adapter}")
    done = {(one["reader"], one["set"], one["id"]) for one in read_answers(keep)}
    for name in names:
        domain = DOMAINS[name]
        with domain.open(keep) as (collection, questions):
            silent = ScriptedReader([ABSTENTION])
            rag = Rag(collection, reader=silent if reader == "none" else reader, adapter=adapter, k=k)
            rag.judge, rag.policy = None, LARGE  # the reader's own output, and nothing withheld
            asked = random.Random(1).sample(list(questions), len(questions))[: min(domain.count, count)]
            for number, question in enumerate(asked):
                if (label, name, question.id) in done:
                    continue
                hits: list[Hit] | None = None
                without = domain.paired and number % 2 == 1
                if without:
                    gold = {one.uri for one in question.gold}
                    found = collection.search(question.text, rag.k + _MORE, rerank="auto")
                    hits = [hit for hit in found if hit.uri not in gold][: rag.k]
                record = {
                    "reader": label,
                    "set": name,
                    "unanswerable": without or question.unanswerable,
                    "language": collection.language,
                    **answer_record(rag, question, hits),
                }
                with file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(record, default=str, ensure_ascii=False) + "\n")
            print(f"{label}: {name}, {len(asked)} questions", file=sys.stderr, flush=True)


def read_answers(keep: Path) -> list[dict[str, Any]]:
    """The answers that `ask` has kept."""
    return read_lines(keep / "answers.jsonl")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file; none if it does not exist."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line] if file.exists() else []


@dataclass(frozen=True)
class Judged:
    """An answer as `Rag` would give it. `right` is None if nobody has judged it; `quoted`: the quote has the answer."""

    reader: str
    set: str
    answerable: bool
    right: bool | None
    quoted: bool
    status: str
    confidence: float | None
    signals: dict[str, float]
    verified: bool
    citations: dict[str, tuple[bool, float]]  # whether each is verified, and how likely it is, by `citation_key`


def citation_key(question: str, sentence: str, quote: str) -> str:
    """The hash that stands for a citation in the labels."""
    return hashlib.sha1("\0".join([question, sentence, quote]).encode()).hexdigest()[:12]


def cite_record(record: dict[str, Any], verifier: str) -> CitedAnswer:
    """The reader's output, cited as `Rag` does it."""
    passages = [make_hit(one) for one in record["passages"]]
    grounding = Grounding(record["question"], passages, record["language"], load_judge(verifier))
    return cite_answer(grounding, record["output"], corrects=record["reader"] in CORRECTED)


def judge_record(record: dict[str, Any], labels: dict[tuple[str, str], str], verifier: str) -> Judged:
    """Cite, check, score and decide, as `Rag` does."""
    policy = SMALL if record["reader"] in CORRECTED else LARGE
    passages = [make_hit(one) for one in record["passages"]]
    cited = cite_record(record, verifier)
    signals, confidence = {}, None
    if cited.readings and cited.sentences:
        signals = answer_signals(cited)
        confidence = DEFAULT.confidence(signals)
    decision = decide(cited, confidence, policy, AskSection(), threshold=DEFAULT.threshold)
    quote = decision.quote

    reports = record["set"].startswith("reports")
    answerable = not record["unanswerable"]
    if not reports and not answerable:  # another passage than the gold one may have the answer
        answerable = any(contains_answer(passage.text, record["answers"]) for passage in passages)

    def is_right(answer: str) -> bool | None:
        plain = re.sub(r"\s*\[[\d, ]+\]", "", answer)
        if not answerable or is_abstention(answer):
            return False
        if reports:
            asked = next(one for one in report_questions() if one["id"] == record["id"])
            return {"right": True, "wrong": False}.get(judge(asked, plain, labels))
        if record["set"] == "pubmedqa":
            verdict = re.match(r"\W*(yes|no|maybe)\b", plain, re.IGNORECASE)
            return verdict is not None and verdict[1].lower() == record["answers"][0]
        return contains_answer(plain, record["answers"])

    return Judged(
        record["reader"],
        record["set"],
        answerable,
        is_right(cited.text),
        bool(quote and answerable and is_right(quote.quote)),
        decision.status,
        confidence,
        signals,
        any(citation.verified for citation in decision.answer.citations),
        {
            citation_key(record["question"], sentence.plain, found.unit.text): (
                found.verified,
                found.probability or 0.0,
            )
            for sentence in cited.sentences
            for found in sentence.evidence
        },
    )


def report(keep: Path, verifier: str) -> dict[str, Any]:
    """Count, for each reader and set."""
    labels = report_labels()
    states = {one["key"]: one["states"] for one in map(json.loads, LABELS.read_text(encoding="utf-8").splitlines())}
    judged = [judge_record(record, labels, verifier) for record in read_answers(keep) if record["passages"]]
    rows = []
    for (reader, name), of_set in _by_set(judged).items():
        right, rest = [one for one in of_set if one.right], [one for one in of_set if not one.right]
        verified = [one for one in of_set if one.verified]
        labelled = [
            (is_verified, states[key])
            for one in judged
            if (one.reader, one.set) == (reader, name)
            for key, (is_verified, _) in one.citations.items()
            if key in states
        ]
        rows.append(
            {
                "reader": reader,
                "set": name,
                "questions": len(of_set),
                "answerable": sum(one.answerable for one in of_set),
                "right": len(right),
                "right, answered": sum(one.status == "answered" for one in right),
                "right, shown": sum(one.status != "not_found" for one in right),
                "right quote shown": sum(one.quoted and one.status != "not_found" for one in of_set),
                "no answer": sum(not one.answerable for one in of_set),
                "no answer, noticed": sum(not one.answerable and one.status != "answered" for one in of_set),
                "wrong, answered": sum(one.status == "answered" for one in rest),
                "verified": len(verified),
                "verified, right": sum(bool(one.right) for one in verified),
                "citations labelled": len(labelled),
                "citations that state it": sum(stated for _, stated in labelled),
                "citations verified": sum(is_verified for is_verified, _ in labelled),
                "citations verified that state it": sum(is_verified and stated for is_verified, stated in labelled),
                "auc": _auc(of_set, [one.confidence or 0.0 for one in of_set]),
                "refit": _auc(of_set, _refitted(judged, of_set, name, reader)),
            }
        )
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    citations = sum_up(judged, states)
    print(citations, flush=True)
    return {"judge": verifier, "citations": citations, "rows": rows, "answered is right": _reliability(judged)}


def sum_up(judged: Sequence[Judged], states: dict[str, bool]) -> dict[str, Any]:
    """Count the labelled citations of all readers and sets, and how well their probabilities tell them apart."""
    found = [
        (probability, states[key], is_verified)
        for one in judged
        for key, (is_verified, probability) in one.citations.items()
        if key in states
    ]
    scores, stated = np.array([one[0] for one in found]), np.array([float(one[1]) for one in found])
    return {
        "all": sum(len(one.citations) for one in judged),
        "labelled": len(found),
        "state it": int(stated.sum()),
        "verified": sum(one[2] for one in found),
        "verified that state it": sum(one[1] and one[2] for one in found),
        "auc": asdict(estimate_auc(scores, stated, 0)) if 0 < stated.sum() < len(found) else None,
    }


def _by_set(judged: Sequence[Judged]) -> dict[tuple[str, str], list[Judged]]:
    """The answers that somebody has judged, by reader and set."""
    found: dict[tuple[str, str], list[Judged]] = {(one.reader, one.set): [] for one in judged}
    for one in judged:
        if one.right is not None:
            found[one.reader, one.set].append(one)
    return found


def limits(keep: Path, verifier: str) -> dict[str, Any]:
    """For each reader and set, the outcome at other thresholds of the confidence, and that of a perfect confidence."""
    labels = report_labels()
    judged = [judge_record(record, labels, verifier) for record in read_answers(keep) if record["passages"]]
    rows = []
    for (reader, name), of_set in _by_set(judged).items():
        right, none = sum(bool(one.right) for one in of_set), sum(not one.answerable for one in of_set)
        thresholds = {}
        for threshold in THRESHOLDS:
            noticed = [one for one in of_set if (one.confidence or 0.0) < threshold]
            kept = right - sum(bool(one.right) for one in noticed)
            found = sum(not one.answerable for one in noticed)
            thresholds[threshold] = {
                "right, answered": kept,
                "wrong, answered": len(of_set) - len(noticed) - kept,
                "no answer, noticed": found,
                "precision": round(found / max(len(noticed), 1), 3),
            }
        perfect = round(none / max(len(of_set) - right, 1), 3)
        counts = {"questions": len(of_set), "right": right, "no answer": none, "perfect precision": perfect}
        rows.append({"reader": reader, "set": name, **counts, "thresholds": thresholds})
        print(json.dumps(rows[-1]), flush=True)
    return {"rows": rows}


def unlabelled(keep: Path, verifier: str) -> None:
    """Print the citations that have no label yet, in an order that tells nothing."""
    known = {json.loads(line)["key"] for line in LABELS.read_text(encoding="utf-8").splitlines()}
    found = {}
    for record in read_answers(keep):
        for sentence in cite_record(record, verifier).sentences if record["passages"] else ():
            for one in sentence.evidence:
                key, unit = citation_key(record["question"], sentence.plain, one.unit.text), one.unit
                above = f"{unit.hit.context} … {unit.hit.text[max(0, unit.start - _ABOVE) : unit.start]}"
                found[key] = record["set"], record["id"], record["question"], sentence.plain, above, unit.text
    for key in sorted(found.keys() - known):
        print(key, *(" ".join(part.split()) for part in found[key]), sep="\n    ")


def fit(keep: Path, verifier: str, names: Sequence[str]) -> dict[str, Any]:
    """Fit the calibration that ships, and test its signals on what each model was not fitted to."""
    labels = report_labels()
    judged = [judge_record(record, labels, verifier) for record in read_answers(keep) if record["passages"]]
    judged = [one for one in judged if one.right is not None and one.signals]
    tuning = [one for one in judged if DOMAINS[one.set].tuning and one.set in names]
    rows = []
    for kind in ("set", "reader"):
        for left_out in dict.fromkeys(getattr(one, kind) for one in judged):
            tested = [one for one in judged if getattr(one, kind) == left_out]
            scores = _Model([one for one in tuning if getattr(one, kind) != left_out]).scores(tested)
            shown = [one.right for one, score in zip(tested, scores, strict=True) if score >= 0]  # likely right
            rows.append(
                {
                    "left out": left_out,
                    "answers": len(tested),
                    "right": sum(bool(one.right) for one in tested),
                    "auc": _auc(tested, scores),
                    "right, answered": sum(map(bool, shown)),
                    "wrong, answered": sum(not right for right in shown),
                }
            )
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    model = _Model(tuning)
    return {
        "answers": len(tuning),
        "bias": round(model.bias, 4),
        "weights": dict(zip(WEIGHED, model.weights.round(4).tolist(), strict=True)),
        "means": dict(zip(WEIGHED, model.means.round(4).tolist(), strict=True)),
        "left out": rows,
    }


class _Model:
    """A logistic model of the signals of some answers; each set of a reader has the same weight in it."""

    def __init__(self, judged: Sequence[Judged]) -> None:
        x = np.array([[one.signals.get(key, np.nan) for key in WEIGHED] for one in judged])
        self.means = np.nanmean(x, axis=0)
        sizes = Counter((one.reader, one.set) for one in judged)
        weights = np.array([len(judged) / len(sizes) / sizes[one.reader, one.set] for one in judged])
        right = np.array([float(bool(one.right)) for one in judged])
        self.bias, self.weights = fit_logistic_regression(np.nan_to_num(x - self.means), right, weights)

    def scores(self, judged: Sequence[Judged]) -> list[float]:
        """The log-odds that each answer is right; -99 without signals."""
        return [
            float(
                self.bias
                + sum(
                    weight * (one.signals.get(key, mean) - mean)
                    for key, weight, mean in zip(WEIGHED, self.weights, self.means, strict=True)
                )
            )
            if one.signals
            else -99.0
            for one in judged
        ]


def _refitted(judged: Sequence[Judged], of_set: Sequence[Judged], name: str, reader: str) -> list[float]:
    """Confidences by a model fitted to the tuning sets other than this one, of all other readers."""
    others = [one for one in judged if DOMAINS[one.set].tuning and one.set != name and one.reader != reader]
    others = [one for one in others if one.right is not None and one.signals]
    return _Model(others).scores(of_set) if len({one.right for one in others}) == 2 else []


def _auc(judged: Sequence[Judged], scores: Sequence[float]) -> float | None:
    right = np.array([float(bool(one.right)) for one in judged])
    if len(scores) != len(judged) or not 0 < right.sum() < len(right):
        return None
    return round(float(auc(np.array(scores), right)), 3)


def _reliability(judged: Sequence[Judged]) -> dict[str, list[float]]:
    """The mean confidence and the share of right answers, by fifths of the confidence."""
    known = [one for one in judged if one.confidence is not None and one.right is not None]
    pairs = sorted((one.confidence or 0.0, float(bool(one.right))) for one in known)
    means = [fifth.mean(axis=0).round(3).tolist() for fifth in np.array_split(np.array(pairs), 5)]
    return {"confidence": [mean[0] for mean in means], "right": [mean[1] for mean in means]}


def make_hit(record: dict[str, Any]) -> Hit:
    """The hit that a record has kept."""
    lines = tuple(record["lines"]) if record["lines"] else None
    return Hit(**{**record, "headings": tuple(record["headings"]), "lines": lines})


def table(results: rendering.Results) -> str:
    """A row for each set, a column for each reader that answered it."""
    readers = ("bundled", "none")
    by_set: dict[str, dict[str, str]] = {}
    for row in results["confidence"]["rows"]:
        right = f"{row['right, answered']} of {row['right']}"
        wrong = f"{row['wrong, answered']} of {row['questions'] - row['right']}"
        stated = f"{row['citations verified that state it']} of {row['citations verified']}"
        auc = "-" if row["auc"] is None else f"{row['auc']:.2f}"
        by_set.setdefault(row["set"], {})[row["reader"]] = f"{right}; {wrong}; {stated}; {auc}"
    rows = [
        [name, *(found.get(reader, "-") for reader in readers)]
        for name, found in by_set.items()
        if "tuning" not in name
    ]
    return rendering.table(("right and sure; wrong and sure; quotes that state it; AUC", *readers), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("ask", "report", "fit", "limits", "unlabelled"))
    parser.add_argument(
        "--set", action="append", choices=DOMAINS, dest="sets", help="of `ask` and `fit`; may be repeated; default: all"
    )
    parser.add_argument("--reader", default="bundled")
    parser.add_argument("--adapter")
    parser.add_argument("--k", type=int)
    parser.add_argument("--questions", type=int, default=100, help="maximum per set")
    parser.add_argument("--verifier", default="small", help="the judge, as in `ask.verifier`")
    parser.add_argument("--label", default="confidence", help="name of the result of `report`")
    parser.add_argument("--keep", type=Path, default=Path("/tmp/ragfm-bench-confidence"))
    args = parser.parse_args()
    args.keep.mkdir(parents=True, exist_ok=True)
    if args.what == "ask":
        ask(args.keep, args.reader, args.adapter, args.k, args.sets or list(DOMAINS), args.questions)
        return
    if args.what == "unlabelled":
        unlabelled(args.keep, args.verifier)
        return
    if args.what == "fit":
        print(json.dumps(fit(args.keep, args.verifier, args.sets or list(DOMAINS))))
        return
    if args.what == "limits":
        measured, label = limits(args.keep, args.verifier), "confidence_limits"
    else:
        measured, label = report(args.keep, args.verifier), args.label
    result = {**about("confidence and verified citations", ["ragfm"]), **measured}
    save(result, label)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
