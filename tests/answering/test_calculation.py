"""Calculations over cells and numbers of passages."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragfm import Collection, Hit, Rag, Settings
from ragfm.answering.calculation import (
    PERCENT,
    POINTS,
    CalculationError,
    Operand,
    calculate,
    displayed,
    likely_operands,
    operands,
    rounded,
)
from ragfm.answering.units import passage_units
from ragfm.testing import HashingEmbedder, ScriptedReader

TABLE = """In millions of dollars, except shares

| | 2023 | 2022 | Change in % |
| --- | --- | --- | --- |
| Revenue | $ 1,577 | $ 1,373 | 14.9 |
| Net loss | (565) | 12.5 | |
| Margin | 12 % | 10 % | |
"""


def cells(text: str = TABLE, question: str = "What was the revenue?") -> dict[str, Operand]:
    hit = Hit("report.pdf", text, 0, len(text), 1, None, {}, n=1)
    return {one.label: one for one in operands(question, list(passage_units(hit, "en")), "en")}


def test_cells_have_labels_signs_scales_and_units() -> None:
    found = cells()
    revenue, loss, margin = found["Revenue — 2023"], found["Net loss — 2023"], found["Margin — 2023"]
    assert revenue.scaled == Decimal("1577000000")
    assert (loss.value, loss.power) == (Decimal(-565), 6)
    assert (margin.value, margin.power, margin.units) == (Decimal(12), 0, {PERCENT})
    assert len({one.name for one in found.values()}) == len(found)


def test_a_percentage_change_shows_its_working() -> None:
    found = cells()
    change = calculate("percentage change", [found["Revenue — 2023"], found["Revenue — 2022"]])
    assert (rounded(change), change.unit) == (Decimal("14.86"), "%")
    assert change.working == "($ 1,577 − $ 1,373) ÷ $ 1,373 × 100" or change.working == "(1,577 − 1,373) ÷ 1,373 × 100"


@pytest.mark.parametrize(
    ("operation", "value"),
    [
        ("difference", "204"),
        ("sum", "2950"),
        ("mean", "1475"),
        ("ratio", "1.15"),
        ("share", "114.86"),
        ("maximum", "1577"),
        ("growth rate", "14.86"),
        ("comparison", "204"),
        ("count", "2"),
    ],
)
def test_operations(operation: str, value: str) -> None:
    found = cells()
    result = calculate(operation, [found["Revenue — 2023"], found["Revenue — 2022"]])  # type: ignore[arg-type]
    assert rounded(result) == Decimal(value)


def test_percentages_differ_by_points_and_are_not_added_to_money() -> None:
    found = cells()
    assert calculate("difference", [found["Margin — 2023"], found["Margin — 2022"]]).unit == POINTS
    with pytest.raises(CalculationError, match="12 %"):
        calculate("sum", [found["Margin — 2023"], found["Revenue — 2023"]])


def test_scales_are_converted() -> None:
    found = cells("Sales were 2 billion euros in the north. Sales were 500 million euros in the south.")
    north, south = (
        found["Sales were 2 billion euros in the north."],
        found["Sales were 500 million euros in the south."],
    )
    assert calculate("sum", [north, south]).value.scaleb(calculate("sum", [north, south]).power) == Decimal(
        "2500000000"
    )
    dollars = cells("Sales were 3 dollars.")["Sales were 3 dollars."]
    with pytest.raises(CalculationError):
        calculate("sum", [north, dollars])


@pytest.mark.parametrize("operation", ["ratio", "percentage change", "share"])
def test_division_by_zero_is_refused(operation: str) -> None:
    found = cells("| | 2023 | 2022 |\n| --- | --- | --- |\n| Debt | 5 | 0 |")
    with pytest.raises(CalculationError, match="no value"):
        calculate(operation, [found["Debt — 2023"], found["Debt — 2022"]])  # type: ignore[arg-type]


def test_the_same_cell_twice_or_one_of_a_pair_is_refused() -> None:
    revenue = cells()["Revenue — 2023"]
    for chosen in ([revenue, revenue], [revenue], []):
        with pytest.raises(CalculationError):
            calculate("difference", chosen)


@given(st.lists(st.decimals(-1_000_000, 1_000_000, places=2), min_size=2, max_size=6))
def test_sums_and_means_are_exact(numbers: list[Decimal]) -> None:
    rows = "\n".join(f"| r{n} | {f'({-value})' if value < 0 else value} |" for n, value in enumerate(numbers))
    found = cells(f"| | 2023 |\n| --- | --- |\n{rows}")
    chosen = [found[f"r{n} — 2023"] for n in range(len(numbers))]
    assert calculate("sum", chosen).value == sum(numbers)
    assert abs(calculate("mean", chosen).value * len(numbers) - sum(numbers)) < Decimal("1e-20")


@pytest.mark.parametrize(
    ("question", "operation", "answer"),
    [
        ("What is the percentage change in revenue between 2022 and 2023?", "percentage change", "14.86 %"),
        ("What is the change in revenue from 2022 to 2023?", "difference", "$204 million"),
        ("What was the average revenue in 2022 and 2023?", "mean", "$1,475 million"),
        ("What was the change in margin from 2022 to 2023?", "difference", "2 percentage points"),
        ("What is the difference between revenue and net loss in 2023?", "difference", "$2,142 million"),
    ],
)
def test_the_operands_that_a_question_means(question: str, operation: str, answer: str) -> None:
    hit = Hit("report.pdf", TABLE, 0, len(TABLE), 1, None, {}, n=1)
    found = operands(question, list(passage_units(hit, "en")), "en")
    result = calculate(operation, likely_operands(operation, found, question))  # type: ignore[arg-type]
    assert displayed(result, "en").partition(" = ")[0] == answer


def test_a_result_is_written_as_its_language_does() -> None:
    table = "in Mio. €\n\n| | 2023 | 2022 |\n| --- | --- | --- |\n| Umsatz | 1.577,5 | 1.373 |"
    hit = Hit("bericht.pdf", table, 0, len(table), 1, None, {}, n=1)
    found = operands("Wie hat sich der Umsatz von 2022 auf 2023 verändert?", list(passage_units(hit, "de")), "de")
    shown = displayed(calculate("difference", found[:2] if "2023" in found[0].label else found[1::-1]), "de")
    assert shown == "204,5 Millionen EUR = 1.577,5 − 1.373"


@pytest.fixture
def rag(tmp_path: Path) -> Rag:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "report.md").write_text(f"# Report 2023 of Acme\n\n{TABLE}\nAcme makes anvils since 1949.\n")
    collection = Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder=HashingEmbedder())
    collection.sync(folder)
    return Rag(collection, reader=ScriptedReader(["since 1949 [1]"]))


def test_a_question_that_needs_a_calculation_is_answered_with_its_working_and_operands(rag: Rag) -> None:
    answer = rag.ask("What is the percentage change in revenue between 2022 and 2023?")
    assert answer.text == "14.86 % = (1,577 − 1,373) ÷ 1,373 × 100 [1]"
    assert (answer.status, answer.shown, answer.usage.completion_tokens) == ("answered", answer.text, 0)
    assert answer.calculation
    assert (answer.calculation.operation, answer.calculation.result) == ("percentage change", "14.86 %")
    assert [(one.label, one.text) for one in answer.calculation.operands] == [
        ("Revenue — 2023", "1,577"),
        ("Revenue — 2022", "1,373"),
    ]
    text = rag.collection.document(answer.citations[0].uri).text
    rows = [(text[one.start : one.end], one.row and one.row.column) for one in answer.citations]
    assert rows == [("| Revenue | $ 1,577 | $ 1,373 | 14.9 |", 1), ("| Revenue | $ 1,577 | $ 1,373 | 14.9 |", 2)]


def test_a_calculation_over_a_label_that_the_question_does_not_have_is_unsure(rag: Rag) -> None:
    answer = rag.ask("What is the percentage change in turnover between 2022 and 2023?")
    assert answer.status == "unsure"
    assert answer.shown.endswith("I am not sure of this.")


@pytest.mark.parametrize(
    "question", ["What does Acme make?", "What was the revenue in 2023?", "Seit wann gibt es Acme?"]
)
def test_other_questions_are_answered_by_the_reader(rag: Rag, question: str) -> None:
    assert rag.ask(question).calculation is None
