"""Examples that the judge learns from, and those that it is measured on; see `train_judge.py`.

Questions and claims were written by people wherever such sets exist: SQuAD, PolicyQA, TAT-QA, FoolMeTwice, WiCE,
TabFact. Questions rewritten by a language model (decision 015) and templates add what they lack: passages that are
nearly right. No set is used whose licence forbids to ship the weights.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from data import DATA
from table_questions import Passage, invented_tables, table_questions

from ragfm.core.table_rows import TABLE_RULE, cell_at, row_cells
from ragfm.core.text import sentence_spans
from ragfm.evaluation.answer_matching import contains_answer, token_f1
from ragfm.training.unanswerable_questions import names_in, near_misses

SUPPORTS, CONTRADICTS, NEITHER, UNSUPPORTED = 0, 1, 2, 3
"""Stances of a text; UNSUPPORTED is CONTRADICTS or NEITHER, where nobody knows which."""
LEARNED, TUNED = 7, 10
"""Articles of SQuAD 2.0 dev, by title: [0, 7) are learned from, [7, 10) are for tuning, the others for reporting."""
TUNED_SHARE = 10
"""Of this number of learned items of the other sets, one is for tuning."""
REWRITTEN = Path(__file__).parent / "verifier" / "rewritten.tsv.gz"
OUTPUTS = Path(__file__).parent / "verifier" / "outputs.tsv.gz"
ROUND = 1_000
"""Examples of a round of training."""
TABLE_CHARACTERS = 1_300  # of a table that is read whole

_WH = re.compile(
    r"\b(?:what|who|whom|whose|which|when|where|why|how (?:many|much|long|old|far|often)|how)\b", re.IGNORECASE
)
_AUXILIARY = re.compile(r"\b(?:is|are|was|were|can|could|may|must|will|would|should)\b(?! not\b| n't)")
_SMALL = re.compile(r"(?<![\d.,-])(?:[2-9]|1[0-2])(?![\d.,%-])")
_NUMERALS = "two three four five six seven eight nine ten eleven twelve".split()
_MAX_NEGATED = 240  # characters of a sentence
_VALUE = re.compile(r"\d[\d.,]*\d|\d|\b[A-Z][a-zé]{2,}\b")

Item = TypeVar("Item")
Spans: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Example:
    """A question, a statement, or both, and a text with what stands above it.

    - `start`, `end`: characters of the answer in the text; -1, -1 if it has none; None if nothing is known of it.
    - `stance`: SUPPORTS, CONTRADICTS, NEITHER or UNSUPPORTED, of the statement; None without a statement.
    - `odd_question`, `odd_statement`: characters of the words that the text does not state; None if they are unknown.
    """

    question: str
    text: str
    start: int | None = -1
    end: int | None = -1
    context: str = ""
    statement: str = ""
    stance: int | None = None
    odd_question: Spans | None = None
    odd_statement: Spans | None = None


# --- sources of SQuAD's form ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """A question of a set in SQuAD's form; `start` is -1 if the paragraph does not answer it."""

    title: str
    context: str
    question: str
    answer: str
    start: int
    article: int


@cache
def asked(name: str) -> list[Asked]:
    """All questions of a file in SQuAD's form, by article in the order of the file."""
    data = json.loads(gzip.decompress((DATA / name).read_bytes()))["data"]
    return [
        Asked(
            article["title"].replace("_", " "),
            paragraph["context"],
            qa["question"].strip(),
            qa["answers"][0]["text"] if qa["answers"] else "",
            qa["answers"][0]["answer_start"] if qa["answers"] else -1,
            number,
        )
        for number, article in enumerate(data)
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


def written(first: int, last: int) -> list[Asked]:
    """Questions of a range of articles of SQuAD 2.0 dev, by title; half of them have no answer."""
    name = "squad/squad-v2.0-dev.json.gz"
    titles = sorted({one.title for one in asked(name)})[first:last]
    return [one for one in asked(name) if one.title in titles]


def policies(*, reporting: bool) -> list[Asked]:
    """Questions of PolicyQA: of every second site for reporting, of the others for learning."""
    return [one for one in asked("policyqa/dev.json.gz") if bool(one.article % 2) == reporting]


def whole(one: Asked) -> Example:
    """The question over its whole paragraph."""
    if one.start < 0:
        return Example(one.question, one.context)
    return Example(one.question, one.context, one.start, one.start + len(one.answer), odd_question=())


def cropped(example: Example, rng: random.Random, *, around: int = -1) -> Example:
    """The example over some sentences of its text: those with the answer, or with character `around`, and others."""
    spans = list(sentence_spans(example.text))
    place = example.start if example.start is not None and example.start >= 0 else around
    inside = [n for n, (start, end) in enumerate(spans) if start <= place < end]
    middle = inside[0] if inside else rng.randrange(len(spans))
    first = max(0, middle - rng.choice((0, 0, 1, 1, 2, 3)))
    last = min(len(spans) - 1, middle + rng.choice((0, 1, 1, 2, 3)))
    while example.start is not None and example.start >= 0 and spans[last][1] < (example.end or 0):
        last += 1
    start, end = spans[first][0], spans[last][1]
    if example.start is None or example.start < 0:
        return replace(example, text=example.text[start:end])
    return replace(example, text=example.text[start:end], start=example.start - start, end=(example.end or 0) - start)


def titled(example: Example, title: str, rng: random.Random) -> Example:
    """The example, half of the time below the title of its document."""
    return replace(example, context=title) if rng.random() < 0.5 else example


def sentence_around(one: Asked, place: int) -> tuple[int, int, str]:
    """The sentence at a character of the paragraph: its characters, and the sentence before it."""
    spans = list(sentence_spans(one.context))
    at = next((n for n, (_, end) in enumerate(spans) if end > place), len(spans) - 1)
    before = one.context[slice(*spans[at - 1])].strip() if at else ""
    return *spans[at], before


def as_statement(question: str, answer: str, sentence: str, rng: random.Random) -> str:
    """The answer as readers give it: alone, in the words of the question, or in those of the sentence."""
    form = rng.random()
    if form < 0.45:
        return answer if rng.random() < 0.6 else f"{answer[:1].upper()}{answer[1:]}."
    declared = _WH.sub(lambda _: answer, question.rstrip("? "), count=1)
    if form < 0.8:
        return f"{declared[:1].upper()}{declared[1:]}." if answer in declared else f"{declared}: {answer}."
    return sentence.strip()


def occurrences(words: str, text: str) -> Spans | None:
    """Where words occur in a text; None if they do not."""
    return tuple((at.start(), at.end()) for at in re.finditer(re.escape(words), text, re.IGNORECASE)) or None


def changed_words(before: str, after: str) -> Spans | None:
    """The words of a changed text that are not in the text before; None if most are new, or if words were removed."""
    old, new = [list(re.finditer(r"\w+", text)) for text in (before, after)]
    matcher = SequenceMatcher(None, [m[0].lower() for m in old], [m[0].lower() for m in new], autojunk=False)
    spans = [
        (new[a].start(), new[b - 1].end()) for kind, _, _, a, b in matcher.get_opcodes() if kind != "equal" and b > a
    ]
    return tuple(spans) if spans and matcher.ratio() > 0.6 else None


def token_spans(text: str, tokens: Sequence[str], marked: Sequence[bool]) -> Spans:
    """The characters of the marked tokens of a text."""
    at, spans = 0, []
    for token, is_marked in zip(tokens, marked, strict=True):
        start = text.find(token, at)
        if start >= 0:
            at = start + len(token)
            if is_marked:
                spans.append((start, at))
    return tuple(spans)


def squad_stances(one: Asked, others: Sequence[Asked], rng: random.Random) -> Iterator[Example]:
    """Statements over the sentence that answers a question: the right one, and one that is not stated.

    `others` are the questions over the same paragraph.
    """
    start, end, before = sentence_around(one, one.start)
    sentence, context = one.context[start:end], " ".join([one.title] * (rng.random() < 0.5))
    context += f"\n{before}" * (rng.random() < 0.5)
    at = one.start - start
    if at + len(one.answer) > len(sentence):
        return
    place = (at, at + len(one.answer))
    right = as_statement(one.question, one.answer, sentence, rng)
    example = Example(one.question, sentence, *place, context.strip(), right, SUPPORTS, (), ())
    if right.strip() == sentence.strip() or one.question.rstrip("? ").count(" ") < 3 or rng.random() < 0.85:
        yield example
    else:
        yield replace(example, question="", start=None, end=None, odd_question=None)
    kind = rng.random()
    elsewhere = [other for other in others if other.start >= 0 and other.answer.lower() not in one.answer.lower()]
    if kind < 0.45:  # another answer of the same paragraph or article: what the sentence states is different
        pool = [other.answer for other in elsewhere if one.answer.lower() not in other.answer.lower()]
        shaped = [text for text in pool if bool(re.search(r"\d", text)) == bool(re.search(r"\d", one.answer))]
        if pool:
            wrong = rng.choice(shaped or pool)
            changed = sentence[:at] + wrong + sentence[at + len(one.answer) :]
            statement = as_statement(one.question, wrong, changed, rng)
            yield replace(example, statement=statement, stance=CONTRADICTS, odd_statement=occurrences(wrong, statement))
    elif kind < 0.7:  # a number or name changed in the statement
        values = list(_VALUE.finditer(right))
        pool = [m.group() for other in elsewhere for m in _VALUE.finditer(f"{other.answer} {other.question[1:]}")]
        if values:
            value = rng.choice(values)
            same = [text for text in pool if text[0].isdigit() == value[0][0].isdigit() and text not in right]
            if value[0][0].isdigit() and (not same or rng.random() < 0.4):
                digits = list(value[0])
                spot = rng.choice([n for n, digit in enumerate(digits) if digit.isdigit()])
                digits[spot] = rng.choice([digit for digit in "123456789" if digit != digits[spot]])
                same = ["".join(digits)]
            if same:
                other = rng.choice(same)
                changed = right[: value.start()] + other + right[value.end() :]
                odd = ((value.start(), value.start() + len(other)),)
                yield replace(example, statement=changed, stance=CONTRADICTS, odd_statement=odd)
    elif kind < 0.85 and elsewhere:  # the right statement over a sentence that says something else
        asked_there = rng.choice(elsewhere)
        first, last, _ = sentence_around(asked_there, asked_there.start)
        if (first, last) != (start, end) and one.answer.lower() not in one.context[first:last].lower():
            text = one.context[first:last]
            yield Example(one.question, text, -1, -1, example.context, right, NEITHER)
    elif elsewhere:  # the answer to another question
        asked_there = rng.choice(elsewhere)
        first, last, _ = sentence_around(asked_there, asked_there.start)
        if (first, last) != (start, end):
            text, said = one.context[first:last], asked_there.answer
            statement = as_statement(one.question, said, text, rng) if rng.random() < 0.5 else said
            yield Example(one.question, text, -1, -1, example.context, statement, NEITHER)


def reversed_stances(one: Asked, others: Sequence[Asked], rng: random.Random) -> Iterator[Example]:
    """A sentence as it is and with the opposite meaning, as text and as statement; and with a number in words."""
    start, end, _ = sentence_around(one, one.start)
    said = " ".join(one.context[start:end].split())
    verb = _AUXILIARY.search(said)
    if len(said) > _MAX_NEGATED:
        return
    if verb:
        at = verb.end()
        denied, of_not, of_verb = f"{said[:at]} not{said[at:]}", ((at + 1, at + 4),), (verb.span(),)
        yield Example("", said, None, None, "", said, SUPPORTS, (), ())
        yield Example("", said, None, None, "", denied, CONTRADICTS, (), of_not)
        yield Example("", denied, None, None, "", said, CONTRADICTS, (), of_verb)
        if rng.random() < 0.5:
            yield Example("", denied, None, None, "", denied, SUPPORTS, (), ())
        other = rng.choice(others)
        first, last, _ = sentence_around(other, max(other.start, 0))
        if (first, last) != (start, end):
            yield Example("", one.context[first:last], None, None, "", rng.choice((said, denied)), NEITHER)
        if rng.random() < 0.2:
            yield Example("", said, None, None, "", rng.choice(("Yes.", "No.")), NEITHER)
    for number in _SMALL.finditer(said):
        right = _NUMERALS[int(number[0]) - 2]
        for word, stance in ((right, SUPPORTS), (rng.choice([n for n in _NUMERALS if n != right]), CONTRADICTS)):
            worded = said[: number.start()] + word + said[number.end() :]
            odd = () if stance == SUPPORTS else ((number.start(), number.start() + len(word)),)
            yield Example("", said, None, None, "", worded, stance, (), odd)


def unanswered_stance(one: Asked, others: Sequence[Asked], rng: random.Random) -> Iterator[Example]:
    """An answer to a question that the paragraph does not answer, over the sentence that looks most like an answer."""
    words = _words(one.question)
    answered = [other for other in others if other.start >= 0]
    if not answered:
        return
    near = sorted(answered, key=lambda other: -len(words & _words(other.question)))[:3]
    other = rng.choice(near)
    start, end, before = sentence_around(other, other.start)
    context = f"{one.title}\n{before}".strip() if rng.random() < 0.5 else ""
    sentence = one.context[start:end]
    statement = as_statement(one.question, other.answer, sentence, rng)
    yield Example(one.question, sentence, -1, -1, context, statement, NEITHER)


# --- rewritten ones -------------------------------------------------------------------------------------------------


@cache
def rewritten() -> list[tuple[Asked, list[tuple[bool, str]]]]:
    """Questions of SQuAD's training set with their rewritten forms: whether the meaning is the same, and the text."""
    of = {(one.question, one.answer): one for one in asked("squad/squad-v1.0-train.json.gz")}
    found = dict[tuple[str, str], list[tuple[bool, str]]]()
    for line in gzip.decompress(REWRITTEN.read_bytes()).decode().splitlines():
        question, answer, kind, text = line.split("\t")
        found.setdefault((question, answer), []).append((kind == "same", text))
    return [(of[key], forms) for key, forms in found.items()]


def rewritten_examples(item: tuple[Asked, list[tuple[bool, str]]], rng: random.Random) -> Iterator[Example]:
    """The rewritten forms over the paragraph or a part of it; and one of them with the answer as a statement."""
    one, forms = item
    over = titled(whole(one), one.title, rng)
    if rng.random() < 0.6:
        over = cropped(over, rng)
    for same, text in forms:
        if same:
            yield replace(over, question=text)
        else:
            yield replace(over, question=text, start=-1, end=-1, odd_question=changed_words(one.question, text))
    start, end, before = sentence_around(one, one.start)
    sentence, at = one.context[start:end], one.start - start
    if at + len(one.answer) <= len(sentence):
        for same, text in forms if rng.random() < 0.5 else rng.sample(forms, 1):
            statement = as_statement(text, one.answer.strip(), sentence, rng)
            place = (at, at + len(one.answer)) if same else (-1, -1)
            context = f"{one.title}\n{before}".strip() if rng.random() < 0.5 else ""
            odd = () if same else changed_words(one.question, text)
            yield Example(text, sentence, *place, context, statement, SUPPORTS if same else NEITHER, odd)


# --- outputs of a reader --------------------------------------------------------------------------------------------


@cache
def outputs() -> list[tuple[Asked, str]]:
    """Questions with what was said to them.

    Of SQuAD's training set, with what the bundled reader said, given their paragraph and one like it; and questions of
    SQuAD 2.0 dev without an answer, with the words of their paragraph that a judge of 53 rounds took for one.
    """
    every = asked("squad/squad-v1.0-train.json.gz") + [one for one in written(0, LEARNED) if one.start < 0]
    of = {(one.question, one.answer): one for one in every}
    lines = gzip.decompress(OUTPUTS.read_bytes()).decode().splitlines()
    return [(of[question, answer], output) for question, answer, output in (line.split("\t") for line in lines)]


def output_stances(item: tuple[Asked, str], rng: random.Random) -> Iterator[Example]:
    """A reader's output over the sentence that answers the question, and over the one that has most of its words.

    An output that shares some words with the answer may be right, and is left out.
    """
    one, output = item
    start, end, before = sentence_around(one, one.start if one.answer else one.context.find(output))
    context = f"{one.title}\n{before}".strip() if rng.random() < 0.5 else one.title
    if not one.answer:
        statement = as_statement(one.question, output, one.context[start:end], rng)
        yield Example(one.question, one.context[start:end], -1, -1, context, statement, NEITHER)
        return
    at = one.start - start
    over = Example(one.question, one.context[start:end], at, at + len(one.answer), context, output)
    said = _words(output)
    spans = sorted(sentence_spans(one.context), key=lambda span: -len(said & _words(one.context[slice(*span)])))
    if contains_answer(output, [one.answer]):
        yield replace(over, stance=SUPPORTS, odd_question=(), odd_statement=())
        others = [one.context[slice(*span)] for span in spans]
        others = [text for text in others if one.answer not in text]
        yield from (Example(one.question, text, -1, -1, context, output, NEITHER) for text in others[:1])
    elif not token_f1(output, one.answer):
        yield replace(over, stance=UNSUPPORTED)
        if spans[0] != (start, end):
            yield Example(one.question, one.context[slice(*spans[0])], -1, -1, context, output, UNSUPPORTED)


# --- hard negatives -------------------------------------------------------------------------------------------------


class Lookalikes:
    """Paragraphs of SQuAD's training set by their words (TF-IDF), to find those that lack an answer."""

    def __init__(self) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        every = asked("squad/squad-v1.0-train.json.gz")
        self._titles = {one.context: one.title for one in every}
        self._paragraphs = list(self._titles)
        self._vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english", dtype=np.float32)
        self._matrix = self._vectorizer.fit_transform(self._paragraphs)

    def near(self, one: Asked, count: int) -> list[tuple[str, str]]:
        """The paragraphs most like the question that lack its answer, each with its title."""
        scores = np.asarray((self._matrix @ self._vectorizer.transform([one.question]).T).todense()).ravel()
        found = []
        for at in np.argsort(-scores)[:12]:
            text = self._paragraphs[at]
            if one.answer.lower().strip() not in text.lower():
                found.append((text, self._titles[text]))
        return found[:count]


# --- claims, tables -------------------------------------------------------------------------------------------------


def lines(name: str) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in gzip.decompress((DATA / name).read_bytes()).splitlines()]


def fool_me_twice(*, reporting: bool) -> list[Example]:
    """Claims with their gold evidence: every second one for reporting, the others for learning."""
    found = []
    for claim in lines("foolmetwice/dev.jsonl.gz")[int(reporting) :: 2]:
        evidence = claim["gold_evidence"]
        header = evidence[0]["section_header"]
        context = f"{claim['wikipedia_page'].replace('_', ' ')} > {header}"
        stance = SUPPORTS if claim["label"] == "SUPPORTS" else CONTRADICTS
        text = " ".join(one["text"] for one in evidence)
        odd = () if stance == SUPPORTS else None
        found.append(Example("", text, None, None, context, claim["text"], stance, odd_statement=odd))
    return found


def fool_me_elsewhere() -> list[Example]:
    """The claims for learning with retrieved sentences that are not their evidence."""
    found = []
    for claim in lines("foolmetwice/dev.jsonl.gz")[0::2]:
        gold = {one["text"] for one in claim["gold_evidence"]}
        for one in [one for one in claim["retrieved_evidence"] if one["text"] not in gold][5:8]:
            context = f"{claim['wikipedia_page'].replace('_', ' ')} > {one['section_header']}"
            found.append(Example("", one["text"], None, None, context, claim["text"], NEITHER))
    return found


def wice(*, reporting: bool) -> list[Example]:
    """Claims of Wikipedia with the sentences of the cited page that support them, at least in part, or resemble them.

    Supported ones SUPPORT, all others have NEITHER.
    """
    found = []
    for name in ("wice/claim_dev.jsonl.gz", "wice/tokens_train.jsonl.gz"):
        for claim in lines(name)[int(reporting) :: 2]:
            chosen = sorted(min((one for one in claim["supporting_sentences"] if one), key=len, default=[]))
            evidence = claim["evidence"]
            if not chosen:
                words = _words(claim["claim"])
                chosen = sorted(sorted(range(len(evidence)), key=lambda n: -len(words & _words(evidence[n])))[:2])
            text = " ".join(evidence[n] for n in chosen)[:1200]
            title = evidence[0].removeprefix("(meta data) TITLE: ")[:100]
            stance = SUPPORTS if claim["label"] == "supported" else NEITHER
            odd = () if stance == SUPPORTS else None
            if "claim_tokens" in claim:
                odd = token_spans(claim["claim"], claim["claim_tokens"], claim["non_supported_spans"])
            found.append(Example("", text, None, None, title, claim["claim"], stance, odd_statement=odd))
    return found


@cache
def reporting_tables() -> frozenset[str]:
    """The tables of TabFact that are for reporting: every second one of each file."""
    return frozenset(
        one["table"] for name in ("tabfact/tables.jsonl.gz", "tabfact/val.jsonl.gz") for one in lines(name)[1::2]
    )


def rendered_table(text: str) -> tuple[str, str]:
    """The header, and the rows of a table, with cells between pipes."""
    rows = [row for row in csv.reader(io.StringIO(text), delimiter="#", quoting=csv.QUOTE_NONE) if row]
    header, *rest = [f"| {' | '.join(cell.strip() for cell in row)} |" for row in rows]
    return header, "\n".join(rest)


def table_pairs(*, reporting: bool) -> list[tuple[Example, Example]]:
    """A true and a false statement about each table that can be read whole."""
    tables = {one["table"]: one for one in lines("tabfact/tables.jsonl.gz")}
    found = []
    for pair in lines("tabfact/pairs.jsonl.gz"):
        table = tables[pair["table"]]
        if (pair["table"] in reporting_tables()) != reporting or "borries" in pair["false"]:
            continue
        if len(table["csv"]) > TABLE_CHARACTERS:
            continue
        header, rows = rendered_table(table["csv"])
        context = f"{table['page']}\n{header}"
        odd = changed_words(pair["true"], pair["false"])
        found.append(
            (
                Example("", rows, None, None, context, pair["true"], SUPPORTS, odd_statement=()),
                Example("", rows, None, None, context, pair["false"], CONTRADICTS, odd_statement=odd),
            )
        )
    return found


def table_statements() -> list[Example]:
    """Statements of TabFact about tables for learning."""
    found = []
    for table in lines("tabfact/val.jsonl.gz"):
        if table["table"] in reporting_tables() or len(table["csv"]) > TABLE_CHARACTERS:
            continue
        header, rows = rendered_table(table["csv"])
        context = f"{table['caption']}\n{header}"
        for statement, label in zip(table["statements"], table["labels"], strict=True):
            stance = SUPPORTS if label else CONTRADICTS
            odd = () if label else None
            found.append(Example("", rows, None, None, context, statement, stance, odd_statement=odd))
    return found


def tat_passages(entry: dict[str, Any]) -> tuple[str, str, list[str]]:
    """The header and the rows of a table of TAT-QA, and its paragraphs."""
    rows = [[cell.strip() for cell in row] for row in entry["table"]["table"]]
    first = next((n for n, row in enumerate(rows) if row[0]), 1)
    above = rows[: max(1, first)]
    header = [" ".join(dict.fromkeys(filter(None, column))) for column in zip(*above, strict=True)]
    body = rows[max(1, first) :]
    return (
        f"| {' | '.join(header)} |",
        "\n".join(f"| {' | '.join(row)} |" for row in body),
        [one["text"] for one in sorted(entry["paragraphs"], key=lambda one: int(one["order"]))],
    )


def with_rule(header: str) -> str:
    """A table's header in Markdown with the rule below it."""
    return f"{header}\n|{' --- |' * (header.count('|') - 1)}"


def is_single_span(question: dict[str, Any]) -> bool:
    """Whether the answer to a question of TAT-QA is one span."""
    return question["answer_type"] == "span" and len(question["answer"]) == 1


def tat_questions(*, reporting: bool) -> list[Example]:
    """Questions of TAT-QA with one span as answer, over its table or paragraph, and over one that lacks it."""
    data = json.loads(gzip.decompress((DATA / "tatqa/dev.json.gz").read_bytes()))[int(reporting) :: 2]
    found = []
    for entry in data:
        header, table, paragraphs = tat_passages(entry)
        for question in entry["questions"]:
            if not is_single_span(question):
                continue
            answer = str(question["answer"][0])
            texts = [(header, table)] + [("", text) for text in paragraphs]
            if question["answer_from"] != "text":
                at = re.search(rf"(?<=\| ){re.escape(answer)}(?= \|)", table)
                if at and table.count(f"| {answer} |") == 1:
                    found.append(Example(question["question"], table, at.start(), at.end(), header))
                    found += [
                        Example(question["question"], text, context=above)
                        for above, text in texts[1:]
                        if answer not in text
                    ][:1]
                continue
            for above, text in texts[1:]:
                at = re.search(re.escape(answer), text)
                if at:
                    found.append(Example(question["question"], text, at.start(), at.end(), above))
            if answer not in table:
                found.append(Example(question["question"], table, context=header))
    return found


def tat_tables() -> list[Passage]:
    """The tables of TAT-QA for learning, as passages that templates ask about."""
    data = json.loads(gzip.decompress((DATA / "tatqa/dev.json.gz").read_bytes()))[0::2]
    found = []
    for number, entry in enumerate(data):
        header, table, paragraphs = tat_passages(entry)
        found.append(Passage(f"report {number}", f"report {number}\n{with_rule(header)}", table))
        found += [Passage(f"report {number}", f"report {number}", text) for text in paragraphs]
    return found


def wiki_tables() -> list[Passage]:
    """The tables of TabFact for learning, as passages that templates ask about."""
    found = []
    for name in ("tabfact/tables.jsonl.gz", "tabfact/val.jsonl.gz"):
        for one in lines(name):
            if one["table"] not in reporting_tables() and len(one["csv"]) < TABLE_CHARACTERS:
                header, rows = rendered_table(one["csv"])
                title = one.get("page") or one.get("caption", "")
                found.append(Passage(title, f"{title}\n{with_rule(header)}", rows))
    return found


def row_stances(over: Example, rng: random.Random) -> Iterator[Example]:
    """A question about a table over one of its rows, or over a list item with the row's label and the cell.

    The statements are the cell that answers it, another one, and where none does the last of the row most like it.
    """
    assert over.start is not None
    assert over.end is not None
    found = [match.span() for match in re.finditer(r"[^\n]+", over.text) if match[0].startswith("|")]
    found = [span for span in found if not TABLE_RULE.fullmatch(over.text[slice(*span)])]
    above = [line for line in over.context.splitlines() if line.startswith("|")]
    if not above and found:
        above = [over.text[slice(*found.pop(0))]]
    if not found:
        return
    titles = [line for line in over.context.splitlines() if line and not line.startswith("|")]
    context = "\n".join([*titles[-1:], *above, *above[:1] * (rng.random() < 0.5)])
    asked_words = _words(over.question)
    row = next((span for span in found if span[0] <= over.start < span[1]), None)
    if row is None:
        near = max(found, key=lambda span: len(asked_words & _words(over.text[slice(*span)])))
        text = over.text[slice(*near)]
        said = [*filter(None, row_cells(text))]
        if said:
            yield Example(over.question, text, -1, -1, context, said[-1], NEITHER)
        return
    text, answer = over.text[slice(*row)], over.text[over.start : over.end]
    place = (over.start - row[0], over.end - row[0])
    right = answer if rng.random() < 0.6 else as_statement(over.question, answer, answer, rng)
    yield Example(over.question, text, *place, context, right, SUPPORTS, (), ())
    if rng.random() < 0.5:
        yield Example(over.question, text, *place, context, odd_question=())
    texts = row_cells(text)
    if rng.random() < 0.3 and texts[0] and texts[0] not in answer:
        column = row_cells(above[0])[cell_at(text, place[0])]
        item = f"- {texts[0]}: {answer}"
        at = len(item) - len(answer)
        heading = "\n".join([*titles[-1:], f"## {column}"])
        yield Example(over.question, item, at, len(item), heading, right, SUPPORTS, (), ())
    other = [cell for cell in texts[1:] if cell and cell != answer]
    elsewhere = [over.text[slice(*span)] for span in found if span != row]
    if other and rng.random() < 0.5:
        wrong = rng.choice(other)
        yield Example(over.question, text, *place, context, wrong, UNSUPPORTED, (), occurrences(wrong, wrong))
    if elsewhere:
        text = rng.choice(elsewhere)
        said = [right, *filter(None, row_cells(text)[1:])]
        yield Example(over.question, text, -1, -1, context, rng.choice(said), NEITHER)


def studies() -> list[Example]:
    """Questions of PubMedQA on even lines with their conclusion, over their own abstract and over another."""
    data = list(json.loads(gzip.decompress((DATA / "pubmedqa/ori_pqal.json.gz").read_bytes())).values())[1::2]
    found = []
    for one, other in zip(data, [*data[1:], data[0]], strict=True):
        context = " ".join(one["CONTEXTS"])[-1200:]
        found.append(Example(one["QUESTION"], " ".join(other["CONTEXTS"])[-1200:]))
        conclusion = one["LONG_ANSWER"]
        found.append(Example(one["QUESTION"], conclusion, 0, len(conclusion)))
        found.append(Example(one["QUESTION"], context, None, None, "", other["LONG_ANSWER"], NEITHER))
    return found


# --- rounds ---------------------------------------------------------------------------------------------------------


class Rounds:
    """Rounds of examples, each the same whenever and wherever it is made."""

    def __init__(self, size: int = ROUND, opposite: float = 0.2) -> None:
        """Read the sets for learning. `opposite` is the share of sentences that are read with the opposite meaning."""
        self._size, self._opposite = size, opposite
        self._train = asked("squad/squad-v1.0-train.json.gz")
        self._of_paragraph = _by_paragraph(self._train)
        self._written = written(0, LEARNED)
        self._of_written = _by_paragraph(self._written)
        self._rewritten = rewritten()
        self._policies = _learned(policies(reporting=False))
        self._policy_sites = _by_article(policies(reporting=False))
        self._tat = _learned(tat_questions(reporting=False))
        self._claims = (
            _learned(fool_me_twice(reporting=False)),
            _learned(fool_me_elsewhere()),
            _learned(wice(reporting=False)),
        )
        self._pairs = _learned(table_pairs(reporting=False))
        self._statements = _learned(table_statements())
        self._studies = studies()
        self._tables = tat_tables()
        self._wiki_tables = wiki_tables()
        self._outputs = outputs()
        self._lookalikes = Lookalikes()
        self._names = sorted({name for one in self._train for name in names_in(one.question)})

    def examples(self, number: int) -> list[Example]:
        """About one and a half times `size` examples."""
        rng = random.Random(number)

        def some(items: Sequence[Item], share: float) -> list[Item]:
            return _turn(items, number, round(share * self._size))

        found = [self._over(one, rng) for one in some(self._train, 0.25)]
        for one in some(self._train[::-1], 0.06):
            for text, title in self._lookalikes.near(one, 2):
                found.append(titled(_part(Example(one.question, text), rng), title, rng))
        for one in some(self._train[1::2], 0.04):
            for miss in list(near_misses(one.question, rng.sample(self._names, 400), rng))[:1]:
                odd = changed_words(one.question, miss.text)
                missed = replace(whole(one), question=miss.text, start=-1, end=-1, odd_question=odd)
                found.append(titled(_part(missed, rng, around=one.start), one.title, rng))
        for item in some(self._rewritten, 0.14):
            found += rewritten_examples(item, rng)
        for one in some(self._written, 0.1):
            found.append(self._over(one, rng))
            if one.start < 0:
                found += unanswered_stance(one, self._of_written[one.context], rng)
        for one in some([one for one in self._written if one.start >= 0], 0.02):
            found += squad_stances(one, self._of_written[one.context], rng)
        for one in some(self._train[::2], 0.09):
            found += squad_stances(one, self._of_paragraph[one.context], rng)
        for one in some(self._train[1::3], self._opposite):
            found += reversed_stances(one, self._of_paragraph[one.context], rng)
        for one in some(self._policies, 0.03):
            found.append(whole(one))
            other = rng.choice(self._policy_sites[one.article])
            if other.context != one.context and rng.random() < 0.3:
                found.append(Example(one.question, other.context))
        found += some(self._tat, 0.02)
        own, elsewhere, wiki = self._claims
        found += some(own, 0.03) + some(elsewhere, 0.015) + some(wiki, 0.025)
        for pair in some(self._pairs, 0.02):
            found += pair
        found += some(self._statements, 0.02)
        found += some(self._studies, 0.01)
        tables = self._tables if number % 2 else invented_tables(20, rng)
        found += self._table_examples(tables, 0.03, rng, changed=0.5 if number % 2 else 0.0)
        over = some(self._tat, 0.04)
        for tables in (self._wiki_tables, self._tables, invented_tables(20, rng)):
            over += self._table_examples(tables, 0.02, rng, changed=0.0)
        for example in over:
            found += row_stances(example, rng)
        for item in some(self._outputs, 0.14):
            found += output_stances(item, rng)
        rng.shuffle(found)
        return found

    def _table_examples(
        self, tables: Sequence[Passage], share: float, rng: random.Random, *, changed: float
    ) -> list[Example]:
        return [
            Example(question, passage.text, start, end, passage.context)
            for question, passage, start, end in table_questions(
                tables, round(share * self._size), rng, changed=changed
            )
        ]

    @staticmethod
    def _over(one: Asked, rng: random.Random) -> Example:
        return titled(_part(whole(one), rng), one.title, rng)


def tuning() -> dict[str, list[Example]]:
    """Examples for choosing between versions: nothing here is learned from, and nothing is for reporting."""
    rng = random.Random(0)
    asked_here = written(LEARNED, TUNED)
    of = _by_paragraph(asked_here)
    stances: list[Example] = []
    for one in rng.sample(asked_here, 400):
        make: Callable[..., Iterator[Example]] = squad_stances if one.start >= 0 else unanswered_stance
        stances += make(one, of[one.context], rng)
    pairs = [example for pair in _tuned(table_pairs(reporting=False)) for example in pair]
    of_tables = [one for one in _tuned(tat_questions(reporting=False)) if one.context]
    return {
        "questions": [whole(one) for one in rng.sample(asked_here, 600)],
        "stances": stances,
        "claims": _tuned(fool_me_twice(reporting=False)) + _tuned(wice(reporting=False)),
        "table pairs": pairs[:400],
        "rows": [example for one in of_tables for example in row_stances(one, rng)],
        "policies": [whole(one) for one in _tuned(policies(reporting=False))][:200],
        "reports": _tuned(tat_questions(reporting=False)),
    }


def _part(example: Example, rng: random.Random, around: int = -1) -> Example:
    return cropped(example, rng, around=around) if rng.random() < 0.75 else example


def _learned(items: Sequence[Item]) -> list[Item]:
    return [item for number, item in enumerate(items) if number % TUNED_SHARE]


def _tuned(items: Sequence[Item]) -> list[Item]:
    return list(items[::TUNED_SHARE])


def _turn(items: Sequence[Item], number: int, count: int) -> list[Item]:
    """The next `count` items in turn, shuffled in the same way for each pass through all of them."""
    found = list[Item]()
    at = number * count
    while len(found) < count:
        turn, place = divmod(at, len(items))
        order = _order(len(items), turn)
        taken = order[place : place + count - len(found)]
        found += [items[n] for n in taken]
        at += len(taken)
    return found


@cache
def _order(count: int, turn: int) -> list[int]:
    return random.Random(f"{count} {turn}").sample(range(count), count)


def _by_paragraph(items: Sequence[Asked]) -> dict[str, list[Asked]]:
    found = dict[str, list[Asked]]()
    for one in items:
        found.setdefault(one.context, []).append(one)
    return found


def _by_article(items: Sequence[Asked]) -> dict[int, list[Asked]]:
    found = dict[int, list[Asked]]()
    for one in items:
        found.setdefault(one.article, []).append(one)
    return found


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]{3,}", text.lower()))
