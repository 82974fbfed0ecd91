"""Evaluation of answers: matching, contexts, kinds of results, comparisons of readers, pages and commands."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from click import UsageError
from click.testing import CliRunner
from support.judges import ScriptedJudge
from support.shell import InProcessShell, Shell

from ragfm import Collection, Rag, Settings
from ragfm.cli import ragfm
from ragfm.core.errors import DataError, TooLongError, UnsupportedError
from ragfm.core.output_folder import OUTPUT
from ragfm.core.progress import Progress
from ragfm.core.types import Answer, Message, Sampling, Stream, Usage
from ragfm.evaluation import Difference, Gold, Question, compare_runs, evaluate_answers, load_questions
from ragfm.evaluation.answer_evaluation import AnsweredQuestion, Outcome, answer_measures
from ragfm.evaluation.answer_matching import contains_answer, token_f1
from ragfm.evaluation.metrics import Estimate, estimate_ratios
from ragfm.evaluation.reader_comparison import (
    Contender,
    ContenderResult,
    compare_readers,
    run_path,
)
from ragfm.evaluation.run_file import read_run
from ragfm.generation.answer_log import AnswerLog
from ragfm.generation.answer_stream import AnswerStream
from ragfm.ingestion.ingest_report import Failed, SyncReport
from ragfm.testing import ScriptedReader

LEAVE = Question("leave", "How many days of leave do I get?", (Gold("docs/leave.md"),), ("28 days", "28"))
HOURS = Question("hours", "When does the office open?", (Gold("docs/hours.txt"),), ("nine",))
MOON = Question("moon", "Who was first on the moon?", (), (), unanswerable=True)


@pytest.fixture
def handbook(shared_handbook: Collection) -> Collection:
    return shared_handbook


@pytest.mark.parametrize(
    ("answer", "right", "f1"),
    [
        ("The 28 days [1].", "28 days", 1.0),
        ("It is 28 days of leave.", "28 days", 4 / 8),
        ("Never.", "28 days", 0.0),
        ("", "28 days", 0.0),
        ("no no no", "no", 2 / 4),
    ],
)
def test_token_f1_is_that_of_squad(answer: str, right: str, f1: float) -> None:
    assert token_f1(answer, right) == pytest.approx(f1)


def test_an_answer_is_contained_as_whole_words_only() -> None:
    assert contains_answer("It was in 1973, they say.", ["in 1973"])
    assert not contains_answer("It was in 19735.", ["1973"])
    assert not contains_answer("anything", ["the"])  # nothing is left of it


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It’s “Paris”.", "Paris"),
        ("Paris—the city", "Paris"),
        ("«Москва» — столица", "Москва"),
        ("It costs €5.", "5"),
        ("the cafe\u0301 there", "caf\u00e9"),
        ("会议室在三楼。", "三楼"),
        ("休假28天", "28天"),
        ("カフェは二階です", "カフェ"),
        ("3,100 euros", "3100 euros"),
    ],
)
def test_typographic_punctuation_and_chinese_characters_separate_words(text: str, answer: str) -> None:
    assert contains_answer(text, [answer])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is 3,100.", "100"),
        ("休假128天", "28天"),
        ("Parisian—the", "Paris"),
        ("Moscow", "«»"),
        ("三楼", "—"),
    ],
)
def test_a_part_of_a_word_does_not_match(text: str, answer: str) -> None:
    assert not contains_answer(text, [answer])


def test_a_ratio_is_a_ratio_of_sums() -> None:
    estimate = estimate_ratios([(1, 1), (0, 0), (1, 2), (0, 1)])
    assert estimate is not None
    assert estimate.value == pytest.approx(2 / 4)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate_ratios([(0, 0), (0, 0)]) is None


def test_measures_of_a_hand_made_run() -> None:
    outcomes = [  # whether it is unanswerable, and what became of it
        (False, Outcome(contained=1, citations=2, holding=1, sentences=3, supported=2)),
        (False, Outcome(contained=0, citations=1, holding=0, sentences=1, supported=1)),
        (False, Outcome(contained=1, citations=0, holding=0, sentences=2, supported=0)),
        (False, Outcome(abstained=True)),
        (True, Outcome(citations=3, holding=0, sentences=1, supported=1)),  # none of these could hold an answer
        (True, Outcome(abstained=True, f1=1, exact=1, contained=1)),
    ]
    asked = [(AnsweredQuestion("", "", (), (), unanswerable, {}, {}), one) for unanswerable, one in outcomes]
    found = {name: value.value for name, value in answer_measures(asked, passages=True).items()}
    assert found["citation precision"] == pytest.approx(1 / 3)
    assert found["citation recall"] == pytest.approx(1 / 2)
    assert found["faithfulness"] == pytest.approx(4 / 7)
    assert found["abstention precision"] == pytest.approx(1 / 2)
    assert found["abstention recall"] == pytest.approx(1 / 2)
    assert found["contained, answerable"] == pytest.approx(2 / 4)
    assert found["f1, all"] == pytest.approx(1 / 6)


def test_each_context_is_answered_and_measured(handbook: Collection) -> None:
    reader = ScriptedReader(["You get 28 days of leave.", "28 days", "Thirty."])
    report = evaluate_answers(Rag(handbook, reader=reader), [LEAVE])
    retrieved, gold, memory = (report.results[0].outcomes[name] for name in ("retrieved", "gold", "none"))
    assert (retrieved.contained, retrieved.exact, retrieved.shown) == (1, 0, True)
    assert (retrieved.citations, retrieved.holding, retrieved.sentences, retrieved.supported) == (1, 1, 1, 1)
    assert (gold.exact, gold.f1) == (1, 1)
    assert (memory.contained, memory.f1, memory.shown) == (0, 0, None)
    prompts = [prompt[-1].content for prompt in reader.prompts]
    assert "[2]" in prompts[0]
    assert "28 days" in prompts[1]
    assert "[2]" not in prompts[1]  # of the document that was asked about, the passage that holds the answer
    assert prompts[2] == LEAVE.text
    assert report.measures["retrieved"]["citation precision"].value == 1
    assert report.measures["retrieved"]["faithfulness"].value == 1
    assert "citation precision" not in report.measures["none"]
    assert report.results[0].measures["f1, gold"] == 1
    assert report.kinds["right"] == 1


def test_a_contradiction_is_not_part_of_the_answer(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name, seats in (("a", 8), ("b", 12)):
        (tmp_path / "docs" / f"{name}.txt").write_text(f"The meeting room Cirrus seats {seats} people.\n")
    collection = Collection.open(tmp_path / ".ragfm", embedder="hashing")
    collection.sync(tmp_path / "docs")
    asked = Question("seats", "How many people does the meeting room Cirrus seat?", (Gold("docs/a.txt"),), ("8",))
    rag = Rag(collection, reader=ScriptedReader(["Cirrus seats 8 people."]))
    rag.judge = ScriptedJudge(contradicts=lambda evidence: 0.9 if "12" in evidence.text else 0.0)
    assert rag.ask(asked.text).contradictions
    outcome = evaluate_answers(rag, [asked], contexts=["retrieved"]).results[0].outcomes["retrieved"]
    assert re.fullmatch(r"Cirrus seats 8 people \[\d\]\.", outcome.answer)
    assert outcome.f1 == pytest.approx(2 / 5)
    assert (outcome.citations, outcome.holding, outcome.sentences, outcome.supported) == (1, 1, 1, 1)


def test_reasoning_is_not_part_of_an_answer_from_memory(handbook: Collection) -> None:
    reader = Choosy(["<think>Seats? Perhaps 28 days.</think>Thirty."])
    rag = Rag(handbook, reader=reader)
    outcome = evaluate_answers(rag, [LEAVE], contexts=["none"]).results[0].outcomes["none"]
    assert (outcome.answer, outcome.contained) == ("Thirty.", 0)
    (sampling,) = reader.samplings
    assert sampling.max_tokens == 64


def test_a_failed_question_does_not_stop_the_others(collection: Collection, docs: Path) -> None:
    odd = f"docs/a'{chr(34)}.txt"
    (docs / odd.removeprefix("docs/")).write_text("The odd office opens at nine.")
    collection.sync(docs)
    end = len(collection.document("docs/leave.md").text)
    questions = [
        Question("gone", "How many?", (Gold("docs/gone.md", 0, 5),)),
        Question("beyond", "How many?", (Gold("docs/leave.md", end, end + 5),)),
        Question("odd", "When does the odd office open?", (Gold(odd),), ("nine",)),
        Question("unprintable", "When?", (Gold("docs/a\a.txt"),), ("nine",)),
        HOURS,
    ]
    report = evaluate_answers(Rag(collection, reader=ScriptedReader(["At nine."])), questions, contexts=["gold"])
    outcomes = [result.outcomes["gold"] for result in report.results]
    assert [bool(outcome.error) for outcome in outcomes] == [True, True, False, True, False]
    assert "no document 'docs/gone.md'" in str(outcomes[0].error)
    assert f"beyond 'docs/leave.md': {end} characters" in str(outcomes[1].error)
    assert [place.uri for place in outcomes[2].passages] == [odd]


def test_an_evaluation_does_not_write_the_answer_log(handbook: Collection, tmp_path: Path) -> None:
    rag = Rag(handbook, reader=ScriptedReader(["28 days"]))
    rag.log = log = AnswerLog.for_collection(tmp_path)
    evaluate_answers(rag, [LEAVE], contexts=["retrieved"])
    assert not log.path.exists()
    rag.ask(LEAVE.text)
    assert [entry.question for entry in log.entries()] == [LEAVE.text]


def test_abstentions_count_as_right_or_wrong(handbook: Collection) -> None:
    reader = ScriptedReader(["I don't know.", "I don't know.", "Neil Armstrong was."])
    questions = [LEAVE, MOON, Question("sun", "Who was first on the sun?", (), (), unanswerable=True)]
    report = evaluate_answers(Rag(handbook, reader=reader), questions, contexts=["retrieved"])
    assert [result.kind for result in report.results] == ["false abstention", "right abstention", "false answer"]
    measures = {name: value.value for name, value in report.measures["retrieved"].items()}
    assert measures["abstention precision"] == measures["abstention recall"] == 0.5
    assert measures["f1, answerable"] == 0
    assert measures["f1, all"] == pytest.approx(1 / 3)
    assert "citation recall" not in measures  # of no right answers


def test_not_retrieved_differs_from_wrong(handbook: Collection) -> None:
    lost = Question("lost", "When does the office open?", (Gold("docs/leave.md"),), ("in the north wing",))
    reader = ScriptedReader(["At ten.", "At ten."])
    report = evaluate_answers(Rag(handbook, reader=reader, k=1), [lost, LEAVE], contexts=["retrieved"])
    assert [result.kind for result in report.results] == ["not retrieved", "wrong"]


def test_a_passage_of_the_gold_document_holds_an_answer_in_other_words(handbook: Collection) -> None:
    explained = Question("why", LEAVE.text, LEAVE.gold, ("The handbook grants four weeks and some days.",))
    report = evaluate_answers(
        Rag(handbook, reader=ScriptedReader(["28 days [1]."])), [explained], contexts=["retrieved"]
    )
    assert report.results[0].kind == "wrong"
    assert report.measures["retrieved"]["answer shown"].value == 1
    assert report.measures["retrieved"]["citation precision"].value == 1


def test_what_users_see_is_measured_by_status(handbook: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(text: str, status: str, shown: str) -> Answer:
        return Answer("?", text, status, (), (), (), Usage(), 0.1, shown=shown)  # type: ignore[arg-type]

    answers = iter(
        [
            answer("28 days.", "answered", "28 days."),
            answer("Nine.", "unsure", "I am not sure. The documents say: “The office is open.”"),
            answer("I don't know.", "not_found", ""),
        ]
    )
    rag = Rag(handbook, reader=ScriptedReader([""]))
    monkeypatch.setattr(Rag, "stream", lambda *_, **__: AnswerStream.of(next(answers)))
    report = evaluate_answers(rag, [LEAVE, HOURS, MOON], contexts=["retrieved"])
    counted = {name: (row.count, row.precision and row.precision.value) for name, row in report.statuses.items()}
    assert counted == {"answered": (1, 1.0), "unsure": (1, 0.0), "withheld": (1, 1.0)}
    measures = report.measures["retrieved"]
    assert measures["contained, answerable"].value == 1
    assert measures["contained as shown, answerable"].value == 0.5
    assert [one.measures["contained as shown"] for one in report.results] == [1, 0, 1]


def test_statuses_are_printed(asks: Asks) -> None:
    reader = ScriptedReader(["28 days", "At nine.", "I don't know."])
    words = ("eval", "answers", asks(reader), "--context", "retrieved")
    done = InProcessShell().json(*words)["statuses"]
    assert done["withheld"]["count"] == 1
    assert done["withheld"]["precision"]["value"] == 1
    said = InProcessShell()(*words)
    assert re.search(r"^ +withheld +1 +1\.000", said, re.MULTILINE)


def test_a_yes_no_answer_is_held_by_any_passage_of_the_gold_document(collection: Collection, docs: Path) -> None:
    (docs / "lift.txt").write_text("There is no lift in the old wing, and no locker.\n")
    collection.sync(docs)
    about = Question("about", "Do I get 40 days of leave?", (Gold("docs/leave.md"),), ("no",))
    elsewhere = Question("elsewhere", "Is the lift in the old wing?", (Gold("docs/leave.md"),), ("no",))
    rag = Rag(collection, reader=ScriptedReader(["Yes."] * 3 + ["No, you don't."]), k=1)
    report = evaluate_answers(rag, [about, elsewhere], contexts=["retrieved"])
    assert [result.kind for result in report.results] == ["wrong", "not retrieved"]
    gold = evaluate_answers(rag, [about], contexts=["gold"]).results[0].outcomes["gold"]
    assert (gold.shown, gold.contained) == (True, 0)
    assert evaluate_answers(rag, [about], contexts=["retrieved"]).results[0].kind == "right"


def test_a_judge_rates_answers_but_not_abstentions(handbook: Collection) -> None:
    reader = ScriptedReader(["Four weeks and a bit.", "I don't know.", "Armstrong."])
    judge = ScriptedReader(["yes"])
    report = evaluate_answers(Rag(handbook, reader=reader), [LEAVE, HOURS, MOON], contexts=["retrieved"], judge=judge)
    assert [result.outcomes["retrieved"].judged for result in report.results] == [1.0, 0.0, None]
    assert report.measures["retrieved"]["judged right, answerable"].value == 0.5
    _, asked = judge.prompts  # the first was a trial
    assert "Right: 28 days / 28\nAnswer: Four weeks and a bit" in asked[-1].content
    without = evaluate_answers(Rag(handbook, reader=reader), [HOURS], contexts=["retrieved"])
    assert "judged right, answerable" not in without.measures["retrieved"]
    no = evaluate_answers(Rag(handbook, reader=reader), [LEAVE], contexts=["gold"], judge=ScriptedReader(["no"]))
    assert no.measures["gold"]["judged right, answerable"].value == 0


class Choosy(ScriptedReader):
    """Refuses the parts of a sampling that are named."""

    def __init__(self, script: Sequence[str], *refused: str) -> None:
        super().__init__(script)
        self.refused, self.samplings = refused, list[Sampling]()

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        if any(getattr(sampling, name) is not None for name in self.refused):
            raise UnsupportedError("refused")
        self.samplings.append(sampling)
        return super().stream(messages, sampling)


@pytest.mark.parametrize("refused", [(), ("grammar",), ("grammar", "schema")])
@pytest.mark.parametrize("right", [True, False])
def test_any_reader_can_judge(handbook: Collection, refused: tuple[str, ...], right: bool) -> None:
    said = f'Well: {{"right":  {str(right).lower()}}}.' if refused else "yes" if right else "no"
    judge = Choosy([said], *refused)
    rag = Rag(handbook, reader=ScriptedReader(["You get 28 days."]))
    report = evaluate_answers(rag, [LEAVE], contexts=["retrieved"], judge=judge)
    assert report.results[0].outcomes["retrieved"].judged == right
    trial, asked = judge.samplings
    assert trial == asked
    assert (asked.grammar is None, asked.schema is None) == (bool(refused), len(refused) != 1)
    assert ('{"right": true}' in judge.prompts[-1][-1].content) == bool(refused)


def test_questions_without_a_right_answer_are_refused_before_the_first_question(handbook: Collection) -> None:
    reader = ScriptedReader(["28 days"])
    unknown = Question("open", "How many?", (Gold("docs/leave.md"),))
    with pytest.raises(DataError, match=r"'open' has no right answer\. Load questions with `answers=True`"):
        evaluate_answers(Rag(handbook, reader=reader), [LEAVE, unknown])
    assert not reader.prompts


def test_a_judge_without_a_verdict_is_refused_before_the_first_question(handbook: Collection, tmp_path: Path) -> None:
    reader = ScriptedReader(["28 days"])
    with pytest.raises(UnsupportedError, match=r"no verdict.*Hard to say"):
        evaluate_answers(
            Rag(handbook, reader=reader), [LEAVE], judge=Choosy(["Hard to say."], "grammar"), out=tmp_path / "run.jsonl"
        )
    assert not reader.prompts
    assert not (tmp_path / "run.jsonl").exists()


def test_a_judge_has_the_options_of_ragfm_toml(tmp_path: Path, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGFM_EMBEDDER", "hashing")
    monkeypatch.chdir(tmp_path)
    with Collection.open(".ragfm", embedder="hashing") as handle:
        handle.sync(docs)
    Path("ragfm.toml").write_text("[ask]\ncontext_tokens = 1234\n[reader_options.llama-cpp]\nthreads = 1\n")
    Path("questions.jsonl").write_text(json.dumps({"question": LEAVE.text, "answers": ["28"]}))
    made: dict[str, dict[str, object]] = {}

    def load(name: str, **options: object) -> ScriptedReader:
        made[name] = options
        return ScriptedReader(["yes"])

    monkeypatch.setattr("ragfm.generation.readers.load_reader", load)
    words = ["eval", "answers", "questions.jsonl", "--judge", "judge.gguf", "--context", "retrieved"]
    done = CliRunner().invoke(ragfm, words, catch_exceptions=False)
    assert "judged right" in done.output
    assert made["judge.gguf"] == {"context_tokens": 1234, "threads": 1}


def test_a_run_is_resumed_and_can_be_compared(handbook: Collection, tmp_path: Path) -> None:
    questions, out = [LEAVE, HOURS], tmp_path / "a.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluate_answers(
            Rag(handbook, reader=Stops(["28 days"])), questions, contexts=["retrieved"], out=out, about={"reader": "x"}
        )
    reader = ScriptedReader(["At nine."])
    report = evaluate_answers(
        Rag(handbook, reader=reader), questions, contexts=["retrieved"], out=out, about={"reader": "x"}
    )
    assert len(reader.prompts) == 1
    assert [result.measures["contained"] for result in report.results] == [1, 1]
    other = tmp_path / "b.jsonl"
    evaluate_answers(
        Rag(handbook, reader=ScriptedReader(["Ten.", "At nine."])), questions, contexts=["retrieved"], out=other
    )
    compared = compare_runs(other, out)
    assert {row.measure: row.difference for row in compared.differences}["contained"] == 0.5
    with pytest.raises(DataError, match="k 3 there, 1 now"):
        evaluate_answers(
            Rag(handbook, reader=reader, k=1), questions, contexts=["retrieved"], out=out, about={"reader": "x"}
        )


def test_a_run_is_not_resumed_with_a_retrained_adapter(handbook: Collection, tmp_path: Path) -> None:
    adapter, out = tmp_path / "adapter.gguf", tmp_path / "a.jsonl"
    rag = Rag(handbook, reader=ScriptedReader(["28 days"])).with_options(sampling=Sampling(adapter=str(adapter)))
    adapter.write_bytes(b"one")
    evaluate_answers(rag, [LEAVE], contexts=["retrieved"], out=out)
    evaluate_answers(rag, [LEAVE], contexts=["retrieved"], out=out)
    adapter.write_bytes(b"another")
    with pytest.raises(DataError, match="learned"):
        evaluate_answers(rag, [LEAVE], contexts=["retrieved"], out=out)


def test_a_run_is_not_resumed_with_another_strategy(handbook: Collection, tmp_path: Path) -> None:
    for name, words in (("one", "S"), ("other", "T")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "my.toml").write_text(f"system = '{words}'\nask = '{{question}}'\n")

    def ask(strategy: str) -> None:
        rag = Rag(handbook, reader=ScriptedReader(["28 days"]), strategy=strategy)
        evaluate_answers(rag, [LEAVE], contexts=["retrieved"], out=tmp_path / "a.jsonl")

    ask(f"{tmp_path}/one/my.toml")
    with pytest.raises(DataError, match="strategy"):
        ask(f"{tmp_path}/other/my.toml")


class Stops(ScriptedReader):
    """A Ctrl-C comes when it has answered once."""

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        if len(self.prompts) == 1:
            raise KeyboardInterrupt
        return super().stream(messages, sampling)


class TooShort(ScriptedReader):
    """Its window has no room for one of the questions."""

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        if HOURS.text in messages[-1].content:
            raise TooLongError("The prompt is too long.")
        return super().stream(messages, sampling)


Asks: TypeAlias = Callable[[ScriptedReader], Path]


@pytest.fixture
def asks(tmp_path: Path, docs: Path, monkeypatch: pytest.MonkeyPatch) -> Asks:
    """A collection and a file of three questions in the current folder, which a given reader answers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAGFM_EMBEDDER", "hashing")
    InProcessShell()("ingest", "docs")
    path = tmp_path / "questions.jsonl"
    with path.open("w") as file:
        for asked in (LEAVE, HOURS, MOON):
            right = {"unanswerable": True} if asked.unanswerable else {"answers": asked.answers}
            file.write(json.dumps({"id": asked.id, "question": asked.text, **right}) + "\n")

    def by(reader: ScriptedReader) -> Path:
        def made(store: Collection, options: Mapping[str, object]) -> Rag:
            return Rag(store, reader=reader)

        monkeypatch.setattr("ragfm.cli.evaluation_commands.make_rag", made)
        return path

    return by


def test_a_failed_question_is_reported_and_has_no_time(asks: Asks) -> None:
    words = ("eval", "answers", asks(TooShort(["28 days"])), "--context", "retrieved", "--out", "run.jsonl")
    done = CliRunner().invoke(ragfm, [*map(str, words)], standalone_mode=False)
    assert "1 question failed; the first is hours: The prompt is too long." in done.stderr
    with_error = [record["outcomes"]["retrieved"] for record in read_run("run.jsonl")[1]]
    assert [outcome["seconds"] for outcome in with_error if outcome["error"]] == [0]
    times = sorted(1000 * outcome["seconds"] for outcome in with_error if not outcome["error"])
    told = InProcessShell().json(*words)
    assert told["latency_ms"]["retrieved"]["p50"]["value"] == pytest.approx(sum(times) / 2)
    assert [failed["id"] for failed in told["failed"]] == ["hours"]


def test_a_run_without_answers_has_no_times(handbook: Collection) -> None:
    report = evaluate_answers(Rag(handbook, reader=TooShort()), [HOURS], contexts=["retrieved"])
    assert report.latency_ms == {"retrieved": {}}


def test_failed_documents_are_reported(asks: Asks, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = asks(ScriptedReader(["28 days"]))
    synced = SyncReport(failed=(Failed("corpus/1.txt", "parse", "no text", 1, stale=False),))

    @contextmanager
    def opened(*_: object) -> Iterator[tuple[Collection, SyncReport]]:
        with Collection.open(".ragfm") as collection:
            yield collection, synced

    monkeypatch.setattr("ragfm.cli.evaluation_commands.data_collection", opened)
    done = CliRunner().invoke(ragfm, ["eval", "answers", str(questions)], standalone_mode=False)
    assert done.return_value == 3
    assert "failed corpus/1.txt (parse): no text" in done.stderr


def test_the_first_three_failures_are_printed(asks: Asks) -> None:
    said = InProcessShell()("eval", "answers", asks(ScriptedReader(["Ten or so."])), "--context", "retrieved")
    assert "wrong, leave: How many days of leave do I get?\n  expected: 28 days / 28\n  answer:   Ten or so." in said
    assert "false answer, moon: Who was first on the moon?\n  expected: unanswerable\n" in said
    assert said.count("  answer:   ") == 3
    reader = ScriptedReader(["28 days", "At nine.", "I don't know."])
    assert "  said:  " not in InProcessShell()("eval", "answers", asks(reader), "--context", "retrieved")


def test_a_calculated_answer_is_its_result_and_rests_on_its_operands(collection: Collection, docs: Path) -> None:
    (docs / "report.md").write_text("| | 2023 | 2022 |\n| --- | --- | --- |\n| Revenue | 150 | 120 |\n")
    collection.sync(docs)
    rag, change = (
        Rag(collection, reader=ScriptedReader([])),
        "What is the percentage change in revenue from 2022 to 2023?",
    )
    questions = [Question("right", change, (), ("25 %",)), Question("operand", change, (), ("150",))]
    right, operand = (
        result.outcomes["retrieved"] for result in evaluate_answers(rag, questions, contexts=["retrieved"]).results
    )
    assert (right.answer, right.exact, right.f1, right.contained, right.user_contained) == ("25 %", 1, 1, 1, 1)
    assert (right.shown, right.citations, right.holding, right.sentences, right.supported) == (True, 2, 2, 1, 1)
    assert [place.uri for place in right.passages if place.holds] == ["docs/report.md"]
    assert (operand.contained, operand.user_contained) == (0, 0)


def test_the_passages_of_the_prompt_are_stored(handbook: Collection, tmp_path: Path) -> None:
    out, rag = tmp_path / "run.jsonl", Rag(handbook, reader=ScriptedReader(["Thirty days."]))
    report = evaluate_answers(rag, [LEAVE], contexts=["retrieved"], out=out)
    passages = report.results[0].outcomes["retrieved"].passages
    assert [place.n for place in passages] == [1, 2, 3]
    holding = [place for place in passages if place.holds]
    text = handbook.document("docs/leave.md").text
    assert {place.uri for place in holding} == {"docs/leave.md"}
    assert any("28 days" in text[place.start : place.end] for place in holding)
    assert evaluate_answers(rag, [LEAVE], contexts=["retrieved"], out=out).results == report.results


@pytest.mark.parametrize("out", [(), ("--out", "run.jsonl")])
def test_after_ctrl_c_the_report_covers_the_questions_so_far(asks: Asks, tmp_path: Path, out: tuple[str, ...]) -> None:
    words = ["eval", "answers", str(asks(Stops(["28 days"]))), "--context", "retrieved", *out]
    done = CliRunner().invoke(ragfm, words, standalone_mode=False)
    assert done.return_value == 130
    assert "stopped: 1 of 3 questions" in done.stdout
    assert "contained, answerable" in done.stdout
    assert ("kept in run.jsonl" if out else "Use --out FILE") in done.stderr
    if out:
        told = InProcessShell().json(*words[:2], asks(ScriptedReader(["At nine.", "I don't know."])), *words[3:])
        assert (told["done"], told["kinds"]["right"]) == (3, 2)


def test_a_ctrl_c_before_the_first_answer_is_raised(handbook: Collection) -> None:
    reader = Stops(["28 days"])
    reader.prompts.append(())
    with pytest.raises(KeyboardInterrupt):
        evaluate_answers(Rag(handbook, reader=reader), [LEAVE], contexts=["retrieved"], partial=True)


def test_questions_with_answers_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    lines = [
        {"question": "How many?", "answer": "28"},
        {"question": "When?", "uri": "docs/a.md", "start": 2, "end": 5},
        {"question": "Who?", "unanswerable": True},
        {"question": "Where?", "uri": "docs/a.md"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    loaded = load_questions(path, answers=True)
    assert [(q.text, q.answers, q.unanswerable) for q in loaded.questions] == [
        ("How many?", ("28",), False),
        ("When?", (), False),
        ("Who?", (), True),
    ]
    assert loaded.left_out == {"without an answer": 1}
    found = load_questions(path)
    assert [q.text for q in found.questions] == ["When?", "Where?"]
    assert found.left_out == {"without a uri": 1, "unanswerable": 1}
    for wrong, message in (
        ({"answers": [28]}, r"answers are \[28\]; give a text or a list of texts"),
        ({"uri": "docs/a.md", "unanswerable": "true"}, "unanswerable is 'true'; give true or false"),
    ):
        path.write_text(json.dumps({"question": "How many?", **wrong}) + "\n")
        with pytest.raises(DataError, match=f"line 1: {message}"):
            load_questions(path, answers=True)


def test_a_span_is_an_answer(handbook: Collection) -> None:
    text = handbook.document("docs/leave.md").text
    start = text.index("28 days")
    span = Question("span", "How many days?", (Gold("docs/leave.md", start, start + 7),))
    report = evaluate_answers(Rag(handbook, reader=ScriptedReader(["28 days."])), [span], contexts=["gold"])
    assert report.results[0].answers == ("28 days",)
    assert report.results[0].outcomes["gold"].exact == 1


@pytest.mark.slow
def test_the_command_with_the_bundled_reader(tmp_path: Path, docs: Path) -> None:
    shell = Shell(tmp_path)
    shell("ingest", "docs")
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question": LEAVE.text, "answers": list(LEAVE.answers), "uri": "docs/leave.md"}))
    done = shell.json("eval", "answers", "questions.jsonl", "--out", "run.jsonl")
    assert set(done["measures"]) == {"retrieved", "gold", "none"}
    assert done["measures"]["retrieved"]["answer shown"]["value"] == 1
    assert sum(done["kinds"].values()) == 1
    assert done["reader"] == "bundled"
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_readers_are_compared(tmp_path: Path, docs: Path) -> None:
    shell = Shell(tmp_path)
    shell("ingest", "docs")
    questions = [
        {"question": LEAVE.text, "answers": list(LEAVE.answers), "uri": "docs/leave.md"},
        {"question": HOURS.text, "answers": list(HOURS.answers), "uri": "docs/hours.txt"},
        {"question": MOON.text, "unanswerable": True},
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in questions))
    words = ("compare", "questions.jsonl", "-k", "1", "-k", "2", "--reader", "bundled")
    first, second = shell.json(*words)["entries"]
    assert {first["name"], second["name"]} == {"bundled, k = 1", "bundled, k = 2"}
    assert first["quality"]["f1, all"]["value"] >= second["quality"]["f1, all"]["value"]
    assert first["beside_best"] is None
    assert second["beside_best"]["noise"]
    assert (tmp_path / "ragfm-compare" / OUTPUT).is_file()
    for entry in (first, second):
        assert entry["licence"] == "apache-2.0"
        assert entry["peak_mb"] > 100
        assert entry["prompt_tokens"] > 50
    table = shell("compare", "questions.jsonl", "-k", "1", "--reader", "bundled", "--reader", "gone.gguf", code=3)
    assert "bundled, k = 1" in table.stdout
    assert "gone.gguf" in table.stderr
    assert "nowhere: it runs on this machine" in table.stdout


def _write_questions() -> None:
    Path("q.jsonl").write_text(json.dumps({"question": "Who?", "unanswerable": True}))


def test_the_reader_of_ragfm_toml_has_its_adapter_in_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "ragfm.evaluation.compare_readers", lambda those, *_, **__: [ContenderResult(one) for one in those]
    )
    _write_questions()
    Path("ragfm.toml").write_text('reader = "mine.gguf"\nadapter = "my-adapter"\n')

    def named(*words: str) -> list[str]:
        return [entry["name"] for entry in InProcessShell().json("compare", "q.jsonl", *words)["entries"]]

    assert named() == ["mine.gguf + my-adapter"]
    assert named("--reader", "bundled", "--reader", "mine.gguf") == ["bundled", "mine.gguf + my-adapter"]
    assert named("--adapter", "none", "--adapter", "other") == ["mine.gguf + none", "mine.gguf + other"]


def _kill(contender: Any, evaluate: Any, sender: Any) -> None:
    sender.send(Progress("answering", 1, 2))
    os.kill(os.getpid(), signal.SIGKILL)


def _leave(contender: Any, evaluate: Any, sender: Any) -> None:
    sys.exit(5)


@pytest.mark.parametrize(
    ("ending", "why"), [(_kill, "it was killed by signal 9: out of memory?"), (_leave, "it ended with exit code 5")]
)
def test_a_failed_process_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: Callable[..., None], why: str
) -> None:
    monkeypatch.setattr("ragfm.evaluation.reader_comparison._answer", ending)
    monkeypatch.setattr("ragfm.evaluation.reader_comparison.get_context", lambda _: get_context("fork"))
    reported: list[Progress] = []
    with pytest.raises(DataError) as raised:
        compare_readers([Contender("mine", k=2)], [MOON], "c", tmp_path / "runs", progress=reported.append)
    assert raised.value.message == f"No reader could be compared: mine, k = 2: {why}"
    assert reported == ([Progress("mine, k = 2", 1, 2)] if ending is _kill else [])


def test_a_contender_answers_in_a_process_of_its_own(
    handbook: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ScriptedReader(["28 days", "28 days"])
    monkeypatch.setattr("ragfm.rag.configured_reader", lambda *_: reader)
    monkeypatch.setattr("ragfm.evaluation.reader_comparison.get_context", lambda _: get_context("fork"))
    for _ in range(2):  # the second time, the run is resumed
        reported: list[Progress] = []
        (result,) = compare_readers(
            [Contender("mine", k=1)],
            [LEAVE, MOON],
            handbook.location,
            tmp_path / "runs",
            settings=Settings(embedder="hashing"),
            about={"limit": 2},
            progress=reported.append,
        )
        assert result.error is None
        assert [(now.stage, now.done, now.total) for now in reported] == [("mine, k = 1", 1, 2), ("mine, k = 1", 2, 2)]
    assert set(result.latency_ms) == {"p50", "p95", "p99"}
    assert (result.adapter, result.licence, result.peak_mb > 10) == (None, None, True)
    about, records = read_run(tmp_path / "runs" / "mine_k_=_1.jsonl")
    assert (about["reader"], about["k"], about["limit"], about["contexts"]) == ("mine", 1, 2, ["retrieved"])
    assert len(records) == 2


def test_a_comparison_is_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shares = {"f1, all": Estimate(0.5, 0.4, 0.6), "f1, answerable": Estimate(0.25, 0.1, 0.4)}
    times = {"p50": Estimate(20, 10, 30), "p95": Estimate(50, 40, 60)}
    noise = Difference("f1", 0.5, 0.4, -0.1, -0.3, 0.1, 0.4, 1, 2, 3, noise=True)
    best = ContenderResult(Contender("best"), shares, times, peak_mb=321, licence="mit")
    slow = ContenderResult(Contender("slow"), shares, times, beside_best=noise, data_goes="to api.example.com")
    gone = ContenderResult(Contender("gone.gguf"), error="no such model")
    monkeypatch.setattr("ragfm.evaluation.compare_readers", lambda *_, **__: [best, slow, gone])
    _write_questions()
    told = InProcessShell()("compare", "q.jsonl", code=3)
    assert re.search(r"^best .* mit +nowhere: it runs on this machine$", told, re.MULTILINE)
    assert re.search(r"^slow .* unknown +to api.example.com$", told, re.MULTILINE)
    for said in ("0.500 [0.400, 0.600]", "20 / 50", "321"):
        assert said in told
    assert "slow compared with best: -0.100 [-0.300, +0.100], within noise" in told


def test_a_stopped_comparison_shows_finished_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares, times = {"f1, all": Estimate(0.5, 0.4, 0.6)}, {name: Estimate(20, 10, 30) for name in ("p50", "p95")}

    def run(contender: Contender, *_: object) -> ContenderResult:
        if contender.k == 3:
            raise KeyboardInterrupt
        return ContenderResult(contender, shares, times)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ragfm.evaluation.reader_comparison._run", run)
    _write_questions()
    words = ["compare", "q.jsonl", "--reader", "mine", "-k", "1", "-k", "3", "-k", "5", "--out", "runs"]
    done = CliRunner().invoke(ragfm, words, standalone_mode=False)
    assert done.return_value == 130
    assert "mine, k = 1" in done.stdout
    assert "Stopped: 1 of 3 were compared" in done.stderr
    assert "kept in runs. Run the same command again to continue." in done.stderr
    with pytest.raises(KeyboardInterrupt):
        compare_readers([Contender("mine", k=3)], [MOON], "c", tmp_path, partial=True)


def test_documents_of_the_data_are_ingested_before_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []

    def compared(those: Sequence[Contender], questions: Any, folder: str, *_: Any, **__: Any) -> list[ContenderResult]:
        with Collection.open(folder) as collection:
            found.append(collection.status().documents)
        return [replace(ContenderResult(one), error="not asked") for one in those]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAGFM_EMBEDDER", "hashing")
    monkeypatch.setattr("ragfm.evaluation.compare_readers", compared)
    paragraph = {
        "context": "Oil was dear in 1973.",
        "qas": [{"id": "a", "question": "When?", "answers": [{"text": "1973", "answer_start": 16}]}],
    }
    Path("s.json").write_text(json.dumps({"data": [{"title": "Oil", "paragraphs": [paragraph]}]}))
    InProcessShell()("compare", "s.json", "--keep", "kept", code=3)
    assert found == [1]
    assert list(Path("kept").glob("*/.ragfm"))
    with pytest.raises(UsageError, match="use --keep instead of -c"):
        InProcessShell()("compare", "s.json", "-c", ".ragfm")


@pytest.mark.parametrize("option", ["keep", "embedder"])
def test_options_for_data_with_documents_are_refused_for_questions_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    _write_questions()
    with pytest.raises(UsageError, match=f"--{option} requires data that contains its documents"):
        InProcessShell()("compare", "q.jsonl", f"--{option}", "hashing")


def test_runs_with_long_names_have_different_files(tmp_path: Path) -> None:
    place = "/".join(["somewhere-in-the-cache"] * 12)
    paths = [run_path(Contender(f"{place}/{name}.gguf", place, k), tmp_path) for name in "aä" for k in (1, 2)]
    for path in paths:
        path.touch()
    assert len(list(tmp_path.iterdir())) == 4
    assert run_path(Contender("bundled", None, 3), tmp_path).name == "bundled_k_=_3.jsonl"


def test_nothing_to_compare_is_an_error(tmp_path: Path, docs: Path) -> None:
    shell = Shell(tmp_path)
    shell("ingest", "docs")
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": "Who?", "unanswerable": True}))
    done = shell("compare", "questions.jsonl", "--reader", "gone.gguf", code=1)
    assert "No reader could be compared: gone.gguf" in done.stderr
