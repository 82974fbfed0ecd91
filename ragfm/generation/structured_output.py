"""Structured answers: an object that meets a JSON schema, each of its fields held against the passages.

The reader writes it under a grammar, so that it can be nothing else. A value that stands in no passage is null where
the schema allows that, and said to be unsupported where it doesn't.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ragfm.citations.grounding import grounded
from ragfm.core.errors import ExtractionError
from ragfm.core.types import Answer, Usage
from ragfm.generation.json_schema import Form, nullable

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ragfm.core.types import Citation, Dropped, Hit, Reader, Sampling, Stream
    from ragfm.generation.prompt import Prompt

__all__ = ["Extraction", "Field", "fill", "form_of"]

T = TypeVar("T")

EXTRACT = "Using only the passages above, answer as JSON, with null for what they do not say: {form}\n"


@dataclass(frozen=True, slots=True)
class Field:
    """A value of an object, where it stands in it (`/contact/phone`), and its evidence.

    `supported`: a passage has the value, and speaks of what the question and the field's name do. It is never so of
    null. `removed` is what the reader had said where no passage supports it, and null was put in its place.
    """

    path: str
    value: str | int | float | bool | None
    supported: bool
    citations: tuple[Citation, ...] = ()
    removed: str | int | float | bool | None = None


@dataclass(frozen=True, slots=True)
class Extraction(Generic[T]):
    """What was filled in. `value` is None where no passage was found; else an object that meets the schema.

    `data` is the same as JSON has it. The other fields are those of an `Answer`.
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
        """As an answer whose text is JSON."""
        text = "" if self.data is None else json.dumps(self.data, ensure_ascii=False)
        citations = tuple(citation for field in self.fields for citation in field.citations)
        return Answer(
            self.question, text, self.data is None, citations, self.hits, self.dropped, self.usage, self.seconds,
            query=self.query,
        )  # fmt: skip


def form_of(schema: Mapping[str, Any] | type[BaseModel]) -> Form:
    """The form of a JSON schema or a pydantic model."""
    return Form.of(schema if isinstance(schema, Mapping) else schema.model_json_schema())


def fill(form: Form, query: str, reader: Reader, prompt: Prompt, sampling: Sampling) -> tuple[Any, list[Field], Usage]:
    """Have the reader fill in a form; gives the object as JSON has it, its fields, and the tokens it took.

    Raises ExtractionError where the object is cut off, UnsupportedError for a reader that takes no schema.
    """
    with reader.stream(prompt.messages, replace(sampling, schema=form.finite)) as stream:
        said = "".join(stream)
    data = _parsed(said, stream, sampling.max_tokens)
    fields: list[Field] = []
    data = _checked(data, form.finite, "", _Evidence(query, prompt.shown, fields))
    return data, fields, stream.usage


def validated(data: Any, form: Form, schema: Mapping[str, Any] | type[BaseModel]) -> Any:
    """The object as the caller wants it. Raises ExtractionError where it does not meet the schema."""
    complaint = None
    if isinstance(schema, Mapping):
        complaint = form.complaint(data)
    else:
        from pydantic import ValidationError

        try:
            return schema.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            complaint = f"{first['msg']} at /{'/'.join(map(str, first['loc']))}"
    if complaint:
        hint = "What a grammar can't hold to (as `minimum`) is checked afterwards; allow null, or more."
        raise ExtractionError(f"The reader's object does not meet the schema: {complaint}.", hint)
    return data


# --- Inside ------------------------------------------------------------------------------------------------------


def _parsed(said: str, stream: Stream, limit: int | None) -> Any:
    try:
        return json.loads(said, strict=False)
    except ValueError as error:
        if stream.finish_reason == "length":
            raise ExtractionError(
                f"The reader's object was cut off at the limit of {limit} tokens, after {len(said)} characters.",
                "Give its texts a maxLength and its lists a maxItems, or raise ask.answer_tokens.",
            ) from error
        raise ExtractionError(
            f"The reader's answer is no JSON: {error}.", "A reader must keep to the grammar; take another one."
        ) from error


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What a value is held against, and the fields that were."""

    query: str
    shown: Sequence[Hit]
    fields: list[Field]

    def of(self, path: str, about: str, value: Any) -> tuple[Citation, ...]:
        """The citations that verify a value, in the first of its forms that can be."""
        names = " ".join(re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", path)))
        asked = f"{self.query} {names} {about}"
        for question, text in _claims(asked, self.query, f"{names} {about}", value):
            sentences = [sentence for sentence in grounded(question, text, self.shown) if sentence.says]
            if sentences and all(sentence.supported for sentence in sentences):
                return tuple(one for sentence in sentences for one in sentence.citations if one.verified)
        return ()


def _claims(asked: str, query: str, name: str, value: Any) -> Iterator[tuple[str, str]]:
    """(what was asked, what a value says), in the ways in which a document may write it."""
    if isinstance(value, bool):
        yield query, name if value else f"not {name}"
    elif isinstance(value, float):
        forms = [*(f"{value:.{digits}f}" for digits in range(4)), f"{Decimal(repr(value)):f}"]
        yield from ((asked, form) for form in dict.fromkeys(forms) if float(form) == value)  # none is rounded
    else:
        yield asked, str(value)


def _checked(value: Any, schema: Mapping[str, Any], path: str, evidence: _Evidence) -> Any:
    """The value, with null for what stands in no passage and may be null."""
    if isinstance(value, dict):
        parts: list[Mapping[str, Any]] = [option.get("properties", {}) for option in _options(schema)]
        of = next((properties for properties in parts if value.keys() <= properties.keys()), {})
        return {name: _checked(part, of.get(name, {}), f"{path}/{name}", evidence) for name, part in value.items()}
    if isinstance(value, list):
        items = next((option for option in _options(schema) if option.get("type") == "array"), {})
        each = items.get("prefixItems") or [items.get("items", {})] * len(value)
        pairs = enumerate(zip(value, each, strict=False))
        return [_checked(part, own, f"{path}/{n}", evidence) for n, (part, own) in pairs]
    citations = () if value is None else evidence.of(path, str(schema.get("description", "")), value)
    if value is not None and not citations and nullable(schema):
        evidence.fields.append(Field(path, None, supported=False, removed=value))
        return None
    evidence.fields.append(Field(path, value, bool(citations), citations))
    return value


def _options(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All that a value may be."""
    if "anyOf" in schema:
        for option in schema["anyOf"]:
            yield from _options(option)
    else:
        yield schema
