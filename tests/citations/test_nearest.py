"""What the documents say nearest to a question without an answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.shell import Shell

from ragfm import Collection, Hit, Rag, Settings
from ragfm.citations import decision as decision_module
from ragfm.citations.decision import decide, nearest_sentences, select_quote, shown_text
from ragfm.citations.grounding import cite_answer
from ragfm.citations.support import analyze
from ragfm.citations.verifier import load_verifier
from ragfm.core.config import AskSection
from ragfm.core.text import displayed_quote
from ragfm.core.types import Citation
from ragfm.testing import HashingEmbedder, ScriptedReader

BOAT = "# The boat\n\nThe boat leaves at nine. It is painted red. Dogs stay ashore."
RATES = "| Size | Rate |\n| --- | --- |\n| Small | 12 |\n| Large | 30 |"


def hit(text: str, n: int | None) -> Hit:
    return Hit(f"{n}.md", text, 100, 100 + len(text), n or 0, 0.5, {}, page=n, n=n)


def test_the_sentence_that_shares_most_with_the_question() -> None:
    passages = [hit(BOAT, 1), hit(RATES, 2), hit("Nothing here.", None)]
    (_, first), (_, second) = nearest_sentences(analyze("Is it painted red or blue?", passages), ())
    assert (first.n, first.page, first.quote, first.verified) == (1, 1, "It is painted red.", False)
    assert BOAT[first.start - 100 : first.end - 100] == first.quote
    assert second.quote == "| Small | 12 |"
    heading = hit("# Is the boat painted\n\nIt is red.", 1)
    ((_, headed),) = nearest_sentences(analyze("Is the boat painted?", [heading]), ())
    assert headed.quote == "It is red."
    asked = hit("Is the boat painted? It was painted red.", 1)
    ((_, answer),) = nearest_sentences(analyze("Is the boat painted?", [asked]), ())
    assert answer.quote == "It was painted red."
    assert nearest_sentences(analyze("Is the boat painted?", [hit("Is the boat painted?", 1)]), ()) == []
    each = nearest_sentences(analyze("What?", [hit(BOAT, n) for n in range(1, 6)]), ())
    assert [citation.n for _, citation in each] == [1, 2, 3, 4, 5]


def test_an_identifier_of_the_question_matches_whole() -> None:
    code = hit("class _DigestAuthChallenge:\n    ...\n\nThe class of auth is DigestAuth, defined here.", 1)
    analysis = analyze("Where is the class DigestAuth defined?", [code])
    first, *_, last = analysis.windows[1]
    assert first.question_terms == {"class"}
    assert "digestauth" in last.question_terms


def test_a_quote_is_shown_without_the_headings_above_it() -> None:
    assert displayed_quote("## Boats\n\n### 2.1 Fares\n\nThis is\n12 crowns.", None) == "“This is 12 crowns.”"
    assert displayed_quote("# Boats\n", None) == "“# Boats”"
    assert displayed_quote("#1 of the list", None) == "“#1 of the list”"
    boats = hit("### 2.1 Fares\n\nThis is the list of fares.", 1)
    quote = Citation(1, "1.md", 1, 0, len(boats.text), boats.text, verified=True)
    assert shown_text("12", "unsure", quote, small=True).endswith("The documents say: “This is the list of fares.” [1]")


def test_the_verifier_knows_better_than_words() -> None:
    passages = [hit("The fare of the boat is high. Passengers pay 12 crowns.", 1)]
    question = "How many crowns does the boat cost?"
    readings = load_verifier().read(question, passages)
    ((_, nearest),) = nearest_sentences(analyze(question, passages), readings)
    assert nearest.quote == "Passengers pay 12 crowns."


def test_shown_text_by_status_and_size_of_the_reader() -> None:
    (_, quote) = nearest_sentences(analyze("When does the boat leave?", [hit(BOAT, 2)]), ())[0]
    says = "The documents say: “The boat leaves at nine.” [2]"
    cases = {
        ("answered", True): f"At nine [2].\n\n{says}",
        ("answered", False): f"At nine [2].\n\n{says}",
        ("unsure", True): f"I am not sure. {says}",
        ("unsure", False): f"At nine [2].\n\nI am not sure of this. {says}",
        ("not_found", True): "At nine [2].",
    }
    for (status, small), shown in cases.items():
        assert shown_text("At nine [2].", status, quote, small=small) == shown  # type: ignore[arg-type]
    assert shown_text("At nine [2].", "answered", None, small=True) == "At nine [2]."
    assert shown_text("At nine.", "unsure", None, small=True) == "At nine.\n\nI am not sure of this."
    same = "The boat leaves at nine [2]."
    assert shown_text(same, "answered", quote, small=True) == same, "nothing is said twice"


ALLOWANCES = """| Country | Full day 2025 | Half day 2025 | Full day 2026 | Half day 2026 |
| --- | --- | --- | --- | --- |
| Denmark | €75 | €50 | €77 | €52 |
| Switzerland | €64 | €43 | €68 | €46 |"""


def test_a_table_row_is_shown_as_label_column_and_value() -> None:
    question = "What is the daily allowance for a half day in Switzerland in 2026?"
    header, _, rows = ALLOWANCES.partition("\n| --- | --- | --- | --- | --- |\n")
    for passage in (hit(ALLOWANCES, 1), replace(hit(rows, 1), context=f"Allowances\n{header}")):
        cited = cite_answer(question, "I don't know.", [passage], "en", verifier="bundled", corrects=True)
        decision = decide(cited, 0.2, None, AskSection(), small=True)
        assert decision.answer.text == "€46 [1]."
        assert decision.shown == "I am not sure. The documents say: Switzerland — Half day 2026: €46 [1]"
        assert decision.quote
        assert decision.quote.quote == "| Switzerland | €64 | €43 | €68 | €46 |"
        assert passage.text[decision.quote.start - 100 : decision.quote.end - 100] == decision.quote.quote
        assert decision.quote.row
        assert decision.quote.row.markdown.splitlines()[-1] == "| Switzerland | €64 | €43 | €68 | **€46** |"


def test_the_cell_of_an_answer_is_marked_and_other_cells_that_the_question_names_are_in_the_label() -> None:
    rooms = hit("| ID | Room | Floor | Seats |\n|---|---|---|---|\n| 1 | Lake | 2 | 12 |\n| 2 | Forest | 3 | 30 |", 1)
    shown = {}
    for question, output in (
        ("How many seats has the room Forest?", "30 [1]."),
        ("Which room on floor 3 has 30 seats?", "Forest [1]."),
        ("What do you know of Forest?", "It has the ID 2 [1]."),
    ):
        cited = cite_answer(question, output, [rooms], "en", verifier=None, corrects=False)
        (citation,) = decide(cited, None, None, AskSection(), small=False).answer.citations
        assert citation.row
        shown[question] = citation.row.text
    assert list(shown.values()) == [
        "2, Room: Forest — Seats: 30",
        "2, Floor: 3, Seats: 30 — Room: Forest",
        "2, Room: Forest — Room: Forest; Floor: 3; Seats: 30",
    ]


def test_a_small_readers_answer_comes_from_the_likeliest_sentence_or_is_unsure() -> None:
    passages = [
        hit("The boat to the island leaves the harbour at nine. Dogs leave the boat at noon.", 1),
        hit("Nine is when it sails.", 2),
    ]
    sure = {}
    for output in ("Nine [1].", "Noon [1].", "Nine [2]."):  # the last one with evidence in the second passage
        cited = cite_answer(
            "When does the boat leave the harbour?", output, passages, "en", verifier="bundled", corrects=False
        )
        if output == "Nine [2].":
            (sentence,) = cited.sentences
            evidence = replace(sentence.evidence[0], hit=passages[1], start=0, end=22)
            cited = replace(cited, sentences=[replace(sentence, evidence=(evidence,))])
        for small in (True, False):
            decision = decide(cited, 0.9, None, AskSection(), small=small)
            sure[output, small] = decision.status
            if small:
                assert decision.quote
                assert decision.quote.quote == "The boat to the island leaves the harbour at nine."
    assert sure == {
        ("Nine [1].", True): "answered",
        ("Nine [1].", False): "answered",
        ("Noon [1].", True): "unsure",
        ("Noon [1].", False): "answered",
        ("Nine [2].", True): "answered",  # that sentence says the same
        ("Nine [2].", False): "answered",
    }


def test_a_small_reader_shows_how_a_passage_with_instructions_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = "Open the valve by hand. Wait until the lamp is green. " + "Then read the meter. " * 20
    passages = [
        replace(hit(f"## 3.1. Pump\n\n{steps}", 1), headings=("Manual", "3. Machines", "3.1. Pump")),
        hit("The pump is a machine of 1962 that starts every morning.", 2),
    ]
    question = "How do I start the pump?"
    cited = cite_answer(question, "Every morning [2].", passages, "en", verifier="bundled", corrects=False)
    for confidence in (0.9, 0.2):
        decision = decide(cited, confidence, None, AskSection(), small=True, instructions=True)
        assert decision.status == "unsure"
        assert decision.quote
        begun = decision.quote.quote
        assert steps.startswith(begun)
        assert 350 < len(begun) <= 400
        assert decision.shown == f"I am not sure. The documents say, under “3. Machines > 3.1. Pump”: “{begun}” [1]"
        larger = decide(cited, confidence, None, AskSection(), small=False, instructions=True)
        assert larger == decide(cited, confidence, None, AskSection(), small=False)
    missing = replace(cited, sentences=[])
    nearest = decide(missing, None, None, AskSection(), small=True, instructions=True).nearest
    assert [one.n for one in nearest] == [1, 2]
    assert nearest[0].quote == begun
    monkeypatch.setattr(decision_module, "_LIKELY", 0.4)
    question, likely = "How do I reach the officer?", "You reach the officer by radio on channel 8. It is loud."
    cited = cite_answer(question, "By radio [1].", [hit(likely, 1)], "en", verifier="bundled", corrects=False)
    decision = decide(cited, 0.9, None, AskSection(), small=True, instructions=True)
    assert (decision.status, decision.quote and decision.quote.quote) == ("answered", likely.partition(" It")[0])


def test_a_sure_answer_shows_its_evidence_and_an_unsure_one_the_likeliest_sentence() -> None:
    nearest = nearest_sentences(analyze("Is it painted?", [hit("Cats stay here.", 1), hit(BOAT, 2)]), ())
    evidence = replace(nearest[0][1], verified=True)
    assert select_quote("answered", [evidence], nearest, small=True) == evidence
    assert select_quote("unsure", [evidence], nearest, small=True).quote == "It is painted red."  # type: ignore[union-attr]
    assert select_quote("unsure", [evidence], (), small=True) == evidence
    assert select_quote("answered", (), (), small=True) is None


def test_an_answer_that_is_shown_has_no_quote_that_it_does_not_rest_on() -> None:
    question = "How do I start the pump?"
    pump = hit("Open the valve by hand. The pump is a machine of 1962 that starts every morning.", 1)
    for output, quote in (
        ("1. Fill the tank with oil. 2. Turn the key.", None),
        ("1. Fill the tank with oil. 2. Open the valve by hand.", "Open the valve by hand."),
    ):
        cited = cite_answer(question, output, [pump], "en", verifier="bundled", corrects=False)
        decision = decide(cited, 0.3, None, AskSection(), small=False)
        assert decision.status == "unsure"
        assert (decision.quote and decision.quote.quote) == quote
        assert "machine of 1962" not in decision.shown


def test_an_abstention_has_nearest_sentences_and_an_answer_has_none(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "boat.md").write_text(BOAT)
    with Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder=HashingEmbedder()) as collection:
        collection.sync(tmp_path / "docs")
        rag = Rag(collection, reader=ScriptedReader(["I don't know.", "At nine."]))
        answer = rag.ask("When does the boat return?")
        assert answer.abstained
        assert answer.nearest[0].quote == "The boat leaves at nine."
        text = collection.document("docs/boat.md").text
        assert all(text[one.start : one.end] == one.quote for one in answer.nearest)
        assert rag.ask("When does the boat leave?").nearest == ()


def test_at_the_terminal(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "boat.md").write_text(BOAT)
    shell("ingest", "docs")
    done = shell("ask", "Who painted the church?")
    assert "I don't know." in done.stdout
    assert "The nearest passages say:" in done.stdout
    assert "docs/boat.md:" in done.stdout
