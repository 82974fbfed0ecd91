"""Greetings, and questions how to do something."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragfm import Collection, Rag
from ragfm.cli.output import print_answer
from ragfm.generation.small_talk import GREETING, asks_how
from ragfm.testing import ScriptedReader


def test_questions_how_to_do_something() -> None:
    for question in (
        "How do I restore a backup?",
        "how can we log in without a password",
        "Please tell me how to cut out a picture.",
        "What should I do if I forgot the passphrase?",
        "What do I have to do first?",
    ):
        assert asks_how(question)
    for question in ("How many days do I get?", "How do plants breathe?", "What do I pay?", "Who knows how to dive?"):
        assert not asks_how(question)


def test_no_reader_is_asked(collection: Collection, docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collection.sync(docs)
    reader = ScriptedReader([])
    rag = Rag(collection, reader=reader)
    for message in ("Hello!", "thank you"):
        greeted = rag.ask(message)
        assert (greeted.text, greeted.status, greeted.hits) == (GREETING, "answered", ())
    assert "Hello" not in GREETING  # nor to "thank you"
    print_answer(greeted)
    assert capsys.readouterr().out == f"{GREETING}\n"
    assert reader.prompts == []
