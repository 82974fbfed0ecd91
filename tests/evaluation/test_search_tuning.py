"""Tuning: trials against searches, noise, stored settings, generated questions and the command."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from click import UsageError
from support.shell import InProcessShell, Shell

from ragfm import Collection, Settings
from ragfm.core.config import SearchSection, load_settings
from ragfm.core.errors import ConfigError, DataError
from ragfm.core.types import Hit
from ragfm.evaluation import Gold, Question, evaluate_retrieval, store_weight, tune
from ragfm.evaluation.search_tuning import MEASURE, WEIGHTS, CandidatePool
from ragfm.testing import HashingEmbedder

WORDS = (
    "amber birch cedar delta ember fjord grove heath islet jetty knoll ledge marsh north ocean pier quay reef".split()
)


@pytest.fixture
def parts(tmp_path: Path, collection: Collection) -> Collection:
    """Documents that all share their words, and differ in a code: the keyword index tells them apart."""
    chance = random.Random(1)
    (tmp_path / "parts").mkdir()
    for number in range(60):
        words = " ".join(chance.choices(WORDS, k=20))
        (tmp_path / "parts" / f"{number}.txt").write_text(f"Part X{number}-{number * 7} lies here: {words}.")
    collection.sync(tmp_path / "parts")
    return collection


def by_code(count: int = 60) -> list[Question]:
    chance = random.Random(2)
    return [
        Question(str(n), f"{' '.join(chance.choices(WORDS, k=8))} X{n}-{n * 7}", (Gold(f"parts/{n}.txt"),))
        for n in range(count)
    ]


def _with(collection: Collection, **search: object) -> Collection:
    search = {"code_weight": 1.0, **search}  # these questions all have codes
    settings = Settings(search=SearchSection(**search))  # type: ignore[arg-type]
    return Collection.open(collection.location, settings=settings, embedder=HashingEmbedder())


def test_a_trial_agrees_with_a_search(parts: Collection) -> None:
    questions = by_code()
    report = tune(_with(parts), questions, seed=3)
    half = random.Random(3).sample(questions, len(questions))[: len(questions) // 2]
    assert {trial.weight for trial in report.trials} == set(WEIGHTS)
    assert [trial.value for trial in report.trials] == sorted((t.value for t in report.trials), reverse=True)
    for trial in random.Random(0).sample(report.trials, 4):
        searched = evaluate_retrieval(_with(parts, weight=trial.weight), half, k=10)
        assert searched.measures[MEASURE].value == pytest.approx(trial.value, abs=1e-9)


def test_a_chunk_without_a_common_word_is_not_a_keyword_candidate() -> None:
    def hit(number: int, dense: float, keyword: float) -> Hit:
        return Hit(f"{number}.txt", "", 0, 1, number, dense, {"dense": dense, "keyword": keyword})

    hits = [hit(0, 0.1, 0.0), hit(1, 0.9, 0.0), hit(2, 0.8, 0.0), hit(3, 0.2, 5.0)]
    for wanted, value in ((0, 0.0), (3, 1.0)):
        pool = CandidatePool(Question("q", "?", (Gold(f"{wanted}.txt"),)), hits, SearchSection())
        assert pool.value(0.0, 2) == value
    deeper = CandidatePool(Question("q", "?", (Gold("0.txt"),)), hits, SearchSection())
    assert deeper.value(1.0, 4) > 0


def test_a_gain_is_tested_on_held_out_questions(parts: Collection) -> None:
    handle = _with(parts, weight=1.0)
    questions = by_code()
    report = tune(handle, questions)
    assert report.adopted
    assert report.best.weight < 1
    assert report.current.weight == 1.0
    assert report.held_out.difference > 0.05
    assert report.held_out.p < 0.05
    held_out = random.Random(0).sample(questions, 60)[30:]
    tuned = evaluate_retrieval(_with(parts, weight=report.best.weight), held_out, k=10)
    assert report.held_out.b == pytest.approx(tuned.measures[MEASURE].value)
    assert "better" in report.why


def test_noise_changes_nothing(parts: Collection, tmp_path: Path) -> None:
    chance = random.Random(5)
    questions = [
        Question(str(n), " ".join(chance.choices(WORDS, k=6)), (Gold(f"parts/{chance.randrange(60)}.txt"),))
        for n in range(40)
    ]
    report = tune(parts, questions)
    assert report.best != report.current  # something is always best
    assert not report.adopted
    assert "noise" in report.why
    (tmp_path / "here").mkdir()
    (written,) = store_weight(report, tmp_path / "here")
    assert written.name == "ragfm-tune.json"
    assert json.loads(written.read_text())["adopted"] is False


def test_the_current_weight_is_kept_if_it_is_the_best(parts: Collection) -> None:
    questions = [Question(str(n), f"X{n}-{n * 7}", (Gold(f"parts/{n}.txt"),)) for n in range(60)]
    report = tune(_with(parts, weight=0.1), questions)
    assert report.best == report.current
    assert not report.adopted


def test_too_few_or_foreign_questions_are_refused(parts: Collection) -> None:
    with pytest.raises(DataError, match="19 questions"):
        tune(parts, by_code(19))
    with pytest.raises(DataError, match=r"none\.txt"):
        tune(parts, [Question(str(n), "amber", (Gold("parts/none.txt"),)) for n in range(20)])


@pytest.mark.parametrize(
    "before",
    [
        "",
        "# mine\nreader = 'x.gguf'  # good\n[search]\nk = 7\nweight = 0.9 # mine\n[[sources]]\nlocation = 'docs'\n",
        "search.k = 7\nreader = 'x.gguf'\n",
        "\ufeffsearch.k = 7\nreader = 'x.gguf'\n",
        "search = {k = 7}\n[ask]\nk = 2\n",
        "[ask]\nk = 2",
    ],
)
def test_only_the_weight_changes(parts: Collection, tmp_path: Path, before: str) -> None:
    report = tune(_with(parts, weight=1.0), by_code())
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "ragfm.toml").write_text(before)
    old = load_settings(folder)
    written = store_weight(report, folder)
    assert [path.name for path in written] == ["ragfm.toml", "ragfm-tune.json"]
    new = load_settings(folder)
    assert new.search == old.search.model_copy(update={"weight": report.best.weight})
    assert new.model_dump(exclude={"search"}) == old.model_dump(exclude={"search"})
    after = (folder / "ragfm.toml").read_text()
    kept = [line for line in before.splitlines() if "weight" not in line and "search" not in line]
    assert [line for line in kept if line not in after.splitlines()] == []
    evidence = json.loads((folder / "ragfm-tune.json").read_text())
    assert evidence["held_out"]["p"] < 0.05
    assert evidence["date"]
    assert sorted(path.name for path in folder.iterdir()) == ["ragfm-tune.json", "ragfm.toml"]


def test_an_invalid_file_is_kept(parts: Collection, tmp_path: Path) -> None:
    report = tune(_with(parts, weight=1.0), by_code())
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "ragfm.toml").write_text("reader = ")
    with pytest.raises(ConfigError):
        store_weight(report, tmp_path / "here")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["ragfm.toml"]


# --- The command -------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def asked(tmp_path: Path, shell: Shell) -> Path:
    chance = random.Random(1)
    (tmp_path / "parts").mkdir()
    for number in range(60):
        words = " ".join(chance.choices(WORDS, k=20))
        (tmp_path / "parts" / f"{number}.txt").write_text(f"Part X{number}-{number * 7} lies here: {words}.")
    shell("ingest", "parts")
    path = tmp_path / "questions.jsonl"
    lines = [{"question": question.text, "uri": question.gold[0].uri} for question in by_code()]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (tmp_path / "ragfm.toml").write_text("[search]\nweight = 1.0  # for now\ncode_weight = 1\n")
    return path


def test_the_command_stores_better_settings_and_searches_use_them(shell: Shell, asked: Path) -> None:
    dry = shell("tune", asked, "--dry-run")
    assert "No settings were changed" in dry.stderr
    assert "weight = 1.0" in (shell.folder / "ragfm.toml").read_text()
    found = shell.json("tune", asked)
    assert found["adopted"] is True
    assert found["about"]["questions_from"] == "questions.jsonl"
    assert [Path(path).name for path in found["written"]] == ["ragfm.toml", "ragfm-tune.json"]
    assert "# for now" in (shell.folder / "ragfm.toml").read_text()
    again = shell.json("tune", asked)
    assert again["current"] == found["best"]
    assert again["adopted"] is False


def test_wrong_usage(shell: Shell, asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(asked.parent)
    for words, reason in (
        ((), "Specify QUESTIONS"),
        ((asked, "--reader", "x"), "--reader"),
    ):
        with pytest.raises(UsageError, match=reason):
            InProcessShell()("tune", *words)
    assert shell.json("tune", asked, "--keep", "x", code=2)["error"]["type"] == "UsageError"
