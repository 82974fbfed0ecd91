"""Fitting the confidence to a reader: the model, when it is adopted, and how it is stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.judges import ScriptedJudge

from ragfm import Collection, Rag, Settings
from ragfm.answering.judge import Evidence
from ragfm.cli.tune import tune
from ragfm.core.config import AskSection, load_settings
from ragfm.core.errors import ConfigError, DataError
from ragfm.core.types import Message, Sampling, Stream
from ragfm.evaluation import Gold, Question, calibrate, store_calibration
from ragfm.evaluation.confidence_calibration import auc, expected_calibration_error, fit_logistic_regression
from ragfm.testing import HashingEmbedder, ScriptedReader


def believes(evidence: Evidence) -> float:
    return 0.9 if "sure" in evidence.statement else 0.2


JUDGE = ScriptedJudge({"28 days": 0.9}, supports=believes)
"""It thinks as well of answers as they say: "… sure", or not."""


class Stops(ScriptedReader):
    """A Ctrl-C comes when it has answered thirty times."""

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        if len(self.prompts) == 30:
            raise KeyboardInterrupt
        return super().stream(messages, sampling)


def _rag(collection: Collection, docs: Path, script: list[str], strategy: str | None = None) -> Rag:
    collection.sync(docs)
    settings = Settings(ask=AskSection(reranker="none"))
    handle = Collection.open(collection.location, settings=settings, embedder=HashingEmbedder())
    rag = Rag(handle, reader=ScriptedReader(script), strategy=strategy)
    rag.judge = JUDGE
    return rag


def test_the_regression_is_the_maximum_of_its_likelihood() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(4000, 3)) * [1.0, 0.1, 5.0]
    true = np.array([1.0, -8.0, 0.0])
    y = (random.random(4000) < 1 / (1 + np.exp(-(x @ true - 1.0)))).astype(float)
    x -= x.mean(axis=0)
    bias, weights = fit_logistic_regression(x, y)
    assert bias == pytest.approx(-1.0, abs=0.15)
    assert weights == pytest.approx(true, rel=0.15, abs=0.03)
    z = bias + x @ weights
    assert (
        np.abs(
            ((y - 1 / (1 + np.exp(-z)))[:, None] * x / x.std(axis=0)).sum(axis=0) - 5 * weights * x.std(axis=0)
        ).max()
        < 1e-6
    )


def test_auc_and_error_are_those_of_small_cases() -> None:
    right = np.array([1.0, 0.0, 1.0, 0.0])
    assert auc(np.array([0.9, 0.1, 0.8, 0.2]), right) == 1.0
    assert auc(np.array([0.5, 0.5, 0.5, 0.5]), right) == 0.5
    assert auc(np.array([0.9, 0.95, 0.1, 0.2]), right) == 0.25
    assert expected_calibration_error(np.full(40, 0.5), np.tile([1.0, 0.0], 20)) == 0.0
    assert expected_calibration_error(np.full(40, 0.75), np.tile([1.0, 0.0], 20)) == pytest.approx(0.25)


def _asked(count: int) -> tuple[list[Question], list[str]]:
    """Every other question is answered rightly, and mostly for sure; every fourth one can't be answered."""
    questions, script = [], []
    for n in range(count):
        right, surely = n % 2 == 0, (n % 2 == 0) != (n % 10 == 0)
        answers = () if n % 4 == 3 else ("28 days",)
        gold = (Gold("docs/leave.md"),) if answers else ()
        questions.append(Question(str(n), f"How many days of leave in {n}?", gold, answers, unanswerable=not answers))
        script.append(f"{'28 days' if right else 'Nine weeks'}{', sure' if surely else ', I would say so'}.")
    return questions, script


@pytest.mark.slow
def test_it_is_fitted_stored_and_used(collection: Collection, docs: Path, tmp_path: Path) -> None:
    questions, script = _asked(120)
    rag = _rag(collection, docs, script)
    before = rag.calibration, rag.policy
    report = calibrate(rag, questions, keep=0.8)
    assert (rag.calibration, rag.policy) == before
    assert report.adopted
    assert report.auc.low > 0.75
    assert report.error < 0.15
    assert (report.about["answers"], report.about["right"]) == (120, 60)
    assert report.given["right"] >= 0.8
    assert report.given["wrong"] < 0.2
    assert report.given["unanswerable"] < 0.2
    assert report.calibration.reader == "ScriptedReader"
    (tmp_path / "ragfm.toml").write_text("# mine\n[ask]\nk = 2\n")
    written = store_calibration(report, tmp_path)
    assert [path.name for path in written] == ["ragfm.toml", "ragfm-confidence.json"]
    assert "# mine" in written[0].read_text()
    assert json.loads(written[1].read_text())["auc"]["value"] == report.auc.value
    settings = load_settings(tmp_path)
    assert (settings.ask.k, settings.ask.confidence) == (2, report.calibration)
    handle = Collection.open(collection.location, settings=settings, embedder=HashingEmbedder())
    fitted = Rag(handle, reader=ScriptedReader(["28 days, sure.", "Nine weeks, I would say so."]))
    fitted.judge = JUDGE
    assert not fitted.ask("How many days of leave in 7?").abstained
    assert fitted.ask("How many days of leave in 7?").abstained
    (tmp_path / "ragfm.toml").write_text(written[0].read_text().replace("threshold", "treshold"))
    with pytest.raises(ConfigError, match="treshold"):
        load_settings(tmp_path)


def test_chance_is_not_adopted_and_too_few_right_answers_are_said(
    collection: Collection, docs: Path, tmp_path: Path
) -> None:
    questions, _ = _asked(120)
    script = [f"You get 28 days of leave{', sure' if n % 4 < 2 else ', so'}." for n in range(120)]
    same = [Question(str(n), "Why?", (), ("28 days" if n % 2 else "12 seats",)) for n in range(120)]
    report = calibrate(_rag(collection, docs, script), same)
    assert not report.adopted
    assert [path.name for path in store_calibration(report, tmp_path)] == ["ragfm-confidence.json"]
    with pytest.raises(DataError, match="0 of 120 answers are right"):
        calibrate(_rag(collection, docs, ["Nine weeks."]), questions)
    with pytest.raises(DataError, match="39 questions are too few"):  # before the first answer
        calibrate(_rag(collection, docs, []), questions[:39])


@pytest.mark.slow
def test_the_command_fits_and_stores(tmp_path: Path, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGFM_EMBEDDER", "hashing")
    monkeypatch.chdir(tmp_path)
    with Collection.open(".ragfm", embedder="hashing") as handle:
        handle.sync(docs)
    questions, script = _asked(80)
    monkeypatch.setattr("ragfm.rag.configured_reader", lambda *_, **__: ScriptedReader(script))
    monkeypatch.setattr("ragfm.answering.judge.load_judge", lambda _: JUDGE)
    lines = [
        {"question": q.text, "id": q.id} | ({"answers": q.answers} if q.answers else {"unanswerable": True})
        for q in questions
    ]
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def run(*words: str) -> Result:
        return CliRunner().invoke(tune, list(words), standalone_mode=False)

    assert "requires QUESTIONS" in str(run("--confidence").exception)
    assert "--adapter requires --confidence" in str(run("asked.jsonl", "--adapter", "x").exception)
    monkeypatch.setattr("ragfm.rag.configured_reader", lambda *_, **__: Stops(script))
    stopped = run("asked.jsonl", "--confidence", "--as-said", "--dry-run")
    assert "kept in" in stopped.stderr
    assert len(Path(".ragfm-confidence.run").read_text().splitlines()) == 31
    rest = ScriptedReader(script[30:])
    monkeypatch.setattr("ragfm.rag.configured_reader", lambda *_, **__: rest)
    assert "No settings were changed" in run("asked.jsonl", "--confidence", "--as-said", "--dry-run").output
    assert len(rest.prompts) == 50
    assert not Path(".ragfm-confidence.run").exists()
    monkeypatch.setattr("ragfm.rag.configured_reader", lambda *_, **__: ScriptedReader(script))
    dry = run("asked.jsonl", "--confidence", "--as-said", "--dry-run", "--out", "run")
    assert len(Path("run").read_text().splitlines()) == 81
    other = run("asked.jsonl", "--confidence", "--corrected", "--dry-run", "--out", "run")
    assert "corrects false there, true now" in str(other.exception)
    assert "No settings were changed" in dry.output
    assert not Path("ragfm.toml").exists()
    printed = run("asked.jsonl", "--confidence", "--as-said", "--keep-right", "0.8").output
    assert "80 answers to asked.jsonl, 40 of them correct" in printed
    assert "answers to unanswerable questions" in printed
    stored = load_settings(tmp_path).ask.confidence
    assert stored is not None
    assert (stored.reader, stored.corrects) == ("bundled", False)
    printed = run("asked.jsonl", "--confidence", "--corrected", "--dry-run").output
    assert "80 answers to asked.jsonl, " in printed
    assert "40 of them correct" not in printed, "the judge's words were judged"


def test_a_fitted_calibration_records_reader_and_strategy(collection: Collection, docs: Path, tmp_path: Path) -> None:
    (tmp_path / "few-shot.toml").write_text("system = 'S'\nask = '{question}'\n")
    questions, script = _asked(80)
    rag = _rag(collection, docs, script, strategy=str(tmp_path / "few-shot.toml"))
    fitted = calibrate(rag, questions).calibration
    assert (fitted.reader, fitted.strategy) == ("ScriptedReader", rag.strategy.label)
    assert fitted.weights.keys() >= {"answers", "first", "supports", "agrees", "exact"}
