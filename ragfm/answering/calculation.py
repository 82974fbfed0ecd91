"""Calculations: a number that no sentence states, from cells of tables that the passages have.

An operand can only be a cell that is there, so no number is invented. Arithmetic is decimal. Scales are converted, and
units that differ are refused, as is everything that is not certain: a cell with several numbers, a missing operand, a
base that is not positive. Whether the plan fits the question is for the judge, which reads the row of each operand.

    14.86 % = (1,577 [1] − 1,373 [1]) ÷ 1,373 × 100

`benchmarks/bench_calculations.py` measures it on TAT-QA.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, DecimalException, localcontext
from typing import TYPE_CHECKING, Literal, TypeAlias

from ragfm.answering.judge import Evidence
from ragfm.answering.operations import NONE, asked_operation
from ragfm.answering.quantities import per_word, quantities, scale_word, scales_in, units_in, with_separators
from ragfm.answering.units import Rarity, Unit, passage_citation, periods, word_list, words
from ragfm.core.errors import EmbedderMismatchError, ModelNotFoundError, RagfmError
from ragfm.core.types import Calculation, CalculationOperand, Citation

if TYPE_CHECKING:
    from ragfm.answering.grounding import Grounding
    from ragfm.core.table_rows import TableRow
    from ragfm.core.types import Embedder, Fault

Operation: TypeAlias = Literal["difference", "sum", "mean", "ratio", "share", "percentage change", "growth rate"]
PERCENT, POINTS = "concentr-percent", "percentage points"
LIKELY, UNLIKELY = 0.7, 0.35
"""The confidence of an answer that is likely right, and of another. From LIKELY on, the likelihood of the operation
times the least probability of the judge that an operand's row answers the question verifies a calculation: over the
tuning half of TAT-QA, 106 of 112 are right from 0.7 on, 125 of 135 from 0.6 on, 149 of 165 from 0.4 on."""
_PAIRS = ("difference", "ratio", "share", "percentage change", "growth rate")
_PRECISION = 60  # digits
_MAX_DIGITS = 24  # of an operand
_MAX_ROWS = 5  # that may be meant
_MIN_LIKELIHOOD = 0.5  # of the operation
_DECIMALS, _MOST_DECIMALS = Decimal("0.01"), Decimal("1e-6")
_FOOTNOTE = re.compile(r"(?<=\S)\s*(?:\(\d{1,2}\)|\[\w{1,2}\]|<sup>.*?</sup>)\s*$|^\s*\(\d{1,2}\)\s+(?=\S*\d)")
_NEGATIVE = re.compile(r"[^\w(]*\([^\w)]*\d|\s*[-−–]\s*[^\w\s]?\s*\d|.*\d\s*[-−–]\s*$")  # of a whole cell
_TITLE = re.compile(r"\D*[^\W\d_]\D*")
_LETTERS = re.compile(r"[^\W\d_]+\.?$")


class CalculationError(RagfmError):
    """A calculation cannot be carried out: its operands do not go together, or some are missing."""


class MissingOperandError(CalculationError):
    """Rows or periods that a question names have no number."""

    def __init__(self, operation: Operation, what: str) -> None:
        super().__init__(f"The {operation} cannot be calculated: the passages have no number for {what}.")


@dataclass(frozen=True, slots=True)
class Operand:
    """A cell of a table with one number.

    `label` says what it is: "Revenue — 2022"; `row_words` are the words of the first cell, `column_words` those of the
    column's title. `periods` are those of this title, or else of the label; `repeated`: another column has them, too.
    `value` is as it stands, with its sign; `power` is that of its scale: 6 for millions. `units` are CLDR's names or
    currency codes; several for a sign that several currencies have, none if no unit is named. `sign` is the unit as it
    is written.
    """

    place: Unit
    column: int
    label: str
    row_words: Sequence[str]
    column_words: Sequence[str]
    periods: frozenset[str]
    repeated: bool
    text: str
    value: Decimal
    power: int
    units: frozenset[str]
    sign: str

    @property
    def scaled(self) -> Decimal:
        """The value with its scale."""
        return self.value.scaleb(self.power)


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an operation: `value` times ten to the `power`, in `unit`, empty without one.

    In the `working`, {0} stands for the first operand.
    """

    operands: tuple[Operand, ...]
    value: Decimal
    power: int
    unit: str
    working: str


@dataclass(frozen=True, slots=True)
class CalculatedAnswer:
    """An answer that was calculated: its text with a marker behind each operand, and their citations.

    `value` is the number in the scale of its operands, `confidence` the probability that it is right.
    """

    text: str
    citations: tuple[Citation, ...]
    calculation: Calculation
    value: Decimal
    confidence: float


def calculate_answer(
    grounding: Grounding, embedder: Callable[[], Embedder | None] = lambda: None
) -> CalculatedAnswer | None:
    """The answer to a question that asks for a calculation over cells of the passages; None for all others.

    The operation is known for English questions only. Without a judge, no citation is verified. `embedder` gives the
    bundled embedder if the caller has it.

    Raises MissingOperandError if the question surely asks for a calculation, but a row or period of it has no number.
    """
    question, language, judge = grounding.question, grounding.language, grounding.judge
    if not grounding.is_english:
        return None
    try:
        operation, likelihood = asked_operation(question, embedder())
    except (ModelNotFoundError, EmbedderMismatchError):  # not installed, or refused, which searches report
        return None
    if operation == NONE:
        return None
    mentioned, asked = word_list(question), periods(question)
    with localcontext() as context:
        context.prec = _PRECISION
        try:
            found = operands(mentioned, grounding.units, language)
            chosen = likely_operands(operation, found, mentioned, asked)
            if operation == "share" and len({one.periods for one in chosen}) == 1:  # the smaller one is the part
                chosen.sort(key=lambda one: abs(one.scaled))
            result = calculate(operation, chosen)
            value = rounded(result)
        except MissingOperandError:
            if likelihood >= LIKELY:
                raise
            return None
        except (CalculationError, DecimalException):
            return None
    fit = 0.0
    if judge:
        rows = dict.fromkeys(Evidence(one.place.text, question, "", one.place.context) for one in result.operands)
        read = judge.read(list(rows))
        fit = likelihood * min(one.answers for one in read)
    verified = fit >= LIKELY
    fault: Fault | None = None if verified else "unclear"
    shown = displayed(value, result, language)
    text, citations = f"{shown} = ", list[Citation]()
    for part in re.split(r"(\{\d+\})", result.working):
        number = int(part[1:-1]) if part.startswith("{") else None
        operand = None if number is None else result.operands[number]
        words_of_part = part if operand is None else _written(operand)
        if operand is not None and len(citations) == number:  # its first mention
            start = len(text)
            words_of_part += f" [{operand.place.hit.n}]"
            row = operand.place.row and replace(operand.place.row, column=operand.column)
            place = passage_citation(operand.place.hit, operand.place.start, operand.place.end, row)
            end = start + len(words_of_part)
            citations.append(replace(place, verified=verified, fault=fault, answer_start=start, answer_end=end))
        text += words_of_part
    named = likelihood >= _MIN_LIKELIHOOD and all(
        set(one.row_words) <= set(mentioned) and one.periods & asked and not one.repeated for one in result.operands
    )
    working = re.sub(r"\{(\d+)\}", lambda one: _written(result.operands[int(one[1])]), result.working)
    labelled = tuple(CalculationOperand(one.label, one.text) for one in result.operands)
    calculation = Calculation(operation, shown, working, labelled)
    confidence = LIKELY if named or verified else UNLIKELY
    return CalculatedAnswer(text, tuple(citations), calculation, result.value, confidence)


def operands(mentioned: Sequence[str], units: Sequence[Unit], language: str | None) -> list[Operand]:
    """The cells with one number, those whose labels look most like the words of the question first."""
    rarity, asked, found = Rarity(units), frozenset(mentioned), list[tuple[float, Operand]]()
    per = per_word(language)
    titles: Sequence[str] = ()  # with those of further rows of the header
    started = in_header = False  # whether a row with numbers has come; whether the row above is of the header
    for unit in units:
        row = unit.row
        if row is None or unit.is_heading:
            titles, started, in_header = (), False, False
            continue
        if _is_header(row.cells, is_first=not started):
            above = titles if in_header and len(titles) == len(row.cells) else _spanned(row)
            titles, in_header = [" ".join(filter(None, pair)) for pair in zip(above, row.cells, strict=True)], True
            continue
        in_header = False
        full = titles if len(titles) == len(row.cells) else row.titles
        for column, cell in enumerate(row.cells):
            text = _FOOTNOTE.sub("", cell).strip()
            numbers = quantities(text, language)
            started |= bool(column and numbers)
            if not column or not row.cells[0].strip() or len(numbers) != 1:
                continue
            number, title = numbers[0], full[column]
            value = max(number.values, key=lambda one: -one.as_tuple().exponent)  # type: ignore[operator]
            if len(value.as_tuple().digits) > _MAX_DIGITS:
                continue
            value = value.scaleb(-number.power) * (-1 if number.negative or _NEGATIVE.match(text) else 1)
            caption = [line for line in unit.context.splitlines() if not line.startswith("|")]
            own = periods(title)
            signs, powers = number.units, frozenset[int]()
            for line in (row.cells[0], title, *reversed(caption)):  # the nearest that names a unit or a scale
                signs = signs or units_in(line, language)
                powers = powers or scales_in(line, language)
                if line is title and own:  # "2019 | 2018 (in millions)": columns of periods have one scale
                    powers = powers or scales_in(" ".join(filter(periods, full)), language)
            row_words = word_list(row.cells[0])
            per_unit = per in row_words  # "Earnings per share" are not in millions
            power = number.power or (0 if signs == {PERCENT} or per_unit else min(powers, default=0))
            label = " — ".join(filter(None, (row.label, title)))
            shown = text[number.start : number.end]
            repeated = bool(own) and sum(periods(one) == own for one in full) > 1
            own = own or periods(label)
            operand = Operand(
                unit,
                column,
                label,
                row_words,
                word_list(title),
                own,
                repeated,
                shown,
                value,
                power,
                signs,
                _sign(text, shown, signs),
            )
            # Of two labels that have the same words of the question, the shorter one is meant.
            score = rarity.share(asked, words(f"{label} {unit.context}")) + rarity.share(words(label), asked)
            found.append((round(score, 9), operand))  # sums over sets differ in their last digits
    found.sort(key=lambda one: -one[0])
    return [operand for _, operand in found]


def likely_operands(
    operation: Operation, found: Sequence[Operand], mentioned: Sequence[str], asked: frozenset[str]
) -> list[Operand]:
    """The operands of an operation that a question most likely means, by its words and periods, of those `found`.

    If the question names several rows of a table and at most one year, they are the cells of these rows in the same
    column, in the order in which they are mentioned; likewise those of several columns in the row of the best one.
    Otherwise they stand in this row, in the columns of the periods that the question names (of all if it names none)
    and, for a sum or mean, between them, the newest first.

    Raises CalculationError if they are not there, MissingOperandError if the question names what is missing.
    """
    years = sorted(int(period) for period in asked if period.isdigit())
    several = operation not in _PAIRS
    named = _named_rows(found, mentioned)
    if len(named) > 1 and len(years) < 2:
        column = next(one for one in found if one.place in named).column
        chosen = [one for row in named for one in found if one.place is row and one.column == column]
        if not several and len(named) > 2:
            raise CalculationError(f"A {operation} of {len(named)} rows is not possible.")
        if lacking := [row.row.cells[0] for row in named if row.row and all(one.place is not row for one in chosen)]:
            what = f"{' and '.join(lacking)} in the column of the others"
            raise MissingOperandError(operation, what)
        return chosen
    rows: dict[int, list[Operand]] = {}
    for one in found:
        rows.setdefault(id(one.place), []).append(one)
    best = next(iter(rows.values()), [])
    columns = _named_columns(best, mentioned)
    if len(years) < 2 and (len(columns) == 2 or (several and len(columns) > 2)):
        return columns
    for row in list(rows.values())[:_MAX_ROWS]:
        chosen = _cells_of_periods(row, asked, several=several)
        if len(chosen) > 1 and (several or len(chosen) == 2):
            return chosen
    lacking = sorted(asked - {period for one in best for period in one.periods})
    if best and lacking and set(best[0].row_words) <= set(mentioned):
        what = f"{' '.join(best[0].row_words)} of {' and '.join(lacking)}"
        raise MissingOperandError(operation, what)
    raise CalculationError("The table has no cells for the periods of the question.")


def _cells_of_periods(row: Sequence[Operand], asked: frozenset[str], *, several: bool) -> list[Operand]:
    """The cells of a row for all asked periods, and with `several` between them, the newest first; none if one lacks.

    Without asked periods, those of all periods.
    """
    years = sorted(int(period) for period in asked if period.isdigit())
    quarters = {period for period in asked if not period.isdigit()}
    by_period: dict[tuple[str, ...], Operand] = {}
    for one in row:
        own = tuple(sorted(one.periods))  # the year first, then the quarter
        of_years = [int(period) for period in own if period.isdigit()]
        between = several and len(years) == 2 and any(years[0] < year < years[1] for year in of_years)
        fits = not asked or between or set(own) <= asked or (set(own) & asked and not quarters)
        if own and len(of_years) < 2 and fits:
            by_period.setdefault(own, one)
    if asked - {period for own in by_period for period in own}:
        return []
    return [by_period[own] for own in sorted(by_period, reverse=True)]


def calculate(operation: Operation, chosen: Sequence[Operand]) -> Result:
    """Carry out an operation. Of pairs, the first operand is the newer one, or the part of a whole.

    Raises CalculationError if the operands do not go together.
    """
    if len(chosen) < 2 or (operation in _PAIRS and len(chosen) != 2):
        raise CalculationError(f"A {operation} of {len(chosen)} operands is not possible.")
    if len({(one.place.hit.n, one.place.start, one.column) for one in chosen}) < len(chosen):
        raise CalculationError(f"A {operation} of the same cell is not meant.")
    named = [one.units for one in chosen if one.units]
    percentages = sum(one.units == {PERCENT} for one in chosen)
    mixed = percentages not in (0, len(chosen)) or (named and not frozenset.intersection(*named))
    if mixed and operation != "ratio":
        raise CalculationError(f"A {operation} of {' and '.join(one.text for one in chosen)} has no unit.")
    power = min(one.power for one in chosen)
    values = [one.value.scaleb(one.power - power) for one in chosen]
    unit = next((one.sign for one in chosen if one.sign), "")
    plus = " + ".join(f"{{{number}}}" for number in range(len(chosen)))
    if operation == "sum":
        return Result(tuple(chosen), sum(values, Decimal()), power, unit, plus)
    if operation == "mean":
        mean = sum(values, Decimal()) / len(values)
        return Result(tuple(chosen), mean, power, unit, f"({plus}) ÷ {len(values)}")
    first, second = values
    if operation == "difference":
        return Result(tuple(chosen), first - second, power, POINTS if unit == "%" else unit, "{0} − {1}")
    if second == 0 or (second < 0 and operation != "ratio"):
        raise CalculationError(f"A {operation} with the base {chosen[1].text} has no meaning.")
    if operation == "ratio":
        return Result(tuple(chosen), first / second, 0, "", "{0} ÷ {1}")
    if operation == "share":
        return Result(tuple(chosen), 100 * first / second, 0, "%", "{0} ÷ {1} × 100")
    if operation == "percentage change":
        return Result(tuple(chosen), 100 * (first - second) / second, 0, "%", "({0} − {1}) ÷ {1} × 100")
    apart = {int(period) for one in chosen for period in one.periods if period.isdigit()}
    if first <= 0 or len(apart) != 2:
        raise CalculationError("A growth rate needs positive numbers of two years.")
    years = max(apart) - min(apart)
    value = 100 * ((first / second) ** (Decimal(1) / years) - 1)
    return Result(tuple(chosen), value, 0, "%", f"(({{0}} ÷ {{1}})^(1/{years}) − 1) × 100")


def rounded(result: Result) -> Decimal:
    """The value with as many decimals as the operands have, at least two and at most six."""
    exponents = [Decimal(1).scaleb(one.value.as_tuple().exponent) for one in result.operands]  # type: ignore[arg-type]
    value = result.value.quantize(max(min([_DECIMALS, *exponents]), _MOST_DECIMALS))
    return value.to_integral_value() if value == value.to_integral_value() else value.normalize()


def displayed(value: Decimal, result: Result, language: str | None) -> str:
    """A value with the scale and the unit of its result."""
    number = " ".join(filter(None, (with_separators(value, language), scale_word(result.power, language))))
    if result.unit and unicodedata.category(result.unit[0]) == "Sc":  # a currency sign
        return f"-{result.unit}{number[1:]}" if number.startswith("-") else f"{result.unit}{number}"
    return " ".join(filter(None, (number, result.unit)))


def _is_header(cells: Sequence[str], *, is_first: bool) -> bool:
    """Whether a row below the header belongs to it: it has words or periods, but no other numbers.

    Below rows with numbers, only a row without a label and with a period is one.
    """
    titles = [cell for cell in cells[1:] if cell.strip()]
    if not cells[0].strip() and any(map(periods, titles)):
        return True
    return is_first and len(titles) > 1 and all(periods(one) or _TITLE.fullmatch(one) for one in titles)


def _spanned(row: TableRow) -> Sequence[str]:
    """The column titles of a row; one that is followed by empty cells is over several columns."""
    titles = list(row.titles)
    if len(titles) > 1 and titles[1].strip():  # else they may be centred, which tells nothing
        for column in range(2, len(titles)):
            titles[column] = titles[column].strip() or titles[column - 1]
    return titles


def _written(operand: Operand) -> str:
    """The number as it stands in the document, a negative one in brackets."""
    return f"({operand.text.strip('()')})" if operand.value < 0 else operand.text


def _sign(cell: str, number: str, units: frozenset[str]) -> str:
    """How a unit is written: as in the cell, or as its code."""
    if not units:
        return ""
    if units == {PERCENT}:
        return "%"
    currency = next((sign for sign in cell if unicodedata.category(sign) == "Sc"), "")
    name = _LETTERS.search(number)
    return currency or (name[0] if name and not units <= {name[0]} else min(sorted(units), key=len))


def _named_rows(found: Sequence[Operand], mentioned: Sequence[str]) -> list[Unit]:
    """The rows of the first table whose labels the question has, in the order in which it mentions them.

    Labels that are part of another one, and those that several rows have, are left out.
    """
    rows: dict[tuple[str, ...], list[Unit]] = {}
    header: tuple[str, ...] | None = None
    for one in found:
        row, label = one.place.row, one.row_words
        if row and label and set(label) <= set(mentioned) and (header is None or row.header == header):
            header = row.header
            of_label = rows.setdefault(tuple(label), [])
            if one.place not in of_label:
                of_label.append(one.place)
    unique = {label: places[0] for label, places in rows.items() if len(places) == 1}
    whole = [label for label in unique if not any(set(label) < set(other) for other in unique)]

    return [unique[label] for label in sorted(whole, key=lambda label: _position(label, mentioned))]


def _named_columns(row: Sequence[Operand], mentioned: Sequence[str]) -> list[Operand]:
    """The cells of a row whose label the question has, and also their columns' titles, in the order of the question.

    Titles that are part of another one are left out, as are those that have nothing but a period.
    """
    asked = set(mentioned)
    named = [one for one in row if one.column_words and {*one.row_words, *one.column_words} <= asked]
    named = [one for one in named if not all(any(map(str.isdigit, word)) for word in one.column_words)]
    whole = [one for one in named if not any(set(one.column_words) < set(other.column_words) for other in named)]
    return sorted(whole, key=lambda one: _position(one.column_words, mentioned))


def _position(label: Sequence[str], mentioned: Sequence[str]) -> int:
    """Where a question has a label; that of its first word if the words stand apart."""
    starts = [at for at in range(len(mentioned)) if mentioned[at : at + len(label)] == list(label)]
    return starts[0] if starts else mentioned.index(label[0])
