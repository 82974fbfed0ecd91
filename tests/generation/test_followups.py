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
from ragfm.generation.followups import GRAMMAR, stand_alone
from ragfm.samples import copy_handbook
from ragfm.testing import HashingEmbedder, ScriptedReader

LABELLED = Path(__file__).parent / "followups"
SWAPS = Path(__file__).parents[2] / "benchmarks" / "labels" / "swaps.jsonl"


def talk(*texts: str) -> list[Message]:
    return [Message("assistant" if at % 2 else "user", text) for at, text in enumerate(texts)]


def labelled() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (LABELLED / "questions.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("turns", "wanted"),
    [
        # a phrase with a preposition
        (
            ("How many days of leave do I get?", "31.", "And for parents?"),
            "How many days of leave do I get for parents?",
        ),
        (("Who signs for costs over 250 crowns?", "A.", "And over 900?"), "Who signs for costs over 900?"),
        (("When does it open in summer?", "At 9.", "what about in winter"), "When does it open in winter?"),
        # a name
        (("How much does Oak seat?", "12.", "And Elm?"), "How much does Elm seat?"),
        (
            ("What was Best Buy's selling and administrative expense in Q2 2024?", "9.", "What about Amcor?"),
            "What was Amcor's selling and administrative expense in Q2 2024?",
        ),
        (("Is Costco's debt high?", "Yes.", "Walmart's?"), "Is Walmart's debt high?"),
        # a period: the units that are not named stay
        (("What did 3M earn in Q2 2024?", "9.", "And in 2023?"), "What did 3M earn in Q2 2023?"),
        (("What did 3M earn in Q2 2024?", "9.", "And in Q3?"), "What did 3M earn in Q3 2024?"),
        (("What did 3M earn in Q2 2024?", "9.", "And Q1 2022?"), "What did 3M earn in Q1 2022?"),
        (("What did 3M earn in fiscal 2022?", "9.", "And 2021?"), "What did 3M earn in fiscal 2021?"),
        (("Is it open on weekdays?", "Yes.", "And at weekends?"), "Is it open at weekends?"),
        (("How many came in March 2021?", "4.", "And in May 2022?"), "How many came in May 2022?"),
        # a question word
        (("Can I borrow a bicycle?", "Yes.", "For how long?"), "For how long can I borrow a bicycle?"),
        (("Where is lunch served?", "In the hall.", "When?"), "When is lunch served?"),
        # a pronoun
        (("Where is the library?", "In the tower.", "When does it open?"), "When does the library open?"),
        (("When does the early shift begin?", "At 5.", "When does it end?"), "When does the early shift end?"),
        (("When are backups made?", "At night.", "How long are they kept?"), "How long are backups kept?"),
        (("Who is the safety officer?", "Olav Brekke.", "What is his number?"), "What is the safety officer's number?"),
        (("Which languages does Ann Lee speak?", "Two.", "What is her number?"), "What is Ann Lee's number?"),
        (("Who mends radios?", "Petra Lindgren does [1].", "When is she in?"), "When is Petra Lindgren in?"),
        # two in a row: the second depends on the form of the first
        (("How much does Oak seat?", "12.", "And Elm?", "4.", "What about Ash?"), "How much does Ash seat?"),
    ],
)
def test_a_follow_up_stands_alone_where_that_is_certain(turns: tuple[str, ...], wanted: str) -> None:
    assert stand_alone(turns[-1], talk(*turns[:-1])) == wanted


@pytest.mark.parametrize(
    ("previous", "question"),
    [
        ("How many aircraft did Boeing sell to Ryanair?", "And Airbus?"),  # two names
        ("What was the EBITDA in 2022?", "And Amcor?"),  # no name
        ("What was EBITDA in 2022?", "And Amcor?"),
        ("How much did revenue grow from 2021 to 2022?", "And in 2023?"),  # two years
        ("What did sales reach in 2022?", "And in Q2?"),  # another unit
        ("What was the cash flow last year?", "And the year before?"),
        ("How many people does Oak seat?", "And in Elm?"),
        ("How long can I keep hand tools?", "What about power tools?"),
        ("How many rooms are there?", "And beds?"),
        ("What is paid?", "What if I am ill?"),
        ("Does AES pay a dividend?", "And does Boeing?"),
        ("When is the shop open?", "And Sundays?"),
        ("Who founded the station?", "When?"),
        ("Can I smoke in the shed?", "Why?"),
        ("Where is the sauna hot in winter?", "Who heats it?"),
        ("When is the sauna hot?", "Who heats it?"),
        ("Where are the keys?", "Who has it?"),
        ("How do I claim expenses?", "How old may they be?"),
        ("Did Ann Lee meet Bo Park?", "Where was he born?"),
        ("Can I bring my dog?", "Is it allowed on Fridays?"),
        ("Which rooms are there?", "How big is the second one?"),
        ("Which rooms are there?", "How big is the last?"),
        ("How long may a sabbatical be?", "And until when do I have to apply?"),
        ("Which seasons are there?", "So, I am asking which one this month fall into."),
    ],
)
def test_uncertain_follow_ups_are_searched_with_the_earlier_question(previous: str, question: str) -> None:
    history = talk(previous, "There are Oak and Elm.")
    assert stand_alone(question, history) == f"{previous} {question}"


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
        "Parental Leave",
        "Thanks!",
        "And where is the printer?",
        "?",
        "...",
    ],
)
def test_questions_that_stand_alone_are_unchanged(question: str) -> None:
    assert stand_alone(question, talk("How many days of leave do I get?", "31 days.")) == question
    assert stand_alone(question, talk("How large is the Cirrus room?", "14 seats.")) == question


def test_other_languages_and_first_questions_are_left_alone() -> None:
    assert stand_alone("And for parents?", []) == "And for parents?"
    assert stand_alone("In Berlin?", talk("Wie viele Tage Urlaub gibt es?", "31.")) == "In Berlin?"
    assert stand_alone("And for parents?", talk("How much leave is there?", "31."), how="off") == "And for parents?"


def test_thanks_between_two_questions_do_not_end_the_topic() -> None:
    history = talk("How many days of leave do I get?", "31.", "Thanks!", "Ask another question.")
    assert stand_alone("And for parents?", history) == "How many days of leave do I get for parents?"


def test_a_long_question_is_not_built_upon() -> None:
    """A question fits the embedder's window; that and another may not."""
    assert stand_alone("Why?", talk("What is " + "very " * 80 + "long?", "This.")) == "Why?"
    chain = talk(*["Can I bring my dog?", "Yes.", *["Is it allowed then?", "Yes."] * 7])
    assert len(stand_alone("Why?", chain)) < 200


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
def handbook(shared_handbook: Collection) -> Collection:
    settings = Settings(ask=AskSection(reranker="none"))
    return Collection.open(shared_handbook.location, settings=settings, embedder=HashingEmbedder())


def with_followup(collection: Collection, how: str, tmp_path: Path) -> Collection:
    settings = Settings(ask=AskSection(followup=how))  # type: ignore[arg-type]
    return Collection.open(collection.location, settings=settings, embedder=HashingEmbedder())


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


def test_no_swap_of_an_entity_or_a_period_breaks_the_question() -> None:
    """40 labelled swaps: each is right, or both questions are searched."""
    rows = [json.loads(line) for line in SWAPS.read_text(encoding="utf-8").splitlines()]
    right = 0
    for row in rows:
        form = stand_alone(row["question"], talk(*row["history"]))
        right += form in row["stand_alone"]
        assert form in (*row["stand_alone"], f"{row['history'][0]} {row['question']}"), row["id"]
    assert (right, len(rows)) == (27, 40)


@pytest.mark.parametrize(
    ("said", "query"),
    [
        ("How much leave do parents get?", "How much leave do parents get?"),
        ("", "How many days of leave do I get for parents?"),
        ("How much leave do parents get?" * 9, "How many days of leave do I get for parents?"),
        ("Where is the printer?", "How many days of leave do I get for parents?"),
        ("How many days of leave do I get?", "How many days of leave do I get for parents?"),  # it repeats
        ("Do parents prefer crimson boats?", "How many days of leave do I get for parents?"),
        ("word " * 80, "How many days of leave do I get for parents?"),
    ],
)
def test_the_readers_rewrite_is_checked_and_the_rules_are_the_fallback(
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
    reader = load_reader("bundled", threads=1)
    asked = [Message("user", "Write three questions about cats, each on a line of its own.")]
    text = "".join(stream := reader.stream(asked, Sampling(max_tokens=40, grammar=GRAMMAR)))
    assert "\n" not in text
    assert stream.finish_reason == "length" or (text.endswith("?") and text.count("?") == 1)
    assert stand_alone("And for parents?", HISTORY, how="reader", reader=reader)
