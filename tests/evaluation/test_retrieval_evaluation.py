"""Evaluation of retrieval: data, measures, intervals, resumed runs, comparisons, the page and the commands."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click import UsageError
from support.shell import InProcessShell, Shell

from ragfm import Collection, Settings
from ragfm.core.errors import DataError, MissingExtraError
from ragfm.core.progress import Progress
from ragfm.core.types import Hit
from ragfm.evaluation import (
    Gold,
    Question,
    compare_runs,
    evaluate_retrieval,
    first_ranks,
    load_questions,
    run_file,
)
from ragfm.evaluation.metrics import Ranked, estimate_means, estimate_percentiles, rank_hits, ranking_measures
from ragfm.evaluation.run_comparison import paired_differences
from ragfm.evaluation.run_file import append_record, load_finished, read_run, run_questions
from ragfm.testing import HashingEmbedder


def hit(uri: str, start: int = 0, end: int = 10, score: float = 0.5) -> Hit:
    return Hit(uri, "x" * (end - start), start, end, hash((uri, start)), score, {"dense": score})


def write_lines(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in records), encoding="utf-8")
    return path


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "pets"
    write_lines(
        folder / "corpus.jsonl",
        {"_id": "d/1", "title": "Dogs", "text": "Dogs bark at the postman."},
        {"_id": ".2", "title": "", "text": "Cats sleep on the warm oven."},
        {"_id": "3", "title": "Fish\nand more", "text": "Fish swim in the cold river."},
    )
    write_lines(
        folder / "queries.jsonl",
        *({"_id": f"q{n}", "text": text} for n, text in enumerate(["who barks at the postman", "warm oven", "rivers"])),
    )
    header = "query-id\tcorpus-id\tscore"
    write_lines(
        folder / "qrels" / "test.tsv", header, "q0\td/1\t2", "q0\t3\t0", "q1\t.2\t1", "q1\tgone\t1", "q2\t3\t-1"
    )
    write_lines(folder / "qrels" / "train.tsv", header, "q2\t3\t1")
    return folder


def squad_file(path: Path) -> Path:
    first, second = "Oil was dear in 1973.", "Then it was cheap: nearly $12, not $3."
    article = {
        "title": "Oil",
        "paragraphs": [
            {
                "context": first,
                "qas": [
                    {
                        "id": "a",
                        "question": "When was oil dear?",
                        "answers": [
                            {"text": "in 1973", "answer_start": 13},
                            {"text": "1973", "answer_start": 16},
                            {"text": "1973", "answer_start": 16},
                        ],
                    }
                ],
            },
            {
                "context": second,
                "qas": [
                    {
                        "id": "b",
                        "question": "How cheap?",
                        "answers": [{"text": "nearly $12", "answer_start": 19}],
                    },
                    {"id": "c", "question": "Why?", "answers": [], "is_impossible": True},
                ],
            },
        ],
    }
    path.write_text(json.dumps({"version": "2.0", "data": [article]}), encoding="utf-8")
    return path


# --- Data --------------------------------------------------------------------------------------------------------


def test_a_beir_folder(beir: Path) -> None:
    data = load_questions(beir)
    assert data.name == "pets test"
    assert data.documents == {
        "d%2F1.md": "# Dogs\n\nDogs bark at the postman.",
        "%2E2.md": "Cats sleep on the warm oven.",
        "3.md": "# Fish and more\n\nFish swim in the cold river.",
    }
    assert data.questions == (
        Question("q0", "who barks at the postman", (Gold("corpus/d%2F1.md", grade=2),)),
        Question("q1", "warm oven", (Gold("corpus/%2E2.md"), Gold("corpus/gone.md"))),
    )
    assert data.left_out == {"without a relevant document": 1}
    assert [question.id for question in load_questions(beir, split="train").questions] == ["q2"]
    with pytest.raises(DataError, match=r"no qrels/dev.tsv. Splits there: test, train"):
        load_questions(beir, split="dev")


def test_a_beir_folder_with_one_qrels_and_compressed(beir: Path) -> None:
    (beir / "qrels" / "train.tsv").rename(beir / "qrels.tsv")
    (beir / "qrels" / "test.tsv").unlink()
    corpus = beir / "corpus.jsonl"
    (beir / "corpus.jsonl.gz").write_bytes(gzip.compress(corpus.read_bytes()))
    corpus.unlink()
    assert [question.id for question in load_questions(beir).questions] == ["q2"]
    (beir / "corpus.jsonl.gz").write_bytes((beir / "corpus.jsonl.gz").read_bytes()[:-30])
    with pytest.raises(DataError, match=r"corpus.jsonl.gz cannot be read"):
        load_questions(beir)


def test_a_squad_file(tmp_path: Path) -> None:
    path = squad_file(tmp_path / "s.json")
    data = load_questions(path)
    assert data.documents == {
        "Oil/000.txt": "Oil was dear in 1973.",
        "Oil/001.txt": "Then it was cheap: nearly $12, not $3.",
    }
    assert [question.gold for question in data.questions] == [
        (Gold("corpus/Oil/000.txt"),),
        (Gold("corpus/Oil/001.txt"),),
    ]
    assert data.left_out == {"unanswerable": 1}


def test_squad_articles_with_the_same_title_are_kept_apart(tmp_path: Path) -> None:
    path = squad_file(tmp_path / "s.json")
    (article,) = json.loads(path.read_text(encoding="utf-8"))["data"]
    other = json.loads(json.dumps(article).replace('"id": "', '"id": "other '))
    path.write_text(json.dumps({"data": [article, other]}), encoding="utf-8")
    documents = load_questions(path).documents or {}
    assert list(documents) == ["Oil/000.txt", "Oil/001.txt", "Oil 2/000.txt", "Oil 2/001.txt"]


def test_a_squad_question_with_null_for_answers_is_unanswerable(tmp_path: Path) -> None:
    path = squad_file(tmp_path / "s.json")
    path.write_text(path.read_text(encoding="utf-8").replace('"answers": []', '"answers": null'), encoding="utf-8")
    assert load_questions(path, answers=None).questions[-1].unanswerable


def test_a_jsonl_of_questions(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "q.jsonl",
        {"question": "a?", "uri": "x"},
        "",
        {"question": "b?", "uri": "x", "start": 3, "end": 9, "id": "b"},
        {"question": "b?", "uri": "y", "id": "b"},
        {"question": "b?", "uri": "y", "id": "b"},
        {"question": "c?", "unanswerable": True},
        {"id": None, "question": "d?", "uri": "z", "start": None, "end": None, "answers": None},
    )
    data = load_questions(path)
    assert data.questions == (
        Question("1", "a?", (Gold("x"),)),
        Question("b", "b?", (Gold("x", 3, 9), Gold("y"))),
        Question("7", "d?", (Gold("z"),)),
    )
    assert (data.left_out, data.documents) == ({"unanswerable": 1}, None)
    assert [question.by_passage for question in data.questions] == [False, True, False]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2 is not JSON"),
        ("[1]", r"line 2 is not a JSON object but list"),
        ({"question": "b?"}, r"line 2: 'uri' is missing"),
        ({"question": " ", "uri": "x"}, r"line 2: the question is empty"),
        ({"question": 7, "uri": "x"}, r"line 2: 'question' is 7, not a text"),
        ({"question": "b?", "uri": "x", "start": 3}, r"line 2: start is 3 and end None"),
        ({"question": "b?", "uri": "x", "start": 3, "end": 3}, r"line 2: start is 3 and end 3"),
        ({"question": "b?", "uri": "x", "id": "1"}, r"line 2: the id '1' belongs to a different question"),
    ],
)
def test_an_invalid_line_is_named(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_questions(write_lines(tmp_path / "q.jsonl", {"question": "a?", "uri": "x"}, line))


def test_invalid_data_is_reported(tmp_path: Path, beir: Path) -> None:
    def fails(message: str, path: Path, **options: Any) -> None:
        with pytest.raises(DataError, match=message):
            load_questions(path, **options)

    fails("no file or folder", tmp_path / "nothing")
    fails(r"no corpus.jsonl. A BEIR folder holds", tmp_path)
    fails("unknown format", write_lines(tmp_path / "q.csv", "a"))
    fails("is not JSON", write_lines(tmp_path / "a.json", "{"))
    fails("is not a SQuAD file", write_lines(tmp_path / "b.json", {"data": [{"title": "x"}]}))
    fails("no question that can be evaluated", write_lines(tmp_path / "empty.jsonl"))
    fails("does not support 'split'", squad_file(tmp_path / "s.json"), split="test")
    fails("does not support 'answers'", beir, answers=True)
    write_lines(beir / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore", "q0\td/1\t1", "q0 3 1")
    fails(r"test.tsv, line 3: 'q0 3 1' is not", beir)
    write_lines(beir / "qrels" / "test.tsv", "q9\td/1\t1")
    fails("judges the query 'q9', which is not in .*queries.jsonl", beir)


def test_a_sample_is_the_same_each_time(tmp_path: Path) -> None:
    lines = [{"question": f"{n}?", "uri": "x"} for n in range(100)]
    data = load_questions(write_lines(tmp_path / "q.jsonl", *lines))
    ids = [int(question.id) for question in data.sample(10, seed=3).questions]
    assert ids == sorted(set(ids))
    assert len(ids) == 10
    assert data.sample(10, seed=3) == data.sample(10, seed=3) != data.sample(10, seed=4)
    assert data.sample(100) is data


@pytest.mark.data
def test_the_real_sets(data: Path) -> None:
    scifact = load_questions(data / "beir" / "scifact")
    assert (scifact.name, len(scifact.questions), len(scifact.documents or ())) == ("scifact test", 300, 5183)
    assert sum(len(question.gold) for question in scifact.questions) == 339
    assert len(load_questions(data / "beir" / "scifact", split="train").questions) == 809
    npl = load_questions(data / "beir" / "npl")
    assert (npl.name, len(npl.questions), len(npl.documents or ())) == ("npl", 93, 11429)
    cranfield = load_questions(data / "beir" / "cranfield")
    assert {gold.grade for question in cranfield.questions for gold in question.gold} == {1, 2, 3, 4}
    squad = load_questions(data / "squad" / "squad-v1.1-dev.json.gz")
    assert (len(squad.questions), len(squad.documents or ())) == (10570, 2067)
    german = load_questions(data / "xquad" / "xquad.de.json.gz")
    assert len(german.questions) == 1190


# --- Measures ----------------------------------------------------------------------------------------------------


def places(*golds: int | None) -> list[Ranked]:
    return [Ranked(f"d{at}", 0, 1, None, gold) for at, gold in enumerate(golds)]


def test_measures_by_hand() -> None:
    # Gold of grades 2, 1 and 1; the second is found first, then the first one, on ranks 2 and 3.
    got = ranking_measures(places(None, 1, 0), {0: 2, 1: 1, 2: 1}, 100)
    best = 2 + 1 / math.log2(3) + 1 / 2
    assert got == pytest.approx(
        {
            "nDCG@10": (1 / math.log2(3) + 2 / 2) / best,
            "MRR@10": 1 / 2,
            "MAP@100": (1 / 2 + 2 / 3) / 3,
            "recall@1": 0,
            "recall@3": 2 / 3,
            "recall@5": 2 / 3,
            "recall@10": 2 / 3,
            "recall@100": 2 / 3,
        }
    )
    assert set(ranking_measures(places(None), {0: 1}, 50).values()) == {0.0}
    assert "recall@100" not in ranking_measures(places(0), {0: 1}, 50)
    assert ranking_measures(places(*[None] * 10, 0), {0: 1}, 100)["MRR@10"] == 0


def test_measures_by_brute_force() -> None:
    draw = random.Random(0)
    for _ in range(60):
        grades = {n: draw.choice([1, 1, 2, 3]) for n in range(draw.randint(1, 8))}
        found = draw.sample(sorted(grades), draw.randint(0, len(grades)))
        ranking: list[int | None] = [*found, *[None] * draw.randint(0, 120)]
        draw.shuffle(ranking)
        ranking = ranking[:100]
        got = ranking_measures(places(*ranking), grades, 100)
        ranks = [rank for rank, gold in enumerate(ranking, 1) if gold is not None]
        ideal = sorted(grades.values(), reverse=True)[:10]
        gain = sum(grades[gold] / math.log2(rank + 1) for rank, gold in enumerate(ranking[:10], 1) if gold is not None)
        want = {
            "nDCG@10": gain / sum(grade / math.log2(at + 2) for at, grade in enumerate(ideal)),
            "MRR@10": 1 / ranks[0] if ranks and ranks[0] <= 10 else 0,
            "MAP@100": sum(n / rank for n, rank in enumerate(ranks, 1)) / len(grades),
            **{f"recall@{k}": sum(rank <= k for rank in ranks) / len(grades) for k in (1, 3, 5, 10, 100)},
        }
        assert got == pytest.approx(want)


def test_a_document_has_the_rank_of_its_best_passage() -> None:
    question = Question("q", "?", (Gold("b", grade=3), Gold("c")))
    ranked, grades = rank_hits(question, [hit("a"), hit("a", 10, 20), hit("b"), hit("b", 10, 20), hit("c")], 100)
    assert [(place.uri, place.start, place.gold) for place in ranked] == [("a", 0, None), ("b", 0, 0), ("c", 0, 1)]
    assert grades == {0: 3, 1: 1}
    assert len(rank_hits(question, [hit("a"), hit("b"), hit("c")], 2)[0]) == 2


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [
        (100, 200, True),
        (0, 104, False),  # 4 of the answer's 10 characters
        (0, 105, True),
        (105, 300, True),
        (106, 300, False),
        (103, 106, True),  # a small passage within the answer
        (109, 113, False),
        (0, 100, False),
    ],
)
def test_a_passage_matches_a_span_by_half_of_the_shorter_one(start: int, end: int, found: bool) -> None:
    question = Question("q", "?", (Gold("a", 100, 110),))
    ranked, _ = rank_hits(question, [hit("b", start, end), hit("a", start, end)], 10)
    assert [place.gold for place in ranked] == [None, 0 if found else None]


def test_passages_are_ranked_and_gold_is_matched_once() -> None:
    question = Question("q", "?", (Gold("a", 0, 5), Gold("a", 6, 9, grade=2), Gold("a", 50, 55)))
    ranked, grades = rank_hits(question, [hit("a", 20, 30), hit("a", 0, 10), hit("a", 0, 9), hit("a", 48, 60)], 10)
    assert [place.gold for place in ranked] == [None, 0, None, 2]
    assert grades == {0: 2, 2: 1}  # what one passage finds together is one, of the better grade
    assert ranking_measures(ranked, grades, 10)["recall@10"] == 1


def test_the_score_is_the_one_that_ranks() -> None:
    keyword = Hit("a", "x", 0, 1, 1, None, {"dense": None, "keyword": 7.0, "fused": None})
    fused = Hit("b", "x", 0, 1, 2, 0.3, {"dense": 0.3, "keyword": 7.0, "fused": 0.9})
    ranked, _ = rank_hits(Question("q", "?", (Gold("a"),)), [fused, keyword, hit("c", score=0.2)], 10)
    assert [place.score for place in ranked] == [0.9, 7.0, 0.2]


def test_intervals_agree_with_theory() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.2, (400, 2))
    for estimate, column in zip(estimate_means(values), values.T, strict=True):
        assert estimate.value == pytest.approx(column.mean())
        half = 1.96 * column.std() / 20
        assert estimate.low == pytest.approx(column.mean() - half, abs=0.15 * half)
        assert estimate.high == pytest.approx(column.mean() + half, abs=0.15 * half)
    times = estimate_percentiles(list(range(1, 1002)))
    assert [times[name].value for name in ("p50", "p95", "p99")] == [501, 951, 991]
    # The ranks between which a percentile lies are binomial.
    assert times["p50"].low == pytest.approx(501 - 1.96 * math.sqrt(1001) / 2, abs=4)
    assert times["p95"].high == pytest.approx(951 + 1.96 * math.sqrt(1001 * 0.95 * 0.05), abs=4)
    assert estimate_percentiles([]) == {}


def test_a_missing_library_is_reported_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(MissingExtraError, match=r"pip install -e '\.\[eval\]'"):
        ranking_measures(places(0), {0: 1}, 10)


# --- Asking a collection -----------------------------------------------------------------------------------------


WORDS = [f"{a}{b}" for a in ("zebra", "tulip", "anvil", "comet", "ferry") for b in ("red", "blue", "green", "black")]


@pytest.fixture
def many(tmp_path: Path, embedder: HashingEmbedder) -> Collection:
    """Twenty documents of a word each, and one so long and of all words that its passages crowd every ranking."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number, word in enumerate(WORDS):  # as names, the words would make it too easy
        (folder / f"{number}.txt").write_text(f"The {word} is here, said the old man.\n")
    (folder / "99.txt").write_text("\n\n".join(f"The {word} is here, {n}. " * 2 for n in range(4) for word in WORDS))
    collection = Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder=embedder)
    collection.sync(folder, name="many")
    return collection


def questions_of(many: Collection, n: int = 20) -> list[Question]:
    return [Question(word, f"the {word} is here", (Gold(f"many/{WORDS.index(word)}.txt"),)) for word in WORDS[:n]]


def test_a_collection_is_evaluated(many: Collection, tmp_path: Path) -> None:
    reported: list[Progress] = []
    report = evaluate_retrieval(
        many,
        questions_of(many),
        mode="dense",
        k=15,
        out=tmp_path / "runs" / "a.jsonl",
        about={"data": "words"},
        progress=reported.append,
    )
    assert reported == [Progress("searching", n, 20) for n in range(1, 21)]
    assert report.about["data"] == "words"
    assert report.about["collection"]["documents"] == 21
    for result in report.results:
        uris = [place.uri for place in result.ranked]
        assert len(set(uris)) == len(uris) == 15  # although one document's passages crowd the first places
        own = [hit.uri for hit in many.search(result.question, 10, mode="dense")]
        assert uris[: len(set(own))] == list(dict.fromkeys(own))
        assert result.rank == uris.index(result.gold[0].uri) + 1
        assert result.ms is not None
        assert result.ms > 0
    values = [result.measures["MRR@10"] for result in report.results]
    assert report.measures["MRR@10"].value == pytest.approx(np.mean(values))
    assert report.measures["MRR@10"].low < np.mean(values) < report.measures["MRR@10"].high
    assert report.latency_ms["p50"].value == pytest.approx(np.median([result.ms for result in report.results]))
    assert sum(first_ranks(report.results).values()) == 20
    about, records = read_run(tmp_path / "runs" / "a.jsonl")
    assert about["mode"] == "dense"
    assert [record["id"] for record in records] == WORDS
    assert records[3]["ranked"][0].keys() == {"uri", "start", "end", "score", "gold"}


def test_spans_are_found_in_long_documents(many: Collection) -> None:
    text = many.document("many/99.txt").text
    start = text.index("The tulipred is here, 2.")
    questions = [Question("q", "The tulipred is here, 2.", (Gold("many/99.txt", start, start + 24),))]
    (result,) = evaluate_retrieval(many, questions, mode="dense", k=20).results
    assert result.rank is not None
    place = result.ranked[result.rank - 1]
    assert "tulipred is here, 2" in text[place.start : place.end]
    assert len(result.ranked) == 20


def test_a_run_is_resumed_after_an_incomplete_line(many: Collection, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    whole = evaluate_retrieval(many, questions_of(many), mode="dense", k=10, out=out)
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:8]) + lines[8][:30])  # seven questions, and a part of the eighth
    again = evaluate_retrieval(many, questions_of(many), mode="dense", k=10, out=out)
    assert out.read_bytes().splitlines(keepends=True)[:8] == lines[:8]
    assert [result.ms for result in again.results][:7] == [result.ms for result in whole.results][:7]
    assert [result.ms for result in again.results][7:] != [result.ms for result in whole.results][7:]
    assert again.measures == whole.measures
    assert len(read_run(out)[1]) == 20


def test_a_different_run_is_refused(many: Collection, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    evaluate_retrieval(many, questions_of(many), mode="dense", k=10, out=out)
    before = out.read_bytes()
    for options, what in (({"k": 11}, "k 10 there, 11 now"), ({"about": {"data": "x"}}, 'data null there, "x" now')):
        with pytest.raises(DataError, match=f"belongs to a different run: {what}"):
            evaluate_retrieval(many, questions_of(many), **{"mode": "dense", "k": 10, **options}, out=out)
    with pytest.raises(DataError, match=r"questions .* there"):
        evaluate_retrieval(many, questions_of(many, 19), mode="dense", k=10, out=out)
    (tmp_path / "many" / "new.txt").write_text("More.")
    many.sync()
    with pytest.raises(DataError, match=r"collection .* there"):
        evaluate_retrieval(many, questions_of(many), mode="dense", k=10, out=out)
    assert out.read_bytes() == before
    with pytest.raises(DataError, match="is not a run file"):
        evaluate_retrieval(many, questions_of(many), mode="dense", out=write_lines(tmp_path / "b.jsonl", {"a": 1}))


def test_missing_gold(many: Collection) -> None:
    questions = [*questions_of(many, 2), Question("x", "the zebrared", (Gold("elsewhere.txt"),))]
    report = evaluate_retrieval(many, questions, mode="dense", k=10)
    assert report.missing == ("elsewhere.txt",)
    assert report.results[2].rank is None
    with pytest.raises(DataError, match=r"None of the 1 gold documents is in .*`ragfm documents --json` lists"):
        evaluate_retrieval(many, questions[2:], mode="dense", k=10)
    with pytest.raises(ValueError, match="must be 10 or more"):
        evaluate_retrieval(many, questions, k=5)


def test_a_question_too_long_for_the_embedder_has_no_hits(many: Collection) -> None:
    questions = [Question("long", "word " * 100, (Gold("many/0.txt"),)), *questions_of(many, 1)]
    report = evaluate_retrieval(many, questions, mode="dense", k=10)
    assert "100 tokens" in (report.results[0].error or "")
    assert report.results[0].ms is None
    assert report.measures["recall@10"].value == 0.5


# --- Comparing ---------------------------------------------------------------------------------------------------


def test_a_real_difference_is_told_from_noise() -> None:
    draw = np.random.default_rng(0)
    a = draw.uniform(0, 1, (200, 3))
    b = a.copy()
    b[:, 0] += draw.normal(0, 0.1, 200)
    b[:, 1] += draw.normal(0.05, 0.1, 200)
    noise, real, same = paired_differences(["noise", "real", "same"], a, b)
    assert noise.noise
    assert noise.p > 0.05
    assert noise.low < 0 < noise.high
    assert not real.noise
    assert real.p < 0.001
    assert 0 < real.low < real.difference < real.high
    assert real.difference == pytest.approx(real.b - real.a)
    assert real.wins > real.losses
    assert real.wins + real.losses + real.ties == 200
    assert (same.noise, same.p, same.wins, same.losses, same.ties) == (True, 1.0, 0, 0, 200)
    (worse,) = paired_differences(["real"], b[:, 1:2], a[:, 1:2])
    assert (worse.difference, worse.p) == pytest.approx((-real.difference, real.p), abs=0.001)


def test_three_questions_prove_nothing() -> None:
    (all_better,) = paired_differences(["m"], np.zeros((3, 1)), np.full((3, 1), 0.1))
    assert all_better.low > 0
    assert all_better.p == pytest.approx(0.25, abs=0.02)
    assert all_better.noise


def test_p_agrees_with_all_permutations() -> None:
    delta = np.array([[0.5], [0.3], [0.3], [-0.1], [0.2], [0.4], [0.0], [0.1]])
    sums = [
        abs(sum(s * d for s, d in zip(signs, delta[:, 0], strict=True)))
        for signs in itertools.product((1, -1), repeat=8)
    ]
    exact = np.mean([total >= abs(delta.sum()) - 1e-9 for total in sums])
    (found,) = paired_differences(["m"], np.zeros_like(delta), delta)
    assert found.p == pytest.approx(exact, abs=0.006)


def test_the_rate_of_false_alarms() -> None:
    draw = np.random.default_rng(2)
    delta = draw.normal(0, 0.2, (40, 300))  # 300 comparisons of 40 questions without a difference
    found = paired_differences([str(n) for n in range(300)], np.zeros_like(delta), delta)
    assert 3 <= sum(not difference.noise for difference in found) <= 27  # 5 % of them, give or take


def test_runs_are_compared(many: Collection, tmp_path: Path) -> None:
    questions = questions_of(many)
    evaluate_retrieval(many, questions, mode="dense", k=10, out=tmp_path / "a.jsonl")
    evaluate_retrieval(many, questions[:15], mode="dense", k=12, out=tmp_path / "b.jsonl")
    same = compare_runs(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert (same.questions, same.only_a, same.only_b, same.changed) == (15, 5, 0, ())
    assert all(difference.noise for difference in same.differences)
    assert same.settings["k"] == (10, 12)
    about, records = read_run(tmp_path / "b.jsonl")
    for record in records[:3]:
        record["measures"]["nDCG@10"] = 0.01 * records.index(record)
    write_lines(tmp_path / "c.jsonl", about, *records)
    changed = compare_runs(tmp_path / "b.jsonl", tmp_path / "c.jsonl").changed
    assert [(change.id, change.b) for change in changed[:2]] == [(WORDS[0], 0.0), (WORDS[1], 0.01)]
    records[2]["gold"] = []
    write_lines(tmp_path / "c.jsonl", about, *records)
    with pytest.raises(DataError, match=f"The question '{WORDS[2]}', or its gold, is not the same"):
        compare_runs(tmp_path / "b.jsonl", tmp_path / "c.jsonl")
    write_lines(tmp_path / "c.jsonl", about, *({**record, "id": f"{record['id']}!"} for record in records))
    with pytest.raises(DataError, match="no question in common"):
        compare_runs(tmp_path / "b.jsonl", tmp_path / "c.jsonl")


@pytest.mark.parametrize("kinds", [("retrieval", "answers"), ("bias", "bias"), (None, None)])
def test_runs_without_common_measures_are_refused(tmp_path: Path, kinds: tuple[str | None, ...]) -> None:
    for name, kind in zip("ab", kinds, strict=True):
        record = {"id": "1", "question": "Why?", "gold": [], "measures": {kind: 1}} if kind != "bias" else {"id": "1"}
        write_lines(tmp_path / f"{name}.jsonl", {"format": 1} | ({"run": kind} if kind else {}), record)
    with pytest.raises(DataError, match=f"a run of {kinds[0] or 'no evaluation'}, .* cannot be compared"):
        compare_runs(tmp_path / "a.jsonl", tmp_path / "b.jsonl")


# --- The commands ------------------------------------------------------------------------------------------------


def test_the_command_over_data_that_brings_its_documents(shell: Shell, beir: Path) -> None:
    found = shell.json("eval", "retrieval", beir, "--mode", "dense", "--out", "run.jsonl")
    assert found["data"] == "pets test"
    assert found["left_out"] == {"without a relevant document": 1}
    assert found["missing"] == ["corpus/gone.md"]
    assert found["ingest"]["added"] == 3
    assert found["collection"]["documents"] == 3
    assert set(found["measures"]) == {"nDCG@10", "MRR@10", "MAP@100", *(f"recall@{n}" for n in (1, 3, 5, 10, 100))}
    assert set(found["measures"]["nDCG@10"]) == {"value", "low", "high"}
    assert found["measures"]["MRR@10"]["value"] == 1.0
    assert found["measures"]["recall@10"]["value"] == 0.75  # one of the gold is in no document
    assert set(found["latency_ms"]) == {"p50", "p95", "p99"}
    assert found["first_rank"]["1"] == 2
    assert not (shell.folder / ".ragfm").exists()
    told = shell("eval", "retrieval", beir, "--mode", "dense", "--limit", "1").stdout
    assert re.search(r"nDCG@10 +[01]\.\d{3} +\[", told)
    assert "pets test: 1 question, 1 without a relevant document left out; 3 documents, 3 chunks;" in told


def test_a_kept_collection_is_embedded_once(shell: Shell, beir: Path, tmp_path: Path) -> None:
    kept = ("--mode", "dense", "--keep", "kept")
    assert shell.json("eval", "retrieval", beir, *kept)["ingest"]["added"] == 3
    again = shell.json("eval", "retrieval", beir, *kept)
    assert (again["ingest"]["unchanged"], again["ingest"]["chunks"]) == (3, 0)
    assert shell.json("eval", "retrieval", squad_file(tmp_path / "s.json"), *kept)["ingest"]["added"] == 2
    (folder,) = (tmp_path / "kept").glob("pets-test-*")
    assert shell.json("search", "oven", "-c", folder / ".ragfm")["hits"]


def test_the_command_over_a_collection(shell: Shell, docs: Path) -> None:
    shell("ingest", "docs")
    path = write_lines(
        shell.folder / "q.jsonl",
        {"question": "how many days of leave", "uri": "docs/leave.md", "start": 9, "end": 34},
        {"question": "when does the office open", "uri": "docs/hours.txt"},
    )
    found = shell.json("eval", "retrieval", path, "--mode", "dense", "--out", "a.jsonl")
    assert found["ingest"] is None
    assert found["measures"]["recall@5"]["value"] == 1
    assert shell.json("eval", "retrieval", path, "--mode", "dense", "--out", "b.jsonl")["data"] == "q.jsonl"
    compared = shell.json("eval", "compare", "a.jsonl", "b.jsonl")
    assert compared["questions"] == 2
    assert all(difference["noise"] for difference in compared["differences"])
    told = shell("eval", "compare", "a.jsonl", "b.jsonl").stdout
    assert told.count("within noise") == len(compared["differences"])
    refused = shell("eval", "retrieval", path, "--mode", "dense", "--out", "a.jsonl", "-k", "50", code=1).stderr
    assert "a.jsonl belongs to a different run: k 100 there, 50 now" in refused


def test_settings_next_to_the_collection_apply_to_data(shell: Shell, beir: Path) -> None:
    (shell.folder / "ragfm.toml").write_text("[chunk]\nsize = 16\n")
    assert shell.json("eval", "retrieval", beir, "--mode", "dense")["settings"]["chunk"]["size"] == 16


def test_wrong_usage(shell: Shell, beir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shell.folder)
    path = write_lines(shell.folder / "q.jsonl", {"question": "a?", "uri": "x"})
    for words, reason in (
        ((beir, "-c", "x"), "use --keep instead of -c"),
        ((path, "--embedder", "hashing"), "--embedder requires data"),
        ((path, "--keep", "x"), "--keep requires data"),
        ((beir, "-k", "5"), "not in the range"),
    ):
        with pytest.raises(UsageError, match=reason):
            InProcessShell()("eval", "retrieval", *words)
    assert "There is no collection" in InProcessShell()("eval", "retrieval", path, code=1)
    assert shell.json("eval", "retrieval", beir, "--split", "dev", code=1)["error"]["type"] == "DataError"


def test_a_record_that_is_written_when_ctrl_c_comes_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def append(path: Path, record: Mapping[str, Any]) -> None:
        append_record(path, record)
        written.append(record["id"])
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(run_file, "append_record", append)
    questions = [Question(f"q{number}", "text", ()) for number in range(5)]
    out = tmp_path / "a.jsonl"
    finished = load_finished(out, {})
    records = run_questions(
        questions, lambda one: {"id": one.id}, finished, out, stage="asking", progress=None, partial=True
    )
    assert [record["id"] for record in records] == written == ["q0", "q1", "q2"]


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_is_resumed(shell: Shell, docs: Path, kind: signal.Signals) -> None:
    """With so many questions that it is not complete before the signal."""
    shell("ingest", "docs")
    lines = [{"question": f"question {n} about leave", "uri": "docs/leave.md"} for n in range(1100)]
    path = write_lines(shell.folder / "q.jsonl", *lines)
    words = ["eval", "retrieval", str(path), "--mode", "dense", "--out", "a.jsonl", "--limit", "1000"]
    command = [sys.executable, "-c", "from ragfm.cli import main; main()", *words]
    out = shell.folder / "a.jsonl"
    process = subprocess.Popen(
        command, cwd=shell.folder, env=shell.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while (not out.exists() or out.read_bytes().count(b"\n") < 6) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, kind)
    printed, told = process.communicate(timeout=300)
    assert "Traceback" not in told
    before = out.read_bytes()
    done = before.count(b"\n") - 1
    if kind == signal.SIGINT:
        assert process.returncode == 130
        assert "kept in a.jsonl" in told
        assert f"stopped: {done} of 1000 questions" in printed
        assert "nDCG@10" in printed
    assert 5 <= done < 1000
    found = shell.json(*words)
    assert found["questions"]["count"] == 1000
    assert out.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert len(read_run(out)[1]) == len({record["id"] for record in read_run(out)[1]}) == 1000
