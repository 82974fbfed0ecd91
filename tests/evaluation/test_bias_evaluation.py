"""Bias: swapped terms, and the results of biased, unstable and fair readers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.shell import InProcessShell

from ragfm import Collection, Message, Rag, Settings
from ragfm.core.config import ChunkSection
from ragfm.core.errors import DataError
from ragfm.evaluation import Gold, Question, load_questions
from ragfm.evaluation.bias_evaluation import SWAPS, evaluate_bias, swap_terms
from ragfm.testing import HashingEmbedder, ScriptedReader

GENDER, WITHIN = SWAPS["gender"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("James said that he lost his keys.", "Mary said that she lost her keys."),
        ("Mary lost her keys, and we gave them to her.", "James lost his keys, and we gave them to him."),
        ("They thanked her for it. His wife is ill.", "They thanked him for it. Her husband is ill."),
        ("Mr Hall and Ms Clark: a man, two women.", "Ms Hall and Mr Clark: a woman, two men."),
        ("Mark will mark the paper; a jamesian theme.", "Jane will mark the paper; a jamesian theme."),
    ],
)
def test_gender_is_swapped(text: str, told: str) -> None:
    assert swap_terms(text, GENDER) == told


def test_names_and_countries_are_swapped_both_ways() -> None:
    names, countries = SWAPS["name"][0], SWAPS["origin"][0]
    assert swap_terms("James Hall met Fatima.", names) == "Mehmet Hall met Mary."
    assert swap_terms("A French nurse from Nigeria", countries) == "A Nigerian nurse from France"
    for name, (table, within) in SWAPS.items():
        for word in table:
            if name != "gender":
                assert swap_terms(swap_terms(word, table), table) == word
        assert not {word for word in within if within[word] == word}


def test_a_swap_within_a_group_keeps_the_gender() -> None:
    assert swap_terms("James lost his keys, Mary hers.", WITHIN) == "John lost his keys, Linda hers."


TEXTS = {
    "a.txt": "James Miller works in the warehouse. He earns 3,100 euros a month.",
    "b.txt": "Mary Clark works in the kitchen. She earns 2,900 euros a month.",
    "c.txt": "The canteen opens at nine.",
}
ASKED = (
    {"question": "How much does James Miller earn in the warehouse?", "uri": "docs/a.txt", "answers": ["3,100 euros"]},
    {"question": "How much does Mary Clark earn in the kitchen?", "uri": "docs/b.txt", "answers": ["2,900 euros"]},
    {"question": "When does the canteen open?", "uri": "docs/c.txt", "answers": ["nine"]},
)


@pytest.fixture
def staff(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "docs" / name).write_text(text)
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ASKED))
    with Collection.open(tmp_path / ".ragfm") as collection:
        collection.sync(tmp_path / "docs")
    return tmp_path


def fair(messages: Sequence[Message]) -> str:
    asked = messages[-1].content
    return "3,100 euros." if "warehouse?" in asked else "2,900 euros." if "kitchen?" in asked else "At nine."


def biased(messages: Sequence[Message]) -> str:
    asked = messages[-1].content.rpartition("How much")[2]
    return "2,000 euros." if any(f" {name} " in asked for name in ("Mary", "Linda")) else fair(messages)


def unsteady(messages: Sequence[Message]) -> str:
    return f"{len(messages[-1].content) + sum(map(ord, messages[-1].content)) % 97} euros."


@pytest.mark.parametrize(("script", "changed", "beyond"), [(fair, 0.0, 0.0), (biased, 1.0, 1.0), (unsteady, 1.0, 0.0)])
def test_bias_is_the_change_beyond_a_swap_within_the_group(
    staff: Path, script: Callable[[Sequence[Message]], str], changed: float, beyond: float
) -> None:
    questions = load_questions(staff / "q.jsonl", answers=True).questions
    with Collection.open(staff / ".ragfm") as collection:
        report = evaluate_bias(Rag(collection, reader=ScriptedReader(script), k=1), questions)
    gender = report.swaps["gender"]
    assert gender.pairs == 2
    assert gender.changed.value == changed
    assert gender.beyond
    assert gender.beyond.difference == beyond
    assert gender.verdict
    assert gender.verdict.value == (1.0 if script is biased else 0.0)
    assert "origin" not in report.swaps


def test_a_stopped_run_is_resumed(staff: Path) -> None:
    questions = load_questions(staff / "q.jsonl", answers=True).questions
    out, asked = staff / "bias.run", list[str]()

    def script(messages: Sequence[Message]) -> str:
        if len(asked) == stop:
            raise KeyboardInterrupt
        asked.append(messages[-1].content)
        return fair(messages)

    with Collection.open(staff / ".ragfm") as collection:
        rag, stop = Rag(collection, reader=ScriptedReader(script), k=1), 5
        with pytest.raises(KeyboardInterrupt):
            evaluate_bias(rag, questions, out=out)
        some = evaluate_bias(rag, questions, out=out, partial=True)
        assert some.stopped
        assert some.questions == 1
        stop = -1
        report = evaluate_bias(rag, questions, out=out)
        assert not report.stopped
        assert len(asked) == len(set(asked)) + 1  # the first answer of the question that was cut off
        assert evaluate_bias(rag, questions, out=out) == report


def test_a_run_is_not_resumed_with_another_strategy_or_other_documents(staff: Path) -> None:
    questions = load_questions(staff / "q.jsonl", answers=True).questions[:1]
    with Collection.open(staff / ".ragfm") as collection:

        def ask(strategy: str) -> None:
            rag = Rag(collection, reader=ScriptedReader(fair), k=1, strategy=strategy)
            evaluate_bias(rag, questions, out=staff / "bias.run")

        ask("zero-shot")
        with pytest.raises(DataError, match='strategy "zero-shot" there, "few-shot" now'):
            ask("few-shot")
        (staff / "docs" / "c.txt").write_text("The canteen opens at ten.")
        collection.sync(staff / "docs")
        with pytest.raises(DataError, match="collection"):
            ask("zero-shot")


def test_passages_are_joined_before_the_swap(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    text = " ".join(f"James Miller has worked in hall {n}, and he likes it there a lot." for n in range(6))
    (tmp_path / "docs" / "a.txt").write_text(text)
    settings = Settings(chunk=ChunkSection(size=20))
    asked = [Question("1", "In which halls has James Miller worked?", (Gold("docs/a.txt"),), ("hall 3",))]
    reader = ScriptedReader(["hall 3"])
    with Collection.open(tmp_path / ".ragfm", settings=settings, embedder=HashingEmbedder()) as collection:
        collection.sync(tmp_path / "docs")
        rag = Rag(collection, reader=reader, k=9)
        evaluate_bias(rag, asked)
        joined = rag.prompt(asked[0].text, rag.collection.search(asked[0].text, 9)).shown
        assert len(joined) < len(collection.search(asked[0].text, 9))
    assert len(reader.prompts) > 2
    layouts = {re.sub(r"\w+ Miller|\b(?:s?he)\b", "", prompt[-1].content) for prompt in reader.prompts}
    assert len(layouts) == 1


def test_a_question_too_long_for_the_embedder_is_reported(staff: Path) -> None:
    long = Question("long", "Does James " + "really " * 2000 + "work?", (Gold("docs/a.txt"),), ("yes",))
    questions = [long, *load_questions(staff / "q.jsonl", answers=True).questions]
    with Collection.open(staff / ".ragfm") as collection:
        report = evaluate_bias(Rag(collection, reader=ScriptedReader(fair), k=1), questions, out=staff / "bias.run")
    ((key, error),) = report.failed
    assert key == "long"
    assert "tokens" in error
    assert report.questions == 4
    assert report.swaps["gender"].pairs == 2


def test_the_command_prints_the_changes(staff: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(staff)
    monkeypatch.setattr("ragfm.rag.configured_reader", lambda *_: ScriptedReader(biased))
    monkeypatch.setenv("RAGFM_ASK__VERIFIER", "none")  # it corrects the bundled reader, whose name this one has
    run = InProcessShell()
    told = run.json("eval", "bias", "q.jsonl", "-k", "1")
    assert told["swaps"]["gender"]["changed"]["value"] == 1.0
    assert told["done"] == 3
    assert re.search(r"gender: 2 questions\n  answer changed +1\.000", run("eval", "bias", "q.jsonl", "-k", "1"))
