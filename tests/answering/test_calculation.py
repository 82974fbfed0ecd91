"""Calculations over cells of tables in passages."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragfm import Collection, Hit, Rag, Settings
from ragfm.answering import operations
from ragfm.answering.calculation import (
    LIKELY,
    PERCENT,
    POINTS,
    CalculatedAnswer,
    CalculationError,
    MissingOperandError,
    Operand,
    Operation,
    calculate,
    calculate_answer,
    operands,
    rounded,
)
from ragfm.answering.grounding import Grounding
from ragfm.answering.judge import load_judge
from ragfm.answering.units import passage_units
from ragfm.testing import HashingEmbedder, ScriptedReader

CHANGE = "What is the percentage change in revenue from 2022 to 2023?"
DIFFERENCE = "What is the change in revenue from 2022 to 2023?"
TABLE = """In millions of dollars

| | 2023 | 2022 | Change in % |
| --- | --- | --- | --- |
| Revenue | $ 1,577 | $ 1,373 | 14.9 |
| Net loss | (565) | 12.5 | |
| Margin | 12 % | 10 % | |
"""


def table(*rows: str, header: str = "| | 2023 | 2022 |") -> str:
    rule = "|" + " --- |" * (header.count("|") - 1)
    return "\n".join([header, rule, *rows])


def passage(text: str, n: int = 1) -> Hit:
    return Hit(f"{n}.md", text, 0, len(text), n, None, {}, n=n)


def cells(text: str = TABLE) -> dict[str, Operand]:
    return {one.label: one for one in operands("", list(passage_units(passage(text), "en")), "en")}


def answer(question: str, *texts: str) -> CalculatedAnswer | None:
    return calculate_answer(Grounding(question, [passage(text, n) for n, text in enumerate(texts, 1)], "en", None))


def result(question: str, *texts: str) -> str | None:
    found = answer(question, *texts)
    return found and found.calculation.result


def test_cells_have_labels_signs_scales_and_units() -> None:
    found = cells()
    revenue, loss, margin = found["Revenue — 2023"], found["Net loss — 2023"], found["Margin — 2023"]
    assert (revenue.scaled, revenue.sign) == (Decimal("1577000000"), "$")
    assert (loss.value, loss.power) == (Decimal(-565), 6)
    assert (margin.value, margin.power, margin.units) == (Decimal(12), 0, {PERCENT})


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("(5%)", -5),
        ("($5 million)", -5),
        ("( 565 )", -565),
        ("$ (565", -565),
        ("–565", -565),
        ("565-", -565),
        ("1,577(1)", 1577),
        ("1,577 [2]", 1577),
        ("(1) 1,577", 1577),
    ],
)
def test_the_sign_of_a_cell_and_its_footnotes(cell: str, value: int) -> None:
    assert cells(table(f"| Revenue | {cell} | 100 |"))["Revenue — 2023"].value == value


@pytest.mark.parametrize("cell", ["12/31/2023", "20-30", "3 of 5", "", "n/a", "1" + 27 * "0"])
def test_a_cell_without_exactly_one_number_is_no_operand(cell: str) -> None:
    text = table(f"| Revenue | {cell} | 100 |")
    assert "Revenue — 2023" not in cells(text)
    with pytest.raises(MissingOperandError, match="revenue of 2023"):
        answer(DIFFERENCE, text)


@pytest.mark.parametrize(
    ("operation", "value"),
    [
        ("difference", "204"),
        ("sum", "2950"),
        ("mean", "1475"),
        ("ratio", "1.15"),
        ("share", "114.86"),
        ("percentage change", "14.86"),
        ("growth rate", "14.86"),
    ],
)
def test_operations(operation: Operation, value: str) -> None:
    found = cells()
    assert rounded(calculate(operation, [found["Revenue — 2023"], found["Revenue — 2022"]])) == Decimal(value)


def test_percentages_differ_by_points_and_are_not_added_to_money() -> None:
    found = cells()
    assert calculate("difference", [found["Margin — 2023"], found["Margin — 2022"]]).unit == POINTS
    with pytest.raises(CalculationError, match="no unit"):
        calculate("sum", [found["Margin — 2023"], found["Revenue — 2023"]])


@pytest.mark.parametrize("operation", ["percentage change", "share", "growth rate"])
@pytest.mark.parametrize("base", ["0", "(100)"])
def test_a_base_that_is_not_positive_is_refused(operation: Operation, base: str) -> None:
    found = cells(table(f"| Income | 50 | {base} |"))
    with pytest.raises(CalculationError, match="base"):
        calculate(operation, [found["Income — 2023"], found["Income — 2022"]])


def test_the_same_cell_twice_or_one_of_a_pair_is_refused() -> None:
    revenue = cells()["Revenue — 2023"]
    for chosen in ([revenue, revenue], [revenue], []):
        with pytest.raises(CalculationError):
            calculate("difference", chosen)


def test_a_sum_of_many_cells_is_written_with_each() -> None:
    years = range(2012, 2024)
    header = f"| | {' | '.join(map(str, years))} |"
    found = answer(
        "What is the total revenue from 2012 to 2023?",
        table(f"| Revenue | {' | '.join(str(year - 1900) for year in years)} |", header=header),
    )
    assert found is not None
    assert "{" not in found.text
    assert len(found.citations) == 12
    assert found.calculation.result == "1,410"


@given(st.lists(st.decimals(-1_000_000, 1_000_000, places=2), min_size=2, max_size=6))
def test_sums_and_means_are_exact(numbers: list[Decimal]) -> None:
    rows = [f"| r{n} | {f'({-value})' if value < 0 else value} | |" for n, value in enumerate(numbers)]
    found = cells(table(*rows))
    chosen = [found[f"r{n} — 2023"] for n in range(len(numbers))]
    assert calculate("sum", chosen).value == sum(numbers)
    assert abs(calculate("mean", chosen).value * len(numbers) - sum(numbers)) < Decimal("1e-15")


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (CHANGE, "14.86 %"),
        (DIFFERENCE, "$204 million"),
        ("What was the average revenue in 2022 and 2023?", "$1,475 million"),
        ("What was the change in margin from 2022 to 2023?", "2 percentage points"),
        ("What is the difference between revenue and net loss in 2023?", "$2,142 million"),
    ],
)
def test_the_operands_that_a_question_means(question: str, expected: str) -> None:
    assert result(question, TABLE) == expected


def test_a_column_of_changes_is_no_operand() -> None:
    text = table("| Revenue | 1,577 | 1,373 | 204 |", header="| | 2023 | 2022 | 2023 vs 2022 |")
    assert result(CHANGE, text) == "14.86 %"


def test_a_second_row_of_the_header_has_the_periods() -> None:
    header = "| | Year ended March 31, | |"
    years, units = "| (In thousands) | 2023 | 2022 |", "| | US$ | US$ |"
    found = cells(table(years, units, "| Software | 1,577 | 1,373 |", header=header))
    software = found["Software — Year ended March 31, 2023 US$"]
    assert software.periods == {"2023"}
    assert "USD" in software.units
    assert result("What is the change in software from 2022 to 2023?", table(years, "| Software | 9 | 7 |")) == "2"


def test_a_title_spans_the_empty_ones_at_its_right() -> None:
    header = "| | December 31, 2023 | | December 31, 2022 | |"
    text = table("| (In millions) | Carrying amount | Fair value | Carrying amount | Fair value |", header=header)
    found = cells(f"{text}\n| Loan | 474.6 | 474.5 | 222.3 | 222.2 |")
    assert [one.label for one in found.values() if one.text == "222.2"] == ["Loan — December 31, 2022 Fair value"]
    assert found["Loan — December 31, 2022 Fair value"].periods == {"2022"}


def test_a_row_of_words_below_rows_with_numbers_is_no_header() -> None:
    found = cells(table("| Revenue | 5 | 3 |", "| Auditor | Smith | Jones |", "| Costs | 4 | 2 |"))
    assert "Costs — 2023" in found


def test_columns_of_periods_share_the_scale_of_one_of_them() -> None:
    header = "| | 2023 | Year ended December 31, 2022 (in millions) | Employees |"
    found = cells(table("| Sales | 34.4 | 26.2 | 12 |", header=header))
    assert {one.text: one.power for one in found.values()} == {"34.4": 6, "26.2": 6, "12": 0}


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is the difference between total net receivables and current net receivables?", "4,055"),
        ("What percentage of total net receivables were current net receivables?", "85.3 %"),
        ("What is the sum of the current, overdue and total net receivables?", "55,158"),
    ],
)
def test_columns_that_a_question_names_are_operands(question: str, expected: str) -> None:
    text = table("| Net receivables | 23,524 | 4,055 | 27,579 |", header="| | Current | Overdue | Total |")
    assert result(question, text) == expected


def test_quarters_are_in_order_and_belong_to_their_year() -> None:
    question = "What is the change in revenue from Q1 2023 to Q2 2023?"
    assert result(question, table("| Revenue | 10 | 20 |", header="| | Q1 2023 | Q2 2023 |")) == "10"
    four = table("| Revenue | 10 | 20 | 7 | 8 |", header="| | Q1 2023 | Q2 2023 | Q1 2022 | Q2 2022 |")
    assert result("What is the change in revenue from Q1 2022 to Q1 2023?", four) == "3"


@pytest.mark.parametrize("caption", ["Revenue grew 14.9% on the prior year.", "We serve 3 million customers."])
def test_numbers_of_a_caption_name_no_unit_or_scale(caption: str) -> None:
    assert result(DIFFERENCE, f"{caption}\n\n{table('| Revenue | 1,577 | 1,373 |')}") == "204"


def test_the_scale_of_a_cell_counts_more_than_that_of_its_table() -> None:
    text = f"In thousands\n\n{table('| Revenue | $ 2 million | $ 1,373 |')}"
    assert cells(text)["Revenue — 2023"].scaled == 2_000_000


def test_figures_per_unit_have_no_scale() -> None:
    text = f"In millions of dollars, except per share data\n\n{table('| Earnings per share | 2.50 | 2.10 |')}"
    assert cells(text)["Earnings per share — 2023"].power == 0


def test_rows_of_different_tables_are_not_mixed() -> None:
    text = f"{table('| Revenue | 100 | 90 |')}\n\n{table('| Costs | 40 | 60 |', header='| | 2022 | 2023 |')}"
    assert result("What is the difference between revenue and costs in 2023?", text) is None
    twice = f"{table('| Revenue | 100 | 90 |')}\n\n{table('| Revenue | 40 | 30 |')}"
    assert answer("What is the change in revenue in 2023?", twice) is None


def test_rows_are_in_the_order_in_which_the_question_mentions_them() -> None:
    text = table("| **Current assets** | 100 | 90 |", "| Current liabilities | 60 | 50 |")
    question = "What is the difference between current liabilities and current assets in 2023?"
    assert result(question, text) == "-40"


def test_the_smaller_one_is_the_part_of_a_share() -> None:
    text = table("| Total assets | 100 | 90 |", "| Cash | 25 | 20 |")
    assert result("What percentage of total assets was cash in 2023?", text) == "25 %"


def test_missing_operands_are_not_skipped() -> None:
    text = table("| Rent | 1 | 1 |", "| Food | 3 | 3 |", "| Fuel | | 2 |")
    with pytest.raises(MissingOperandError, match="no number for Fuel in the column of the others"):
        answer("What was the average of rent, food and fuel in 2023?", text)
    years = table("| Revenue | 30 | — | 10 |", header="| | 2023 | 2022 | 2021 |")
    with pytest.raises(MissingOperandError, match="passages have no number for revenue of 2022"):
        answer("What is the change in revenue from 2022 to 2023?", years)
    assert answer("By what percentage did revenue grow from 2022 to 2023?", years) is None  # less sure


def test_a_row_without_a_label_is_no_operand() -> None:
    assert answer(CHANGE, table("| | 5 | 3 |")) is None


def test_two_columns_of_a_period_are_not_certain() -> None:
    text = table("| Revenue | 10 | 12 | 8 |", header="| | 2023 budget | 2023 actual | 2022 |")
    found = answer(DIFFERENCE, text)
    assert found is None or found.confidence < LIKELY


def test_every_operand_is_cited_where_it_stands_in_the_answer() -> None:
    found = answer(CHANGE, TABLE)
    assert found
    assert found.text == "14.86 % = (1,577 [1] − 1,373 [1]) ÷ 1,373 × 100"
    assert [found.text[one.answer_start : one.answer_end] for one in found.citations] == ["1,577 [1]", "1,373 [1]"]
    assert [one.row and one.row.column for one in found.citations] == [1, 2]


def test_a_result_is_written_as_its_language_does() -> None:
    text = f"in Mio. €\n\n{table('| Umsatz | 1.577,5 | 1.373 |')}"
    found = operands("", list(passage_units(passage(text), "de")), "de")
    difference = calculate("difference", sorted(found, key=lambda one: one.column))
    assert (difference.value, difference.power, difference.unit) == (Decimal("204.5"), 6, "EUR")


def rag_of(collection: Collection, folder: Path) -> Rag:
    folder.mkdir()
    (folder / "report.md").write_text(f"# Report 2023 of Acme\n\n{TABLE}\nAcme makes anvils since 1949.\n")
    collection.sync(folder)
    return Rag(collection, reader=ScriptedReader(["since 1949 [1]"]))


@pytest.fixture
def rag(tmp_path: Path) -> Rag:
    collection = Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder=HashingEmbedder())
    return rag_of(collection, tmp_path / "docs")


def test_the_bundled_embedder_of_a_collection_is_not_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rag = rag_of(Collection.open(tmp_path / ".ragfm", settings=Settings()), tmp_path / "docs")
    monkeypatch.delattr(operations, "_bundled")
    found = rag.ask(CHANGE).calculation
    assert found is not None
    assert found.result == "14.86 %"


def test_a_question_that_needs_a_calculation_is_answered_without_the_reader(rag: Rag) -> None:
    found = rag.ask(CHANGE)
    assert (found.status, found.shown, found.usage.completion_tokens) == ("answered", found.text, 0)
    assert found.calculation
    assert (found.calculation.operation, found.calculation.result) == ("percentage change", "14.86 %")
    assert [(one.label, one.text) for one in found.calculation.operands] == [
        ("Revenue — 2023", "1,577"),
        ("Revenue — 2022", "1,373"),
    ]
    text = rag.collection.document(found.citations[0].uri).text
    assert {text[one.start : one.end] for one in found.citations} == {"| Revenue | $ 1,577 | $ 1,373 | 14.9 |"}


@pytest.mark.judge
def test_a_calculation_is_verified_if_the_judge_finds_that_the_rows_answer_the_question(rag: Rag) -> None:
    assert {(one.verified, one.fault) for one in rag.ask(CHANGE).citations} == {(True, None)}
    other = rag.ask("What is the difference between revenue and net loss in 2023?")
    assert {(one.verified, one.fault) for one in other.citations} == {(False, "unclear")}


@pytest.mark.judge
def test_nothing_is_verified_without_a_judge() -> None:
    found, read = (
        calculate_answer(Grounding(CHANGE, [passage(TABLE)], "en", judge)) for judge in (None, load_judge("small"))
    )
    assert found is not None
    assert read is not None
    assert [one.verified for one in (*found.citations, *read.citations)] == [False, False, True, True]


@pytest.mark.judge
def test_what_the_judge_verifies_is_answered_though_no_period_is_named() -> None:
    question = "What was the average revenue?"
    found, read = (
        calculate_answer(Grounding(question, [passage(TABLE)], "en", judge)) for judge in (None, load_judge("small"))
    )
    assert found is not None
    assert read is not None
    assert (found.confidence < LIKELY, read.confidence) == (True, LIKELY)


@pytest.mark.judge
def test_a_calculation_over_a_label_that_the_question_does_not_have_is_unsure(rag: Rag) -> None:
    found = rag.ask("What is the percentage change in turnover from 2022 to 2023?")
    assert found.status == "unsure"
    assert found.shown.endswith("I am not sure of this.")
    assert not any(one.verified for one in found.citations)


def test_an_answer_without_an_operand_is_not_more_than_unsure_and_says_what_is_missing(rag: Rag) -> None:
    question = "What is the percentage change in revenue from 2021 to 2023?"
    found = rag.with_options(reader=ScriptedReader(["Revenue was $ 1,577 million in 2023 [1]."])).ask(question)
    assert found.calculation is None
    assert found.status != "answered"
    assert found.notes == (
        "The percentage change cannot be calculated: the passages have no number for revenue of 2021.",
    )


@pytest.mark.parametrize("question", ["What does Acme make?", "What was the revenue in 2023?", "Was macht Acme?"])
def test_other_questions_are_answered_by_the_reader(rag: Rag, question: str) -> None:
    assert rag.ask(question).calculation is None
