"""Training examples from the answer log."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.judges import ScriptedJudge
from support.shell import InProcessShell

from ragfm import Answer, Collection, Rag, Settings, Usage
from ragfm.core.abstention import ABSTENTION
from ragfm.generation.answer_log import AnswerContext, AnswerLog
from ragfm.generation.log_entries import LogFilter
from ragfm.testing import ScriptedReader
from ragfm.training import examples_from_log, rated_entries
from ragfm.training.examples import read_examples

HOW = AnswerContext("bundled", None, None, None, 0.0, 0.1)
SAID = Answer("q", "a", "answered", (), (), (), Usage(), 0.5, query="q")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcessShell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAGFM_EMBEDDER", "hashing")
    return InProcessShell()


def log_of(collection: Collection, *said: tuple[str, str, str, str | None]) -> AnswerLog:
    """A log of (question, answer, thumbs, correction), with the passages that a search finds now."""
    log = collection.answer_log
    for question, answer, thumbs, correction in said:
        hits = tuple(collection.search(question, 20))
        number = log.add(replace(SAID, question=question, query=question, text=answer, hits=hits), HOW)
        log.rate(number, thumbs, correction)  # type: ignore[arg-type]
    return log


def test_judged_answers_become_examples_if_passages_support_them(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    log = log_of(
        collection,
        ("How many days of leave do I get?", "You get 28 days of leave [3].", "up", None),
        ("When does the office open?", "I don't know.", "down", "The office opens at nine."),
        ("Who is the director?", "Ada [1].", "down", "I don't know."),
        ("How many seats has Oak?", "Oak has 99 seats [1].", "up", None),  # no passage says so
        ("Are dogs welcome?", "No.", "down", None),  # what would have been right is not known
    )
    rag = Rag(collection, reader=ScriptedReader(), k=2)
    examples, left_out = examples_from_log(rag, rated_entries(log.entries()))
    assert [example.meta["kind"] for example in examples] == ["log: rated good", "log: corrected", "log: corrected"]
    assert left_out == {"log: no passage supports it now": 1}
    first, second, third = examples
    marker = 1 + list(first.meta["shown"]).index("docs/leave.md")
    assert first.completion == f"You get 28 days of leave [{marker}]."
    assert first.messages == rag.stream("How many days of leave do I get?").prompt.messages  # type: ignore[union-attr]
    assert second.completion.startswith("The office opens at nine [")
    assert third.completion == ABSTENTION


def test_only_supported_sentences_of_an_answer_are_learned(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    log = log_of(collection, ("How many days of leave do I get?", "You get 28 days of leave. Ask Eve.", "up", None))
    (example,), _ = examples_from_log(Rag(collection, reader=ScriptedReader(), k=1), rated_entries(log.entries()))
    assert example.completion == "You get 28 days of leave [1]."


def test_the_judge_of_the_collection_decides_which_answers_are_learned(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    log = log_of(collection, ("How many days of leave do I get?", "You get 28 days of leave.", "up", None))
    rag = Rag(collection, reader=ScriptedReader(), k=1)
    rag.judge = ScriptedJudge(supports=lambda _: 0.0)
    examples, left_out = examples_from_log(rag, rated_entries(log.entries()))
    assert (examples, left_out) == ([], {"log: no passage supports it now": 1})


def test_an_abstention_is_left_out_if_other_passages_are_found_now(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    log = log_of(collection, ("What is the wifi password?", "I don't know.", "up", None))
    rag = Rag(collection, reader=ScriptedReader(), k=2)
    assert len(examples_from_log(rag, rated_entries(log.entries()))[0]) == 1
    (docs / "wifi.md").write_text("The wifi password is Heron.\n")
    collection.sync(docs)
    examples, left_out = examples_from_log(rag, rated_entries(log.entries()))
    assert not examples
    assert left_out == {"log: not known then, and other passages are found now": 1}


def test_a_supporting_passage_of_low_rank_is_shown(collection: Collection, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"Which fee is due? The fee, the fee of office {number}, is due.\n")
    (folder / "fee.txt").write_text("Members pay 70 crowns, which is a fee.\n")
    collection.sync(folder)
    log = log_of(collection, ("Which fee is due?", "?", "down", "Members pay 70 crowns."))
    (example,), _ = examples_from_log(Rag(collection, reader=ScriptedReader(), k=2), rated_entries(log.entries()))
    assert example.meta["shown"][-1] == "many/fee.txt"
    assert example.completion == "Members pay 70 crowns [2]."


def test_the_command_makes_examples_from_the_log_alone_and_with_questions(
    tmp_path: Path, docs: Path, run: InProcessShell
) -> None:
    run("ingest", docs)
    collection = Collection.open(tmp_path / ".ragfm", settings=Settings())
    log_of(
        collection,
        ("When does the office open?", "?", "down", "The office opens at nine."),
        ("What is the wifi password?", "I don't know.", "up", None),
    )
    (tmp_path / "held.jsonl").write_text(json.dumps({"question": "Who is it?", "answers": ["Ada"]}) + "\n")
    card = run.json(*"adapt data --from-log --valid 0 --out alone --licence ours --exclude-data held.jsonl".split())
    assert card["kinds"] == {"log: corrected": 1, "log: rated good": 1}
    assert card["sources"] == [{"name": "the answer log", "licence": "ours", "left_out": {}}]
    assert [(held["name"], held["questions"]) for held in card["held_out"]] == [("held.jsonl", 1)]
    assert card["reader"] == "bundled"
    line = {"question": "How many days of leave do I get?", "uri": "docs/leave.md", "answers": ["28 days"]}
    (tmp_path / "q.jsonl").write_text(json.dumps(line) + "\n")
    card = run.json("adapt", "data", "q.jsonl", "--from-log", "--abstain", "0", "--valid", "0", "--out", "both")
    assert card["kinds"] == {"answer": 1, "log: corrected": 1, "log: rated good": 1}
    assert [source["name"] for source in card["sources"]] == ["q.jsonl", "the answer log"]
    lost = {**line, "question": "Who asks?", "answers": ["nobody at all"]}
    (tmp_path / "lost.jsonl").write_text(json.dumps(lost) + "\n")
    card = run.json("adapt", "data", "lost.jsonl", "--from-log", "--abstain", "0", "--valid", "0", "--out", "third")
    assert card["left_out"] == {"no passage holds its answer": 1}
    assert [source["name"] for source in card["sources"]] == ["the answer log"]
    AnswerLog.for_collection(tmp_path / ".ragfm").forget(LogFilter(thumbs="up"))
    AnswerLog.for_collection(tmp_path / ".ragfm").rate(1, "down")
    assert "No answer in the log" in run("adapt", "data", "--from-log", code=1)
    assert {example.completion for example in read_examples(tmp_path / "both" / "train.jsonl")} >= {ABSTENTION}


def test_training_reads_the_log_of_a_database_on_any_machine(
    address: str, docs: Path, run: InProcessShell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAGFM_COLLECTION", address)
    run("ingest", docs)
    log_of(
        Collection.open(address, settings=Settings()),
        ("When does the office open?", "?", "down", "The office opens at nine."),
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    card = run.json(*"adapt data --from-log --valid 0 --out examples --licence ours".split())
    assert card["kinds"] == {"log: corrected": 1}
