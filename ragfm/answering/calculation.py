"""Calculations: a number that no sentence states, from cells and numbers that the passages have.

A plan names an operation and its operands; an operand can only be a number that is there, so no number is invented.
Arithmetic is decimal. Scales are converted, and units that differ are refused.

    14.86 % = (1,577 − 1,373) ÷ 1,373 × 100

`benchmarks/bench_calculations.py` measures it on TAT-QA.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, DivisionByZero, InvalidOperation, localcontext
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from ragfm.answering.operations import NONE, asked_operation
from ragfm.answering.quantities import Quantity, quantities, scale_word, scales_in, units_in, with_separators
from ragfm.answering.units import Rarity, Unit, above_cell, passage_units, periods, row_with_cell, unit_citation, words
from ragfm.core.errors import ModelNotFoundError, RagfmError
from ragfm.core.text import is_english
from ragfm.core.types import Calculation, CalculationOperand, Citation

if TYPE_CHECKING:
    from ragfm.core.types import Hit

Operation: TypeAlias = Literal[
    "difference",
    "sum",
    "mean",
    "ratio",
    "share",
    "percentage change",
    "growth rate",
    "count",
    "minimum",
    "maximum",
    "comparison",
    "order",
]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
PERCENT, POINTS = "concentr-percent", "percentage points"
MAX_OPERANDS = 40
"""Maximum number of cells that a plan may choose from."""
_PAIRS = ("difference", "ratio", "share", "percentage change", "growth rate", "comparison")
_UNIT_FREE = ("ratio", "count")
_LIKELY = 0.5
"""Probability of the operation from which an answer is likely right: 138 of 169 such answers to the tuning half of
TAT-QA are, and 117 of 163 to the other half."""
_CHOICES = ("minimum", "maximum", "order", "count")
_DECIMALS = Decimal("0.01")
_WORD_AT_END = re.compile(r"[^\W\d_]+\.?$")


class CalculationError(RagfmError):
    """A plan cannot be carried out: its operands do not go together, or some are missing."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A number of a passage, by the name that a plan uses for it.

    `label` says what it is: "Revenue — 2022", or the sentence that it is in. `value` is as it stands, with its sign;
    `power` is that of its scale: 6 for millions. `units` are CLDR's names or currency codes; several for a sign that
    several currencies have, none if no unit is named. It stands at `position` of the text of `place`.
    """

    name: str
    label: str
    text: str
    value: Decimal
    power: int
    units: frozenset[str]
    place: Unit
    position: int

    @property
    def column(self) -> int | None:
        """Its column of a table; None in prose."""
        row = row_with_cell(self.place, self.place.start + self.position)
        return row.column if row else None

    @property
    def scaled(self) -> Decimal:
        """The value with its scale."""
        return self.value.scaleb(self.power)


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an operation: `value` times ten to the `power`, in `unit`, and how it was computed.

    `unit` is a percent sign, `points`, or the sign or word of the operands; empty without one. `label` is that of the
    operand that a minimum, maximum or comparison chose.
    """

    operation: Operation
    operands: tuple[Operand, ...]
    value: Decimal
    power: int
    unit: str
    working: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class CalculatedAnswer:
    """An answer that was calculated: its text with markers, a citation of each operand, and whether it is likely right.

    `value` is the number in the scale of its operands. The answer is `likely` right if the operation is, and if the
    question has the label of each operand, and the operands all periods of the question.
    """

    text: str
    citations: tuple[Citation, ...]
    calculation: Calculation
    value: Decimal
    likely: bool


def calculate_answer(question: str, passages: Sequence[Hit], language: str | None) -> CalculatedAnswer | None:
    """The answer to a question that asks for a calculation over numbers of the passages; None for all others.

    The operation is known for English questions only.
    """
    if not is_english(question, language):
        return None
    try:
        operation, likelihood = asked_operation(question)
    except ModelNotFoundError:  # the bundled embedding model is not installed
        return None
    if operation == NONE:
        return None
    units = [unit for hit in passages if hit.n is not None for unit in passage_units(hit, language or "en")]
    try:
        result = calculate(operation, likely_operands(operation, operands(question, units, language), question))
    except CalculationError:
        return None
    chosen, asked = result.operands, periods(question)
    found = frozenset[str]().union(*(periods(one.label) for one in chosen))
    named = all(one.place.row is not None and words(_label(one.place)) <= words(question) for one in chosen)
    shown = displayed(result, language)
    markers = "".join(f"[{n}]" for n in dict.fromkeys(one.place.hit.n for one in chosen))
    text = f"{shown} {markers}"
    citations = [
        replace(
            unit_citation(one.place, row_with_cell(one.place, one.place.start + one.position)),
            fault="unclear",
            answer_end=len(text),
        )
        for one in chosen
    ]
    return CalculatedAnswer(
        text,
        tuple(citations),
        Calculation(
            operation,
            shown.partition(" = ")[0],
            result.working,
            tuple(CalculationOperand(one.label, one.text) for one in chosen),
        ),
        result.value,
        likely=named and bool(asked) and asked <= found and likelihood >= _LIKELY,
    )


def operands(question: str, units: Sequence[Unit], language: str | None) -> list[Operand]:
    """The numbers of the units that a plan may choose from, those that look most like the question first."""
    rarity, asked, found = Rarity(units), words(question), list[tuple[float, Operand]]()
    for unit in units:
        if unit.is_heading:
            continue
        for number in quantities(unit.text, language):
            text = unit.text[number.start : number.end]
            if not number.units and len(number.values) == 1 and periods(text):  # a year
                continue
            label, title = " ".join(unit.text.split()), ""
            if unit.row is not None:
                row = row_with_cell(unit, unit.start + number.start)
                if row is None or not row.column or row.column >= len(row.cells):
                    continue
                title = row.titles[row.column]
                label = " — ".join(filter(None, (row.label, title)))
            above = above_cell(unit, unit.start + number.start) if unit.row is not None else ""
            power, signs = _scale_and_units(number, above, language)
            value = max(number.values, key=lambda one: -one.as_tuple().exponent)  # type: ignore[operator]
            value = value.scaleb(-number.power) * (-1 if number.negative else 1)
            operand = Operand("", label, text, value, power or number.power, signs, unit, number.start)
            # Of two labels that have the same words of the question, the shorter one is meant.
            recall = rarity.share(asked, words(f"{label} {unit.context}"))
            found.append((recall + rarity.share(words(label), asked), operand))
    found.sort(key=lambda one: -one[0])
    chosen = [operand for _, operand in found[:MAX_OPERANDS]]
    return [replace(operand, name=f"c{number}") for number, operand in enumerate(chosen, 1)]


def _scale_and_units(number: Quantity, above: str, language: str | None) -> tuple[int, frozenset[str]]:
    """The power of ten and the units of a number: its own, or of a cell those that are named above, nearest first."""
    units, powers = number.units, frozenset[int]()
    for line in above.splitlines():
        units = units or units_in(line, language)
        powers = powers or scales_in(line, language)
    return (0 if units == {PERCENT} else min(powers, default=0)), units


def calculate(operation: Operation, chosen: Sequence[Operand], years: int = 0) -> Result:
    """Carry out an operation. Of pairs, the first operand is the newer one, or the part of a whole.

    `years` is the time between the operands of a growth rate; by default that between the years in their labels.
    Raises CalculationError if the operands do not go together.
    """
    _check(operation, chosen)
    power = min((one.power for one in chosen), default=0)
    with localcontext() as context:
        context.prec = 40
        values = [one.value.scaleb(one.power - power) for one in chosen]
        unit = _shown_unit(chosen)
        shown = [one.text for one in chosen]
        shown = [
            f"({text})" if value < 0 and not text.startswith("(") else text
            for text, value in zip(shown, values, strict=True)
        ]
        label = ""
        try:
            if operation == "sum":
                value, working = sum(values, Decimal()), " + ".join(shown)
            elif operation == "mean":
                value, working = sum(values, Decimal()) / len(values), f"({' + '.join(shown)}) ÷ {len(values)}"
            elif operation == "count":
                value, unit, power, working = Decimal(len(values)), "", 0, ", ".join(one.label for one in chosen)
            elif operation in ("minimum", "maximum"):
                best = (min if operation == "minimum" else max)(range(len(values)), key=values.__getitem__)
                value, label, working = values[best], chosen[best].label, f"{operation} of {', '.join(shown)}"
            elif operation == "order":
                order = sorted(range(len(values)), key=lambda n: -values[n])
                value, label = values[order[0]], chosen[order[0]].label
                working = " > ".join(f"{chosen[n].label}: {shown[n]}" for n in order)
            else:
                (first, second), (a, b) = values, shown
                if operation in ("difference", "comparison"):
                    value, working = first - second, f"{a} − {b}"
                    if operation == "comparison":
                        label = chosen[0 if value >= 0 else 1].label
                        value = abs(value)
                    unit = POINTS if unit == "%" else unit
                elif operation == "ratio":
                    value, unit, power, working = first / second, "", 0, f"{a} ÷ {b}"
                elif operation == "share":
                    value, unit, power, working = 100 * first / second, "%", 0, f"{a} ÷ {b} × 100"
                elif operation == "percentage change":
                    value, unit, power = 100 * (first - second) / second, "%", 0
                    working = f"({a} − {b}) ÷ {b} × 100"
                else:
                    years = years or _years_between(chosen)
                    value = 100 * ((first / second) ** (Decimal(1) / years) - 1)
                    unit, power, working = "%", 0, f"(({a} ÷ {b})^(1/{years}) − 1) × 100"
        except (DivisionByZero, InvalidOperation) as error:
            raise CalculationError(f"The {operation} of {' and '.join(shown)} has no value.") from error
    return Result(operation, tuple(chosen), value, power, unit, working, label)


def rounded(calculation: Result) -> Decimal:
    """The result with as many decimals as the operands have, at least two unless it is whole."""
    digits = min([_DECIMALS, *(Decimal(1).scaleb(one.value.as_tuple().exponent) for one in calculation.operands)])  # type: ignore[arg-type]
    value = calculation.value.quantize(digits)
    return value.to_integral_value() if value == value.to_integral_value() else value.normalize()


def likely_operands(operation: Operation, found: Sequence[Operand], question: str) -> list[Operand]:
    """The operands of an operation that a question most likely means, of those that `operands` found; else none.

    If the question names several rows of a table and at most one period, they are the cells of these rows in the same
    column, in the order in which they are mentioned. Otherwise they stand in the row of the best one, in the columns
    of the periods that the question names and, for a sum or mean, between them, the newest first.
    """
    asked, text = periods(question), question.casefold()
    years = sorted(int(period) for period in asked if period.isdigit())
    several = operation not in _PAIRS
    named = _named_rows(found, question)
    if len(named) > 1 and len(years) < 2:
        first = next(one for one in found if one.place in named)
        cells = [
            next((one for one in found if one.place is row and one.column == first.column), None)
            for row in sorted(named, key=lambda row: text.find(_label(row).split()[0].casefold()))
        ]
        chosen = [cell for cell in cells if cell is not None]
        if len(chosen) > 1:
            return chosen if several else chosen[:2]
    row = [one for one in found if one.place is found[0].place and one.place.row is not None]
    by_period: dict[frozenset[str], Operand] = {}
    for one in row:
        own = {year for year in periods(one.label) if year.isdigit()}
        between = several and len(years) == 2 and any(years[0] < int(year) < years[1] for year in own)
        if periods(one.label) & asked or between:
            by_period.setdefault(periods(one.label) & asked or frozenset(own), one)
    chosen = list(by_period.values())
    if len(chosen) < 2:
        chosen = list(found[:2])
    chosen.sort(key=lambda one: -max((int(year) for year in periods(one.label) if year.isdigit()), default=0))
    return chosen if several else chosen[:2]


def _named_rows(found: Sequence[Operand], question: str) -> list[Unit]:
    """The rows of the first table whose labels the question has, without those whose label is a part of another's."""
    asked, rows = words(question), list[Unit]()
    for row in (one.place for one in found):
        label, of_table = words(_label(row)), not rows or row.hit is rows[0].hit
        if label and label <= asked and of_table and row not in rows:
            rows.append(row)
    return [row for row in rows if not any(words(_label(row)) < words(_label(other)) for other in rows)]


def _label(row: Unit) -> str:
    """The first cell of a row."""
    return row.row.cells[0] if row.row else ""


def _check(operation: Operation, chosen: Sequence[Operand]) -> None:
    if not chosen:
        raise CalculationError(f"A {operation} needs operands.")
    if operation in _PAIRS and len(chosen) != 2:
        raise CalculationError(f"A {operation} needs two operands, not {len(chosen)}.")
    if len({(one.place.hit.n, one.place.start, one.position) for one in chosen}) < len(chosen):
        raise CalculationError(f"A {operation} of the same cell is not meant.")
    if operation in _UNIT_FREE:
        return
    named = [one.units for one in chosen if one.units]
    if named and not frozenset.intersection(*named):
        raise CalculationError(f"A {operation} of {' and '.join(one.text for one in chosen)} has no unit.")
    if any(one.units == {PERCENT} for one in chosen) and not all(one.units == {PERCENT} for one in chosen):
        raise CalculationError(f"A {operation} of percentages and other numbers is not possible.")


def _shown_unit(chosen: Sequence[Operand]) -> str:
    """The unit of the operands as a text next to the first one that names it writes it: `$`, `%` or `days`."""
    for one in chosen:
        if one.units == {PERCENT}:
            return "%"
        before = one.place.hit.text[: one.place.start + one.position].rstrip(" \u00a0(")[-1:]
        if one.units and unicodedata.category(before or " ") == "Sc":  # a currency sign
            return before
        if one.units:
            name = _WORD_AT_END.search(one.text)
            return name[0] if name else min(one.units, key=len)
    return ""


def displayed(calculation: Result, language: str | None) -> str:
    """The result with its unit, scale and working, or with the label that it chose."""
    number, sign = with_separators(rounded(calculation), language), calculation.unit
    scaled = " ".join(filter(None, (number, scale_word(calculation.power, language))))
    if sign and unicodedata.category(sign[0]) == "Sc":
        result = f"-{sign}{scaled[1:]}" if scaled.startswith("-") else f"{sign}{scaled}"
    else:
        result = " ".join(filter(None, (scaled, sign)))
    if calculation.label:
        result = f"{calculation.label}: {result}"
    return f"{result} = {calculation.working}" if calculation.operation not in _CHOICES else result


def _years_between(chosen: Sequence[Operand]) -> int:
    years = [{int(period) for period in periods(one.label) if period.isdigit()} for one in chosen]
    if any(len(of_label) != 1 for of_label in years):
        raise CalculationError("The years of a growth rate are not known.")
    (first,), (second,) = years
    if first == second:
        raise CalculationError("A growth rate needs two different years.")
    return abs(first - second)
