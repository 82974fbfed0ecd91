"""Follow-ups: what they are made into, what is left alone, and that the right passages are found by it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from ragfm import Collection, Message, Rag, Settings
from ragfm.core.config import AskSection
from ragfm.core.errors import TooLongError
from ragfm.generation.followups import stand_alone
from ragfm.generation.passage_retrieval import PassageRetriever
from ragfm.generation.small_talk import GREETING
from ragfm.samples import copy_handbook
from ragfm.testing import HashingEmbedder, ScriptedReader

LABELLED = Path(__file__).parent / "followups"


def talk(*texts: str) -> list[Message]:
    return [Message("assistant" if at % 2 else "user", text) for at, text in enumerate(texts)]


def labelled() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (LABELLED / "questions.jsonl").read_text(encoding="utf-8").splitlines()]


def near(*passages: str) -> Callable[[str], float]:
    """The cosine of a text and the nearest passage, by their words."""
    embedder = HashingEmbedder()
    vectors = embedder.embed_passages(passages)
    return lambda text: float((vectors @ embedder.embed_queries([text])[0]).max())


LEAVE = near("Annual leave is 31 days. Parents get 16 weeks of leave.", "The printer is in room 4.")


def test_a_question_that_is_nearer_to_the_documents_with_the_earlier_one_follows_it() -> None:
    history = talk("How many days of leave do I get", "31.")
    assert stand_alone("And for parents?", history, LEAVE) == "How many days of leave do I get? And for parents?"


def test_a_question_that_is_nearer_to_the_documents_alone_is_unchanged() -> None:
    history = talk("How many days of leave do I get?", "31.")
    assert stand_alone("Is the printer in room 4?", history, LEAVE) == "Is the printer in room 4?"


def test_follow_ups_are_recognized_in_any_language() -> None:
    closeness = near("Eltern bekommen 16 Wochen Urlaub.", "Der Drucker ist in Raum 4.")
    history = talk("Wie viele Wochen Urlaub gibt es?", "Sechs.")
    assert stand_alone("Und für Eltern?", history, closeness).startswith("Wie viele Wochen Urlaub gibt es? Und")
    assert stand_alone("Ist der Drucker in Raum 4?", history, closeness) == "Ist der Drucker in Raum 4?"


def test_a_first_question_stays_alone() -> None:
    assert stand_alone("And for parents?", [], LEAVE) == "And for parents?"


def test_thanks_between_two_questions_do_not_end_the_topic() -> None:
    history = talk("How many days of leave do I get?", "31.", "Thanks!", GREETING)
    asked = stand_alone("And for parents?", history, LEAVE)
    assert asked == "How many days of leave do I get? And for parents?"


def test_of_a_long_topic_the_first_and_the_last_question_are_kept() -> None:
    history = talk("Who gets days of leave?", "All.", "How many weeks?", "16.", "And parents?", "16.", "Annual?", "31.")
    assert stand_alone("Which?", history, LEAVE) == "Who gets days of leave? Annual? Which?"


def test_a_question_that_is_too_long_with_the_earlier_one_stays_alone() -> None:
    """A question fits the embedder's window; that and another may not."""

    def closeness(text: str) -> float:
        if len(text) > 100:
            raise TooLongError("too long")
        return 0.1

    assert stand_alone("Why?", talk("What is " + "very " * 80 + "long?", "This."), closeness) == "Why?"


@pytest.mark.slow
def test_the_right_document_is_found(tmp_path: Path) -> None:
    """With the bundled embedder; benchmarks/bench_followups.py has the same figures."""
    shutil.copytree(LABELLED / "toolshed", tmp_path / "toolshed")
    collection = Collection.open(tmp_path / ".ragfm", settings=Settings())
    collection.sync(copy_handbook(tmp_path), tmp_path / "toolshed")
    retriever = PassageRetriever(AskSection(reranker="none"), 1)
    found = Counter[bool]()
    for row in filter(itemgetter("uri"), labelled()):
        history = talk(*row["history"])
        hits = retriever.find(row["question"], history, None, None, k=3, collection=collection).hits
        found[bool(row.get("alone"))] += hits[0].uri == row["uri"]
    assert found[False] >= 72, found  # of 76 follow-ups
    assert found[True] >= 15, found  # of 19 changes of topic


# --- In an answer ------------------------------------------------------------------------------------------------

HISTORY = talk("How many days of leave do I get?", "You get 28 days of leave [1].")
JOINED = "How many days of leave do I get? And for parents?"


@pytest.fixture
def handbook(shared_handbook: Collection) -> Collection:
    settings = Settings(ask=AskSection(reranker="none"))
    return Collection.open(shared_handbook.location, settings=settings, embedder=HashingEmbedder())


def test_it_is_searched_for_and_asked(handbook: Collection) -> None:
    reader = ScriptedReader(["16 weeks more."])
    answer = Rag(handbook, reader=reader, k=2).ask("And for parents?", history=HISTORY)
    assert (answer.question, answer.query) == ("And for parents?", JOINED)
    assert [hit.chunk_id for hit in answer.hits] == [hit.chunk_id for hit in handbook.search(JOINED, 2)]
    assert reader.prompts[0][-1].content.endswith(JOINED)
    assert answer.citations[0].verified


def test_a_question_that_stands_alone_is_given_once(handbook: Collection) -> None:
    reader = ScriptedReader(["At nine."])
    answer = Rag(handbook, reader=reader).ask("Are dogs welcome on Fridays?", history=HISTORY)
    assert answer.query == answer.question
    assert reader.prompts[0][-1].content.count("Are dogs welcome on Fridays?") == 1


def test_it_can_be_turned_off(handbook: Collection) -> None:
    settings = Settings(ask=AskSection(followup="off"))
    unchanged = Collection.open(handbook.location, settings=settings, embedder=HashingEmbedder())
    rag = Rag(unchanged, reader=ScriptedReader(["Yes."]))
    assert rag.ask("And for parents?", history=HISTORY).query == "And for parents?"
