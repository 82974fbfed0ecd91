"""Greetings and thanks."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragfm import Collection, Rag
from ragfm.cli.output import print_answer
from ragfm.generation.small_talk import GREETING
from ragfm.testing import ScriptedReader


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
