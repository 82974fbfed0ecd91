"""The subject of a question: names and periods that must be found with a quote."""

from __future__ import annotations

import pytest

from ragfm import Citation, Hit
from ragfm.citations.decision import ground
from ragfm.citations.support import periods, subject_of

TABLE = """| Year ended | 2023 | 2022 |
| --- | --- | --- |
| Capital expenditure | 526 | 488 |
| Net sales | 14,694 | 14,544 |"""


def hit(text: str, context: str = "", n: int = 1) -> Hit:
    return Hit(f"{n}.pdf", text, 0, len(text), n, 0.5, {}, context=context, n=n)


def cited(question: str, answer: str, *hits: Hit) -> Citation:
    _, (citation,) = ground(question, answer, hits)
    return citation


@pytest.mark.parametrize(
    ("question", "names", "found"),
    [
        ("What is the FY2018 capital expenditure (in USD millions) of Best Buy?", ["Best", "Buy"], {"2018"}),
        ("What was revenue in Q2 of FY22? Give the answer in thousands.", [], {"Q2", "2022"}),
        ("How did AMCOR do in the second quarter of 2023?", ["AMCOR"], {"Q2", "2023"}),
        ("how many days of leave do I get?", [], set()),
        ("Who leads Bell-Boeing in 2Q23?", ["Bell-Boeing"], {"Q2"}),
        ("What does json.dump do with --all and shared_buffers?", ["json.dump", "--all", "shared_buffers"], set()),
        ("WHO LEADS ACME TODAY?", [], set()),
        ("Who works in Room No. 5 or in Room No.6?", ["Room"], set()),
        ("Where is pg_hba.conf, e.g. in /etc/app/pg_hba.conf?", ["pg_hba.conf"], set()),
    ],
)
def test_names_and_periods(question: str, names: list[str], found: set[str]) -> None:
    subject = subject_of(question)
    assert list(dict.fromkeys(subject.names.values())) == names
    assert subject.periods == found


def test_the_no_of_a_number_is_not_a_negation() -> None:
    text = hit("Regulation 44 is about child seats.")
    assert cited("What is Regulation No. 44 about?", "Child seats.", text).verified
    assert cited("What is Regulation No 44 about?", "Child seats.", text).verified
    assert cited("Which regulation has no 44 articles?", "Child seats.", text).missing == ("no",)


def test_an_identifier_must_be_in_the_passage_or_above_it() -> None:
    question, said = "What is the default value of shared_buffers?", "The default value is 32 [1]."
    text = "Sets the number of buffers that are shared. The default value is 32."
    other = hit(text, "Settings > wal_buffers (integer)")
    citation = cited(question, said, other)
    assert (citation.verified, citation.fault, citation.missing) == (False, "subject", ("shared_buffers",))
    assert cited(question, said, hit(text, "Settings > shared_buffers (integer)")).verified
    assert cited(question, said, hit(f"{text} It is the number of shared_buffers.", "Settings")).verified


def test_numbers_are_not_years() -> None:
    assert periods("It costs 2,018 or 2018.50 in all, part 12018, in Q5.") == set()
    assert periods("(2018), FY19, fourth-quarter") == {"2018", "2019", "Q4"}


def test_another_company_is_not_verified() -> None:
    amcor, buy = hit(TABLE, "Amcor 2023 10K"), hit(TABLE, "Best Buy 2023 10K")
    question = "What was the capital expenditure of Best Buy in 2023?"
    citation = cited(question, "526 [1].", amcor)
    assert (citation.verified, citation.fault, citation.missing) == (False, "subject", ("Best", "Buy"))
    assert citation.supports
    assert cited(question, "526 [1].", buy).verified


def test_the_right_document_is_preferred() -> None:
    amcor, buy = hit(TABLE, "Amcor 2023 10K", 1), hit(TABLE, "Best Buy 2023 10K", 2)
    citation = cited("What was the capital expenditure of Best Buy in 2023?", "526.", amcor, buy)
    assert (citation.n, citation.verified) == (2, True)


def test_the_number_must_be_in_the_column_of_the_period() -> None:
    table = hit(TABLE, "Amcor 2023 10K")
    assert cited("What was the capital expenditure of Amcor in 2022?", "488 [1].", table).verified
    wrong = cited("What was the capital expenditure of Amcor in 2022?", "526 [1].", table)
    assert (wrong.verified, wrong.missing) == (False, ("2022",))
    other = cited("What was the capital expenditure of Amcor in 2019?", "526 [1].", table)
    assert other.missing == ("2019",)


def test_the_number_must_be_in_the_column_that_the_question_names() -> None:
    header = "| Offense | Total | Male Under 18 | Male 18 and over |\n| --- | --- | --- | --- |"
    arrests = hit("| Robbery | 102.1 | 22.9 | 67.1 |\n| Fraud | 173.7 | 3.3 | 95.0 |", f"Arrests in 2009\n{header}")
    question = "How many males under 18 were arrested for robbery?"
    total = cited(question, "102.1 [1].", arrests)
    assert (total.verified, total.fault, total.missing) == (False, "subject", ("Male Under 18",))
    assert cited(question, "22.9 [1].", arrests).verified
    assert cited("How many were arrested for robbery?", "102.1 [1].", arrests).verified
    assert cited("How many males were arrested for robbery?", "67.1 [1].", arrests).verified  # or 22.9
    assert cited("What was the total net sales in 2023?", "14,694 [1].", hit(TABLE)).verified


def test_a_year_of_the_document_is_enough_without_columns() -> None:
    prose = hit("Capital expenditure was 526 in the year.", "Amcor 2023 10K")
    assert cited("What was the capital expenditure of Amcor in 2023?", "526 [1].", prose).verified
    assert cited("What was the capital expenditure of Amcor in Q2 2023?", "526 [1].", prose).missing == ("Q2",)


def test_prose_may_refer_back_to_a_name_of_its_passage() -> None:
    prose = hit("Curie was born in Warsaw. Her laboratory received two prizes.")
    assert cited("How many prizes did the laboratory of Curie receive?", "Two prizes [1].", prose).verified


def test_a_period_in_the_quote_overrides_one_in_the_document_name() -> None:
    question = "What was the capital expenditure of Amcor in 2023?"
    prose = hit("In 2022, capital expenditure was 488 million.", "Amcor 2023 10K")
    assert cited(question, "488 million [1].", prose).missing == ("2023",)
    older = hit(TABLE.replace("2023", "2021"), "Amcor 2023 10K")
    assert cited(question, "526 [1].", older).missing == ("2023",)


def test_a_torn_table_has_its_header_in_the_context() -> None:
    header = "Amcor 2023 10K\n|  | Year ended 2023 | Year ended 2022 |"
    rows = hit("| Capital expenditure | 526 | 488 |\n| Best Buy | 1 | 2 |", header)
    question = "What was the capital expenditure of {} in 2022?"
    assert cited(question.format("Amcor"), "488 [1].", rows).verified
    assert cited(question.format("Amcor"), "526 [1].", rows).missing == ("2022",)
    assert cited(question.format("Best Buy"), "488 [1].", rows).missing == ("Best", "Buy")


def test_an_answer_in_words_may_come_from_a_table() -> None:
    table = hit("| Role | 2017 | 2018 |\n| --- | --- | --- |\n| CEO | Smith | Jones |")
    assert cited("Who was CEO in 2018?", "Jones [1].", table).verified


def test_a_year_in_the_sentence_before_is_part_of_the_quote() -> None:
    prose = hit("Apple began in the spring of 1976. Its founder is Jobs.")
    citation = cited("Who is the founder of Apple, which began in 1976?", "Jobs [1].", prose)
    assert "1976" in citation.quote
    assert citation.verified


@pytest.mark.parametrize(
    ("question", "quote", "missing"),
    [
        ("How long is the break after 6 hours of work?", "After six hours of work, the break is 30 minutes.", ()),
        ("How long is the break after 9 hours of work?", "After six hours of work, the break is 30 minutes.", ("9",)),
        ("How long is the break in a shift of 7 hours?", "In shifts of 6 to 9 hours, the break is 30 minutes.", ()),
        ("How long is the break at 21:00?", "In shifts of 6 to 9 hours, the break is 30 minutes.", ("21:00",)),
        ("In which shift is there no break of 30 minutes?", "In shift Blue, there is a break of 30 minutes.", ("no",)),
    ],
)
def test_numbers_and_the_negation_of_the_question_must_be_found(
    question: str, quote: str, missing: tuple[str, ...]
) -> None:
    answer = "Blue [1]." if "which" in question else "30 minutes [1]."
    assert cited(question, answer, hit(quote)).missing == missing


def test_abbreviations_and_languages() -> None:
    prose = hit("The chief financial officer of the group is Kim Bauer.")
    assert cited("Who is the CFO of the group?", "Kim Bauer [1].", prose).verified
    assert subject_of("Wie hoch war der Umsatz von Siemens im Jahr 2018?", "de").names == {}
    assert subject_of("Wie hoch war der Umsatz von Siemens im Jahr 2018?", "de").periods == {"2018"}
    assert periods("Q10, Q400, the 1900s") == set()
