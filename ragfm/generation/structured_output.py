"""Structured output: an object that meets a JSON schema, with citations for each of its fields.

The reader generates it under a grammar. A value that no passage supports is replaced by null where the schema allows
null, and is marked as unsupported where it does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise
from math import isfinite
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from ragfm.answering.decision import ground
from ragfm.answering.quantities import per_word, quantities
from ragfm.core.errors import ExtractionError
from ragfm.core.types import Answer, Citation, Dropped, Hit, Reader, Sampling, Usage
from ragfm.generation.json_schema import OutputSchema, is_nullable
from ragfm.generation.prompt import Prompt
from ragfm.generation.reader_output import split_reasoning

T = TypeVar("T")

_OBJECT = re.compile(r"\{.*\}", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+")
_MAX_ABBREVIATION = 3  # letters; in a name, "min" may also be the minimum
_DATE = re.compile(r"([12]\d{3})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")
_TIME = re.compile(r"0?(\d{1,2}):(\d\d)(?::00)?")

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
    schema: OutputSchema, query: str, reader: Reader, prompt: Prompt, sampling: Sampling, language: str | None
) -> tuple[Any, list[Field], Usage]:
    """Generate an object; return it as JSON values, with its fields and the tokens used.

    `language` is that of the passages. Raises ExtractionError if the object is cut off,
    UnsupportedError for a reader that does not support schemas.
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
    checker = _FieldChecker(query, prompt.shown, language)
    data = checker.check(data, schema.bounded, "")
    return data, checker.fields, stream.usage


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


class _FieldChecker:
    """Checks each value of an object against the passages, and collects the fields."""

    def __init__(self, query: str, passages: Sequence[Hit], language: str | None) -> None:
        self.fields: list[Field] = []
        self._query = query
        self._passages = passages
        self._language = language

    def check(self, value: Any, schema: Mapping[str, Any], path: str) -> Any:
        """The value, with null for parts that no passage supports where the schema allows null."""
        if isinstance(value, dict):
            candidates: list[Mapping[str, Any]] = [option.get("properties", {}) for option in _options(schema)]
            properties = next((one for one in candidates if value.keys() <= one.keys()), {})
            return {name: self.check(part, properties.get(name, {}), f"{path}/{name}") for name, part in value.items()}
        if isinstance(value, list):
            array = next((option for option in _options(schema) if option.get("type") == "array"), {})
            schemas = [*array.get("prefixItems", ()), *[array.get("items", {})] * len(value)]
            return [
                self.check(part, own, f"{path}/{n}") for n, (part, own) in enumerate(zip(value, schemas, strict=False))
            ]
        citations = () if value is None else self._citations(path, str(schema.get("description", "")), value)
        if value is not None and not citations and is_nullable(schema):
            self.fields.append(Field(path, None, supported=False, removed=value))
            return None
        self.fields.append(Field(path, value, bool(citations), citations))
        return value

    def _citations(self, path: str, description: str, value: Any) -> tuple[Citation, ...]:
        """The citations that support a value, in the first of its notations that a passage supports."""
        names = " ".join(_WORD.findall(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", path)))
        name = f"{names} {description}"
        question, texts = f"{self._query} {name}", [str(value)]
        if isinstance(value, bool):
            question, texts = self._query, [name if value else f"not {name}"]
        elif isinstance(value, str) and (date := _DATE.fullmatch(value)):
            # The order of the numbers does not matter to the comparison, which knows the names of months.
            year, month, day = map(int, date.groups())
            texts += [f"{day:02}.{month:02}.{year}", f"{day}.{month}.{year}", f"{day}/{month}/{year}"]
        elif isinstance(value, str) and (time := _TIME.fullmatch(value)):
            texts += [f"{time[1].zfill(2)}:{time[2]}", f"{time[1]}:{time[2]}"]
        elif isinstance(value, float):
            notations = [*(f"{value:.{digits}f}" for digits in range(4)), f"{Decimal(repr(value)):f}"]
            texts = [text for text in dict.fromkeys(notations) if float(text) == value]  # none is rounded
        if isinstance(value, int | float) and not isinstance(value, bool):
            # The unit in the field's name tells 31 days from three weeks. That of "a fee per year" is not the year.
            per, unit = per_word(self._language), ""
            for before, word in pairwise(["", *_WORD.findall(name)]):
                written = f"1 {word}"
                is_unit = any(one.units and one.end == len(written) for one in quantities(written, self._language))
                if not unit and is_unit and before.casefold() != per and len(word) > _MAX_ABBREVIATION:
                    unit = word
            texts = [f"{text} {unit}".strip() for text in texts]
        for text in texts:
            citations = ground(question, text, self._passages, self._language, None)[1]
            if citations and all(one.supports for one in citations):
                return citations
        return ()


def _options(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The schema, or the alternatives of its `anyOf`."""
    if "anyOf" in schema:
        for option in schema["anyOf"]:
            yield from _options(option)
    else:
        yield schema
