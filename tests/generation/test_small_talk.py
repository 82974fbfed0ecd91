"""Greetings, and requests that a small reader cannot meet."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragfm import Collection, Rag
from ragfm.answering.policy import SMALL
from ragfm.cli.output import print_answer
from ragfm.generation.small_talk import GREETING, NEEDS_LARGER_READER, asks_how, is_greeting, needs_larger_reader
from ragfm.testing import ScriptedReader


@pytest.mark.parametrize("message", ["Hello", "hi!", "Hello there.", "Good morning", "Thank you very much!", "help"])
def test_small_talk_is_answered_as_such(message: str) -> None:
    assert is_greeting(message)


@pytest.mark.parametrize(
    "question", ["Hello Kitty, who is it?", "How are you paid?", "Who are you allowed to call?", "Test results?", ""]
)
def test_a_question_is_not_small_talk(question: str) -> None:
    assert not is_greeting(question)


def test_requests_and_questions() -> None:
    for request in (
        "Summarise the leave policy",
        "please list all rooms",
        "Can you explain it?",
        "Give me an overview",
        "Give me the main differences between the rooms",
        "Show me all rooms",
    ):
        assert needs_larger_reader(request)
    for question in (
        "Which rooms are there?",
        "Who lists the rooms?",
        "What is a summary?",
        "Is writing allowed?",
        "Give me the phone number of the IT desk.",
        "List price of the X200?",
    ):
        assert not needs_larger_reader(question)


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
    for message in ("Hello!", "thanks"):
        greeted = rag.ask(message)
        assert (greeted.text, greeted.status, greeted.hits) == (GREETING, "answered", ())
    assert "Hello" not in GREETING  # nor to "thanks"
    print_answer(greeted)
    assert capsys.readouterr().out == f"{GREETING}\n"
    rag.policy = SMALL
    asked = rag.ask("Summarise the leave policy")
    assert (asked.shown, asked.status) == (NEEDS_LARGER_READER, "not_found")
    assert "You get 28 days of leave." in [one.quote for one in asked.nearest]
    assert reader.prompts == []
