"""Structured output: an object that meets a JSON schema, with citations for each of its fields.

The reader generates it under a grammar. A value that no passage supports is replaced by null where the schema allows
null, and is marked as unsupported where it does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise
from math import isfinite
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from ragfm.answering.decision import citation_of
from ragfm.answering.evidence import split_claims
from ragfm.answering.grounding import Grounding
from ragfm.answering.judge import Judge
from ragfm.answering.quantities import Date, dates, per_word, quantities
from ragfm.core.errors import ExtractionError
from ragfm.core.types import Answer, Citation, Dropped, Hit, Reader, Sampling, Usage
from ragfm.generation.json_schema import OutputSchema, is_nullable
from ragfm.generation.prompt import Prompt
from ragfm.generation.reader_output import split_reasoning
from ragfm.store.views import language_of

T = TypeVar("T")

_OBJECT = re.compile(r"\{.*\}", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+")
_MAX_ABBREVIATION = 3  # letters; in a name, "min" may also be the minimum
_DATE = re.compile(r"([12]\d{3})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")
_TIME = re.compile(r"0?(\d{1,2}:\d\d)(?::00)?")

INSTRUCTION = "Using only the passages above, answer as JSON, with null for what they do not say: {form}\n"


@dataclass(frozen=True, slots=True)
class Field:
    """A value of an object with its path (`/contact/phone`) and its evidence.

    `supported`: a passage contains the value and is about the question and the field's name; False for null. `removed`
    is the reader's value if null replaced it because no passage supports it.
    """

    path: str
    value: str | int | float | bool | None
    supported: bool
    citations: tuple[Citation, ...] = ()
    removed: str | int | float | bool | None = None


@dataclass(frozen=True, slots=True)
class Extraction(Generic[T]):
    """An extracted object: `value` meets the schema, None if no passage was found; `data` is the same as JSON.

    The other fields are those of an `Answer`.
    """

    question: str
    query: str
    value: T | None
    data: dict[str, Any] | None
    fields: tuple[Field, ...]
    hits: tuple[Hit, ...]
    dropped: tuple[Dropped, ...]
    usage: Usage
    seconds: float
    log_id: int | None = None

    @property
    def answer(self) -> Answer:
        """An answer with the JSON as text."""
        text = "" if self.data is None else json.dumps(self.data, ensure_ascii=False)
        citations = tuple(citation for field in self.fields for citation in field.citations)
        return Answer(
            self.question,
            text,
            "not_found" if self.data is None else "answered",
            citations,
            self.hits,
            self.dropped,
            self.usage,
            self.seconds,
            query=self.query,
        )


def output_schema(schema: Mapping[str, Any] | type[BaseModel]) -> OutputSchema:
    """The output schema of a JSON schema or a pydantic model."""
    return OutputSchema.of(schema if isinstance(schema, Mapping) else schema.model_json_schema())


def fill_schema(
    schema: OutputSchema,
    query: str,
    reader: Reader,
    prompt: Prompt,
    sampling: Sampling,
    language: str | None,
    judge: Judge | None,
) -> tuple[Any, list[Field], Usage]:
    """Generate an object; return it as JSON values, with its fields and the tokens used.

    `language` is that of the passages. The judge reads them with all values in one batch. Raises ExtractionError if the
    object is cut off, UnsupportedError for a reader that does not support schemas.
    """
    with reader.stream(prompt.messages, replace(sampling, schema=schema.bounded)) as stream:
        output = "".join(stream)
    found = _OBJECT.search(split_reasoning(output)[1])  # servers that do not enforce a schema may write text around it
    try:
        text = found[0] if found else output
        data = json.loads(text, strict=False, parse_float=_finite, parse_constant=_finite)
    except ValueError as error:
        if stream.finish_reason == "length":
            raise ExtractionError(
                f"The reader's object was cut off at the limit of {sampling.max_tokens} tokens, "
                f"after {len(output)} characters.",
                "Set a maxLength for its strings and a maxItems for its lists, or raise ask.answer_tokens.",
            ) from error
        raise ExtractionError(
            f"The reader's output is not JSON: {error}.", "Use a reader that generates under a grammar."
        ) from error
    grounding = Grounding(query, prompt.shown, language, judge, asked=language_of(query))
    return data, _check_values(list(_values(data, schema.bounded)), grounding), stream.usage


def _finite(number: str) -> float:
    """A number that JSON can hold. Raises ValueError for others, such as NaN and 1e999."""
    if not isfinite(value := float(number)):
        raise ValueError(f"{number} is not a finite number")
    return value


def validate_output(data: Any, form: OutputSchema, schema: Mapping[str, Any] | type[BaseModel]) -> Any:
    """The object in the caller's type. Raises ExtractionError if it does not meet the schema."""
    if isinstance(schema, Mapping):
        violation = form.violation(data)
    else:
        try:
            return schema.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            violation = f"{first['msg']} at /{'/'.join(map(str, first['loc']))}"
    if violation:
        hint = "Constraints that a grammar cannot express (such as `minimum`) are checked afterwards: relax them."
        raise ExtractionError(f"The reader's object does not meet the schema: {violation}.", hint)
    return data


@dataclass(frozen=True, slots=True)
class _Value:
    """A value that is neither a list nor an object: `parent[key]`, at `path` of the whole object."""

    parent: Any
    key: Any
    schema: Mapping[str, Any]
    path: str


def _values(parent: Any, schema: Mapping[str, Any], path: str = "") -> Iterator[_Value]:
    """The values of an object or list, those within others included."""
    parts: Iterable[tuple[Any, Any, Mapping[str, Any]]] = ()
    if isinstance(parent, dict):
        candidates: list[Mapping[str, Any]] = [option.get("properties", {}) for option in _options(schema)]
        properties = next((one for one in candidates if parent.keys() <= one.keys()), {})
        parts = [(name, part, properties.get(name, {})) for name, part in parent.items()]
    elif isinstance(parent, list):
        array = next((option for option in _options(schema) if option.get("type") == "array"), {})
        schemas = [*array.get("prefixItems", ()), *[array.get("items", {})] * len(parent)]
        parts = zip(range(len(parent)), parent, schemas, strict=False)
    for key, part, own in parts:
        if isinstance(part, dict | list):
            yield from _values(part, own, f"{path}/{key}")
        else:
            yield _Value(parent, key, own, f"{path}/{key}")


def _check_values(values: Sequence[_Value], grounding: Grounding) -> list[Field]:
    """The fields of an object, in which null replaces values that no passage supports where the schema allows it."""
    claims = []  # for each value, its notations; for each of them, its sentences
    for one in values:
        question, texts = _notations(one, grounding)
        claims.append([split_claims(text, grounding.language or "en", question)[1] for text in texts])
    supports = iter(grounding.supports([claim for texts in claims for sentences in texts for claim in sentences]))
    fields = []
    for one, notations in zip(values, claims, strict=True):
        value, citations = one.parent[one.key], tuple[Citation, ...]()
        for sentences in notations:
            best = [support for _ in sentences for support in next(supports)[:1] if support.supports]
            if not citations and len(best) == len(sentences):
                citations = tuple(map(citation_of, best))
        removed = None
        if value is not None and not citations and is_nullable(one.schema):
            one.parent[one.key], value, removed = None, None, value
        fields.append(Field(one.path, value, bool(citations), citations, removed))
    return fields


def _notations(one: _Value, grounding: Grounding) -> tuple[str, list[str]]:
    """The question that a value answers, and the notations that a passage may have of it; none of null."""
    value, query, language = one.parent[one.key], grounding.question, grounding.language
    names = " ".join(_WORD.findall(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", one.path)))
    name = f"{names} {one.schema.get('description', '')}"
    question = f"{query} {name}"
    if value is None:
        return question, []
    if isinstance(value, bool):
        return query, [name if value else f"not {name}"]
    if isinstance(value, int | float):
        text = str(value) if isinstance(value, int) else f"{Decimal(repr(value)).normalize():f}"
        # The unit in the field's name tells 31 days from three weeks. That of "a fee per year" is not the year.
        per, unit = per_word(language), ""
        for before, word in pairwise(["", *_WORD.findall(name)]):
            is_unit = any(one.units and one.end == len(f"1 {word}") for one in quantities(f"1 {word}", language))
            if not unit and is_unit and before.casefold() != per and len(word) > _MAX_ABBREVIATION:
                unit = word
        return question, [f"{text} {unit}".strip()]
    if date := _DATE.fullmatch(value):
        year, month, day = map(int, date.groups())
        # In digits, the order of day and month differs between countries, so either is taken as it stands there.
        digits = re.compile(rf"(?<!\d)(?:0?{day}[./]0?{month}|0?{month}/0?{day})[./]{year}(?!\d)")
        written = list[str]()
        for hit in grounding.passages:
            days = [one for one in dates(hit.text, language) if one.states(Date(0, 0, year, month, day))]
            written += [hit.text[one.start : one.end] for one in days] + digits.findall(hit.text)
        return question, [*dict.fromkeys(written), value]
    time = _TIME.fullmatch(value)
    return question, [time[1] if time else value]


def _options(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The schema, or the alternatives of its `anyOf`."""
    if "anyOf" in schema:
        for option in schema["anyOf"]:
            yield from _options(option)
    else:
        yield schema
