"""The promise about verified citations: what labels allow, where it is stored, and when it lapses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.judges import ScriptedJudge

from ragfm import Collection, Rag, Settings
from ragfm.cli import ragfm
from ragfm.core.calibration import Calibration
from ragfm.core.config import AskSection, load_settings
from ragfm.core.errors import DataError
from ragfm.core.promise import AnsweredPromise, VerifiedPromise
from ragfm.evaluation import AnsweredQuestion, AnswersReport, Outcome
from ragfm.evaluation.settings_file import store_promise
from ragfm.evaluation.verified_tuning import promise_answered, promise_verified
from ragfm.generation.answer_log import AnswerContext
from ragfm.generation.citation_labels import CitationLabel, why_lapsed
from ragfm.testing import HashingEmbedder, ScriptedReader

QUESTION = "How many days of leave do I get?"
MADE = {"judge": "a", "reader": "bundled"}
PROMISE = VerifiedPromise(0.95, 0.1, 0.95, 92, 3, 0.08, "2026-12-03T10:00:00.000+00:00", MADE)


def labels(
    *right: bool, probability: float = 0.96, made: dict[str, str] = MADE, at: str = "2026-12-04", rated: bool = False
) -> Sequence[CitationLabel]:
    return [CitationLabel(number, 1, one, "anna", at, probability, made, rated) for number, one in enumerate(right, 1)]


@pytest.fixture
def rag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rag:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "leave.md").write_text("# Leave\n\nYou get 28 days of leave.\n")
    collection = Collection.open(
        ".ragfm", settings=Settings(ask=AskSection(log=True, reranker="none")), embedder=HashingEmbedder()
    )
    collection.sync("docs")
    return make_rag(collection)


def make_rag(collection: Collection, probability: float = 0.96) -> Rag:
    rag = Rag(collection, reader=ScriptedReader(["You get 28 days of leave [1]."] * 3))
    rag.judge = ScriptedJudge(supports=lambda _: probability)
    return rag


def promising(rag: Rag, promise: VerifiedPromise, probability: float = 0.96) -> Rag:
    settings = Settings(ask=AskSection(log=True, reranker="none", guarantee=promise))
    collection = Collection.open(rag.collection.path, settings=settings, embedder=HashingEmbedder())
    return make_rag(collection, probability)


# --- What labels allow -------------------------------------------------------------------------------------------


def test_labels_without_an_error_allow_a_promise_from_29_on() -> None:
    promise = promise_verified(labels(*[True] * 29), error=0.1).promise
    assert promise
    assert (promise.threshold, promise.labels, promise.wrong, promise.fingerprint) == (0.96, 29, 0, MADE)
    report = promise_verified(labels(*[True] * 28), error=0.1)
    assert (report.promise, report.more) == (None, 1)


def test_too_many_wrong_labels_allow_none_of_any_number() -> None:
    report = promise_verified(labels(*[True, False] * 40), error=0.1)
    assert (report.promise, report.more, report.wrong) == (None, None, 40)
    assert "40 of 80 labels are wrong" in report.why
    assert "29 more are needed" in promise_verified([], error=0.1).why


def test_labels_of_answers_that_were_made_otherwise_do_not_count() -> None:
    other = labels(*[True] * 40, made={**MADE, "judge": "b"})
    assert promise_verified([*other, *labels(True)], error=0.1).labels == 1


def test_no_promise_rests_on_ratings() -> None:
    assert promise_verified([*labels(True), *labels(*[True] * 40, rated=True)], error=0.1).labels == 1


def test_the_promise_says_what_it_rests_on() -> None:
    assert (
        PROMISE.guarantee(None).sentence == "verified: at most 10 % wrong, 95 % confidence, 92 labels, 3 December 2026"
    )


# --- When it lapses ----------------------------------------------------------------------------------------------


def test_a_changed_model_ends_a_promise() -> None:
    assert why_lapsed(PROMISE, MADE, []) is None
    assert why_lapsed(PROMISE, {**MADE, "judge": "b"}, []) == "judge changed since 2026-12-03"


def test_later_labels_that_contradict_a_promise_end_it() -> None:
    wrong = [False, True] * 20
    assert why_lapsed(PROMISE, MADE, labels(*wrong)) == "20 of 40 later labels are wrong"
    assert why_lapsed(PROMISE, MADE, labels(*[True] * 100, False)) is None
    assert why_lapsed(PROMISE, MADE, labels(*wrong, at="2026-12-02")) is None
    assert why_lapsed(PROMISE, MADE, labels(*wrong, probability=0.92)) is None
    assert why_lapsed(PROMISE, MADE, labels(*wrong, made={**MADE, "judge": "b"})) is None


def test_ratings_that_contradict_a_promise_end_it_and_outweigh_no_labels() -> None:
    down, up = labels(*[False, True] * 4, rated=True), labels(*[True] * 200, rated=True)
    assert why_lapsed(PROMISE, MADE, down) == "4 of 8 later ratings are down"
    assert why_lapsed(PROMISE, MADE, up) is None
    assert why_lapsed(PROMISE, MADE, [*up, *labels(*[False] * 8)]) == "8 of 8 later labels are wrong"


# --- Answers and commands ----------------------------------------------------------------------------------------


def test_an_answer_carries_the_promise_and_its_threshold_is_applied(rag: Rag) -> None:
    assert rag.ask(QUESTION).guarantee is None
    promise = replace(PROMISE, fingerprint=dict(rag.fingerprint))
    answer = promising(rag, promise).ask(QUESTION)
    assert answer.guarantee
    assert (answer.guarantee.lapsed, answer.guarantee.sentence) == (None, promise.guarantee(None).sentence)
    assert answer.citations[0].verified
    (citation,) = promising(rag, promise, 0.92).ask(QUESTION).citations
    assert (citation.verified, citation.fault) == (False, "unclear")


def test_a_lapsed_promise_is_not_applied(rag: Rag) -> None:
    rag.ask(QUESTION)  # makes the log
    answer = promising(rag, replace(PROMISE, fingerprint={**rag.fingerprint, "judge": "b"}), 0.92).ask(QUESTION)
    assert answer.guarantee
    assert answer.guarantee.lapsed == "judge changed since 2026-12-03"
    assert answer.citations[0].verified


def test_a_promise_is_not_about_citations_that_no_judge_read(rag: Rag) -> None:
    other = make_rag(rag.collection)
    other.judge = None
    unread = promising(rag, replace(PROMISE, fingerprint=dict(other.fingerprint)))
    unread.judge = None
    rag.ask(QUESTION)  # makes the log
    answer = unread.ask(QUESTION)
    assert answer.citations[0].verified
    assert answer.guarantee
    assert "no judge read" in str(answer.guarantee.lapsed)


def test_a_stored_promise_is_read_again(tmp_path: Path) -> None:
    assert store_promise(PROMISE, tmp_path) == [tmp_path / "ragfm.toml"]
    assert load_settings(tmp_path).ask.guarantee == PROMISE


def test_the_commands_store_show_and_end_a_promise(rag: Rag, tmp_path: Path) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(ragfm, words, standalone_mode=False)
        return done.output + str(done.exception or "")

    answer, log = rag.ask(QUESTION), rag.log
    assert log
    made = AnswerContext("reader", None, None, None, 0.0, 0.0, fingerprint=rag.fingerprint)
    assert "29 more are needed" in run("tune", "--verified")
    for _ in range(29):
        log.label(log.entry(log.add(answer, made)), 1, right=True, by="anna")
    assert "No settings were changed" in run("tune", "--verified", "--dry-run")
    printed = run("tune", "--verified")
    assert "verified: at most 10 % wrong, 95 % confidence, 29 labels" in printed
    assert load_settings(tmp_path).ask.guarantee
    assert "29 labels" in (status := run("status"))
    assert "lapsed" not in status
    for _ in range(8):
        log.label(log.entry(log.add(answer, made)), 1, right=False, by="anna")
    assert "lapsed: 8 of 8 later labels are wrong" in run("status")
    assert "takes neither QUESTIONS" in run("tune", "--verified", "--confidence")


# --- Answers that are answered -----------------------------------------------------------------------------------


def given(right: bool, confidence: float | None, status: str = "answered") -> AnsweredQuestion:
    outcome = Outcome(status=status, user_contained=float(right), confidence=confidence)
    return AnsweredQuestion("1", QUESTION, (), ("28",), False, {}, {"retrieved": outcome})


def answers(*results: AnsweredQuestion, mode: str = "prefer", calibrated: bool = True) -> AnswersReport:
    return AnswersReport({"calibrated": calibrated, "settings": {"ask": {"mode": mode}}}, results, {}, {})


def test_answers_are_answered_from_the_lowest_confidence_that_labels_allow() -> None:
    right, wrong = [given(True, 0.8)] * 100, [given(False, 0.4)] * 100
    report = promise_answered(answers(*right, *wrong, given(False, 0.9, "unsure")), MADE, error=0.1)
    assert report.promise
    assert (report.promise.threshold, report.promise.labels, report.labels, report.wrong) == (0.8, 100, 200, 100)
    report = promise_answered(answers(*right[:20]), MADE, error=0.1)
    assert (report.promise, report.more) == (None, 9)
    assert "add questions" in report.why


def test_a_confidence_that_decides_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="does not decide"):
        promise_answered(answers(mode="open"), MADE, error=0.1)
    with pytest.raises(DataError, match="does not decide"):
        promise_answered(answers(calibrated=False), MADE, error=0.1)
    with pytest.raises(DataError, match="does not decide"):
        promise_answered(answers(*[given(True, None)] * 40), MADE, error=0.1)


def test_the_command_sets_the_cost_of_wrong_answers(rag: Rag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = ScriptedJudge({"28 days": 0.9}, supports=lambda _: 0.96)
    monkeypatch.setattr("ragfm.rag.configured_reader", lambda *_, **__: ScriptedReader(["You get 28 days of leave."]))
    monkeypatch.setattr("ragfm.answering.judge.load_judge", lambda _: judge)
    even = Calibration("", 0.0, {"supports": 1.0}, {"supports": 0.0}, 0.0)
    monkeypatch.setattr("ragfm.answering.confidence.DEFAULT", even)
    monkeypatch.setenv("RAGFM_EMBEDDER", "hashing")
    lines = [{"id": f"{n}", "question": QUESTION, "answers": ["28 days"]} for n in range(40)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "ragfm.toml").write_text("[ask]\nwrong_cost = 1000.0\n")

    def run(*words: str) -> str:
        done = CliRunner().invoke(ragfm, ["tune", *words], standalone_mode=False)
        return done.output + str(done.exception or "")

    assert "No settings were changed" in run("asked.jsonl", "--answered", "--dry-run")
    assert "0 of 40 answers are" in (printed := run("asked.jsonl", "--answered"))
    settings = load_settings(tmp_path)
    assert settings.ask.wrong_cost == pytest.approx(24, abs=0.05)  # the confidence is 0.96
    assert f"wrong_cost = {settings.ask.wrong_cost}" in printed
    with Collection.open(rag.collection.path, settings=settings, embedder=HashingEmbedder()) as collection:
        answer = Rag(collection).ask(QUESTION)
        assert answer.status == "answered"
        assert answer.answered_guarantee
        assert answer.answered_guarantee.lapsed is None
        assert answer.answered_guarantee.sentence.startswith("answered: at most 10 % wrong, 95 % confidence, 40 labels")
    assert "answered: at most 10 % wrong" in CliRunner().invoke(ragfm, ["status"]).output
    assert "--answered requires QUESTIONS" in run("--answered")
    assert "exclude each other" in run("asked.jsonl", "--answered", "--confidence")
    assert "takes neither QUESTIONS" in run("asked.jsonl", "--answered", "--verified")


# --- When a promise about answers lapses -------------------------------------------------------------------------


def answered(rag: Rag, **changes: Any) -> tuple[Rag, AnsweredPromise]:
    """A pipeline with a promise about its answers, after changes of its settings."""
    promise = AnsweredPromise(0.5, 0.1, 0.95, 40, 0, 0.08, "2026-01-02", dict(rag.answer_fingerprint))
    ask = {"log": True, "reranker": "none", "wrong_cost": 1.0, "answered_guarantee": promise, **changes}
    settings = Settings(ask=AskSection(**ask))
    return make_rag(Collection.open(rag.collection.path, settings=settings, embedder=HashingEmbedder())), promise


def lapsed(rag: Rag) -> str | None:
    guarantee = rag.ask(QUESTION).answered_guarantee
    assert guarantee
    return guarantee.lapsed


@pytest.mark.parametrize("name", ["collection", "embedder", "judge", "reader", "adapter", "strategy", "calibration"])
def test_a_promise_about_answers_lapses_with_what_that_of_citations_does(rag: Rag, name: str) -> None:
    other, promise = answered(rag)
    assert lapsed(other) is None
    assert set(promise.fingerprint) == {*rag.fingerprint, "calibration"}
    assert promise.fingerprint == other.answer_fingerprint
    changed = {**promise.fingerprint, name: "other"}
    why = rag.collection.answer_log.why_lapsed(promise, changed)
    assert why == f"{name} changed since 2026-01-02"


def test_settings_of_the_confidence_end_a_promise_about_answers(rag: Rag) -> None:
    calibration = Calibration("ScriptedReader", 1.0, {"supports": 1.0}, {"supports": 0.0}, 0.0)
    for changes in ({"min_confidence": 0.2}, {"confidence": calibration}):
        assert lapsed(answered(rag, **changes)[0]) == "calibration changed since 2026-01-02"
    assert lapsed(answered(rag, wrong_cost=0.9)[0]) == "ask.wrong_cost is 0.9, below 0.9998"
    assert lapsed(answered(rag, wrong_cost=1.5)[0]) is None


def test_ratings_that_contradict_a_promise_about_answers_end_it(rag: Rag) -> None:
    other, promise = answered(rag)
    other.judge = ScriptedJudge({"28 days": 0.99}, supports=lambda _: 0.99)
    log, answer = rag.collection.answer_log, other.ask(QUESTION)
    made = AnswerContext("reader", None, None, None, 0.0, 0.0, fingerprint=rag.fingerprint)

    def rate(thumbs: Any, confidence: float | None = 0.9, status: Any = "answered", made: AnswerContext = made) -> None:
        log.rate(log.add(replace(answer, confidence=confidence, status=status), made), thumbs)

    for _ in range(3):
        rate("down", 0.4)
        rate("down", status="unsure")
        rate("up")
        rate("down", made=replace(made, fingerprint={**rag.fingerprint, "reader": "other"}))
    assert log.why_lapsed(promise, rag.answer_fingerprint) is None
    for _ in range(4):
        rate("down")
    assert log.why_lapsed(promise, rag.answer_fingerprint) == "4 of 7 later ratings are down"
    assert log.why_lapsed(replace(promise, date="9999-12-31"), rag.answer_fingerprint) is None
    assert lapsed(other) == "4 of 7 later ratings are down"


def test_a_promise_about_answers_needs_no_log(rag: Rag) -> None:
    assert lapsed(answered(rag, log=False)[0]) is None


def test_a_stored_promise_about_answers_is_read_again(rag: Rag, tmp_path: Path) -> None:
    _, promise = answered(rag)
    assert store_promise(promise, tmp_path) == [tmp_path / "ragfm.toml"]
    ask = load_settings(tmp_path).ask
    assert (ask.answered_guarantee, ask.wrong_cost, ask.guarantee) == (promise, promise.wrong_cost, None)
