"""What can be evidence in a passage, and the words by which units are found."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.passages import passages

from ragfm.answering.units import Rarity, passage_units, periods, word_list


def test_a_sentence_is_read_with_the_one_before_the_heading_and_the_passages_context() -> None:
    (hit,) = passages("# Boats\n\nThe boat leaves at nine. It is red.", context="Handbook")
    heading, first, second = passage_units(hit, "en")
    assert (heading.is_heading, first.is_heading) == (True, False)
    assert first.context == "Handbook\n# Boats"
    assert second.context == "Handbook\n# Boats\nThe boat leaves at nine."
    assert {"boat", "boats"} <= second.all_words - second.words


def test_a_list_item_is_read_with_what_introduces_the_list() -> None:
    text = "# Fares\n\nWho pays less:\n\n- Children: half.\n- Dogs: nothing. They stay on deck.\n\nCash only."
    (hit,) = passages(text)
    _, _, child, dog, deck, cash = passage_units(hit, "en")
    assert child.context == dog.context == "# Fares\nWho pays less:"
    assert (deck.context, cash.context) == ("# Fares\n- Dogs: nothing.", "# Fares\nThey stay on deck.")


def test_a_row_is_read_with_its_header_section_and_caption() -> None:
    rows = "| Sales: | |\n| Boats | 7 |\n| Costs: | |\n| Boats | 7 |\n\nBoats are red."
    (hit,) = passages(f"# Results\n\nAll in millions.\n\n| | 2023 |\n| --- | --- |\n{rows}")
    *_, costs, prose = passage_units(hit, "en")
    assert costs.row
    assert (costs.text, costs.row.section) == ("| Boats | 7 |", "Costs:")
    assert costs.context == "# Results\nAll in millions.\nCosts:\n|  | 2023 |"
    assert prose.row is None


def test_the_continuation_of_a_table_has_its_header_in_the_context() -> None:
    (hit,) = passages("| Oak | 12 |")
    (row,) = passage_units(replace(hit, context="Rooms\n| room | seats |"), "en")
    assert row.row
    assert row.row.header == ("room", "seats")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Ms. Okafor's 28 days", ["ms", "okafor", "s", "28", "days"]),
        ("Straße", ["strasse"]),
        ("会议室在3楼", ["会议", "议室", "室在", "3", "楼"]),
        ("田中さん", ["田中", "中さ", "さん"]),
    ],
)
def test_words_of_scripts_without_spaces_are_pairs_of_characters(text: str, found: list[str]) -> None:
    assert word_list(text) == found


def test_rare_words_tell_more() -> None:
    units = [unit for hit in passages("The boat is red.", "The boat is late.") for unit in passage_units(hit, "en")]
    rarity, asked = Rarity(units), {"boat", "late"}
    assert rarity.share(asked, {"late"}) > 0.5 > rarity.share(asked, {"boat"}) > 0
    assert rarity.share(asked, asked) == 1
    assert rarity.share(set(), asked) == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("(2018), FY19, Q2 of FY22, 3Q", {"2018", "2019", "Q2", "2022", "Q3"}),
        ("It costs 2,018 or 2018.50 in all, part 12018, in Q5.", set()),
        ("Q10, Q400", set()),
    ],
)
def test_years_and_quarters_in_digits_are_periods(text: str, found: set[str]) -> None:
    assert periods(text) == found
