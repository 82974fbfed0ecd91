"""A bare number gets its unit and scale."""

from __future__ import annotations

import pytest

from ragfm import Hit
from ragfm.citations.grounding import CitedAnswer, cite_answer, with_unit

CAPTION = "3M 2018 10K\nConsolidated balance sheet, $ in millions, except per share amounts\n| | 2018 | 2017 |"


@pytest.mark.parametrize(
    ("answer", "quote", "above", "full"),
    [
        ("31", "Every employee gets 31 days of leave.", "", "31 days"),
        ("22.", "Parents get 22 weeks of leave.", "", "22 weeks."),
        ("3.40", "The station pays $3.40 per kilometre.", "", "$3.40"),
        ("63%.", "Sales grew by 63% in 2018.", "", "63%."),
        ("$3.40", "The station pays $3.40 per kilometre.", "", "$3.40"),
        ("12.5", "Sales grew by 12.5 % in 2018.", "", "12.5%"),
        ("36.4", "Sales were $36.4 billion.", "", "$36.4 billion"),
        ("36,386", "| Cost of sales | 36,386 | 34,435 |", CAPTION, "$36,386 million"),
        ("565", "| Other income, net | (565) | (334) |", CAPTION, "$(565) million"),
        ("3", "| Growth | (3)% | 8% |", CAPTION, "(3)%"),
        ("1", "| Net sales (1) | 12 |", CAPTION, "$1 million"),
        ("8.54", "| Earnings per share | 8.54 | 7.93 |", CAPTION, "8.54"),
        (
            "1,577",
            "| Purchases of property | 1,577 |",
            "Cash flows (Millions)\n| | 2018 |",
            "1,577 million",
        ),
        ("1,100", "| Revenue | 1,234 | 1,100 |", "| | 2016 (in thousands, except shares) | 2015 |", "1,100 thousand"),
        ("20", "| Acme | 20 | 500 |", "| Company | Revenue ($ in millions) | Staff |", "$20 million"),
        ("500", "| Acme | 20 | 500 |", "| Company | Revenue ($ in millions) | Staff |", "500"),
        ("500", "| Acme | 20 | 500 |", "| (in millions) | Revenue | Costs |", "500 million"),
        ("11", "The staff house has 11 bedrooms.", "", "11"),
        ("2020", "| Priya Nair | OS-7 | 2020 |", "| name | room | phone |", "2020"),
        ("3", "Every employee gets 31 days of leave.", "", "3"),
        ("31 days", "Every employee gets 31 days of leave.", "", "31 days"),
        ("In 2018", "Sold in 2018 days", "", "In 2018"),
    ],
)
def test_a_bare_number(answer: str, quote: str, above: str, full: str) -> None:
    assert with_unit(answer, quote, above) == full


def test_the_unit_of_a_row_is_in_the_caption_of_its_table() -> None:
    table = "| | 2018 |\n| --- | --- |\n| Sales | 32,765 |"
    text = f"All amounts are in thousands.\n\nBalance sheet ($ in millions)\n\n{table}"
    hit = Hit("3m.pdf", text, 0, len(text), 1, 0.5, {}, context="3M 2018 10K", n=1)
    question = "What were the sales of 3M in 2018?"

    def cited(output: str) -> CitedAnswer:
        return cite_answer(question, output, [hit], "en", verifier=None, corrects=False)

    (sentence,) = cited("32,765 [1].").sentences
    assert (sentence.text, sentence.supported) == ("$32,765 million [1].", True)
    assert cited("The sales.").text == "The sales."
