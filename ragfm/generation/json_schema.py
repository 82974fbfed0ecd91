"""JSON schemas for readers: made finite, as a grammar under which every object closes, and in words for the prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ragfm.core.errors import ConfigError, UnsupportedError

__all__ = ["ITEMS", "TEXT", "Form", "nullable"]

TEXT = 200
"""Characters of a text that has no `maxLength`."""
ITEMS = 10
"""Items of a list that has no `maxItems`."""

_WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}
_LENGTHS = {"integer": 17, "number": 50, "boolean": 5, "null": 4}
_FORMATS = ("date", "time", "date-time", "uuid")
_NAMED = ("title", "description")


@dataclass(frozen=True)
class Form:
    """A JSON schema of an object, as given, and `finite`: without references, all texts and lists of limited length.

    Made by `Form.of`. What may be null is always there in the finite one: a small reader would rather leave it out.
    """

    given: Mapping[str, Any]
    finite: Mapping[str, Any]

    @classmethod
    def of(cls, schema: Mapping[str, Any]) -> Form:
        """Raises ConfigError for what is no JSON schema of an object, UnsupportedError for one that can't be finite."""
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import validator_for

        try:
            validator_for(schema).check_schema(schema)
        except SchemaError as error:
            raise ConfigError(f"The schema is no JSON schema: {error.message} at {error.json_path}.") from error
        finite = _Finite(schema).of(schema, "")
        if finite.get("type") != "object":
            raise ConfigError("The schema is not that of an object.", 'Give it `"type": "object"` and `properties`.')
        return cls(schema, finite)

    @cached_property
    def grammar(self) -> str:
        """As GBNF. Raises UnsupportedError."""
        from ragfm.models.llama_library import llama_cpp

        from_schema = llama_cpp.llama_grammar.json_schema_to_gbnf
        try:
            return str(from_schema(json.dumps(self.finite)))
        except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UnsupportedError(f"The schema can't be made a grammar: {error}.") from error

    @cached_property
    def words(self) -> str:
        """What goes where, for the prompt."""
        return _in_words(self.finite)

    @cached_property
    def characters(self) -> int:
        """The most that an object has, escapes aside."""
        return _length(self.finite)

    def complaint(self, value: Any) -> str | None:
        """What of a value does not meet the schema as it was given."""
        from jsonschema.validators import validator_for

        error = next(iter(validator_for(self.given)(self.given).iter_errors(value)), None)
        return f"{error.message} at {error.json_path}" if error else None


def nullable(schema: Mapping[str, Any]) -> bool:
    """Whether null meets a finite schema."""
    return (
        schema.get("type") == "null"
        or None in schema.get("enum", ())
        or any(nullable(option) for option in schema.get("anyOf", ()))
    )


class _Finite:
    """Makes a schema finite; `root` is what its references point into."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._open: list[str] = []

    def of(self, schema: Any, at: str) -> dict[str, Any]:
        if not isinstance(schema, Mapping):
            raise UnsupportedError(f"The schema leaves open what stands at {at or '/'}.", "Give it a type.")
        if "$ref" in schema:
            return self._referred(schema, at)
        if "allOf" in schema:
            return self.of(_merged([{k: v for k, v in schema.items() if k != "allOf"}, *(
                self._target(part["$ref"]) if "$ref" in part else part for part in schema["allOf"])]), at)  # fmt: skip
        named = {key: schema[key] for key in _NAMED if key in schema}
        if options := schema.get("anyOf") or schema.get("oneOf"):
            return named | {"anyOf": [self.of(option, at) for option in options]}
        if "const" in schema:
            return named | {"enum": [schema["const"]]}
        if "enum" in schema:
            return named | {"enum": schema["enum"]}
        kind = schema.get("type") or next((kind for key, kind in _TELLS.items() if key in schema), None)
        if isinstance(kind, list):
            options = [{**schema, "type": one} for one in kind]
            return self.of(options[0], at) if len(options) == 1 else named | {
                "anyOf": [self.of(option, at) for option in options]}  # fmt: skip
        return named | self._of_type(kind, schema, at)

    def _of_type(self, kind: str | None, schema: Mapping[str, Any], at: str) -> dict[str, Any]:
        if kind == "object":
            return self._object(schema, at)
        if kind == "array":
            most = schema.get("maxItems", max(ITEMS, schema.get("minItems", 0)))
            if "prefixItems" in schema:
                return {"type": kind, "prefixItems": [self.of(part, f"{at}/{n}")
                                                      for n, part in enumerate(schema["prefixItems"])]}  # fmt: skip
            return {"type": kind, "items": self.of(schema.get("items"), f"{at}/0"),
                    "minItems": schema.get("minItems", 0), "maxItems": most}  # fmt: skip
        if kind == "string":
            if "pattern" in schema or schema.get("format") in _FORMATS:
                return {"type": kind, **{key: schema[key] for key in ("pattern", "format") if key in schema}}
            least = schema.get("minLength", 0)
            return {"type": kind, "minLength": least, "maxLength": schema.get("maxLength", max(TEXT, least))}
        if kind in _WORDS:
            return {"type": kind}
        raise UnsupportedError(f"The schema leaves open what stands at {at or '/'}.", "Give it a type.")

    def _object(self, schema: Mapping[str, Any], at: str) -> dict[str, Any]:
        if not schema.get("properties"):
            raise UnsupportedError(f"The schema leaves open which properties {at or 'the object'} has.", "Name them.")
        properties = {name: self.of(part, f"{at}/{name}") for name, part in schema["properties"].items()}
        required = [n for n, part in properties.items() if n in schema.get("required", ()) or nullable(part)]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def _referred(self, schema: Mapping[str, Any], at: str) -> dict[str, Any]:
        name = schema["$ref"]
        if name in self._open:
            raise UnsupportedError(f"The schema refers to itself at {at or '/'}.", "A finite one can be answered.")
        self._open.append(name)
        found = self.of(self._target(name), at) | {key: schema[key] for key in _NAMED if key in schema}
        self._open.pop()
        return found

    def _target(self, name: str) -> Any:
        target: Any = self._root
        for part in name.removeprefix("#").split("/")[1:]:
            target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
        if target is None or not name.startswith("#"):
            raise UnsupportedError(f"The schema refers to {name}, which is not in it.")
        return target


_TELLS = {"properties": "object", "items": "array", "prefixItems": "array", "maxLength": "string", "pattern": "string"}


def _merged(parts: list[Any]) -> dict[str, Any]:
    """One schema that has what all have."""
    whole: dict[str, Any] = {}
    for part in parts:
        properties = {**whole.get("properties", {}), **part.get("properties", {})}
        required = [*whole.get("required", ()), *part.get("required", ())]
        whole |= part
        whole |= ({"properties": properties} if properties else {}) | ({"required": required} if required else {})
    return whole


def _in_words(schema: Mapping[str, Any]) -> str:
    about = f" ({schema['description']})" if schema.get("description") else ""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_in_words(option) for option in schema["anyOf"])) + about
    if "enum" in schema:
        return " or ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"]) + about
    if schema["type"] == "object":
        parts = (f"{json.dumps(name, ensure_ascii=False)}: {_in_words(part)}"
                 for name, part in schema["properties"].items())  # fmt: skip
        return f"{{{', '.join(parts)}}}{about}"
    if schema["type"] == "array":
        items = schema.get("prefixItems") or [schema["items"]]
        return f"[{', '.join(map(_in_words, items))}{'' if 'prefixItems' in schema else ', …'}]{about}"
    return _WORDS[schema["type"]] + about


def _length(schema: Mapping[str, Any]) -> int:
    if "anyOf" in schema:
        return max(map(_length, schema["anyOf"]))
    if "enum" in schema:
        return max(len(json.dumps(value, ensure_ascii=False)) for value in schema["enum"])
    if schema["type"] == "object":
        return 2 + sum(len(json.dumps(name)) + 4 + _length(part) for name, part in schema["properties"].items())
    if schema["type"] == "array":
        if "prefixItems" in schema:
            return 2 + sum(2 + _length(part) for part in schema["prefixItems"])
        return 2 + int(schema["maxItems"]) * (2 + _length(schema["items"]))
    return 2 + int(schema.get("maxLength", TEXT)) if schema["type"] == "string" else _LENGTHS[schema["type"]]
