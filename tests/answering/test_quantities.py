"""Numbers, scales, units and dates, in several languages."""

from __future__ import annotations

from decimal import Decimal

import pytest

from ragfm.answering.quantities import Quantity, dates, quantities, scales_in, units_in


def only(text: str, language: str = "en") -> Quantity:
    (quantity,) = quantities(text, language)
    return quantity


@pytest.mark.parametrize(
    ("language", "text", "value", "unit"),
    [
        ("en", "$36,386 million", "36386000000", "USD"),
        ("en", "US$ 5.2bn", "5200000000", "USD"),
        ("en", "30 per cent", "30", "concentr-percent"),
        ("en", "30 working days", "30", "duration-day"),
        ("en", "9 a.m.", "9", "am"),
        ("en", "12 m", "12", "length-meter"),
        ("de", "36.386 Mio. €", "36386000000", "EUR"),
        ("de", "12,5 Prozent", "12.5", "concentr-percent"),
        ("de", "CHF 1’200", "1200", "CHF"),
        ("fr", "36 386 millions", "36386000000", None),
        ("es", "2.500 euros", "2500", "EUR"),
        ("ru", "36 386 млн", "36386000000", None),
        ("ja", "5億円", "500000000", "JPY"),
        ("zh", "三", "", None),
        ("ar", "٣٥ كيلومتر", "35", "length-kilometer"),
    ],
)
def test_value_scale_and_unit(language: str, text: str, value: str, unit: str | None) -> None:
    found = quantities(text, language)
    assert [sorted(one.values) for one in found] == ([[Decimal(value)]] if value else [])
    assert all((unit in one.units) if unit else not one.units for one in found)


def test_a_separator_that_may_be_of_thousands_or_decimals_has_both_readings() -> None:
    assert only("1.234", "de").values == {Decimal(1234)}
    assert only("1.234", "en").values == {Decimal("1.234")}
    assert only("1.234", "fr").values == {Decimal("1.234"), Decimal(1234)}
    assert only("1,234.5").values == {Decimal("1234.5")}
    assert not quantities("version 1.2.3")


def test_a_sign_is_a_minus_or_the_brackets_of_accounting() -> None:
    assert only("a change of -5").negative
    assert only("a change of -CHF 5 million").negative
    assert only("a change of -$5 million").negative
    assert only("The leave (30) is fixed by law.").negative is False
    assert only("| (565) |").negative
    assert only("(565 employees)").negative is False
    assert [one.negative for one in quantities("pages 3-5")] == [False, False]


def test_a_rate_is_per_period() -> None:
    assert only("30 euros per hour").rate == "hour"
    assert only("30 Euro pro Monat", "de").rate == "month"


@pytest.mark.parametrize(
    ("claim", "text", "stated"),
    [
        ("$36,400 million", "$36.4 billion", True),
        ("36 million dollars", "36 million shares", True),  # shares are not a unit of CLDR: the judge reads them
        ("30 weeks", "30 days", False),
        ("9 am", "9 pm", False),
        ("30 euros per month", "30 euros per year", False),
        ("€30", "30 EUR", True),
        ("31", "31 days", True),
        ("-5", "5", False),
        ("a loss of 565", "(565)", True),
        ("36 million", "36 billion", False),
    ],
)
def test_one_states_another_with_its_unit(claim: str, text: str, stated: bool) -> None:
    assert only(claim).is_stated_by(only(text)) is stated


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "2026-05-18"),
        ("en", "18 May 2026"),
        ("en", "May 18th, 2026"),
        ("de", "18. Mai 2026"),
        ("es", "18 de mayo de 2026"),
        ("ru", "18 мая 2026 г."),
        ("ja", "2026年5月18日"),
    ],
)
def test_a_day_is_a_date_and_no_quantity(language: str, text: str) -> None:
    (day,) = dates(text, language)
    assert (day.year, day.month, day.day) == (2026, 5, 18)
    assert not quantities(text, language)


def test_a_day_without_a_year_agrees_with_one_of_any_year() -> None:
    (day,), (full,), (other,) = (dates(text) for text in ("May 18", "18 May 2026", "19 May 2026"))
    assert day.states(full)
    assert not day.states(other)


def test_a_header_names_scales_and_signs() -> None:
    assert scales_in("(in millions, except per share)") == {6}
    assert scales_in("in Mio. €", "de") == {6}
    assert "USD" in units_in("(in $ millions)")
    assert units_in("2022 in %") == {"concentr-percent"}
