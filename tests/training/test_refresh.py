"""Continual learning: examples from the answer log, adoption and rollback."""

from __future__ import annotations

import json
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
import pytest
from gguf import GGUFWriter
from support.shell import InProcessShell
from support.tiny_models import tiny_model

from ragfm import Answer, Collection, Rag, Settings, Usage
from ragfm.citations.confidence import DEFAULT, adapter_hash
from ragfm.core.abstention import ABSTENTION
from ragfm.core.calibration import Calibration
from ragfm.core.config import load_settings
from ragfm.core.errors import DataError, UnsupportedError
from ragfm.core.output_folder import OUTPUT
from ragfm.core.progress import ignore_progress
from ragfm.core.types import Message
from ragfm.evaluation import Difference, Gold, Question
from ragfm.evaluation.settings_file import calibration_keys, write_keys
from ragfm.generation.answer_log import AnswerContext, AnswerLog
from ragfm.generation.log_entries import LogFilter
from ragfm.generation.prompt import prompt_fingerprint
from ragfm.models.adapters import GGUF, RECORD, AdapterRecord, check_adapter
from ragfm.testing import HashingEmbedder, ScriptedReader
from ragfm.training import Dataset, Recipe, build_raft_dataset, examples_from_log, rated_entries, write_dataset
from ragfm.training.auto_adapt import adapt_automatically
from ragfm.training.examples import Example, read_examples
from ragfm.training.log_examples import preferences_from_log
from ragfm.training.refresh import (
    DECISION,
    HISTORY,
    RefreshReport,
    RefreshSettings,
    _adopt,
    _calibration_for,
    _export,
    _is_test,
    _make_dataset,
    _prepare,
    _train,
    adapters_folder,
    decide,
    next_folder,
    refresh,
    refresh_inputs,
    roll_back,
)
from ragfm.training.train_settings import MethodSettings
from ragfm.training.training_data import make_dataset

HOW = AnswerContext("bundled", None, None, None, 0.0, 0.1)
SAID = Answer("q", "a", "answered", (), (), (), Usage(), 0.5, query="q")


pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_ratings_become_preferences(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    log = log_of(
        collection,
        ("How many days of leave do I get?", "You get 28 days of leave [1].", "up", None),
        ("When does the office open?", "It opens at some time that I forgot.", "down", "The office opens at nine."),
        ("Are dogs welcome?", "No.", "down", None),
        ("Who is the director?", '{"name": "Ada"}', "down", None),  # a structured answer
    )
    rag = Rag(collection, reader=ScriptedReader(), k=2)
    (good, pair, bad), left_out = preferences_from_log(rag, rated_entries(log.entries(), bad=True))
    assert not left_out
    assert (good.completion[:24], good.rejected) == ("You get 28 days of leave", None)
    assert pair.completion.startswith("The office opens at nine [")
    assert pair.rejected == "It opens at some time that I forgot."
    assert (bad.completion, bad.rejected) == ("", "No.")
    assert bad.messages == rag.stream("Are dogs welcome?").prompt.messages  # type: ignore[union-attr]
    dataset = make_dataset(rag, from_log=True, preferences=True)
    assert sum(dataset.card["kinds"].values()) == 3
    (docs / "dogs.md").write_text("Dogs are welcome. Dogs are welcome on all days, dogs of all sizes.\n")
    collection.sync(docs)
    _, left_out = preferences_from_log(rag, rated_entries(log.entries(), bad=True))
    assert left_out["log: other passages are found now"] >= 1


def test_only_supported_sentences_of_an_answer_are_learned(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    log = log_of(collection, ("How many days of leave do I get?", "You get 28 days of leave. Ask Eve.", "up", None))
    (example,), _ = examples_from_log(Rag(collection, reader=ScriptedReader(), k=1), rated_entries(log.entries()))
    assert example.completion == "You get 28 days of leave [1]."


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


def test_a_question_is_tested_once_by_its_last_judgement(collection: Collection, docs: Path, tmp_path: Path) -> None:
    collection.sync(docs)
    asked = [f"How many seats has room {at}?" for at in range(40)]
    first, second, third = [question for question in asked if _is_test(question)][:3]
    free = next(question for question in asked if not _is_test(question))
    log_of(
        collection,
        (first, "3", "up", None),
        (first.upper(), "?", "down", "4"),
        (first, "?", "down", "5"),
        (second, "6", "up", None),
        (third, "I don't know.", "up", None),
    )
    (docs / "third.md").write_text(f"{third} It has 12.\n")
    collection.sync(docs)
    lines = [(second, "8"), (second.lower(), "9"), (LEAVE, "28 days"), (free, "nobody knows")]
    (tmp_path / "q.jsonl").write_text(
        "".join(
            json.dumps({"question": question, "answers": [answer], "uri": "docs/leave.md"}) + "\n"
            for question, answer in lines
        )
    )
    settings = RefreshSettings(questions=tmp_path / "q.jsonl", licence="ours")
    _prepare(Rag(collection, reader=ScriptedReader()), tmp_path, settings, ignore_progress)
    tested = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert [(line["question"], line["answers"]) for line in tested] == [(first, ["5"]), (second.lower(), ["9"])]
    card = json.loads((tmp_path / "examples" / "card.json").read_text())
    assert card["sources"] == [{"name": "q.jsonl", "licence": "ours"}]  # of the log nothing is learned
    assert card["left_out"] == {
        "no passage holds its answer": 1,
        "log: not known then, and other passages are found now": 1,
    }


def test_the_log_is_learned_even_if_no_question_yields_an_example(
    collection: Collection, docs: Path, tmp_path: Path
) -> None:
    collection.sync(docs)
    lost = Question("1", LEAVE, (Gold("docs/leave.md"),), ("nobody knows",))
    entries = rated_entries(log_of(collection, ("When does the office close?", "At five.", "up", None)).entries())
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "When is it open?", "answers": ["nine"]}) + "\n")
    rag, settings = Rag(collection, reader=ScriptedReader()), RefreshSettings(questions=tmp_path / "q.jsonl")
    dataset = _make_dataset(rag, entries, [lost], tmp_path, settings, ignore_progress)
    assert [example.completion[:9] for example in dataset.train] == ["At five ["]
    assert [source["name"] for source in dataset.card["sources"]] == ["the answer log"]
    with pytest.raises(DataError, match="no passage holds its answer: 1"):
        _make_dataset(rag, [], [lost], tmp_path, settings, ignore_progress)


@pytest.mark.parametrize(
    ("plugin", "method"), [("llama-cpp", "dora"), ("llama-cpp", "prefix"), ("transformers", "full")]
)
def test_a_method_that_the_reader_does_not_serve_is_refused_before_training(
    tmp_path: Path, embedder: HashingEmbedder, monkeypatch: pytest.MonkeyPatch, plugin: str, method: Any
) -> None:
    collection = Collection.open(tmp_path / ".ragfm", settings=Settings(adapter="none"), embedder=embedder)
    monkeypatch.setattr("ragfm.training.refresh.plugin_and_model", lambda *_: (plugin, "m"))
    settings = RefreshSettings(training=replace(RefreshSettings().training, method=MethodSettings(method)))
    with pytest.raises(UnsupportedError, match=f"{plugin} cannot serve adapters trained with {method}"):
        refresh(collection, tmp_path / "001", settings)
    assert not (tmp_path / "001").exists()


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
    collection = Collection.open(address, settings=Settings())
    log_of(collection, ("When does the office open?", "?", "down", "The office opens at nine."))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    card = run.json(*"adapt data --from-log --valid 0 --out examples --licence ours".split())
    assert card["kinds"] == {"log: corrected": 1}
    assert adapters_folder(collection) == tmp_path / f"{collection.store.database.default_name}-adapters"


def difference(a: float, b: float, *, noise: bool) -> Difference:
    return Difference("f1", a, b, b - a, b - a - 0.1, b - a + 0.1, 0.5 if noise else 0.01, 5, 1, 4, noise)


@pytest.mark.parametrize(
    ("new", "old", "adopted", "said"),
    [
        (difference(0.2, 0.6, noise=False), None, True, "better, beyond noise"),
        (difference(0.2, 0.3, noise=True), None, False, "within noise"),
        (difference(0.6, 0.2, noise=False), None, False, "it is worse"),
        (difference(0.2, 0.6, noise=False), difference(0.7, 0.5, noise=False), False, "worse on the old ones"),
        (difference(0.2, 0.6, noise=False), difference(0.7, 0.69, noise=True), True, "not worse"),
    ],
)
def test_an_adapter_is_adopted_if_new_questions_improve_and_old_ones_do_not_fall(
    new: Difference, old: Difference | None, adopted: bool, said: str
) -> None:
    decided, why = decide(new, old)
    assert (decided, said in why) == (adopted, True), why


def replayed(collection: Collection, folder: Path, old: list[Example], asked: list[Question]) -> list[Example]:
    """The examples of a refresh with the questions `asked` that replays `old` and tests "When is it open?"."""
    (folder / "test.jsonl").write_text(json.dumps({"question": "When is it open?", "answers": ["nine"]}) + "\n")
    (folder / "old.jsonl").write_text(json.dumps({"question": "Is it old?", "answers": ["yes"]}) + "\n")
    write_dataset(Dataset(tuple(old), ()), folder / "replay")
    settings = RefreshSettings(old=folder / "old.jsonl", replay=folder / "replay", replayed=9.0)
    dataset = _make_dataset(Rag(collection, reader=ScriptedReader()), [], asked, folder, settings, ignore_progress)
    return [*dataset.train, *dataset.valid]


def old_example(question: str, **meta: str) -> Example:
    return Example((Message("user", question),), "Old.", {"question": question, "verified": True, **meta})


LEAVE = "How long is my holiday?"


def test_tested_questions_and_their_near_misses_are_not_replayed(
    collection: Collection, docs: Path, tmp_path: Path
) -> None:
    collection.sync(docs)
    free = [f"What is in room {at}?" for at in range(12) if not _is_test(f"What is in room {at}?")]
    tested = next(f"Who has the key of {at}?" for at in range(99) if _is_test(f"Who has the key of {at}?"))
    old = [
        *map(old_example, [*free[:2], "is it old", "When is it open?", tested]),
        old_example(free[2], changed_from=free[3]),
        *(old_example(free[4], changed_from=original) for original in ("Is it old?", "When is it open?", tested)),
        old_example("Is it old?", changed_from=free[5]),
    ]
    asked = [Question("1", LEAVE, (Gold("docs/leave.md"),), ("28 days",))]
    assert not _is_test(LEAVE)
    learned = {example.meta["question"] for example in replayed(collection, tmp_path, old, asked)}
    assert learned == {LEAVE, *free[:3]}


def test_a_new_example_replaces_a_replayed_one_with_the_same_question(
    collection: Collection, docs: Path, tmp_path: Path
) -> None:
    collection.sync(docs)
    asked = [Question("1", LEAVE, (Gold("docs/leave.md"),), ("28 days",))]
    (example,) = replayed(collection, tmp_path, [old_example(LEAVE.upper())], asked)
    assert example.meta["kind"] == "answer"
    assert example.completion != "Old."


def test_a_near_miss_records_the_original_question(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    asked = [Question("1", "Who was the first of the parents to get 16 weeks?", (Gold("docs/leave.md"),), ("28",))]
    recipe = Recipe(abstain=0.99, near=1.0, valid=0.0)
    (example,) = build_raft_dataset(Rag(collection, reader=ScriptedReader()), asked, recipe).train
    assert str(example.meta["kind"]).startswith("near miss")
    assert example.meta["changed_from"] == asked[0].text != example.meta["question"]


def test_an_interrupted_refresh_continues_in_its_folder_if_its_inputs_are_the_same(
    collection: Collection, docs: Path, tmp_path: Path
) -> None:
    collection.sync(docs)
    adapters, settings = tmp_path / "adapters", RefreshSettings()
    other = replace(settings, licence="other")
    default = collection.path.with_name(f"{collection.path.name}-adapters")
    assert next_folder(collection, settings) == (default / "001", [])
    first = adapters / "001"
    assert next_folder(collection, settings, adapters) == (first, [])
    first.mkdir(parents=True)
    assert next_folder(collection, settings, adapters) == (first, [])
    write_dataset(Dataset((), (), {"format": 1}), first / "examples")
    (first / "inputs.json").write_text(json.dumps(refresh_inputs(collection, settings)))
    assert next_folder(collection, settings, adapters) == (first, [])
    assert next_folder(collection, other, adapters) == (adapters / "002", ["licence"])
    (first / DECISION).write_text("{}")
    assert next_folder(collection, other, adapters) == (adapters / "002", [])


def test_a_refresh_whose_adapter_is_served_has_ended(
    tmp_path: Path, docs: Path, embedder: HashingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "adapters" / "001"
    write_dataset(Dataset((), (), {"format": 1}), first / "examples")
    monkeypatch.setattr("ragfm.training.refresh.refresh_inputs", lambda *_: {"log": 1})
    (first / "inputs.json").write_text('{"log": 1}')
    for adapter, name in (("none", "001"), (str(first), "002")):
        with Collection.open(
            tmp_path / f"{name}.ragfm", settings=Settings(adapter=adapter), embedder=embedder
        ) as collection:
            assert next_folder(collection, RefreshSettings(), first.parent) == (first.parent / name, [])


@pytest.mark.parametrize("changed", ["collection", "log", "questions", "old", "replay", "training"])
def test_each_input_of_a_refresh_is_compared(collection: Collection, docs: Path, tmp_path: Path, changed: str) -> None:
    collection.sync(docs)
    before = refresh_inputs(collection, RefreshSettings())
    assert refresh_inputs(collection, RefreshSettings()) == before
    settings = RefreshSettings()
    (tmp_path / "q.jsonl").write_text('{"question": "Why?", "answers": ["x"]}\n')
    if changed == "collection":
        (docs / "hours.txt").write_text("The office opens at ten.\n")
        collection.sync(docs)
    elif changed == "log":
        log_of(collection, ("Why?", "x", "up", None))
    elif changed == "replay":
        write_dataset(Dataset((old_example("Why?"),), ()), tmp_path / "replay")
        settings = replace(settings, replay=tmp_path / "replay")
    elif changed == "training":
        settings = replace(settings, training=replace(settings.training, seed=1))
    else:
        settings = replace(settings, **{changed: tmp_path / "q.jsonl"})
    after = refresh_inputs(collection, settings)
    assert [key for key in before if before[key] != after[key]] == [changed]


def test_a_refresh_that_was_killed_before_export_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = AdapterRecord("lora", {"name": "m", "sha256": "0"}, "p", "w", numbers={"steps": 3})
    (tmp_path / RECORD).write_bytes(record.to_json())
    model = tmp_path / "model.gguf"
    model.touch()
    exported = []

    def export(folder: Path, form: str, base: str) -> Path:
        exported.append((folder, form, base))
        (folder / GGUF).touch()
        return folder / GGUF

    monkeypatch.setattr("ragfm.training.refresh.export_adapter", export)
    for _ in range(2):
        numbers = _train(None, str(model), tmp_path, RefreshSettings(), lambda *_: None)  # type: ignore[arg-type]
        assert numbers == {"steps": 3}
        assert _export(tmp_path, str(model)) == tmp_path / GGUF
    assert exported == [(tmp_path, "gguf", str(model))]


def test_both_adapters_are_compared_and_served_with_the_current_calibration(
    tmp_path: Path, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calibration withholds all answers of the old adapter; the new one must not win by having no calibration."""
    own = Calibration("bundled", 0.0, {"covered": 9.0}, {"covered": 9.0}, threshold=0.9, corrects=True)
    write_keys(tmp_path, {"": {"embedder": "hashing", "adapter": "none"}, **calibration_keys(own)})
    toml = (tmp_path / "ragfm.toml").read_text()
    new = tmp_path / "001"
    new.mkdir()
    (new / GGUF).write_bytes(b"learned")
    monkeypatch.setattr("ragfm.rag.configured_reader", lambda *_: ScriptedReader(["You get 28 days of leave."]))
    served = {"none": None, str(new): str(new / GGUF)}
    monkeypatch.setattr("ragfm.rag.serving_adapter", lambda path, *_: served.get(path, path))
    monkeypatch.setattr("ragfm.training.refresh._train", lambda *_: {})
    with Collection.open(tmp_path / ".ragfm") as collection:
        collection.sync(docs)
        names = [f"leave {chr(letter)}" for letter in range(ord("a"), ord("u"))]
        log_of(collection, *((f"How many days of {name}?", "28 days", "up", None) for name in names))
        done = refresh(collection, new)
    assert done.new
    assert (done.new.a, done.new.b, done.new.wins, done.adopted) == (0.0, 0.0, 0, False)

    monkeypatch.setattr("ragfm.training.refresh.decide", lambda *_: (True, "it is told so"))
    with Collection.open(tmp_path / ".ragfm") as collection:
        assert refresh(collection, new).adopted
    with Collection.open(tmp_path / ".ragfm") as collection:
        rag = Rag(collection)
        assert rag.sampling.adapter == str(new / GGUF)
        assert rag.calibration == replace(own, adapter=adapter_hash(str(new / GGUF)))
    roll_back(tmp_path)
    assert (tmp_path / "ragfm.toml").read_text() == toml


@pytest.mark.slow
def test_a_model_is_adapted_to_questions_that_a_reader_writes(
    tmp_path: Path, run: InProcessShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model with random weights learns nothing in a moment, so it is not adopted; a stopped run continues."""
    model = tiny_model(tmp_path / "model", max_position_embeddings=2048)
    (tmp_path / "ragfm.toml").write_text(f'reader = "{model}"\n\n[ask]\nk = 1\nanswer_tokens = 8\n')
    rooms = tmp_path / "rooms"
    rooms.mkdir()
    for number in range(30):
        text = f"Room {number} is named after tree {number}. The code of room {number} is {number + 100}. It is open.\n"
        (rooms / f"{number}.md").write_text(text * 3)
    run("ingest", rooms)

    def write(messages: Any) -> str:
        room = messages[-1].content.split("Room ")[1].split()[0]
        return f"Question: What is the code of room {room}?\nAnswer: {int(room) + 100}"

    monkeypatch.setattr("ragfm.generation.readers.configured_reader", lambda *_: ScriptedReader(write))
    interrupted = []

    def stop(*_: Any) -> None:
        interrupted.append(True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ragfm.training.refresh._compare", stop)
        with pytest.raises(click.Abort):
            run("adapt", "auto", "--hours", "1")
    assert interrupted
    adapters = tmp_path / ".ragfm-adapters"
    written = (adapters / "written.jsonl").read_bytes()
    assert len(written.splitlines()) >= 10
    weights = (adapters / "001" / RECORD).read_bytes()
    done = run.json("adapt", "auto", "--hours", "1")
    assert not done["adopted"]
    assert done["new"]["ties"] + done["new"]["wins"] + done["new"]["losses"] >= 2
    assert (adapters / "written.jsonl").read_bytes() == written
    assert (adapters / "001" / RECORD).read_bytes() == weights
    assert not (adapters / "002").exists()
    assert "adapter" not in tomllib.loads((tmp_path / "ragfm.toml").read_text())
    (rooms / "0.md").unlink()
    run("ingest", rooms)
    run("adapt", "auto", "--hours", "1")  # the documents have changed: other questions, in a new folder
    assert (adapters / "002" / DECISION).exists()
    assert '"rooms/0.md"' not in (adapters / "written.jsonl").read_text()


def test_what_cannot_be_trained_is_refused_before_questions_are_written(
    tmp_path: Path, docs: Path, run: InProcessShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[Any]()
    monkeypatch.setattr("ragfm.generation.readers.configured_reader", lambda *_: ScriptedReader(asked.append))
    assert "no collection" in run("adapt", "auto", code=1)
    run("ingest", docs)
    (tmp_path / "ragfm.toml").write_text(
        'reader = "openai:large"\n[reader_options.openai]\nbase_url = "http://127.0.0.1:9/v1"\n'
    )
    assert "does not run in this process" in run("adapt", "auto", "--writer", "bundled", code=1)
    writer = GGUFWriter(tmp_path / "other.gguf", "smollm3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    (tmp_path / "ragfm.toml").write_text('reader = "other.gguf"\n')
    assert "architecture 'smollm3' cannot be made" in run("adapt", "auto", "--writer", "bundled", code=1)
    (tmp_path / "ragfm.toml").write_text("")
    monkeypatch.setitem(sys.modules, "tomlkit", None)
    assert "requires the module 'tomlkit'" in run("adapt", "auto", code=1)
    assert not asked
    assert not (tmp_path / ".ragfm-adapters").exists()


def test_a_stopped_run_does_not_continue_with_the_questions_of_another_writer(
    collection: Collection, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.sync(docs)
    writers = []

    def write(*_: Any, out: Path, reader_name: str, **__: Any) -> list[Question]:
        out.touch()
        writers.append(reader_name)
        return [Question(str(n), f"Question {n} of {reader_name}?", (Gold("docs/leave.md", 0, 9),)) for n in range(20)]

    monkeypatch.setattr("ragfm.training.auto_adapt.generate_questions", write)
    monkeypatch.setattr("ragfm.training.auto_adapt.refresh", lambda _, folder, *__, **___: folder.mkdir(exist_ok=True))
    for name in ("small", "small", "large"):
        adapt_automatically(collection, ScriptedReader(), 1, reader_name=name, out=tmp_path / "adapters")
    assert writers == ["small", "large"]


def test_too_few_written_questions_are_reported(
    tmp_path: Path, docs: Path, run: InProcessShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "Question: How many days of leave do I get?\nAnswer: 28\n"
    monkeypatch.setattr("ragfm.generation.readers.configured_reader", lambda *_: ScriptedReader([question]))
    (docs / "leave.md").write_text(
        "# Leave\n\nYou get 28 days of leave. Parents get 16 weeks more, and trainees get the same.\n"
    )
    run("ingest", docs)
    assert "1 written questions are too few: 20 are needed" in run("adapt", "auto", code=1)
    assert not (tmp_path / "ragfm.toml").exists()


def test_a_calibration_of_another_reader_is_kept(tmp_path: Path) -> None:
    """The one for all readers is used with the new adapter anyway."""
    own = Calibration("other", 0.0, {"covered": 9.0}, {"covered": 9.0}, threshold=0.1)
    write_keys(tmp_path, calibration_keys(own))
    rag = cast(Rag, SimpleNamespace(calibration=DEFAULT))
    assert _calibration_for(rag, str(tmp_path)) == DEFAULT
    _adopt(tmp_path, tmp_path / "001", cast(RefreshReport, SimpleNamespace(why="better")), DEFAULT)
    assert load_settings(tmp_path).ask.confidence == own


@pytest.mark.slow
def test_a_refresh_is_adopted_and_rolled_back(tmp_path: Path, docs: Path, run: InProcessShell) -> None:
    """A model with random weights is corrected to abstain always, which it can learn."""
    model = tiny_model(tmp_path / "model", max_position_embeddings=2048)
    toml = f'reader = "{model}"\n\n[ask]\nk = 1\nanswer_tokens = 24\n'
    (tmp_path / "ragfm.toml").write_text(toml)
    run("ingest", docs)
    with Collection.open(tmp_path / ".ragfm") as collection:
        log_of(collection, *((f"What is the code of room {at}?", "?", "down", ABSTENTION) for at in range(40)))
    tested = sum(_is_test(f"What is the code of room {at}?") for at in range(40))
    assert 6 <= tested <= 20
    done = run.json("adapt", "refresh", "--rate", "2e-2", "--epochs", "50")
    assert done["adopted"], done["why"]
    assert done["new"]["wins"] == tested
    assert sum(done["examples"].values()) == 40 - tested
    folder = tmp_path / ".ragfm-adapters" / "001"
    set_now = tomllib.loads((tmp_path / "ragfm.toml").read_text())
    assert set_now["adapter"] == str(folder)
    check_adapter(folder, model, prompt_fingerprint())
    assert run.json("ask", "What is the code of room 99?")["abstained"]

    replay = folder / "examples"
    done = run.json("adapt", "refresh", "--rate", "1e-5", "--no-sync", "--replay", replay)  # it knows all that by now
    assert sum(done["examples"].values()) == 40 - tested  # the same questions again
    assert not done["adopted"]
    assert "within noise" in done["why"]
    assert json.loads((tmp_path / ".ragfm-adapters" / "002" / "ragfm-adapter.json").read_text())["settings"]["start"]
    assert tomllib.loads((tmp_path / "ragfm.toml").read_text()) == set_now
    assert len(json.loads((tmp_path / HISTORY).read_text())) == 1

    card = json.loads((replay / "card.json").read_text())
    (replay / "card.json").write_text(json.dumps({**card, "prompt": "other"}))
    with pytest.raises(DataError, match="made for a different prompt"):
        refresh(Collection.open(tmp_path / ".ragfm"), tmp_path / "other", RefreshSettings(replay=replay))

    assert run.json("adapt", "back") == {"gone": str(folder), "adapter": None}
    assert (tmp_path / "ragfm.toml").read_text() == toml
    assert "No refresh was adopted" in run("adapt", "back", code=1)


def test_a_missing_toml_writer_is_reported_before_anything_is_written(
    tmp_path: Path, docs: Path, run: InProcessShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("ingest", docs)
    monkeypatch.setitem(sys.modules, "tomlkit", None)
    assert "requires the module 'tomlkit'" in run("adapt", "refresh", "--no-sync", code=1)
    assert not (tmp_path / ".ragfm-adapters").exists()
    (tmp_path / "q.jsonl").write_text('{"question": "Why?", "answers": ["x"]}\n')
    assert "requires the module 'tomlkit'" in run("tune", "q.jsonl", "--confidence", code=1)


def test_too_few_questions_are_reported(tmp_path: Path, docs: Path, run: InProcessShell) -> None:
    run("ingest", docs)
    assert "too few to test with" in run("adapt", "refresh", "--no-sync", code=1)
    assert [path.name for path in (tmp_path / ".ragfm-adapters" / "001").iterdir()] == [OUTPUT]
    assert not (tmp_path / "ragfm.toml").exists()
