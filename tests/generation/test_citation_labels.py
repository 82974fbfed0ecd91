"""Labels of citations: which are asked for, how they are stored, and when they contradict a promise."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from support.judges import ScriptedJudge

from ragfm import Answer, Citation, Collection, Rag, Settings, Usage
from ragfm.answering.grounding import VERIFIED
from ragfm.cli import ragfm
from ragfm.core.config import AskSection
from ragfm.generation.answer_log import AnswerContext, AnswerLog, Origin
from ragfm.generation.citation_labels import to_review
from ragfm.testing import HashingEmbedder, ScriptedReader

QUESTION = "How many days of leave do I get?"


@pytest.fixture
def rag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rag:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "leave.md").write_text("# Leave\n\nYou get 28 days of leave. Ask Ms Okafor for the form.\n")
    settings = Settings(ask=AskSection(log=True))
    collection = Collection.open(".ragfm", settings=settings, embedder=HashingEmbedder())
    collection.sync("docs")
    rag = Rag(collection, reader=ScriptedReader(["You get 28 days of leave [1]. Ask Ms Okafor for the form [1]."] * 9))
    rag.judge = ScriptedJudge(supports=lambda one: 0.9 if "28" in one.statement else 0.7)
    return rag


@pytest.fixture
def log(rag: Rag) -> AnswerLog:
    assert rag.log
    return rag.log


def review(*words: str, typed: str = "") -> Result:
    return CliRunner().invoke(ragfm, ["log", "review", *words], input=typed)


def test_verified_citations_of_the_newest_kind_of_answer_are_reviewed(rag: Rag, log: AnswerLog) -> None:
    rag.judge = None
    rag.ask(QUESTION)
    rag.judge = ScriptedJudge(supports=lambda one: VERIFIED if "28" in one.statement else 0.7)
    rag.ask(QUESTION)
    assert [(entry.id, number) for entry, number in to_review(log.entries(), [], seed=0)] == [(2, 1)]
    assert to_review(log.entries(), [(2, 1)], seed=0) == []


def test_the_order_is_random_and_the_same_for_a_seed(rag: Rag, log: AnswerLog) -> None:
    for _ in range(9):
        rag.ask(QUESTION)
    orders = [[entry.id for entry, _ in to_review(log.entries(), [], seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == [*range(1, 10)]


def test_one_key_labels_a_citation(rag: Rag, log: AnswerLog) -> None:
    for _ in range(4):
        rag.ask(QUESTION)
    printed = review("--by", "anna", typed="rxwsq")
    assert f"1 of 4: {QUESTION}" in printed.output
    assert "You get 28 days of leave [1]." in printed.output
    assert "leave.md" in printed.output
    first, second = log.labels()
    assert (first.right, second.right, first.by, first.probability) == (True, False, "anna", 0.9)
    assert first.fingerprint == rag.fingerprint
    assert log.labels(after=first.at[:10]) == [first, second]
    assert log.labels(after=second.at) == []
    assert "1 of 2" in review(typed="q").output


def test_an_interrupted_review_keeps_what_was_labelled(
    rag: Rag, log: AnswerLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        rag.ask(QUESTION)
    keys = iter("r")

    def pressed() -> str:
        if (key := next(keys, None)) is None:
            raise KeyboardInterrupt
        return key

    monkeypatch.setattr(click, "getchar", pressed)
    review()
    assert len(log.labels()) == 1


def test_labels_are_read_from_a_file_and_replace_earlier_ones(rag: Rag, log: AnswerLog, tmp_path: Path) -> None:
    rag.ask(QUESTION)
    lines = [{"entry": 1, "citation": 1, "right": right} for right in (True, False)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert json.loads(review("--from", "labels.jsonl", "--json").output) == {"labelled": 2}
    assert [one.right for one in log.labels()] == [False]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"entry": 1, "citation": 1}', "labels.jsonl:1 is not a label"),
        ('{"entry": 1, "citation": 1, "right": "yes"}', "labels.jsonl:1 is not a label"),
        ("right", "labels.jsonl:1 is not a label"),
        ('{"entry": 7, "citation": 1, "right": true}', "has no entry 7"),
        ('{"entry": 1, "citation": 3, "right": true}', "Entry 1 has no citation 3"),
        ('{"entry": 1, "citation": 2, "right": true}', "the judge did not verify it"),
    ],
)
def test_a_wrong_line_is_named(rag: Rag, log: AnswerLog, tmp_path: Path, line: str, why: str) -> None:
    rag.ask(QUESTION)
    (tmp_path / "labels.jsonl").write_text(line + "\n")
    assert why in str(review("--from", "labels.jsonl").exception)
    assert not log.labels()


def test_labels_stay_when_their_entries_are_forgotten(rag: Rag, log: AnswerLog) -> None:
    rag.ask(QUESTION)
    log.label(log.entry(1), 1, right=True, by="anna")
    assert CliRunner().invoke(ragfm, ["log", "forget", "1"]).exit_code == 0
    assert len(log.labels()) == 1


def test_a_rating_labels_the_only_citation_until_somebody_labels_it(rag: Rag, log: AnswerLog) -> None:
    rag.reader = ScriptedReader(["You get 28 days of leave [1]."])
    rag.with_options(origin=Origin(key="ben")).ask(QUESTION)
    log.rate(1, "up")
    log.rate(1, "down")
    (label,) = log.labels()
    assert (label.entry, label.citation, label.right, label.rated, label.by) == (1, 1, False, True, "ben")
    assert "1 of 1" in review("--by", "anna", typed="r").output
    log.rate(1, "down")
    (label,) = log.labels()
    assert (label.right, label.rated, label.by) == (True, False, "anna")


def test_a_rating_labels_none_of_several_citations(rag: Rag, log: AnswerLog) -> None:
    rag.ask(QUESTION)
    log.rate(1, "down")
    assert len(log.entry(1).citations) == 2
    assert not log.labels()


def test_several_ratings_of_an_answer_at_once_are_one_label(address: str, docs: Path) -> None:
    collection = Collection.open(address, embedder=HashingEmbedder())
    collection.sync(docs)
    log = collection.answer_log
    citation = Citation(1, "docs/leave.md", None, 0, 9, "28 days.", verified=True, probability=0.96)
    answer = Answer("How much leave?", "28 days.", "answered", (citation,), (), (), Usage(), 0.5, query="How much?")
    for _ in range(5):
        number = log.add(answer, AnswerContext("bundled", None, None, None, 0.0, 0.1, fingerprint={"judge": "a"}))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(partial(log.rate, number), ("up", "down", "up", "down")))
    assert len(log.labels()) == 5
    collection.close()
