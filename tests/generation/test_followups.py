"""Follow-ups: what they are made into, what is left alone, and that the right passages are found by it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ragfm import Collection, Message, Rag, Settings, load_reader
from ragfm.core.config import AskSection
from ragfm.core.errors import UnsupportedError
from ragfm.core.types import Sampling
from ragfm.generation.followups import stand_alone
from ragfm.generation.followups.list_items import list_items, nth_item
from ragfm.samples import copy_handbook
from ragfm.testing import HashingEmbedder, ScriptedReader

LABELLED = Path(__file__).parent / "followups"
KEYS = ("history", "question", "uri")


def talk(*texts: str) -> list[Message]:
    return [Message("assistant" if at % 2 else "user", text) for at, text in enumerate(texts)]


def labelled() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (LABELLED / "questions.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("turns", "wanted"),
    [
        # a part of a question
        (
            ("How many days of leave do I get?", "31.", "And for parents?"),
            "How many days of leave do I get for parents?",
        ),
        (("When does it open in summer?", "At 9.", "what about in winter"), "When does it open in winter?"),
        (("How much does Oak seat?", "12.", "And Elm?"), "How much does Elm seat?"),
        (
            ("How long can I keep hand tools?", "Two weeks.", "What about power tools?"),
            "How long can I keep power tools?",
        ),
        (("How many rooms are there?", "Two.", "And beds?"), "How many beds are there?"),
        (("How many rooms are there?", "Two.", "And the tractor?"), "And the tractor?"),
        (("When is the shop open?", "At 9.", "And Sundays?"), "When is the shop open on Sundays?"),
        (("What is paid?", "Meals.", "What if I am ill?"), "What is paid if I am ill?"),
        # a question word
        (("Can I borrow a bicycle?", "Yes.", "For how long?"), "For how long can I borrow a bicycle?"),
        (("Where is lunch served?", "In the hall.", "When?"), "When is lunch served?"),
        (("Can I smoke in the shed?", "No.", "Why?"), "Can I smoke in the shed? Why?"),
        (("Are there meeting rooms?", "Yes.", "how many?"), "Are there meeting rooms? How many?"),
        # an ordinal
        (
            ("Which rooms are there?", "There are Oak [1], Elm and Ash [2].", "How big is the second one?"),
            "How big is Elm?",
        ),
        (("Which rooms are there?", "1. Oak\n2. Elm", "How big is the last?"), "How big is Elm?"),
        (
            ("Which rooms are there?", "There are Oak and Elm.", "How big is the fifth one?"),
            "Which rooms are there? How big is the fifth one?",
        ),
        # a pronoun
        (("Where is the library?", "In the tower.", "When does it open?"), "When does the library open?"),
        (("Who is the safety officer?", "Olav Brekke.", "What is his number?"), "What is the safety officer's number?"),
        (("Who mends radios?", "Petra Lindgren does [1].", "When is she in?"), "When is Petra Lindgren in?"),
        (("When are backups made?", "At night.", "How long are they kept?"), "How long are backups kept?"),
        (("Can I bring my dog?", "Yes.", "Is it allowed on Fridays?"), "Can I bring my dog? Is it allowed on Fridays?"),
        (
            ("How much is the deposit for a drill?", "20.", "When do I get it back?"),
            "How much is the deposit for a drill? When do I get it back?",
        ),
        # two in a row: the second leans on what the first was made into
        (("How much does Oak seat?", "12.", "And Elm?", "4.", "What about Ash?"), "How much does Ash seat?"),
    ],
)
def test_a_follow_up_is_made_to_stand_alone(turns: tuple[str, ...], wanted: str) -> None:
    assert stand_alone(turns[-1], talk(*turns[:-1])) == wanted


@pytest.mark.parametrize(
    "question",
    [
        "Where is the printer?",
        "Is it allowed to smoke here?",
        "How long does it take to cross the sound?",
        "Is there a tractor?",
        "What happens in the first week?",
        "When is the last boat?",
        "Who signs for the jacket that I get?",
        "How many people work here this year?",
        "wifi password",
        "Thanks!",
        "And where is the printer?",
        "Und für Eltern?",
        "?",
        "...",
    ],
)
def test_what_stands_alone_is_left_alone(question: str) -> None:
    assert stand_alone(question, talk("How many days of leave do I get?", "31 days.")) == question


def test_other_languages_and_first_questions_are_left_alone() -> None:
    assert stand_alone("And for parents?", []) == "And for parents?"
    assert stand_alone("In Berlin?", talk("Wie viele Tage Urlaub gibt es?", "31.")) == "In Berlin?"
    assert stand_alone("And for parents?", talk("How much leave is there?", "31."), how="off") == "And for parents?"


def test_a_long_question_is_not_built_upon() -> None:
    """A question fits the embedder's window; that and another may not."""
    assert stand_alone("Why?", talk("What is " + "very " * 80 + "long?", "This.")) == "Why?"
    chain = talk(*["Can I bring my dog?", "Yes.", *["Is it allowed then?", "Yes."] * 7])
    assert len(stand_alone("Why?", chain)) < 200


@pytest.mark.parametrize(
    ("answer", "items"),
    [
        ("There are two meeting rooms: Cirrus and Stratus [1].", ["Cirrus", "Stratus"]),
        ("There are two meeting rooms [1, 2]: Cirrus [1] and Stratus [2; 3].", ["Cirrus", "Stratus"]),
        ("- Moving house [1]: one day\n- A wedding: two days.", ["Moving house: one day", "A wedding: two days"]),
        ("The trays are red, green, and blue.", ["red", "green", "blue"]),
        ("Ask your team leader. Then write it down [1].", ["Ask your team leader", "Then write it down"]),
        ("Parents get 22 weeks.", []),
        ("", []),
    ],
)
def test_what_an_answer_lists(answer: str, items: list[str]) -> None:
    assert list_items(answer) == items


def test_an_ordinal_may_mean_a_source_or_an_older_answer() -> None:
    answers = ["It is 9 degrees [2]. It was 4 degrees [1].", "Yes."]
    assert nth_item("what does the second source say?", answers) == ("what does It was 4 degrees say?", True)
    both = ["It is 9 degrees [2, 3]. It was 4 degrees [1]."]
    assert nth_item("what does the third source say?", both) == ("what does It was 4 degrees say?", True)
    assert nth_item("what about number 2?", ["They are Oak and Elm.", "Yes."]) == ("what about Elm?", True)
    assert nth_item("what about number 12?", ["They are Oak and Elm."]) == ("what about number 12?", False)
    assert nth_item("the second factor", answers) == ("the second factor", None)


def test_the_right_document_is_found(tmp_path: Path) -> None:
    """Over words alone, which needs no model; benchmarks/bench_followups.py has the figures of hybrid search."""
    shutil.copytree(LABELLED / "toolshed", tmp_path / "toolshed")
    handbook = copy_handbook(tmp_path)
    for path in (*handbook.glob("*.docx"), *handbook.glob("*.pdf")):
        path.unlink()
    collection = Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder=HashingEmbedder(max_tokens=256))
    collection.sync(handbook, tmp_path / "toolshed")
    rows = labelled()
    assert len([row for row in rows if not row.get("alone")]) >= 40
    found = {"as it stands": 0, "alone": 0}
    for row in rows:
        query = stand_alone(row["question"], talk(*row["history"]))
        if row.get("alone"):
            assert query == row["question"]
            continue
        for form, text in (("as it stands", row["question"]), ("alone", query)):
            hits = collection.search(text, 1, mode="keyword")
            found[form] += bool(hits) and hits[0].uri == row["uri"]
    follow_ups = sum(not row.get("alone") for row in rows)
    assert found["as it stands"] < 0.6 * follow_ups
    assert found["alone"] > 0.8 * follow_ups, found


# --- In an answer ------------------------------------------------------------------------------------------------

HISTORY = talk("How many days of leave do I get?", "You get 28 days of leave [1].")


@pytest.fixture
def handbook(collection: Collection, docs: Path) -> Collection:
    collection.sync(docs)
    settings = Settings(ask=AskSection(reranker="none"))
    return Collection.open(collection.path, settings=settings, embedder=HashingEmbedder())


def with_followup(collection: Collection, how: str, tmp_path: Path) -> Collection:
    settings = Settings(ask=AskSection(followup=how))  # type: ignore[arg-type]
    return Collection.open(collection.path, settings=settings, embedder=HashingEmbedder())


def test_it_is_searched_for_and_asked(handbook: Collection) -> None:
    reader = ScriptedReader(["16 weeks more."])
    answer = Rag(handbook, reader=reader, k=2).ask("And for parents?", history=HISTORY)
    alone = "How many days of leave do I get for parents?"
    assert (answer.question, answer.query) == ("And for parents?", alone)
    assert [hit.chunk_id for hit in answer.hits] == [hit.chunk_id for hit in handbook.search(alone, 2)]
    assert reader.prompts[0][-1].content.endswith(alone)
    assert answer.citations[0].verified


def test_a_question_that_stands_alone_is_given_once(handbook: Collection) -> None:
    reader = ScriptedReader(["At nine."])
    answer = Rag(handbook, reader=reader).ask("When does the office open?", history=HISTORY)
    assert answer.query == answer.question
    assert reader.prompts[0][-1].content.count("When does the office open?") == 1


@pytest.mark.parametrize(
    ("said", "query"),
    [
        ("How much leave do parents get?", "How much leave do parents get?"),
        ("", "How many days of leave do I get for parents?"),
        ("How much leave do parents get?" * 9, "How many days of leave do I get for parents?"),
        ("Where is the printer?", "How many days of leave do I get for parents?"),
        ("Do parents like big red boats?", "How many days of leave do I get for parents?"),
        ("word " * 80, "How many days of leave do I get for parents?"),
    ],
)
def test_the_readers_form_is_checked_and_rules_are_the_other_way(
    handbook: Collection, tmp_path: Path, said: str, query: str
) -> None:
    reader = ScriptedReader([said, "16 weeks more."])
    answer = Rag(with_followup(handbook, "reader", tmp_path), reader=reader).ask("And for parents?", history=HISTORY)
    assert answer.query == query
    assert "31 days" not in reader.prompts[0][-1].content
    assert "You get 28 days of leave [1]." in reader.prompts[0][-1].content


def test_a_first_question_costs_no_rewriting(handbook: Collection, tmp_path: Path) -> None:
    reader = ScriptedReader(["28 days."])
    Rag(with_followup(handbook, "reader", tmp_path), reader=reader).ask("How much leave do I get?")
    assert len(reader.prompts) == 1


def test_it_can_be_turned_off(handbook: Collection, tmp_path: Path) -> None:
    rag = Rag(with_followup(handbook, "off", tmp_path), reader=ScriptedReader(["Yes."]))
    assert rag.ask("And for parents?", history=HISTORY).query == "And for parents?"


def test_a_reader_without_grammars_is_refused(handbook: Collection, tmp_path: Path) -> None:
    class Plain(ScriptedReader):
        def stream(self, messages: Any, sampling: Sampling = Sampling()) -> Any:
            if sampling.grammar:
                raise UnsupportedError("no grammars")
            return super().stream(messages, sampling)

    rag = Rag(with_followup(handbook, "reader", tmp_path), reader=Plain(["Yes."]))
    with pytest.raises(UnsupportedError):
        rag.ask("And for parents?", history=HISTORY)


def test_the_bundled_reader_rewrites_under_the_grammar() -> None:
    from ragfm.generation.followups.reader_rewrite import GRAMMAR

    reader = load_reader("bundled")
    asked = [Message("user", "Write three questions about cats, each on a line of its own.")]
    text = "".join(stream := reader.stream(asked, Sampling(max_tokens=40, grammar=GRAMMAR)))
    assert "\n" not in text
    assert stream.finish_reason == "length" or (text.endswith("?") and text.count("?") == 1)
    assert stand_alone("And for parents?", HISTORY, how="reader", reader=reader)
