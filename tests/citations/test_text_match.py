"""Whether a quote speaks of what a question asks; `test_verifier.py` has more, through the verifier's judgement."""

from __future__ import annotations

import time

import pytest

from ragfm.citations.text_match import matches_question, terms_of


def _speaks(question: str, said: str, quote: str, above: str = "") -> bool:
    return matches_question(question, said, quote, terms_of(quote).all | terms_of(above).all)


@pytest.mark.parametrize(
    ("question", "said", "quote"),
    [
        ("How many days of annual leave do employees get?", "25", "Employees get 25 days of annual leave."),
        ("How many days a week can employees work from home?", "2", "Employees can work from home two days a week."),
        ("How many hours per week do part-time staff work?", "20", "Part-time staff work 20 hours per week."),
        ("How much notice must employees give?", "four weeks", "Employees must give four weeks' notice."),
        ("How many days of leave do I get?", "25", "You get 25 days of leave."),
        ("How many PCs does the office have?", "12", "The office has 12 PCs."),
        ("How many barns are sold at Foy?", "3", "3 barns are sold at Foy."),
        ("The office at Foy has how many rooms?", "3", "The office at Foy has three small rooms."),
        ("How many professors does Harvard have?", "2,400", "Harvard's 2,400 professors teach here."),
        ("When is the tenant's deposit returned?", "30 days", "The tenant's security deposit is returned in 30 days."),
        ("In which building is the canteen?", "Building C", "The canteen is in Building C."),
        ("How tall is the tower?", "30 metres", "The tower is 30 metres tall."),
        ("What size is the tank?", "60 litres", "The size of the tank is 60 litres."),
        ("What kind of oil does the engine use?", "5W-30 oil", "The engine uses 5W-30 oil."),
        ("By when must reports be submitted?", "31 March", "Reports must be submitted by 31 March."),
        ("By whom is the budget approved?", "The board", "The budget is approved by the board."),
        ("To whom must damage be reported?", "The office", "Damage must be reported to the office."),
        ("What is covered by the warranty?", "Parts", "Parts are covered by the warranty, not shipping."),
        ("What did Kern deliver to Foy?", "A letter", "Kern delivered a letter to Foy."),
        ("Who moved to Foy in a van?", "Kern", "Bremer moved to Hall, Kern moved to Foy in a van."),
    ],
)
def test_right_quotes(question: str, said: str, quote: str) -> None:
    assert _speaks(question, said, quote)


@pytest.mark.parametrize(
    ("question", "said", "quote"),
    [
        ("How many leave days do managers owe employees?", "25", "Employees owe managers 25 leave days."),
        ("How many brick barns are in Foy?", "13 brick barns", "There are 13 stone barns in Foy."),
        ("How many rooms does the house have?", "4", "The house has 4 beds in two rooms."),
        ("How many employees work in Berlin?", "30", "30 of the 200 employees work in Berlin."),
        ("Who employed Kern in 1990?", "Bremer", "Bremer was employed by Kern in 1990."),
        ("Who supervises the interns?", "The managers", "The managers are supervised by the interns."),
        ("What is the date by which tenants must pay?", "31 May", "The date by which landlords must pay is 31 May."),
        ("Who owns the company?", "Kern", "Kern owns the company's car."),
        ("What must the insured pay?", "The excess", "The insurer must pay the excess."),
        ("When must the contract be paid?", "May", "The contractor must be paid in May."),
        ("Who pays the manager?", "Kern", "Kern pays the management."),
        ("Who pays the large fee?", "Kern", "Kern pays the larger fee."),
        ("Where is data stored in the EU?", "Berlin", "Data stored outside the EU is in Berlin."),
        ("What does the tenant pay?", "gas", "The tenant pays rent, not gas."),
        ("What is the price of the second course?", "30 euros", "The second course has a price of 30 euros."),
        ("Who is the author of it?", "Kern", "Kern is the author of much."),
        ("What?", "", "What?"),
        ("", "", ""),
    ],
)
def test_wrong_quotes(question: str, said: str, quote: str) -> None:
    assert not _speaks(question, said, quote)


def test_what_stands_above_a_quote_lends_it_words_and_their_of() -> None:
    assert _speaks("What is the maximum capacity of the pump?", "60 litres", "Maximum capacity: 60 litres.", "Pump")
    assert not _speaks("What is the maximum capacity of the pump?", "60 litres", "Maximum capacity: 60 litres.")
    assert not _speaks("Where is the pump?", "In the cellar", "It is in the cellar.", "Pump"), "the quote has no word"


def test_long_quotes_and_questions_take_no_time() -> None:
    begin = time.monotonic()
    assert _speaks("Where does the cat sit on the mat?", "x", "cat sit mat x y " * 5_000)
    for hostile in ("what a" + "-" * 8_000 + " b", "how many b a" + "-" * 8_000, "how many " + "a " * 8_000):
        assert not _speaks(hostile, "x", "y")
    assert time.monotonic() - begin < 20, "a quadratic way takes minutes"
