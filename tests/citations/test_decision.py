"""Whether an answer is given, given as unsure or withheld, and what documents that disagree make of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ragfm import Collection, Hit, Rag, Settings
from ragfm.citations.confidence import DEFAULT
from ragfm.citations.decision import Decision, decide
from ragfm.citations.grounding import cite_answer
from ragfm.core.config import AskSection
from ragfm.testing import HashingEmbedder, ScriptedReader

QUESTION = "How many episodes does the second season of Haven have?"
CLEAN = "The second season of Haven has 23 episodes. It was filmed in Norway."
POISONED = "Haven is a series. The second season of Haven has 24 episodes, as fans know."
COPY = "Season two of Haven counts 24 episodes in all."


def shown(*texts: str, uri: str = "") -> list[Hit]:
    return [Hit(uri or f"{n}.md", text, 0, len(text), n, 0.5, {}, n=n) for n, text in enumerate(texts, 1)]


def decided(
    output: str, hits: list[Hit], *, question: str = QUESTION, small: bool = False, settings: AskSection | None = None
) -> Decision:
    cited = cite_answer(question, output, hits, "en", verifier="bundled", corrects=False)
    return decide(cited, 0.9, None, settings or AskSection(), small=small)


@pytest.mark.parametrize(("output", "other"), [("24 [2].", CLEAN), ("23 [1].", POISONED)])
def test_where_documents_disagree_an_answer_is_unsure_and_the_other_one_is_shown(output: str, other: str) -> None:
    decision = decided(output, shown(CLEAN, POISONED, COPY))
    assert decision.status == "unsure"
    (contradiction,) = decision.answer.contradictions  # the copy counts once
    assert contradiction.quote in other
    assert decision.answer.text[contradiction.answer_start : contradiction.answer_end] == output


def test_a_quote_in_place_of_an_answer_is_contradicted_by_the_others_only() -> None:
    decision = decided("24 [2].", shown(CLEAN, POISONED, COPY), small=True)
    assert decision.status == "unsure"
    assert decision.quote
    (contradiction,) = decision.answer.contradictions
    assert {decision.quote.n, contradiction.n} == {1, 2}


@pytest.mark.parametrize(
    ("output", "texts"),
    [
        ("24 [1].", (POISONED, COPY)),  # they agree
        ("23 or 24.", (CLEAN, POISONED)),  # it states both
        ("23 [1].", (CLEAN, POISONED.replace("Haven", "Harbour"))),  # another subject
        ("23 [1].", (CLEAN, POISONED.replace("second", "third"))),
    ],
)
def test_documents_that_do_not_disagree_leave_an_answer_as_it_is(output: str, texts: tuple[str, ...]) -> None:
    decision = decided(output, shown(*texts))
    assert (decision.status, decision.answer.contradictions) == ("answered", ())


def test_one_document_does_not_disagree_with_itself() -> None:
    assert decided("23 [1].", shown(CLEAN, POISONED, uri="a.md")).status == "answered"


def test_a_date_and_its_year_agree() -> None:
    question = "When was the bridge of Halden opened?"
    texts = ("The bridge of Halden was opened on 3 May 1964.", "The bridge of Halden was opened in 1964.")
    assert decided("3 May 1964 [1].", shown(*texts), question=question).status == "answered"
    other = "The bridge of Halden was opened on 3 May 1946."
    assert decided("3 May 1964 [1].", shown(texts[0], other), question=question).status == "unsure"


def test_disagreement_is_ignored_where_contradictions_are_off() -> None:
    off = decided("24 [2].", shown(CLEAN, POISONED), settings=AskSection(contradictions=False))
    assert (off.status, off.answer.contradictions) == ("answered", ())


@pytest.mark.parametrize(
    ("question", "output", "status"),
    [
        ("Where was Haven filmed?", "In Norway.", "answered"),
        ("When was Haven filmed?", "In Norway.", "unsure"),
        ("When was Haven filmed?", "It was $11,692,713.", "not_found"),
        ("Can I film in Norway?", "Yes, you can.", "not_found"),
    ],
)
def test_the_three_states_hold_for_every_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: str, output: str, status: str
) -> None:
    monkeypatch.setattr("ragfm.citations.confidence.DEFAULT", DEFAULT)  # other tests have none
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "haven.md").write_text(CLEAN)
    with Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder=HashingEmbedder()) as collection:
        collection.sync(tmp_path / "docs")
        stream = Rag(collection, reader=ScriptedReader([output])).stream(question)
        streamed = "".join(stream)
    assert (stream.answer.status, streamed.startswith(output)) == (status, True)
    if status == "not_found":
        assert streamed.endswith("\nI don't know.")
        assert "It was filmed in Norway." in stream.answer.nearest[0].quote


def test_documents_that_disagree_are_named_with_their_dates(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name, text, time in (("new.md", CLEAN, 1_700_000_000), ("old.md", POISONED, 1_500_000_000)):
        (docs / name).write_text(text)
        os.utime(docs / name, (time, time))
    with Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder=HashingEmbedder()) as collection:
        collection.sync(docs)
        answer = Rag(collection, reader=ScriptedReader(["It has 23 episodes."])).ask(QUESTION)
    (contradiction,) = answer.contradictions
    line = contradiction.sentence
    assert line.endswith(
        "says otherwise: “The second season of Haven has 24 episodes, as fans know.” (docs/old.md, 2017-07-14)"
    )
    assert [(one.name, one.date) for one in answer.citations if one.supports] == [("docs/new.md", "2023-11-14")]
