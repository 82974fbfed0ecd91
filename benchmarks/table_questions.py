"""Generate questions about cells of real tables, to train and test the verifier.

A question names the row and the column of a cell. The negative passages are similar: the same table for other years or
for a different company, without the row, or a part of the same document without such a cell. Half of the tables have
random figures, years and companies, so that the verifier cannot memorise them.
"""

from __future__ import annotations

import io
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ragfm import Collection
from ragfm.core.table_rows import TABLE_RULE

_YEAR = re.compile(r"\b(?:19[89]|20[0-3])\d\b")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NAME = re.compile(r"^(.*?),? (?=(?:19|20)\d\d\b)")
_PERIOD = re.compile(
    r"(?:(?:fiscal )?years? ended |(?:as of|at) )?(?:[A-Z][a-z]+\.? \d{1,2}, )?(?:FY ?)?(?:19|20)\d\d", re.IGNORECASE
)
_NOTE = re.compile(r"\s*(?:\(\d+\)|\([a-z]\)|\*+|:)$|\s*\(Note \d+\)", re.IGNORECASE)
_FIRST = "Nor Al Ver Hal Cor Tel Mar Sun Gran Pet Lin Ost Bren Cal Dor Fen Kes Wald Rav Mont".split()
_LAST = "wick ton mark ex ora field ley well stead mere fold ance tech via gate".split()
_KIND = ("", "", "", " Foods", " Energy", " Stores", " Systems", " Brands", " Pharma", " Motors", " Group")
_SAME = {
    "net sales": ("revenue", "total revenue", "sales"),
    "revenue": ("net sales", "sales", "total revenue"),
    "total net revenue": ("revenue", "total revenue", "net revenue"),
    "net earnings": ("net income", "profit", "earnings"),
    "net income": ("net earnings", "profit"),
    "operating income": ("operating profit", "income from operations"),
    "cost of goods sold": ("COGS", "cost of sales"),
    "cost of sales": ("COGS", "cost of goods sold"),
    "purchases of property and equipment": ("capital expenditure", "capex", "capital expenditures"),
    "additions to property and equipment": ("capital expenditure", "capex", "capital expenditures"),
    "purchase of property and equipment": ("capital expenditure", "capex", "capital expenditures"),
    "property and equipment, net": ("net PP&E", "PP&E", "property and equipment"),
    "merchandise inventories": ("inventories", "inventory", "total inventories"),
    "selling, general and administrative expenses": ("SG&A", "SG&A expenses"),
    "cash and cash equivalents": ("cash", "cash & cash equivalents"),
    "income tax expense": ("taxes", "provision for income taxes"),
    "depreciation and amortization": ("D&A", "depreciation & amortization"),
    "diluted earnings per share": ("diluted EPS", "EPS"),
    "dividends paid": ("cash dividends", "dividends to shareholders"),
    "repurchase of common stock": ("share buybacks", "share repurchases", "stock repurchases"),
}
_UNITS = re.compile(r"in (thousands|millions|billions)", re.IGNORECASE)
_ABOUT = (
    "Based on the report, ",
    "According to the document, ",
    "Using only the figures shown, ",
    "Assume that you are an analyst. ",
    "Answer by relying on the details of the table: ",
)


_PEOPLE = "the manager|human resources|the team lead|the board|the safety officer|the payroll office|nobody"
_PLACES = "Room {1-40}|Building {1-9}|the main office|the north gate|the library|Hall {1-6}|the workshop"
_TIME = "{2-30} days|{2-12} weeks|{1-6} months|one day|{2-48} hours|the same day"
_HOURS = "{7-10}:00 to {16-21}:00|{7-10}:30 to {17-20}:30|{8-10} am to {4-9} pm|closed"
_MONEY = "{2-90} euros|${10-900}|€{5-400}|{100-999} dollars|£{3-80}|{1-9},{100-900} euros"
_TABLES: list[tuple[str, str, list[str], dict[str, str]]] = [
    (
        "Leave",
        "Kind of leave",
        ["Annual leave", "Sick leave", "Parental leave", "Study leave", "Unpaid leave", "Moving house", "Bereavement"],
        {"Days per year": "{1-40}", "Notice": _TIME, "Approved by": _PEOPLE, "Paid": "yes|no|{50-90} %|in part"},
    ),
    (
        "Expenses",
        "Item",
        ["Hotel", "Breakfast", "Dinner", "Train ticket", "Taxi", "Laptop", "Office chair", "Conference fee", "Books"],
        {"Limit": _MONEY, "Receipt needed": "yes|no|above {10-90} euros", "Approved by": _PEOPLE, "Paid within": _TIME},
    ),
    (
        "Opening times",
        "Place",
        ["Reception", "Canteen", "Library", "Swimming pool", "Museum shop", "Workshop", "Post room", "Car park"],
        {"Monday to Friday": _HOURS, "Saturday": _HOURS, "Sunday": _HOURS, "Telephone": "{100-999}-{1000-9999}"},
    ),
    (
        "Contacts",
        "Department",
        ["Sales", "Support", "Accounts", "Purchasing", "Legal", "Research", "Security", "Catering", "Training"],
        {
            "Head": "Anna Weber|Tom Hale|Priya Nair|Luis Ortega|Mei Tan|John Kerr|Sara Lind|Omar Said",
            "Place": _PLACES,
            "Extension": "{1000-9999}",
            "Staff": "{2-90}",
        },
    ),
    (
        "Service plans",
        "Plan",
        ["Free", "Basic", "Standard", "Plus", "Professional", "Enterprise", "Student"],
        {
            "Price per month": _MONEY,
            "Storage": "{5-900} GB|{1-9} TB",
            "Users": "{1-500}|unlimited",
            "Support": "by email|by telephone|forum only|24 hours",
            "Response time": "{1-48} hours|next day",
        },
    ),
    (
        "Technical data",
        "Model",
        ["A100", "A200", "B12", "B24", "CX-5", "CX-9", "M3", "M4 Pro", "T-800"],
        {
            "Weight": "{2-90} kg|{100-900} g",
            "Power": "{5-900} W|{1-30} kW",
            "Voltage": "12 V|24 V|230 V|400 V",
            "Length": "{10-400} cm|{100-990} mm",
            "Warranty": "{1-5} years|{6-36} months",
            "Color": "red|black|white|blue|silver",
        },
    ),
    (
        "Maintenance",
        "Part",
        ["Oil filter", "Air filter", "Brake pads", "Drive belt", "Battery", "Coolant", "Spark plugs", "Tires", "Pump"],
        {
            "Interval": "{5-90},000 km|{1-24} months|{100-900} hours",
            "Part number": "{100-999}-{10-99}",
            "Torque": "{5-120} Nm",
            "Done by": "the driver|a mechanic|the workshop|the dealer",
        },
    ),
    (
        "Results of the trials",
        "Method",
        ["Baseline", "BM25", "LSTM", "BERT-base", "Ours", "Ours without pretraining", "Random forest", "CNN"],
        {
            "Accuracy": "{40-99}.{1-9}",
            "F1": "0.{40-99}|{40-99}.{1-9}",
            "Parameters": "{1-900} M|{1-70} B",
            "Training time": "{1-90} hours|{2-20} days",
            "Dataset size": "{1-900},{100-999}",
        },
    ),
    (
        "Patients",
        "Group",
        ["Placebo", "Low dose", "High dose", "Control", "Exercise", "Combined treatment"],
        {
            "Patients": "{20-900}",
            "Mean age": "{30-80}.{1-9} years|{30-80}",
            "Dropouts": "{1-40}",
            "Response rate": "{5-95} %|{5-95}.{1-9}%",
            "Dose": "{1-90} mg|{1-9} ml twice a day|{100-900} mg daily",
        },
    ),
    (
        "Courses",
        "Course",
        ["First aid", "Fire safety", "Data protection", "Forklift driving", "Spanish", "Python", "Welding", "Sailing"],
        {
            "Starts": "{1-28} March|{1-28} May|{1-28} September|every Monday",
            "Duration": _TIME,
            "Fee": _MONEY + "|free",
            "Teacher": "Ms Cole|Mr Brandt|Dr Osei|Mrs Fujita|Mr Novak",
            "Place": _PLACES,
            "Places": "{6-60}",
        },
    ),
    (
        "Inhabitants and area",
        "Town",
        ["Ashford", "Millbrook", "Kirkby", "Stanmere", "Oldhaven", "Rosedale", "Tarnfield", "Winterbourne"],
        {
            "Population": "{1-90},{100-999}",
            "Area": "{3-400} km²|{3-90} square miles",
            "Founded": "{1100-1950}",
            "River": "the Ash|the Tarn|the Mill|the Ouse|none",
            "Mayor": "Helen Burke|Ivan Petrov|Rosa Díaz|Peter Lang",
        },
    ),
    (
        "Deadlines",
        "Step",
        ["Application", "Interview", "Contract", "Complaint", "Appeal", "Refund", "Inspection", "Renewal"],
        {"Deadline": _TIME, "Form": "Form {1-40}|the online form|letter", "Fee": _MONEY, "Sent to": _PEOPLE},
    ),
]


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk of a document: the text, and the context that it is read with."""

    document: str
    context: str
    text: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table with its row's label, its column's header, and the characters of its value."""

    label: str
    column: str
    start: int
    end: int
    row: tuple[int, int]
    label_start: int
    corner: str  # the header of the labels
    columns: tuple[str, ...]


def passages(collection: Path) -> list[Passage]:
    """All chunks of a collection."""
    exported = io.BytesIO()
    with Collection.open(collection) as opened:
        opened.export(exported)
    return [
        Passage(document["uri"], chunk["context"], document["text"][chunk["start"] : chunk["end"]])
        for document in map(json.loads, exported.getvalue().splitlines())
        for chunk in document["chunks"]
    ]


def cells(passage: Passage) -> Iterator[Cell]:
    """The cells with a value whose row and column have a label that no other row or column has."""
    lines = [(match.start(), match.group()) for match in re.finditer(r"[^\n]+", passage.text)]
    above = [line for line in passage.context.splitlines() if line.startswith("|") and not TABLE_RULE.fullmatch(line)]
    header = [text for text, _ in _split(above[-1])] if above else []
    labels = Counter(_split(line)[0][0] for _, line in lines if line.startswith("|") and _split(line))
    for number, (start, line) in enumerate(lines):
        if not line.startswith("|"):
            header = []
            continue
        below = lines[number + 1][1] if number + 1 < len(lines) else ""
        if TABLE_RULE.fullmatch(below):
            header = [text for text, _ in _split(line)]
            continue
        row = _split(line)
        if TABLE_RULE.fullmatch(line) or not row or len(row) != len(header):
            continue
        label, label_at = row[0]
        if not re.search(r"[A-Za-z]{3}", label) or len(label) > 90 or labels[label] > 1 or "/s/" in line:
            continue
        for (value, at), column in zip(row[1:], header[1:], strict=True):
            if column and header.count(column) == 1 and re.search(r"[A-Za-z0-9]", value) and len(value) < 60:
                yield Cell(
                    label,
                    column,
                    start + at,
                    start + at + len(value),
                    (start, start + len(line)),
                    start + label_at,
                    header[0],
                    tuple(header[1:]),
                )


def _split(row: str) -> list[tuple[str, int]]:
    """The texts of a row's cells, and where they start in it."""
    found = []
    for match in re.finditer(r"(?<=\|)[^|]*(?=\|)", row):
        text = match.group().strip()
        found.append((text, match.start() + len(match.group()) - len(match.group().lstrip())))
    return found


def invented_tables(count: int, chance: random.Random) -> list[Passage]:
    """Tables of handbooks, price lists and data sheets that nobody wrote, several in each document."""
    found = []
    for number in range(count):
        document = f"{invented(chance)} {chance.choice(('handbook', 'guide', 'manual', 'catalog', 'policy', 'report'))}"
        for title, corner, rows, columns in chance.sample(_TABLES, 3):
            labels = chance.sample(rows, chance.randint(3, len(rows)))
            names = chance.sample(list(columns), chance.randint(2, len(columns)))
            lines = [[corner, *names], ["---"] * (1 + len(names))]
            lines += [[label, *(_value(columns[name], chance) for name in names)] for label in labels]
            table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
            above = chance.choice(("", f"## {title}\n\n", f"The following table shows the {title.lower()}.\n\n"))
            context = document if above else f"{document} > {title}"
            found.append(Passage(f"invented/{number}", context, above + table))
    return found


def _value(kind: str, chance: random.Random) -> str:
    """A random value: `kind` has alternatives, between bars, and a range of numbers in each brace."""
    return re.sub(
        r"\{(\d+)-(\d+)\}", lambda span: str(chance.randint(int(span[1]), int(span[2]))), chance.choice(kind.split("|"))
    )


def company(passage: Passage) -> str:
    """The name that the document's file name begins with, before the year; empty without a year."""
    match = _NAME.match(passage.context.partition(" > ")[0].partition("\n")[0])
    return match[1].strip().title() if match else ""


def invented(chance: random.Random) -> str:
    """A name of a company that does not exist."""
    return chance.choice(_FIRST) + chance.choice(_LAST) + chance.choice(_KIND)


def disguise(passage: Passage, chance: random.Random) -> Callable[[Passage], Passage]:
    """A change of the figures, the years and the company of a document, the same for all its passages."""
    name, other, shift = company(passage), invented(chance), chance.randint(-9, 8)
    figures: dict[str, str] = {}

    def figure(match: re.Match[str]) -> str:
        number = match.group()
        if _YEAR.fullmatch(number):
            return str(int(number) + shift)
        if len(number) < 3:
            return number
        if number not in figures:
            figures[number] = re.sub(r"\d", lambda _: chance.choice("123456789"), number)
        return figures[number]

    titles = re.findall(r"> ([A-Z][A-Z .,&]+ (?:INC|PLC|CO|CORP)\b\.?)", passage.context)
    names = "|".join(re.escape(one) + r"(?: Co\., Inc\.)?" for one in sorted({name, *titles} - {""}, key=len)[::-1])

    def change(text: str) -> str:
        if names:
            text = re.sub(names, other, text, flags=re.IGNORECASE)
        return _NUMBER.sub(figure, text)

    return lambda one: Passage(one.document, change(one.context), change(one.text))


def phrase(cell: Cell, passage: Passage, owner: str, chance: random.Random) -> str:
    """A question whose answer is the cell."""
    label, column = _NOTE.sub("", cell.label).strip(), _NOTE.sub("", cell.column).strip()
    if same := _SAME.get(label.lower()):
        label = chance.choice((label, *same))
    elif chance.random() < 0.3:
        label = re.sub(r"\s*\([^)]*\)", "", label).strip() or label
    if chance.random() < 0.8:
        label = _lower(label)
    years = _YEAR.findall(column)
    is_period = bool(years) and bool(_PERIOD.fullmatch(column))
    unique = bool(years) and sum(years[-1] in other for other in cell.columns) == 1
    of = f"{owner}'s " if owner and chance.random() < 0.8 else ""
    whose = f" of {owner}" if owner and not of and chance.random() < 0.5 else ""
    if is_period and unique:
        year = years[-1]
        when = ["in {y}", "in FY{y}", "in fiscal {y}", "for fiscal year {y}", "for {y}", "in FY {y}"]
        if re.search(r"[a-z] \d", column):
            day = re.sub(r"^.*?(?=[A-Z][a-z]+\.? \d{1,2},)", "", column)
            is_year = "ended" in column.lower()
            when += (
                [f"in the year ended {day}", f"for the year ended {day}"] if is_year else [f"as of {day}", f"on {day}"]
            )
            when += [] if is_year else ["at the end of {y}", "at year end FY{y}", "as of FY{y}"]
        period = chance.choice(when).format(y=year)
        forms = [
            f"What was {of or 'the '}{label}{whose} {period}?",
            f"What was {of or 'the '}{label}{whose} {period}?",
            f"What is {of or 'the '}{period.split()[-1] if 'FY' in period else year} {label}{whose}?",
            f"How much {label} did {owner or 'the company'} have {period}?",
            f"How much was {of or 'the '}{label} {period}?",
            f"What did {owner or 'the company'} report as {label} {period}?",
            f"{owner} {label} {period}".strip(),
            f"What was the amount of {of}{label} {period}?",
            f"{period[0].upper()}{period[1:]}, what was {of or 'the '}{label}?",
        ]
    elif years:
        forms = [
            f"What was {of or 'the '}{label} in the {_lower(column)}?",
            f"What was {of or 'the '}{label}{whose} for {column}?",
            f"{owner} {label}, {column}".strip(),
        ]
    else:
        lower = _lower(column)
        name = _NOTE.sub("", cell.label).strip()
        forms = [
            f"What is the {lower} of {name}{whose}?",
            f"What is the {lower} for {name}?",
            f"What {lower} does {name} have?",
            f"What was {name}'s {lower}?",
            f"{name}: {lower}?",
            f"What {lower} applies to {_lower(name)}?",
            f"What is the {lower} of {_lower(name)}?",
            f"For {_lower(name)}, what is the {lower}?",
            f"Tell me the {lower} of the {_lower(name)}.",
            *_worded(lower, _lower(name)),
            f"Which {lower} is given for {name}?",
            f"{lower} {name}",
        ]
    question = re.sub(r"\s+", " ", chance.choice(forms))
    unit = _UNITS.search(passage.context + passage.text[: cell.start])
    if unit and years and chance.random() < 0.2:
        asked = chance.choice((" (in USD {u})?", " in {u}?", "? Answer in USD {u}.")).format(u=unit[1].lower())
        question = question.removesuffix("?") + asked
    if chance.random() < 0.08:
        question = chance.choice(_ABOUT) + _lower(question)
    return question


def table_questions(
    every: Sequence[Passage], count: int, chance: random.Random, *, changed: float = 0.5
) -> Iterator[tuple[str, Passage, int, int]]:
    """`count` questions, each with the passage that answers it and up to two that do not, with the span or -1, -1.

    The share `changed` of them has invented figures.
    """
    words = {passage: _words(passage.text + passage.context) for passage in every}
    of_document: dict[str, list[Passage]] = {}
    for passage in every:
        of_document.setdefault(passage.document, []).append(passage)
    sources = [passage for passage in every if any(True for _ in cells(passage))]
    # A few large documents have most tables, and a few large tables most cells.
    tables = Counter(passage.document for passage in sources)
    weights = [tables[passage.document] ** -0.3 for passage in sources]
    for original in chance.choices(sources, weights, k=count):
        change = disguise(original, chance) if chance.random() < changed else _unchanged
        passage = change(original)
        found = list(cells(passage))
        if not found:
            continue
        cell, owner = chance.choice(found), company(passage)
        value = passage.text[cell.start : cell.end]
        is_unique = sum(passage.text[one.start : one.end] == value for one in found) == 1
        if cell.corner and re.search("[A-Za-z]{3}", cell.corner) and is_unique and chance.random() < 0.15:
            question = f"Which {_lower(cell.corner.rstrip(':'))} has a {_lower(cell.column)} of {value}?"
            yield question, passage, cell.label_start, cell.label_start + len(cell.label)
            without = passage.text[: cell.row[0]] + passage.text[cell.row[1] + 1 :]
            yield question, Passage(passage.document, passage.context, without), -1, -1
            continue
        question = phrase(cell, passage, owner, chance)
        yield question, passage, cell.start, cell.end

        wrong = list[tuple[str, Passage]]()
        without = passage.text[: cell.row[0]] + passage.text[cell.row[1] + 1 :]
        wrong.append((question, Passage(passage.document, passage.context, without)))
        years = _YEAR.findall(passage.context + passage.text)
        if (asked := _YEAR.findall(question)) and len(set(asked)) == 1:
            far = [year for year in range(int(asked[0]) - 4, int(asked[0]) + 5) if str(year) not in years]
            if far:
                wrong.append((question.replace(asked[0], str(chance.choice(far))), passage))
        if owner and owner in question:
            wrong.append((question.replace(owner, invented(chance)), passage))
        asked_words = _words(question)
        near = sorted(
            (one for one in of_document[original.document] if one is not original),
            key=lambda one: -len(asked_words & words[one]),
        )[:8]
        others = [one for one in map(change, near) if value not in one.text]
        wrong += [(question, one) for one in chance.sample(others, min(2, len(others)))]
        for text, one in chance.sample(wrong, min(len(wrong), chance.choice((1, 1, 2)))):
            yield text, one, -1, -1


def _worded(column: str, label: str) -> Iterator[str]:
    """Questions by what the column stands for."""
    words = column.lower()
    if re.search(r"days|patients|users|staff|dropouts|places|population|employees|^number of", words):
        yield f"How many {re.sub('^number of ', '', words)} does {label} have?"
        yield f"How many {re.sub('^number of ', '', words)} are there for {label}?"
    if re.search(r"price|limit|fee|cost|amount", words):
        yield f"How much is the {words} for {label}?"
        yield f"How much does {label} cost?" if "limit" not in words else f"How much may be spent on {label}?"
    if re.search(r"time|duration|notice|deadline|interval|warranty|within", words):
        yield f"How long is the {words} for {label}?"
    if re.search(r" by$|head|teacher|mayor|contact|owner|author|responsible", words):
        yield f"Who is the {words} of {label}?" if not words.endswith(" by") else f"Who must {label} be {words}?"
    if re.search(r"day", words):
        yield f"When is {label} open on {column}?"
    if re.search(r"place|location|region|city|country", words):
        yield f"Where is {label}?"
    if re.search(r"date|starts|founded|year$", words):
        yield f"When is the {words} of {label}?"


def _lower(text: str) -> str:
    """The text with a small first letter, unless it begins with an abbreviation or a month."""
    return text[:1].lower() + text[1:] if re.match(r"[A-Z](?:[a-z]{3}|[a-z]*\W*$|[a-z]* )", text) else text


def _unchanged(passage: Passage) -> Passage:
    return passage


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]{3,}", text.lower()))
