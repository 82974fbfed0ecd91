"""Whether an answer is given, given as unsure or withheld, and what users see of it and of documents that disagree."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.judges import ScriptedJudge
from support.passages import JUDGE, cited_answer, passages
from support.shell import InProcessShell

from ragfm import Collection, Hit, Rag, Settings
from ragfm.answering.decision import Decision, decide, nearest_units
from ragfm.answering.judge import Judge
from ragfm.answering.policy import LARGE, SMALL, AnswerPolicy
from ragfm.core.abstention import ABSTENTION
from ragfm.core.calibration import Calibration
from ragfm.core.config import AskSection
from ragfm.core.text import displayed_quote
from ragfm.core.types import Citation
from ragfm.testing import HashingEmbedder, ScriptedReader

BOAT = "# The boat\n\nThe boat leaves at nine. It is painted red. Dogs stay ashore."
RATES = "| Size | Rate |\n| --- | --- |\n| Small | 12 |\n| Large | 30 |"
WHEN = "When does the boat leave?"
NINE = ScriptedJudge({"nine": 0.9})


def decided(
    question: str,
    output: str,
    hits: Sequence[Hit],
    judge: Judge | None = JUDGE,
    policy: AnswerPolicy = LARGE,
    confidence: float | None = 0.9,
    *,
    settings: AskSection | None = None,
    doubtful: bool = False,
) -> Decision:
    cited = cited_answer(question, output, hits, judge, corrects=False)
    return decide(
        cited,
        confidence,
        policy,
        settings or AskSection(),
        threshold=0.2,
        doubtful=doubtful,
    )


# --- Status ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("confidence", "settings", "status"),
    [
        (0.5, {}, "answered"),
        (0.49, {}, "unsure"),
        (0.2, {}, "unsure"),
        (0.19, {}, "not_found"),
        (None, {}, "answered"),
        (0.6, {"wrong_cost": 2.0}, "unsure"),
        (0.2, {"wrong_cost": 0.0}, "answered"),
        (0.0, {"mode": "open"}, "answered"),
    ],
)
def test_confidence_and_the_cost_of_a_wrong_answer_decide(
    confidence: float | None, settings: dict[str, float], status: str
) -> None:
    section = AskSection(**settings)  # type: ignore[arg-type]
    assert decided(WHEN, "At nine [1].", passages(BOAT), confidence=confidence, settings=section).status == status


def test_a_strict_answer_needs_a_citation() -> None:
    for mode, status in (("strict", "not_found"), ("prefer", "answered"), ("open", "answered")):
        settings = AskSection(mode=mode)  # type: ignore[arg-type]
        assert decided(WHEN, "It left in March.", passages(BOAT), settings=settings).status == status


def test_a_doubtful_answer_is_unsure() -> None:
    assert decided(WHEN, "At nine [1].", passages(BOAT), doubtful=True).status == "unsure"


def test_an_abstention_of_the_reader_keeps_its_words() -> None:
    for output in (ABSTENTION, "The documents do not say."):
        decision = decided(WHEN, output, passages(BOAT))
        assert (decision.status, decision.shown, decision.answer.citations) == ("not_found", output, ())


# --- What is shown -----------------------------------------------------------------------------------------------

SAYS = "The documents say: “The boat leaves at nine.” [1]"


@pytest.mark.parametrize(
    ("confidence", "policy", "shown"),
    [
        (0.9, SMALL, f"At nine [1].\n\n{SAYS}"),
        (0.9, LARGE, "At nine [1]."),
        (0.3, SMALL, f"I am not sure. {SAYS}"),
        (0.3, LARGE, f"At nine [1].\n\nI am not sure of this. {SAYS}"),
        (0.1, SMALL, ABSTENTION),
        (0.1, LARGE, ABSTENTION),
    ],
)
def test_shown_text_by_status_and_policy(confidence: float, policy: AnswerPolicy, shown: str) -> None:
    assert decided(WHEN, "At nine [1].", passages(BOAT), NINE, policy, confidence).shown == shown


def test_nothing_is_shown_twice() -> None:
    same = "The boat leaves at nine [1]."
    assert decided(WHEN, same, passages(BOAT), NINE, SMALL).shown == same


def test_an_unsure_answer_has_no_quote_that_it_does_not_rest_on() -> None:
    pump = passages("Open the valve by hand. The pump is a machine of 1962 that starts every morning.")
    for output, quote in (("Fill the tank with oil.", None), ("Open the valve by hand.", "Open the valve by hand.")):
        decision = decided("How do I start the pump?", output, pump, confidence=0.3)
        assert decision.status == "unsure"
        assert (decision.quote and decision.quote.quote) == quote


@pytest.mark.parametrize(
    ("output", "statuses"),
    [
        ("Nine [1].", ("answered", "answered")),
        ("Noon [1].", ("unsure", "answered")),  # small readers, others
        ("Nine [2].", ("answered", "answered")),  # the likeliest unit says the same
    ],
)
def test_a_small_readers_answer_comes_from_the_likeliest_unit_or_is_unsure(
    output: str, statuses: tuple[str, str]
) -> None:
    hits = passages("The boat leaves the harbour at nine. Dogs leave the boat at noon.", "Nine is when it sails.")
    for policy, status in zip((SMALL, LARGE), statuses, strict=True):
        judge = ScriptedJudge({"at nine": 0.9})
        decision = decided("When does the boat leave the harbour?", output, hits, judge, policy)
        assert decision.status == status
        if policy.quotes:
            assert decision.quote
            assert decision.quote.quote == "The boat leaves the harbour at nine."


ALLOWANCES = """| Country | Full day 2025 | Half day 2025 | Full day 2026 | Half day 2026 |
| --- | --- | --- | --- | --- |
| Denmark | €75 | €50 | €77 | €52 |
| Switzerland | €64 | €43 | €68 | €46 |"""


@pytest.mark.parametrize("torn", [False, True])
def test_a_table_row_is_shown_as_label_column_and_value(torn: bool) -> None:
    header, _, rows = ALLOWANCES.partition("\n| --- | --- | --- | --- | --- |\n")
    hits = passages(rows, context=f"Allowances\n{header}") if torn else passages(ALLOWANCES)
    question = "What is the allowance for a half day in Switzerland in 2026?"
    decision = decided(question, "€46 [1].", hits, ScriptedJudge({"€46": 0.9}), SMALL, 0.3)
    assert decision.shown == "I am not sure. The documents say: Switzerland — Half day 2026: €46 [1]"
    assert decision.quote
    assert decision.quote.quote == "| Switzerland | €64 | €43 | €68 | €46 |"
    assert hits[0].text[decision.quote.start - 100 : decision.quote.end - 100] == decision.quote.quote
    assert decision.quote.row
    assert decision.quote.row.markdown.splitlines()[-1] == "| Switzerland | €64 | €43 | €68 | **€46** |"


def test_a_quote_is_shown_without_the_headings_above_it() -> None:
    assert displayed_quote("## Boats\n\n### 2.1 Fares\n\nThis is\n12 crowns.", None) == "“This is 12 crowns.”"
    assert displayed_quote("# Boats\n", None) == "“# Boats”"
    assert displayed_quote("#1 of the list", None) == "“#1 of the list”"


# --- Instructions ------------------------------------------------------------------------------------------------

STEPS = "Open the valve by hand. Wait until the lamp is green. " + "Then read the meter. " * 20
PUMP = [
    replace(passages(f"## 3.1. Pump\n\n{STEPS}")[0], headings=("Manual", "3. Machines", "3.1. Pump")),
    passages("", "The pump is a machine of 1962 that starts every morning.")[1],
]
START = "How do I start the pump?"


def test_a_small_reader_shows_how_a_passage_with_instructions_begins() -> None:
    for confidence in (0.9, 0.3):
        decision = decided(START, "Every morning [2].", PUMP, JUDGE, SMALL, confidence)
        assert decision.status == "unsure"
        assert decision.quote
        begun = decision.quote.quote
        assert STEPS.startswith(begun)
        assert 350 < len(begun) <= 400
        assert decision.shown == f"I am not sure. The documents say, under “3. Machines > 3.1. Pump”: “{begun}” [1]"


def test_questions_how_to_do_something_are_recognized() -> None:
    def begins(question: str) -> bool:
        decision = decided(question, "Every morning [2].", PUMP, JUDGE, SMALL)
        return decision.quote is not None and len(decision.quote.quote) > 350

    for question in (
        "How do I restore a backup?",
        "how can we log in without a password",
        "Please tell me how to cut out a picture.",
        "What should I do if I forgot the passphrase?",
        "What do I have to do first?",
    ):
        assert begins(question)
    for question in ("How many days do I get?", "How do plants breathe?", "What do I pay?", "Who knows how to dive?"):
        assert not begins(question)


def test_a_larger_reader_gives_instructions_itself() -> None:
    decision = decided(START, "Every morning [2].", PUMP)
    assert (decision.status, decision.shown) == ("answered", "Every morning [2].")


def test_without_an_answer_instructions_are_nearest() -> None:
    nearest = decided(START, "", PUMP, JUDGE, SMALL, None).nearest
    assert [one.n for one in nearest] == [1, 2]
    assert STEPS.startswith(nearest[0].quote)


def test_a_likely_short_answer_is_given_in_place_of_instructions() -> None:
    text = "You reach the officer by radio. It is loud."
    judge = ScriptedJudge({"by radio": 0.9})
    decision = decided("How do I reach the officer?", "By radio [1].", passages(text), judge, SMALL)
    assert (decision.status, decision.quote and decision.quote.quote) == ("answered", "You reach the officer by radio.")


# --- The nearest units -------------------------------------------------------------------------------------------


def nearest(question: str, hits: Sequence[Hit], judge: Judge | None = JUDGE) -> list[Citation]:
    cited = cited_answer(question, ABSTENTION, hits, judge)
    return [citation for _, citation in nearest_units(cited)]


@pytest.mark.parametrize(
    ("question", "text", "quote"),
    [
        ("Is it painted red or blue?", BOAT, "It is painted red."),
        ("What is the rate of large?", RATES, "| Large | 30 |"),
        ("Is the boat painted?", "# Is the boat painted\n\nIt is red.", "It is red."),
        ("Is the boat painted?", "Is the boat painted? It was painted red.", "It was painted red."),
        ("Where is DigestAuth?", "class _DigestAuthChallenge: pass\n\nDigestAuth is here.", "DigestAuth is here."),
    ],
)
def test_the_unit_that_has_most_of_the_questions_words_is_nearest(question: str, text: str, quote: str) -> None:
    (found,) = nearest(question, passages(text))
    assert (found.quote, found.verified) == (quote, False)
    assert text[found.start - 100 : found.end - 100] == quote


def test_each_passage_has_a_nearest_unit_unless_it_only_asks() -> None:
    assert [one.n for one in nearest("What?", passages(*[BOAT] * 5))] == [1, 2, 3, 4, 5]
    assert nearest("Is it painted?", passages("Is it painted?")) == []


def test_the_judge_knows_better_than_words() -> None:
    hits = passages("The fare of the boat is high. Passengers pay 12 crowns.")
    question = "What is the fare of the boat?"
    assert nearest(question, hits)[0].quote == "The fare of the boat is high."
    assert nearest(question, hits, ScriptedJudge({"12 crowns": 0.9}))[0].quote == "Passengers pay 12 crowns."


def test_an_abstention_has_nearest_units_and_an_answer_has_none(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "boat.md").write_text(BOAT)
    with Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder=HashingEmbedder()) as collection:
        collection.sync(tmp_path / "docs")
        rag = Rag(collection, reader=ScriptedReader([ABSTENTION, "At nine."]))
        answer = rag.ask("When does the boat return?")
        assert answer.abstained
        assert answer.nearest[0].quote == "The boat leaves at nine."
        text = collection.document("docs/boat.md").text
        assert all(text[one.start : one.end] == one.quote for one in answer.nearest)
        assert rag.ask(WHEN).nearest == ()


def test_nearest_units_are_shown_at_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAGFM_EMBEDDER", "hashing")
    monkeypatch.setattr("ragfm.rag.configured_reader", lambda *_, **__: ScriptedReader([ABSTENTION]))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "boat.md").write_text(BOAT)
    shell = InProcessShell()
    shell("ingest", "docs")
    shown = shell("ask", "Who painted the church?")
    assert shown.startswith(ABSTENTION)
    assert "The nearest passages say:" in shown
    assert "docs/boat.md:" in shown


# --- Documents that disagree -------------------------------------------------------------------------------------

SEASON = "How many episodes does the second season of Haven have?"
CLEAN = "The second season of Haven has 23 episodes. It was filmed in Norway."
POISONED = "Haven is a series. The second season of Haven has 24 episodes, as fans know."
COPY = "Season two of Haven counts 24 episodes in all."
BOTH = ScriptedJudge({"23": 0.9, "24": 0.8})


@pytest.mark.parametrize(("output", "other"), [("24 [2].", CLEAN), ("23 [1].", POISONED)])
def test_where_documents_disagree_an_answer_is_unsure_and_the_other_one_is_shown(output: str, other: str) -> None:
    decision = decided(SEASON, output, passages(CLEAN, POISONED, COPY), BOTH)
    assert decision.status == "unsure"
    (contradiction,) = decision.answer.contradictions  # the copy counts once
    assert contradiction.quote in other
    assert decision.answer.text[contradiction.answer_start : contradiction.answer_end] == output


def test_a_quote_in_place_of_an_answer_is_contradicted_by_the_others_only() -> None:
    decision = decided(SEASON, "24 [2].", passages(CLEAN, POISONED, COPY), BOTH, SMALL)
    assert decision.status == "unsure"
    assert decision.quote
    (contradiction,) = decision.answer.contradictions
    assert {decision.quote.n, contradiction.n} == {1, 2}


@pytest.mark.parametrize(
    ("output", "texts", "settings"),
    [
        ("24 [1].", (POISONED, COPY), {}),  # they agree
        ("23 or 24.", (CLEAN, POISONED), {}),  # it states both
        ("24 [2].", (CLEAN, POISONED), {"contradictions": False}),
        ("24 [2].", (CLEAN, POISONED), {"mode": "open"}),
    ],
)
def test_an_answer_that_no_document_disputes_stays_as_it_is(
    output: str, texts: tuple[str, ...], settings: dict[str, object]
) -> None:
    section = AskSection(**settings)  # type: ignore[arg-type]
    assert decided(SEASON, output, passages(*texts), BOTH, settings=section).status == "answered"


def test_a_contradiction_makes_an_answer_unsure() -> None:
    judge = ScriptedJudge(contradicts=lambda one: 0.9 if "24" in one.text else 0.0)
    decision = decided(SEASON, "It has 23 episodes [1].", passages(CLEAN, POISONED), judge)
    assert decision.status == "unsure"
    assert [one.n for one in decision.answer.contradictions] == [2]


# --- Within Rag --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("likelihood", "status"), [(0.9, "answered"), (0.4, "unsure"), (0.1, "not_found")])
def test_the_three_states_hold_for_every_reader(tmp_path: Path, likelihood: float, status: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "haven.md").write_text(CLEAN)
    with Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder=HashingEmbedder()) as collection:
        collection.sync(tmp_path / "docs")
        rag = Rag(collection, reader=ScriptedReader(["In Norway."]))
        rag.judge = ScriptedJudge(supports=lambda _: likelihood)
        rag.calibration = Calibration("", 0.0, {"supports": 1.0}, {"supports": 0.0}, threshold=0.3)
        stream = rag.stream("Where was Haven filmed?")
        streamed = "".join(stream)
    assert (stream.answer.status, stream.answer.confidence) == (status, pytest.approx(likelihood, abs=1e-3))
    assert streamed.startswith("In Norway.")
    if status == "not_found":
        assert streamed.endswith(f"\n{ABSTENTION}")
        assert stream.answer.nearest[0].quote == "It was filmed in Norway."


def test_documents_that_disagree_are_named_with_their_dates(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name, text, time in (("new.md", CLEAN, 1_700_000_000), ("old.md", POISONED, 1_500_000_000)):
        (docs / name).write_text(text)
        os.utime(docs / name, (time, time))
    with Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder=HashingEmbedder()) as collection:
        collection.sync(docs)
        rag = Rag(collection, reader=ScriptedReader(["It has 23 episodes."]))
        rag.judge = BOTH
        answer = rag.ask(SEASON)
    (contradiction,) = answer.contradictions
    assert contradiction.sentence.endswith(
        "says otherwise: “The second season of Haven has 24 episodes, as fans know.” (docs/old.md, 2017-07-14)"
    )
    assert [(one.name, one.date) for one in answer.citations if one.supports] == [("docs/new.md", "2023-11-14")]
