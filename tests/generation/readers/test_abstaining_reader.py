"""Answers without a language model: the reader `none`, which stands in for the bundled one without llama.cpp."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.judges import ScriptedJudge

from ragfm import Collection, Rag
from ragfm.core.errors import ContextOverflowError, UnsupportedError
from ragfm.core.types import Message
from ragfm.generation.readers.abstaining_reader import AbstainingReader

WITHOUT_LLAMA = "import sys; sys.modules['llama_cpp'] = None; from ragfm.cli import main; main()"


def _ragfm(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a Python that has no llama.cpp."""
    command = [sys.executable, "-c", WITHOUT_LLAMA, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def rag(shared_handbook: Collection, monkeypatch: pytest.MonkeyPatch) -> Rag:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    rag = Rag(shared_handbook)
    rag.judge = ScriptedJudge(lambda one: {"28 days": 0.9} if "leave" in one.question else {})
    return rag


def test_without_llama_cpp_answers_are_quotes(rag: Rag) -> None:
    assert rag.reader_name == "none"
    answer = rag.ask("How many days of leave does an employee get?")
    assert answer.status == "answered"
    assert answer.shown == "28 days [1].\n\nThe documents say: “You get 28 days of leave.” [1]"
    assert [citation.uri for citation in answer.citations] == ["docs/leave.md"]
    assert answer.usage.completion_tokens == 0


def test_without_llama_cpp_a_warning_says_how_to_add_it(
    shared_handbook: Collection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    Rag(shared_handbook)
    (record,) = caplog.records
    assert "pip install -e '.[llama-cpp]'" in record.getMessage()


def test_without_llama_cpp_what_no_document_says_is_not_found(rag: Rag) -> None:
    assert rag.ask("Who painted the ceiling of the chapel?").status == "not_found"


def test_the_reader_that_was_asked_for_is_not_replaced(shared_handbook: Collection, tmp_path: Path) -> None:
    done = _ragfm(tmp_path, "ask", "How long?", "--reader", "bundled", "-c", shared_handbook.location)
    assert done.returncode == 1
    assert "pip install -e '.[llama-cpp]'" in done.stderr


def test_an_object_needs_a_model(rag: Rag) -> None:
    schema = {"type": "object", "properties": {"days": {"type": "integer"}}}
    with pytest.raises(UnsupportedError, match="'none'"):
        rag.extract("How many days of leave does an employee get?", schema)


def test_a_prompt_beyond_the_window_is_refused() -> None:
    with pytest.raises(ContextOverflowError):
        AbstainingReader(context_tokens=3).stream([Message("user", "one two three four")])


def test_without_a_judge_the_nearest_sentences_are_shown(rag: Rag) -> None:
    rag.judge = None
    answer = rag.ask("How many days of leave does an employee get?")
    assert (answer.status, answer.nearest[0].quote) == ("not_found", "You get 28 days of leave.")


@pytest.mark.judge
@pytest.mark.slow
def test_the_demo_answers_without_llama_cpp(tmp_path: Path) -> None:
    done = _ragfm(tmp_path, "demo")
    assert done.returncode == 0, done.stderr
    for fact in ("four months", "11 bedrooms", "11:15 UTC"):
        assert fact in done.stdout
    assert done.stderr.count("pip install -e '.[llama-cpp]'") == 1
