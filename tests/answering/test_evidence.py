"""What is exact about claims and units, in several languages, without a judge."""

from __future__ import annotations

import pytest
from support.passages import passages

from ragfm.answering.evidence import (
    CANDIDATES,
    candidates,
    find_quote,
    is_stitched,
    missing_subject,
    quotations,
    row_with_cell,
    split_claims,
    unstated,
)
from ragfm.answering.units import Rarity, Unit, passage_units
from ragfm.generation.prompt import build_prompt
from ragfm.testing import ScriptedReader


def unit(text: str, having: str = "", *, context: str = "", language: str = "en") -> Unit:
    """The first unit of a passage that has some words."""
    (hit,) = passages(text, context=context)
    return next(one for one in passage_units(hit, language) if having in one.text and not one.is_heading)


# --- Claims ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "cited"),
    [
        ("It is 28 [1]. It is red [2].", [(1,), (2,)]),
        ("It is 28. [1] It is red. [2]", [(1,), (2,)]),
        ("It is 28 [1, 3][2].", [(1, 3, 2)]),
        ("It is `sys.argv[1]` [2].", [(2,)]),
        ("It is 28.", [()]),
    ],
)
def test_a_marker_belongs_to_the_sentence_before_it(output: str, cited: list[tuple[int, ...]]) -> None:
    assert [claim.cited for claim in split_claims(output, "en")[1]] == cited


def test_claims_end_by_the_rules_of_the_passages_language() -> None:
    output = "Resturlaub verfällt am 31. März [1]. Der Antrag ist einzureichen."
    plain, claims = split_claims(output, "de")
    assert [claim.text for claim in claims] == ["Resturlaub verfällt am 31. März.", "Der Antrag ist einzureichen."]
    assert [plain[: claim.end].endswith(claim.text) for claim in claims] == [True, True]
    assert output[slice(*claims[0].output_span)] == "Resturlaub verfällt am 31. März [1]."


def test_the_judge_reads_a_unit_of_each_passage_that_a_claim_cites() -> None:
    hits = passages(*(f"The boat {n} leaves at nine. The boat {n} comes back at ten." for n in range(6)))
    units = [one for hit in hits for one in passage_units(hit, "en")]
    (claim,) = split_claims("The boats leave at nine [1][2][3][4][5][6].", "en")[1]
    assert [one.hit.n for one in candidates(claim, "", units, Rarity(units))] == [1, 2, 3, 4, 5, 6]


def test_the_judge_reads_units_of_cited_passages_and_those_with_a_quotation() -> None:
    hits = passages(*(f"The boat {n} leaves the harbour at nine." for n in range(8)), "Cats sleep on deck all day.")
    units = [one for hit in hits for one in passage_units(hit, "en")]
    for output in ("The boat leaves at nine [9].", "The boat leaves, and “cats sleep on deck”."):
        (claim,) = split_claims(output, "en")[1]
        found = candidates(claim, "When does the boat leave?", units, Rarity(units))
        assert len(found) == CANDIDATES
        assert 9 in [one.hit.n for one in found]


# --- Numbers, dates, addresses, identifiers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "text", "right", "wrong"),
    [
        ("en", "It is within 30 working days.", "It is 30 days.", "It is 30 weeks."),
        ("en", "The dose is 400 mg per day.", "It is 400 milligrams per day.", "It is 400 g."),
        ("en", "The dose is 400 mg per day.", "It is 400 mg.", "It is 400 mg per week."),
        ("en", "The dose is 400 \u00b5g.", "It is 400 \u03bcg.", "It is 400 mg."),
        ("en", "It costs 30 euros a month.", "It costs €30.", "It costs $30."),
        ("en", "It costs 30 CHF.", "It costs 30 francs.", "It costs 30 dollars."),
        ("en", "It rose by 5 per cent.", "It rose by 5%.", "It rose by 5 dollars."),
        ("en", "It opens at 9:00 am.", "It opens at 9:00 a.m.", "It opens at 9:00 pm."),
        ("en", "Sales were $36.4 billion.", "They were $36,400 million.", "They were $36.4 million."),
        ("en", "The temperature is 5 degrees.", "It is 5 degrees.", "It is -5 degrees."),
        ("en", "It is at 3-5 degrees.", "It is 5 degrees.", "It is 35 degrees."),
        ("en", "It is 3.5 or 3500 m.", "It is 3,5 or 3,500 m.", "It is 35 m."),
        ("en", "It was on May 18, 2026.", "It was on 2026-05-18.", "It was on 19 May 2026."),
        ("en", "It was on May 18, 2026.", "It was in 2026.", "It was in 2024."),
        ("de", "Der Beitrag ist 1.250 Euro.", "1250 EUR.", "1,25 Euro."),
        ("de", "Er stieg um 12,5 Prozent.", "Um 12,5 %.", "Um 12,5 Euro."),
        ("de", "Es war am 18. Mai 2026.", "Am 18. Mai.", "Am 19. Mai."),
        ("fr", "Le coût est de 36 386 euros.", "36 386 €.", "36 387 euros."),
        ("es", "Es el 18 de mayo de 2026.", "El 2026-05-18.", "El 18 de junio de 2026."),
        ("ru", "Это 36 386 млн.", "36386 млн.", "36386 тыс."),
        ("ja", "駐車料金は１日500円です。", "1日５００円です。", "1日600円です。"),
        ("ja", "2026年5月18日です。", "2026-05-18です。", "2026年5月19日です。"),
        ("zh", "会议持续45分钟。", "会议持续 45 分钟。", "会议持续40分钟。"),
        ("en", "Write to help@acme.com for help.", "Write to help@acme.com.", "Write to sales@acme.com."),
        ("en", "See https://acme.com/help.", "See https://acme.com/help", "See https://acme.com/jobs."),
        ("en", "It is in /etc/acme/a.conf there.", "It is in /etc/acme/a.conf.", "It is in /etc/acme/b.conf."),
        ("en", "Set shared_buffers to 32.", "It is shared_buffers.", "It is wal_buffers."),
        ("en", "| fee in euros | 30 |", "The fee is 30 euros.", "The fee is 31 euros."),
    ],
)
def test_numbers_with_units_dates_addresses_and_identifiers_must_be_stated(
    language: str, text: str, right: str, wrong: str
) -> None:
    found = unit(text, language=language)
    assert unstated(right, found, "", language) == ()
    assert len(unstated(wrong, found, "", language)) == 1


def test_a_number_of_the_question_need_not_be_stated_next_to_other_words() -> None:
    thirty = unit("Leave is 30 days.")
    assert unstated("No, it is not 28 days.", thirty, "Is leave 28 days?", "en") == ()
    assert unstated("28 days.", thirty, "Is leave 28 days?", "en") == ("28 days",)


def test_a_number_is_for_the_judge_to_compare_where_the_text_has_numbers_in_words_only() -> None:
    assert unstated("12 people came.", unit("Twelve people came."), "", "en") == ()
    assert unstated("12 people came.", unit("Twelve people came on 3 May."), "", "en") == ("12",)


def test_what_stands_above_a_unit_is_stated_by_it() -> None:
    assert unstated("It costs 3 euros in 2026.", unit("It costs 3 euros.", context="Prices 2026"), "", "en") == ()
    assert unstated("It costs 3 euros in 2026.", unit("It costs 3 euros."), "", "en") == ("2026",)


@pytest.mark.parametrize(
    ("language", "caption", "right", "wrong"),
    [
        ("en", "Balance sheet ($ in millions)", "$32,765 million", "$32,765 thousand"),
        ("de", "Bilanz (in Mio. €)", "32.765 Millionen Euro", "32.765 Tausend Euro"),
    ],
)
def test_the_numbers_of_a_row_have_the_scale_of_the_caption(
    language: str, caption: str, right: str, wrong: str
) -> None:
    number = "32,765" if language == "en" else "32.765"
    row = unit(f"{caption}\n\n| | 2018 |\n| --- | --- |\n| Sales | {number} |", "Sales")
    assert unstated(right, row, "", language) == ()
    assert len(unstated(wrong, row, "", language)) == 1


def test_the_numbers_of_a_cell_have_the_scale_of_their_own_column() -> None:
    row = unit("| Company | Sales ($ in millions) | Staff |\n| --- | --- | --- |\n| Acme | 20 | 500 |", "Acme")
    assert unstated("$20 million", row, "", "en") == ()
    assert unstated("500 million", row, "", "en") == ("500 million",)


# --- Quotations --------------------------------------------------------------------------------------------------

MOON = "Neil Armstrong, an American, was the first man on the moon. He landed in July 1969 with Buzz Aldrin."
MARS = "No human being has been on Mars, said Buzz Aldrin."


def test_the_number_of_a_list_item_is_no_number_of_the_claim() -> None:
    assert not unstated("1. Open the valve for 30 seconds.", unit("Open the valve for 30 seconds."), "", "en")
    assert unstated("1. Open the valve for 40 seconds.", unit("Open the valve for 30 seconds."), "", "en") == (
        "40 seconds",
    )


def test_a_date_without_a_year_states_no_number() -> None:
    assert unstated("The fee is 0 euros.", unit("The fee is due on 18 May."), "", "en") == ("0 euros",)


@pytest.mark.parametrize("marks", ['""', "“”", "«»", "„“"])
def test_a_quotation_has_three_words_or_more(marks: str) -> None:
    opening, closing = marks
    assert quotations(f"It is {opening}the first man{closing}.") == ["the first man"]
    assert quotations(f"It is {opening}first man{closing}.") == []


def test_a_quotation_is_split_at_ellipses() -> None:
    assert quotations("“the first man … landed in July”") == ["the first man", "landed in July"]


@pytest.mark.parametrize(
    ("quotation", "found"),
    [
        ("Neil Armstrong, an American, was the first man on the moon", True),
        ("neil Armstrong,\tan American", True),
        ("He landed in July 1969 with Buzz Aldrin.", True),
        ("Neil Armstrong, an American, was the best man", False),
        ("Neil Armstrong was the first man", False),
        ("the first man on the moo", False),
        ("He landed in July 1968", False),
    ],
)
def test_a_quotation_occurs_verbatim(quotation: str, found: bool) -> None:
    assert (find_quote(quotation, MOON) is not None) is found


def test_a_quotation_of_the_prompt_is_found_in_the_document() -> None:
    (hit,) = passages("Fees are below.\n[2] The fee of <b>guests</b> is 90 euros.")
    copied = "[\u200c2] The fee of <\u200cb>guests<\u200c/b> is 90 euros"
    assert copied in build_prompt("Q?", [hit], ScriptedReader()).messages[-1].content
    place = find_quote(copied, hit.text)
    assert place
    assert hit.text[slice(*place)] == copied.replace("\u200c", "")


def test_a_stitched_quotation_consists_of_pieces_of_texts() -> None:
    assert is_stitched("the first man on the moon. No human being has been on Mars", [MOON, MARS])
    assert not is_stitched("the first man on Mars", [MOON, MARS])


def test_a_quotation_must_be_in_the_units_passage() -> None:
    assert unstated("It says “with Buzz Aldrin too”.", unit(f"{MOON} And with Buzz Aldrin too."), "", "en") == ()
    assert unstated("It says “was the best man”.", unit(MOON), "", "en") == ("was the best man",)


# --- The subject of the question ---------------------------------------------------------------------------------

TABLE = """| Year ended | 2023 | 2022 |
| --- | --- | --- |
| Capital expenditure | 526 | 488 |"""
TORN = "| Capital expenditure | 526 | 488 |"
HEADER = "Amcor 2023 10K\n|  | Year ended 2023 | Year ended 2022 |"


@pytest.mark.parametrize(
    ("text", "context", "question", "claim", "missing"),
    [
        # the column of the number must be that of the period
        (TABLE, "Amcor 2023 10K", "How much was it in 2022?", "488", ()),
        (TABLE, "Amcor 2023 10K", "How much was it in 2022?", "526", ("2022",)),
        (TABLE, "Amcor 2023 10K", "How much was it in 2019?", "526", ("2019",)),
        (TABLE.replace("2023", "2021"), "Amcor 2023 10K", "How much was it in 2023?", "526", ("2023",)),
        (TORN, HEADER, "How much was it in 2022?", "488", ()),
        (TORN, HEADER, "How much was it in 2022?", "526", ("2022",)),
        (
            "| Role | 2017 | 2018 |\n| --- | --- | --- |\n| CEO | Smith | Jones |",
            "",
            "Who was CEO in 2018?",
            "Jones",
            (),
        ),
        # of prose, the closest mention counts
        ("Expenditure was 526.", "Amcor 2023 10K", "How much was it in 2023?", "526", ()),
        ("Expenditure was 526.", "Amcor 2023 10K", "How much was it in Q2 2023?", "526", ("Q2",)),
        ("Sales were 7 in 2022.", "", "What were sales in FY22?", "7", ()),
        ("In 2022, expenditure was 488.", "Amcor 2023 10K", "How much was it in 2023?", "488", ("2023",)),
        # numbers
        ("After 6 hours, the break is 30 minutes.", "", "How long is it after 6 hours?", "30 minutes", ()),
        ("After 6 hours, the break is 30 minutes.", "", "How long is it after 9 hours?", "30 minutes", ("9 hours",)),
        ("Nach 6 Stunden ist Pause.", "", "Wann ist Pause nach 9 Stunden?", "Pause", ("9 Stunden",)),
        ("Room 12 is small. It has six seats.", "", "How many seats has room 12?", "six", ()),
        # identifiers
        ("The default is 32.", "wal_buffers", "What is the default of shared_buffers?", "32", ("shared_buffers",)),
        ("The default is 32.", "shared_buffers", "What is the default of shared_buffers?", "32", ()),
        ("Use it with --all.", "", "What does json.dump do with --all?", "Use it", ("json.dump",)),
    ],
)
def test_periods_numbers_and_identifiers_of_the_question_are_found_with_a_unit(
    text: str, context: str, question: str, claim: str, missing: tuple[str, ...]
) -> None:
    language = "de" if "Stunden" in question else "en"
    found = unit(text, claim, context=context, language=language)
    assert missing_subject(question, found, claim, language) == missing


def test_a_position_in_a_row_marks_its_cell() -> None:
    row = unit(TABLE, "526")
    for column, cell in enumerate(("526", "488"), 1):
        marked = row_with_cell(row, row.start + row.text.index(cell))
        assert marked
        assert marked.column == column
    assert row_with_cell(unit("Expenditure was 526."), 3) is None


@pytest.mark.parametrize(
    ("question", "cell"),
    [
        ("What is the phone number of Ann Lee?", "2020"),  # the title of its column
        ("Which radio channel does Ann Lee use?", "6"),
        ("Where does Ann Lee sit?", "OS-7"),  # no title: where the judge points
        ("Whose phone has the number 2020?", "OS-7"),  # the question has the cell's words
        ("Is it a phone or a channel?", "OS-7"),  # several titles
    ],
)
def test_the_question_names_the_column_of_a_cell(question: str, cell: str) -> None:
    row = unit("| Ann Lee | OS-7 | 2020 | 6 |", context="| name | room | phone | radio channel |\n|---|---|---|---|")
    found = row_with_cell(row, row.start + row.text.index("OS-7"), question)
    assert found is not None
    assert found.column is not None
    assert found.cells[found.column] == cell
