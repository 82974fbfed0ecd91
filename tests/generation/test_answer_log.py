"""The answer log: what it keeps, that nothing of it is left when it is forgotten, and that no answer is lost by it."""

from __future__ import annotations

import json
import logging
import re
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.judges import ScriptedJudge

from ragfm import Answer, Collection, Message, Rag, Settings, Usage
from ragfm.cli import ragfm
from ragfm.core.config import AskSection
from ragfm.core.errors import LogError
from ragfm.core.types import Calculation, CalculationOperand, ImagePart
from ragfm.evaluation import load_questions
from ragfm.evaluation.log_questions import questions_from_log
from ragfm.generation.answer_log import AnswerContext, AnswerLog
from ragfm.generation.log_entries import LogFilter
from ragfm.generation.prompt import Prompt
from ragfm.testing import HashingEmbedder, ScriptedReader

NOTHING = Answer("q", "a", "answered", (), (), (), Usage(), 0.5, query="q")
HOW = AnswerContext("bundled", None, None, None, 0.0, 0.1)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    folder = tmp_path_factory.mktemp("log")
    (folder / "docs").mkdir()
    (folder / "docs" / "leave.md").write_text(
        "# Leave\n\nYou get 28 days of leave.\n\n## Parents\n\nParents get 16 weeks.\n"
    )
    (folder / "docs" / "pay.md").write_text("# Pay\n\nThe director earns 90 crowns.\n")
    settings = Settings(ask=AskSection(log=True))
    collection = Collection.open(folder / ".ragfm", settings=settings, embedder=HashingEmbedder())
    collection.sync(folder / "docs")
    return collection


@pytest.fixture
def collection(filled: Collection) -> Collection:
    AnswerLog.for_collection(filled.path).path.unlink(missing_ok=True)
    return filled


@pytest.fixture
def log(tmp_path: Path) -> AnswerLog:
    return AnswerLog.for_collection(tmp_path / ".ragfm")


def logged(log: AnswerLog, *questions: str, **more: Any) -> list[int]:
    return [log.add(replace(NOTHING, question=text, query=text, **more), HOW) for text in questions]


# --- What is kept ------------------------------------------------------------------------------------------------


def test_an_answer_is_kept_with_all_that_it_came_from(collection: Collection) -> None:
    reader = ScriptedReader(["You get 28 days of leave [1]."])
    rag = Rag(collection, reader=reader, k=2, adapter="tuned")
    answer = rag.ask("How many days of leave do I get?")
    assert rag.log is not None
    assert rag.log.path == collection.path.with_name(".ragfm-log.db")
    assert rag.log.path.stat().st_mode & 0o077 == 0
    (entry,) = rag.log.entries()
    assert answer.log_id == entry.id == 1
    assert (entry.question, entry.answer, entry.finished) == (answer.question, answer.text, True)
    assert (entry.shown, entry.status, entry.confidence) == (answer.shown, answer.status, answer.confidence)
    assert (entry.key, entry.request_id) == (None, None)
    assert (entry.reader, entry.adapter, entry.groups, entry.thumbs) == ("ScriptedReader", "tuned", None, None)
    assert [(hit["uri"], hit["start"], hit["end"], hit["chunk_id"], hit["score"]) for hit in entry.passages] == [
        (hit.uri, hit.start, hit.end, hit.chunk_id, hit.score) for hit in answer.hits
    ]
    assert [message["content"] for message in entry.prompt] == [message.content for message in reader.prompts[0]]
    assert entry.citations[0]["quote"] == "You get 28 days of leave."
    assert entry.usage["prompt_tokens"] == answer.usage.prompt_tokens
    assert 0 <= entry.seconds["found"] <= entry.seconds["first"] <= entry.seconds["total"]


def test_a_calculated_answer_names_no_reader(log: AnswerLog) -> None:
    calculation = Calculation("difference", "2", "3 − 1", (CalculationOperand("Crowns — 2023", "3"),))
    answers = [replace(NOTHING, calculation=calculation), NOTHING]
    for answer in answers:
        log.add(answer, replace(HOW, adapter="tuned"))
    calculated, other = log.entries()
    assert (calculated.reader, calculated.adapter) == (None, None)
    assert calculated.calculation == {
        "operation": "difference",
        "result": "2",
        "working": "3 − 1",
        "operands": [{"label": "Crowns — 2023", "text": "3"}],
    }
    assert (other.reader, other.adapter, other.calculation) == ("bundled", "tuned", None)
    assert log.redact(LogFilter(text="crowns")) == 1


def test_a_follow_up_is_kept_in_both_forms(collection: Collection) -> None:
    history = [Message("user", "How many days of leave do I get?"), Message("assistant", "28 days.")]
    rag = Rag(collection, reader=ScriptedReader(["16 weeks."]))
    rag.ask("And for parents?", history=history)
    entry = rag.log.entry(1)  # type: ignore[union-attr]
    assert (entry.question, entry.query) == ("And for parents?", "How many days of leave do I get? And for parents?")


def test_a_restricted_handles_entries_carry_its_groups(collection: Collection) -> None:
    rag = Rag(collection.as_groups({"staff", "hr"}), reader=ScriptedReader(["28 days."]))
    rag.ask("How much leave?")
    Rag(collection.as_groups(set()), reader=ScriptedReader(["28 days."])).ask("How much leave?")
    assert [entry.groups for entry in rag.log.entries()] == [["hr", "staff"], []]  # type: ignore[union-attr]


def test_nothing_is_kept_unless_asked_for(collection: Collection) -> None:
    quiet = Collection.open(collection.location, settings=Settings(), embedder=HashingEmbedder())
    rag = Rag(quiet, reader=ScriptedReader(["28 days."]))
    assert rag.ask("How much leave?").log_id is None
    assert rag.log is None
    assert not AnswerLog.for_collection(collection.path).path.exists()


def test_images_of_a_prompt_are_named_by_their_digests(log: AnswerLog) -> None:
    image = ImagePart(b"pixels", "image/png")
    messages = (Message("system", "See."), Message("user", ("One ", image, "two")))
    log.add(NOTHING, replace(HOW, prompt=Prompt(messages, (), ())))
    assert log.entries()[0].prompt == [
        {"role": "system", "content": "See."},
        {"role": "user", "content": "One two", "images": [image.digest]},
    ]


def test_no_passage_is_logged_too(collection: Collection) -> None:
    rag = Rag(collection, reader=ScriptedReader(["never"]))
    rag.ask("How much leave?", filter="uri = none")
    entry = rag.log.entry(1)  # type: ignore[union-attr]
    assert (entry.abstained, entry.prompt, entry.passages) == (True, [], [])


# --- No answer is lost -------------------------------------------------------------------------------------------


def test_a_stopped_answer_is_kept_as_far_as_it_came(collection: Collection) -> None:
    rag = Rag(collection, reader=ScriptedReader(["You get 28 days of leave."]))
    stream = rag.stream("How much leave?")
    assert next(stream) + next(stream) == "You get"
    stream.close()
    entry = rag.log.entry(1)  # type: ignore[union-attr]
    assert (entry.answer, entry.finished) == ("You get", False)
    assert entry.passages


def test_ctrl_c_while_the_reader_speaks(collection: Collection) -> None:
    class Interrupted(ScriptedReader):
        def stream(self, *given: Any) -> Any:
            def pieces() -> Any:
                yield "You "
                raise KeyboardInterrupt

            stream = super().stream(*given)
            stream._pieces = pieces()
            return stream

    rag = Rag(collection, reader=Interrupted(["x"]))
    with pytest.raises(KeyboardInterrupt):
        rag.ask("How much leave?")
    assert rag.log.entry(1).answer == "You"  # type: ignore[union-attr]


def test_ctrl_c_while_it_is_logged_gives_the_answer(
    collection: Collection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted(*_: Any, **__: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(AnswerLog, "add", interrupted)
    answer = Rag(collection, reader=ScriptedReader(["28 days."])).ask("How much leave?")
    assert (answer.log_id, answer.abstained) == (None, False)
    assert "not logged: interrupted" in caplog.text


def test_a_full_disk_loses_the_log_entry_but_not_the_answer(
    collection: Collection, caplog: pytest.LogCaptureFixture
) -> None:
    rag = Rag(collection, reader=ScriptedReader(["28 days."]))
    rag.ask("How much leave?")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        answer = rag.ask("How much " + "leave " * 2000, hits=[])
        with caplog.at_level(logging.WARNING):
            answer = rag.ask("How much leave?")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert answer.text
    assert answer.log_id is None
    assert "not logged" in caplog.text
    assert rag.ask("How much leave?").log_id is not None
    assert all(entry.question for entry in rag.log.entries())  # type: ignore[union-attr]


def test_values_that_the_database_rejects_do_not_prevent_an_answer(
    collection: Collection, caplog: pytest.LogCaptureFixture
) -> None:
    rag = Rag(collection, reader=ScriptedReader(["28 \udce9 days."]))
    assert rag.ask("How much leave?").log_id == 1
    assert rag.log.entry(1).answer.startswith("28 ? days")  # type: ignore[union-attr]
    assert rag.log.record(replace(NOTHING, text=2**70), HOW) is None  # type: ignore[arg-type, union-attr]
    assert "not logged: OverflowError" in caplog.text


@pytest.mark.parametrize("spoil", ["folder", "damage", "another"])
def test_an_unusable_log_is_reported(log: AnswerLog, spoil: str) -> None:
    if spoil == "folder":
        log.path.mkdir()
    elif spoil == "damage":
        log.path.write_bytes(b"no database" * 1000)
    else:
        logged(log, "one")
        with sqlite3.connect(log.path) as connection:
            connection.execute("PRAGMA user_version = 99")
    with pytest.raises(LogError, match="another version" if spoil == "another" else "cannot be used"):
        logged(log, "two")


def test_several_processes_write_at_once(log: AnswerLog) -> None:
    code = (
        "import sys; from ragfm.generation.answer_log import AnswerLog, AnswerContext\n"
        "from ragfm.core.types import Answer, Usage\n"
        "for n in range(20):\n"
        " AnswerLog(sys.argv[1]).add(Answer(f'{sys.argv[2]} {n}', '', 'answered', (), (), (), Usage(), 0.),"
        " AnswerContext('', None, None, None, 0, 0))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(log.path), str(n)]) for n in range(4)]
    assert [writer.wait(timeout=300) for writer in writers] == [0] * 4
    assert sorted(entry.question for entry in log.entries()) == sorted(f"{w} {n}" for w in range(4) for n in range(20))


def test_ids_for_ratings_are_random_and_find_their_entry(log: AnswerLog) -> None:
    numbers = logged(log, "Who won?", "Who lost?", "Who drew?")
    ids = [log.rating_id(number) for number in numbers]
    assert len(set(ids)) == 3
    assert all(re.fullmatch("[0-9a-f]{16}", rating_id) for rating_id in ids)
    found = [log.entry_of_rating(rating_id) for rating_id in (*ids, "1", "")]
    assert [entry and entry.id for entry in found] == [*numbers, None, None]
    with pytest.raises(LogError, match="no entry 77"):
        log.rating_id(77)


# --- Forgetting --------------------------------------------------------------------------------------------------


def words_on_disk(log: AnswerLog) -> bytes:
    """The bytes of the file and of those that SQLite keeps next to it."""
    return b"".join(path.read_bytes() for path in sorted(log.path.parent.glob(f"{log.path.name}*")))


def test_forgotten_entries_leave_no_trace_in_the_file(log: AnswerLog) -> None:
    logged(log, *(f"question {n} of Xanthippe {'x' * 3000}" for n in range(10)))
    kept = logged(log, "of Socrates")
    assert words_on_disk(log).count(b"Xanthippe") >= 10
    size = log.path.stat().st_size
    assert log.forget(LogFilter(text="xanthippe")) == 10
    assert b"Xanthippe" not in words_on_disk(log)
    assert log.path.stat().st_size < size / 2
    assert [entry.id for entry in log.entries()] == kept
    assert logged(log, "later") > kept  # a number is never given twice


def test_conditions_must_all_hold(log: AnswerLog) -> None:
    one, two, three = logged(log, "of Anna", "of Bert", "of Anna")
    with sqlite3.connect(log.path) as connection:
        connection.execute("UPDATE answer_log SET at = '2020-01-01T00:00:00.000+00:00' WHERE id < 3")
    assert log.forget(LogFilter(ids=[two, three], text="Anna", older_than=timedelta(days=1))) == 0
    assert log.forget(LogFilter(text="Anna", older_than=timedelta(days=1))) == 1
    assert [entry.id for entry in log.entries()] == [two, three]
    assert one == 1
    with pytest.raises(ValueError, match="empty"):
        LogFilter(text="  ")


def test_a_text_is_redacted_wherever_it_occurs(collection: Collection) -> None:
    rag = Rag(collection, reader=ScriptedReader(["The director earns 90 crowns [1]."]), k=1)
    rag.ask("What does the DIRECTOR  earn?")
    log = rag.log
    assert log is not None
    log.rate(1, "down", 'The "director\nearns" nothing.')
    assert log.redact(LogFilter(text="director earn")) == 1
    entry = log.entry(1)
    assert entry.question == "What does the [redacted]?"
    assert entry.answer == "The [redacted]s 90 crowns [1]."
    assert entry.correction == 'The "[redacted]s" nothing.'
    assert entry.citations[0]["quote"] == "The [redacted]s 90 crowns."
    assert "[redacted]s 90" in entry.prompt[-1]["content"]
    assert entry.prompt[-1]["role"] == "user"
    assert b"director earn" not in words_on_disk(log)
    assert log.redact(LogFilter(text="director earn")) == 0


def test_a_name_is_redacted_with_composed_and_decomposed_accents(log: AnswerLog) -> None:
    composed, apart = "Zo\u00eb", "Zoe\u0308"
    logged(log, f"Where is {composed}?", f"Where is {apart}?")
    for typed in (composed, apart):
        assert len(log.entries(LogFilter(text=typed))) == 2
    assert log.redact(LogFilter(text=composed)) == 2
    assert [entry.question for entry in log.entries()] == ["Where is [redacted]?"] * 2


def test_all_text_of_an_entry_is_redacted(collection: Collection) -> None:
    rag = Rag(collection, reader=ScriptedReader(["The director earns 90 crowns [1]."]), k=1)
    rag.ask("What does the director earn?")
    log = rag.log
    assert log is not None
    assert log.redact(LogFilter(ids=[1])) == 1
    entry = log.entry(1)
    assert {entry.question, entry.query, entry.answer, entry.citations[0]["quote"]} == {"[redacted]"}
    assert entry.passages[0]["uri"] == "docs/pay.md"
    assert entry.usage["prompt_tokens"] > 0
    assert b"crowns" not in words_on_disk(log)
    assert list(questions_from_log(log.entries())) == []


def test_an_open_reader_keeps_deleted_text_in_the_log_which_is_an_error(
    log: AnswerLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragfm.generation.log_storage.LOCK_SECONDS", 0.1)
    logged(log, "of Xanthippe")
    reading = sqlite3.connect(log.path, isolation_level=None)
    reading.execute("BEGIN")
    reading.execute("SELECT * FROM answer_log").fetchall()
    with pytest.raises(LogError, match="still contains them"):
        log.forget(LogFilter(text="Xanthippe"))
    reading.close()
    assert log.forget(LogFilter(text="Xanthippe")) == 0
    assert b"Xanthippe" not in words_on_disk(log)


# --- Thumbs and questions ----------------------------------------------------------------------------------------


def test_rated_answers_become_questions(collection: Collection, tmp_path: Path) -> None:
    said = ["You get 28 days of leave [1].", "I don't know.", "Five.", "Six.", "Seven."]
    rag = Rag(collection, reader=ScriptedReader(said), k=1)
    log = rag.log
    assert log is not None
    for number in range(5):
        rag.ask("How many days of leave do I get?" if number == 0 else f"How many weeks do parents get, {number}?")
    log.rate(1, "up")
    log.rate(2, "up")
    log.rate(3, "down")
    log.rate(4, "down", "16 weeks")
    lines = list(questions_from_log(log.entries()))
    citation = log.entry(1).citations[0]
    assert lines == [
        {
            "id": "log-1",
            "question": "How many days of leave do I get?",
            "answers": ["You get 28 days of leave."],
            "uri": "docs/leave.md",
            "start": citation["start"],
            "end": citation["end"],
        },
        {"id": "log-2", "question": "How many weeks do parents get, 1?", "unanswerable": True},
        {"id": "log-4", "question": "How many weeks do parents get, 3?", "answers": ["16 weeks"]},
    ]
    out = tmp_path / "questions.jsonl"
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [question.id for question in load_questions(out, answers=True).questions] == ["log-1", "log-2", "log-4"]
    log.rate(4, "up")
    assert (log.entry(4).thumbs, log.entry(4).correction) == ("up", None)
    with pytest.raises(LogError, match="no entry 99"):
        log.rate(99, "up")


def test_contradictions_are_not_part_of_the_right_answer(tmp_path: Path, docs: Path) -> None:
    (docs / "new.md").write_text("In 2026 you get 30 “whole” days of leave.[1]\n")
    settings = Settings(ask=AskSection(log=True))
    collection = Collection.open(tmp_path / ".ragfm", settings=settings, embedder=HashingEmbedder())
    collection.sync(docs)
    rag = Rag(collection, reader=ScriptedReader(["You get 28 days of leave. It is so."]), k=3)
    rag.judge = ScriptedJudge(contradicts=lambda evidence: 0.9 if "30" in evidence.text else 0.0)
    assert rag.log
    answer = rag.ask("How many days of leave do I get?")
    assert [contradiction.quote for contradiction in answer.contradictions] == [
        "In 2026 you get 30 “whole” days of leave.[1]"
    ]
    assert rag.log.entry(1).contradictions == [asdict(contradiction) for contradiction in answer.contradictions]
    rag.log.rate(1, "up")
    (line,) = questions_from_log(rag.log.entries())
    assert (line["answers"], line["uri"]) == (["You get 28 days of leave. It is so."], "docs/leave.md")


# --- The command line --------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)

    def run(*words: str, typed: str | None = None) -> str:
        done = CliRunner().invoke(ragfm, words, input=typed, catch_exceptions=False, standalone_mode=False)
        return done.output

    return run


def test_the_commands(run: Callable[..., str], log: AnswerLog, tmp_path: Path) -> None:
    logged(log, "of Anna", "of Bert", "of\x1b[31mCarl")
    assert [line.split()[0] for line in run("log", "list").splitlines()] == ["1", "2", "3"]
    assert "\\x1b[31mCarl" in run("log", "list", "--limit", "1")
    assert "Anna" not in run("log", "list", "--limit", "1")
    assert run("log", "thumbs", "1", "up") == "Rating saved.\n"
    assert json.loads(run("log", "thumbs", "2", "down", "--correction", "Ernie", "--json"))["correction"] == "Ernie"
    assert [entry["id"] for entry in json.loads(run("log", "list", "--json", "--thumbs", "down"))["entries"]] == [2]
    assert "of Anna" in run("log", "show", "1")
    assert json.loads(run("log", "show", "1", "--json"))["thumbs"] == "up"
    assert [json.loads(line)["id"] for line in run("log", "export").splitlines()] == ["log-1", "log-2"]
    assert run("log", "export", "-") == run("log", "export")
    assert json.loads(run("log", "export", "--json", "q.jsonl")) == {"path": "q.jsonl", "entries": 2, "lines": 2}
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 2
    assert len(run("log", "export", "--all").splitlines()) == 3
    assert run("log", "redact", "--text", "carl") == "1 redacted.\n"
    assert json.loads(run("log", "forget", "1", "2", "--json")) == {"forgotten": 2}
    assert run("log", "forget", "--older-than", "0") == "1 forgotten.\n"
    assert run("log", "list") == "Nothing found.\n"


def test_forget_and_redact_require_a_condition(run: Callable[..., str], log: AnswerLog) -> None:
    logged(log, "of Anna")
    from click import UsageError

    for command in ("forget", "redact"):
        with pytest.raises(UsageError, match="Select entries"):
            run("log", command)
    assert len(log.entries()) == 1


def test_no_log_names_the_setting(run: Callable[..., str]) -> None:
    with pytest.raises(LogError, match="log = true"):
        run("log", "list")


def test_thumbs_and_the_query_in_a_chat(
    run: Callable[..., str], collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragfm.rag.configured_reader", lambda *_, **__: ScriptedReader(["You get 28 days of leave."]))
    typed = "/up\nHow many days of leave do I get?\n/up\nAnd for parents?\n/query\n/down 16 weeks\n/nonsense\n/quit\n"
    path = str(collection.path)
    said = run("chat", "-c", path, typed=typed)
    assert "The answer log is off" in said
    assert not AnswerLog.for_collection(path).path.exists()
    monkeypatch.setenv("RAGFM_ASK__LOG", "true")
    said = run("chat", "-c", path, typed=typed)
    assert "no answer in the log" in said
    assert "How many days of leave do I get? And for parents?" in said
    assert "/query" in said
    entries = AnswerLog.for_collection(path).entries()
    assert [(entry.thumbs, entry.correction) for entry in entries] == [("up", None), ("down", "16 weeks")]
