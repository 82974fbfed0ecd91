"""Evaluation of answers: what is right, in which context, what became of each question, and the command."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path

import pytest
from click.testing import CliRunner
from shell import Here, Shell

from ragfm import Collection, Rag
from ragfm.answer_log import AnswerLog
from ragfm.cli import ragfm
from ragfm.errors import DataError
from ragfm.evaluate import Difference, Gold, Question, compare_runs, evaluate_answers, load_questions, risk_coverage
from ragfm.evaluate.answers import AnsweredQuestion, Outcome, _measured
from ragfm.evaluate.answers_report import render_answers_html
from ragfm.evaluate.matching import holds, token_f1
from ragfm.evaluate.measures import Estimate, estimate_ratios
from ragfm.evaluate.plots import bars, distribution
from ragfm.evaluate.versus import Contender, Entry, _break_even, _path
from ragfm.output import OUTPUT
from ragfm.testing import ScriptedReader
from ragfm.types import Sampling

LEAVE = Question("leave", "How many days of leave do I get?", (Gold("docs/leave.md"),), ("28 days", "28"))
HOURS = Question("hours", "When does the office open?", (Gold("docs/hours.txt"),), ("nine",))
MOON = Question("moon", "Who was first on the moon?", (), (), unanswerable=True)


@pytest.fixture
def handbook(collection: Collection, docs: Path) -> Collection:
    collection.sync(docs)
    return collection


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


def test_an_answer_is_held_by_whole_words_only() -> None:
    assert holds("It was in 1973, they say.", ["in 1973"])
    assert not holds("It was in 19735.", ["1973"])
    assert not holds("anything", ["the"])  # nothing is left of it


def test_a_ratio_is_that_of_sums() -> None:
    estimate = estimate_ratios([(1, 1), (0, 0), (1, 2), (0, 1)])
    assert estimate is not None
    assert estimate.value == pytest.approx(2 / 4)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate_ratios([(0, 0), (0, 0)]) is None


def test_measures_are_those_of_a_hand_made_run() -> None:
    outcomes = [  # whether it is unanswerable, and what became of it
        (False, Outcome(contained=1, citations=2, holding=1, sentences=3, supported=2)),
        (False, Outcome(contained=0, citations=1, holding=0, sentences=1, supported=1)),
        (False, Outcome(contained=1, citations=0, holding=0, sentences=2, supported=0)),
        (False, Outcome(abstained=True)),
        (True, Outcome(citations=3, holding=0, sentences=1, supported=1)),  # none of these could hold an answer
        (True, Outcome(abstained=True, f1=1, exact=1, contained=1)),
    ]
    asked = [(AnsweredQuestion("", "", (), (), unanswerable, {}, {}), one) for unanswerable, one in outcomes]
    found = {name: value.value for name, value in _measured(asked, passages=True).items()}
    assert found["citation precision"] == pytest.approx(1 / 3)
    assert found["citation recall"] == pytest.approx(1 / 2)
    assert found["faithfulness"] == pytest.approx(4 / 7)
    assert found["abstention precision"] == pytest.approx(1 / 2)
    assert found["abstention recall"] == pytest.approx(1 / 2)
    assert found["contained, answerable"] == pytest.approx(2 / 4)
    assert found["f1, all"] == pytest.approx(1 / 6)


def test_each_context_is_asked_and_judged(handbook: Collection) -> None:
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


def test_an_evaluation_leaves_the_answer_log_alone(handbook: Collection) -> None:
    rag = Rag(handbook, reader=ScriptedReader(["28 days"]))
    rag.log = log = AnswerLog.beside(handbook.path)
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


def test_what_was_not_retrieved_is_told_from_what_was_not_read(handbook: Collection) -> None:
    lost = Question("lost", "When does the office open?", (Gold("docs/leave.md"),), ("in the north wing",))
    reader = ScriptedReader(["At ten.", "At ten."])
    report = evaluate_answers(Rag(handbook, reader=reader, k=1), [lost, LEAVE], contexts=["retrieved"])
    assert [result.kind for result in report.results] == ["not retrieved", "wrong"]


def test_yes_and_no_stand_in_no_text_but_are_answered_by_the_document_that_was_asked_about(
    handbook: Collection, docs: Path
) -> None:
    (docs / "lift.txt").write_text("There is no lift in the old wing, and no locker.\n")
    handbook.sync(docs)
    about = Question("about", "Do I get 40 days of leave?", (Gold("docs/leave.md"),), ("no",))
    elsewhere = Question("elsewhere", "Is the lift in the old wing?", (Gold("docs/leave.md"),), ("no",))
    rag = Rag(handbook, reader=ScriptedReader(["Yes."] * 3 + ["No, you don't."]), k=1)
    report = evaluate_answers(rag, [about, elsewhere], contexts=["retrieved"])
    assert [result.kind for result in report.results] == ["wrong", "not retrieved"]
    gold = evaluate_answers(rag, [about], contexts=["gold"]).results[0].outcomes["gold"]
    assert (gold.shown, gold.contained) == (True, 0)
    assert evaluate_answers(rag, [about], contexts=["retrieved"]).results[0].kind == "right"


def test_confident_answers_come_first_on_the_curve(handbook: Collection) -> None:
    reader = ScriptedReader(["You get 28 days of leave.", "I don't know.", "Thirty."])
    questions = [LEAVE, MOON, Question("other", "Zebra quartz violin?", (), ("stripes",))]
    points = risk_coverage(evaluate_answers(Rag(handbook, reader=reader), questions, contexts=["retrieved"]).results)
    assert points == [(pytest.approx(1 / 3), 0.0), (pytest.approx(2 / 3), 0.5)]


def test_a_judge_marks_answers_and_is_not_asked_about_abstentions(handbook: Collection) -> None:
    reader = ScriptedReader(["Four weeks and a bit.", "I don't know.", "Armstrong."])
    judge = ScriptedReader(["yes"])
    report = evaluate_answers(Rag(handbook, reader=reader), [LEAVE, HOURS, MOON], contexts=["retrieved"], judge=judge)
    assert [result.outcomes["retrieved"].judged for result in report.results] == [1.0, 0.0, None]
    assert report.measures["retrieved"]["judged right, answerable"].value == 0.5
    (asked,) = judge.prompts
    assert "Right: 28 days / 28\nAnswer: Four weeks and a bit" in asked[-1].content
    without = evaluate_answers(Rag(handbook, reader=reader), [HOURS], contexts=["retrieved"])
    assert "judged right, answerable" not in without.measures["retrieved"]
    no = evaluate_answers(Rag(handbook, reader=reader), [LEAVE], contexts=["gold"], judge=ScriptedReader(["no"]))
    assert no.measures["gold"]["judged right, answerable"].value == 0


def test_training_is_paid_for_by_the_time_that_answers_save() -> None:
    adapted = Entry(Contender("small", "adapter"), seconds=0.5, training_seconds=1000.0)
    large, small = Entry(Contender("large"), seconds=2.5), Entry(Contender("small"), seconds=0.5)
    other, failed = Entry(Contender("large", "other"), seconds=9.0), Entry(Contender("gone"), seconds=9.0, error="gone")
    assert _break_even(adapted, [adapted, large, small, other, failed]) == {"large": 500}
    assert _break_even(large, [adapted, large]) == {}


def test_a_run_goes_on_and_can_be_compared(handbook: Collection, tmp_path: Path) -> None:
    class Stops(ScriptedReader):
        def stream(self, *given: object, **more: object) -> object:  # type: ignore[override]
            if len(self.prompts) == 1:
                raise KeyboardInterrupt
            return super().stream(*given, **more)  # type: ignore[arg-type]

    questions, out = [LEAVE, HOURS], tmp_path / "a.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluate_answers(Rag(handbook, reader=Stops(["28 days"])), questions, contexts=["retrieved"], out=out,
                         about={"reader": "x"})  # fmt: skip
    reader = ScriptedReader(["At nine."])
    report = evaluate_answers(Rag(handbook, reader=reader), questions, contexts=["retrieved"], out=out,
                              about={"reader": "x"})  # fmt: skip
    assert len(reader.prompts) == 1
    assert [result.measures["contained"] for result in report.results] == [1, 1]
    other = tmp_path / "b.jsonl"
    evaluate_answers(Rag(handbook, reader=ScriptedReader(["Ten.", "At nine."])), questions, contexts=["retrieved"],
                     out=other)  # fmt: skip
    compared = compare_runs(other, out)
    assert {row.measure: row.difference for row in compared.differences}["contained"] == 0.5
    with pytest.raises(DataError, match="k 3 there, 1 now"):
        evaluate_answers(Rag(handbook, reader=reader, k=1), questions, contexts=["retrieved"], out=out,
                         about={"reader": "x"})  # fmt: skip


def test_a_run_does_not_go_on_with_an_adapter_that_was_trained_anew(handbook: Collection, tmp_path: Path) -> None:
    adapter, out = tmp_path / "adapter.gguf", tmp_path / "a.jsonl"
    rag = Rag(handbook, reader=ScriptedReader(["28 days"])).with_options(sampling=Sampling(adapter=str(adapter)))
    adapter.write_bytes(b"one")
    evaluate_answers(rag, [LEAVE], contexts=["retrieved"], out=out)
    evaluate_answers(rag, [LEAVE], contexts=["retrieved"], out=out)
    adapter.write_bytes(b"another")
    with pytest.raises(DataError, match="learned"):
        evaluate_answers(rag, [LEAVE], contexts=["retrieved"], out=out)


def test_the_page_shows_what_went_wrong_and_runs_nothing(handbook: Collection) -> None:
    reader = ScriptedReader(["<script>Thirty</script>"])
    page = render_answers_html(evaluate_answers(Rag(handbook, reader=reader), [LEAVE], contexts=["retrieved"]))
    assert "&lt;script&gt;Thirty" in page
    assert "<script" not in page
    assert "Wrong: 1 of 1" in page
    assert "28 days / 28" in page


def test_names_beside_bars_and_times_above_lines_have_room() -> None:
    drawn = bars({"abstention precision, answerable": Estimate(0.5, 0.4, 0.6), "f1": Estimate(0.1, 0, 0.2)}, "x")
    ends = [float(x) for x in re.findall(r'<text class="" x="([\d.]+)" [^>]*text-anchor="end"', drawn)]
    assert ends
    assert min(ends) > 6 * len("abstention precision, answerable")
    times = distribution([500, 700, 1300.4, 1400], {"p95": 1350.2, "p99": 1390.7}, "x")
    assert re.findall(r">(p\d\d [^<]*)<", times) == ["p95 1,350", "p99 1,391"]
    heights = [float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="middle">p', times)]
    assert heights[0] != heights[1]  # one above the other, they would cover each other


def test_questions_with_answers_are_read(tmp_path: Path) -> None:
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
    path.write_text(json.dumps({"question": "How many?", "answers": [28]}) + "\n")
    with pytest.raises(DataError, match=r"line 1: answers are \[28\]"):
        load_questions(path, answers=True)


def test_a_span_is_an_answer(handbook: Collection) -> None:
    text = handbook.document("docs/leave.md").text
    start = text.index("28 days")
    span = Question("span", "How many days?", (Gold("docs/leave.md", start, start + 7),))
    report = evaluate_answers(Rag(handbook, reader=ScriptedReader(["28 days."])), [span], contexts=["gold"])
    assert report.results[0].answers == ("28 days",)
    assert report.results[0].outcomes["gold"].exact == 1


def test_the_command_asks_the_bundled_reader(tmp_path: Path, docs: Path) -> None:
    shell = Shell(tmp_path)
    shell("ingest", "docs")
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question": LEAVE.text, "answers": list(LEAVE.answers), "uri": "docs/leave.md"}))
    done = shell.json("eval", "answers", "questions.jsonl", "--out", "run.jsonl", "--report", "page.html")
    assert set(done["measures"]) == {"retrieved", "gold", "none"}
    assert done["measures"]["retrieved"]["answer shown"]["value"] == 1
    assert sum(done["kinds"].values()) == 1
    assert done["reader"] == "bundled"
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


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
    words = ("compare", "questions.jsonl", "-k", "1", "-k", "2", "--reader", "bundled", "--price-per-hour", "0.36")
    first, second = shell.json(*words)["entries"]
    assert {first["name"], second["name"]} == {"bundled, k = 1", "bundled, k = 2"}
    assert first["quality"]["f1, all"]["value"] >= second["quality"]["f1, all"]["value"]
    assert first["beside_best"] is None
    assert second["beside_best"]["noise"]
    assert (tmp_path / "ragfm-compare" / OUTPUT).is_file()
    for entry in (first, second):
        assert entry["licence"] == "apache-2.0"
        assert entry["peak_mb"] > 100
        assert entry["cost"] == pytest.approx(0.1 * entry["latency_ms"]["p50"]["value"] / 1000, rel=1)
        assert entry["prompt_tokens"] > 50
    table = shell("compare", "questions.jsonl", "-k", "1", "--reader", "bundled", "--reader", "gone.gguf", code=3)
    assert "bundled, k = 1" in table.stdout
    assert "gone.gguf" in table.stderr
    assert "nowhere: it runs on this machine" in table.stdout


def test_the_reader_of_ragfm_toml_is_compared_with_the_adapter_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ragfm.evaluate.compare_readers", lambda those, *_, **__: [Entry(one) for one in those])
    Path("questions.jsonl").touch()
    Path("ragfm.toml").write_text('reader = "mine.gguf"\nadapter = "my-adapter"\n')

    def named(*words: str) -> list[str]:
        return [entry["name"] for entry in Here().json("compare", "questions.jsonl", *words)["entries"]]

    assert named() == ["mine.gguf + my-adapter"]
    assert named("--reader", "bundled", "--reader", "mine.gguf") == ["bundled", "mine.gguf + my-adapter"]
    assert named("--adapter", "none", "--adapter", "other") == ["mine.gguf + none", "mine.gguf + other"]


def test_a_comparison_has_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shares = {"f1, all": Estimate(0.5, 0.4, 0.6), "f1, answerable": Estimate(0.25, 0.1, 0.4)}
    times = {"p50": Estimate(20, 10, 30), "p95": Estimate(50, 40, 60)}
    noise = Difference("f1", 0.5, 0.4, -0.1, -0.3, 0.1, 0.4, 1, 2, 3, noise=True)
    best = Entry(Contender("<b>best"), shares, times, peak_mb=321, cost=0.125, licence="mit", break_even={"slow": 500})
    slow = Entry(Contender("slow"), shares, times, beside_best=noise)
    gone = Entry(Contender("gone.gguf"), error="no such model")
    monkeypatch.setattr("ragfm.evaluate.compare_readers", lambda *_, **__: [best, slow, gone])
    Path("q.jsonl").touch()
    told = Here()("compare", "q.jsonl", "--report", "pages/c.html", code=3)
    page = Path("pages/c.html").read_text()
    assert "<script" not in page
    assert "<b>best" not in page
    for said in ("0.500  [0.400, 0.600]", "20 [10, 30]", "321", "0.125", "mit", "not said", "no such model"):
        assert said in page
    for said in (
        "slow beside <b>best: -0.100 [-0.300, +0.100], within noise",
        "paid for after 500 answers, beside slow",
    ):
        assert said in told
        assert escape(said) in page


def test_an_interrupted_comparison_says_that_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ragfm.evaluate.compare_readers", stop)
    Path("questions.jsonl").touch()
    done = CliRunner().invoke(ragfm, ["compare", "questions.jsonl", "--out", "runs"])
    assert "kept in runs, and the same command goes on" in done.stderr


def test_the_runs_of_long_names_have_files_of_their_own(tmp_path: Path) -> None:
    place = "/".join(["somewhere-in-the-cache"] * 12)
    paths = [_path(Contender(f"{place}/{name}.gguf", place, k), tmp_path) for name in "aä" for k in (1, 2)]
    for path in paths:
        path.touch()
    assert len(list(tmp_path.iterdir())) == 4
    assert _path(Contender("bundled", None, 3), tmp_path).name == "bundled_k_=_3.jsonl"


def test_nothing_to_compare_is_an_error(tmp_path: Path, docs: Path) -> None:
    shell = Shell(tmp_path)
    shell("ingest", "docs")
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": "Who?", "unanswerable": True}))
    done = shell("compare", "questions.jsonl", "--reader", "gone.gguf", code=1)
    assert "Nothing could be compared: gone.gguf" in done.stderr
