"""JSON schemas for readers: bounded, as a GBNF grammar under which every object closes, and as text for the prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ragfm.core.errors import ConfigError, UnsupportedError

DEFAULT_MAX_LENGTH = 200
"""Characters of a string without `maxLength`."""
DEFAULT_MAX_ITEMS = 10
"""Items of a list without `maxItems`."""
MAX_OPTIONAL = 1000
"""Characters or items beyond the minimum. llama.cpp refuses grammars with more, and crashes on many more."""

_TYPE_TEXTS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
}
_TYPE_LENGTHS = {"integer": 17, "number": 50, "boolean": 5, "null": 4}
_FORMATS = ("date", "time", "date-time", "uuid")
_CHARACTERS = {"d": "0-9", "w": "A-Za-z0-9_", "s": " "}
_OTHER_CHARACTERS = {"D": r'[^0-9"\\]', "W": r'[^A-Za-z0-9_"\\]', "S": r'[^ "\\]'}  # the string goes on
_ANNOTATIONS = ("title", "description")
_IMPLIED_TYPES = {
    "properties": "object",
    "items": "array",
    "prefixItems": "array",
    "maxLength": "string",
    "pattern": "string",
}


@dataclass(frozen=True)
class OutputSchema:
    """A JSON schema of an object, as `given`, and `bounded`: without references, with limits for strings and lists.

    Made by `OutputSchema.of`. Properties that may be null are required in the bounded schema: small readers tend to
    leave them out.
    """

    given: Mapping[str, Any]
    bounded: Mapping[str, Any]

    @classmethod
    def of(cls, schema: Mapping[str, Any]) -> OutputSchema:
        """Raises ConfigError if it is not a JSON schema of an object, UnsupportedError if it cannot be bounded."""
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import validator_for

        try:
            validator_for(schema).check_schema(schema)
        except SchemaError as error:
            raise ConfigError(f"The schema is not a JSON schema: {error.message} at {error.json_path}.") from error
        bounded = _Bounder(schema).bound(schema, "")
        if bounded.get("type") != "object":
            raise ConfigError("The schema does not describe an object.", 'Add `"type": "object"` and `properties`.')
        return cls(schema, bounded)

    @cached_property
    def grammar(self) -> str:
        """The bounded schema as GBNF. Raises UnsupportedError."""
        from ragfm.models.llama_library import llama_cpp

        to_grammar = llama_cpp.llama_grammar.json_schema_to_gbnf
        try:
            return str(to_grammar(json.dumps(self.bounded)))
        except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UnsupportedError(f"The schema cannot be converted to a grammar: {error}.") from error

    @cached_property
    def words(self) -> str:
        """The bounded schema as text for the prompt."""
        return _describe(self.bounded)

    @cached_property
    def characters(self) -> int:
        """Maximum length of an object in characters, without escapes."""
        return _max_length(self.bounded)

    def violation(self, value: Any) -> str | None:
        """The first way in which a value violates the given schema, None if it meets it."""
        from jsonschema.validators import validator_for

        error = next(iter(validator_for(self.given)(self.given).iter_errors(value)), None)
        return f"{error.message} at {error.json_path}" if error else None


def is_nullable(schema: Mapping[str, Any]) -> bool:
    """Whether null meets a bounded schema."""
    return (
        schema.get("type") == "null"
        or None in schema.get("enum", ())
        or any(is_nullable(option) for option in schema.get("anyOf", ()))
    )


class _Bounder:
    """Bounds a schema; references point into `root`."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._open_references: list[str] = []

    def bound(self, schema: Any, path: str) -> dict[str, Any]:
        if not isinstance(schema, Mapping):
            raise UnsupportedError(f"The schema has no type for {path or '/'}.", "Add a type.")
        annotations = {key: schema[key] for key in _ANNOTATIONS if key in schema}
        if "$ref" in schema:
            name = schema["$ref"]
            if name in self._open_references:
                raise UnsupportedError(
                    f"The schema refers to itself at {path or '/'}.", "Use a schema without recursion."
                )
            self._open_references.append(name)
            bounded = self.bound(self._resolve(name), path) | annotations
            self._open_references.pop()
            return bounded
        if "allOf" in schema:
            own = {key: value for key, value in schema.items() if key != "allOf"}
            parts = [self._resolve(part["$ref"]) if "$ref" in part else part for part in schema["allOf"]]
            merged: dict[str, Any] = {}
            for part in (own, *parts):
                properties = {**merged.get("properties", {}), **part.get("properties", {})}
                required = [*merged.get("required", ()), *part.get("required", ())]
                merged |= part
                merged |= {"properties": properties} if properties else {}
                merged |= {"required": required} if required else {}
            return self.bound(merged, path)
        if options := schema.get("anyOf") or schema.get("oneOf"):
            return annotations | {"anyOf": [self.bound(option, path) for option in options]}
        if "const" in schema or "enum" in schema:
            return annotations | {"enum": [schema["const"]] if "const" in schema else schema["enum"]}
        kind = schema.get("type") or next((kind for key, kind in _IMPLIED_TYPES.items() if key in schema), None)
        if isinstance(kind, list):
            options = [{**schema, "type": one} for one in kind]
            if len(options) == 1:
                return self.bound(options[0], path)
            return annotations | {"anyOf": [self.bound(option, path) for option in options]}
        return annotations | self._bound_type(kind, schema, path)

    def _bound_type(self, kind: str | None, schema: Mapping[str, Any], path: str) -> dict[str, Any]:
        if kind == "object":
            if not schema.get("properties"):
                raise UnsupportedError(f"The schema lists no properties for {path or 'the object'}.", "List them.")
            properties = {name: self.bound(part, f"{path}/{name}") for name, part in schema["properties"].items()}
            given = schema.get("required", ())
            required = [name for name, part in properties.items() if name in given or is_nullable(part)]
            return {"type": kind, "properties": properties, "required": required, "additionalProperties": False}
        if kind == "array":
            if "prefixItems" in schema:
                items = [self.bound(part, f"{path}/{n}") for n, part in enumerate(schema["prefixItems"])]
                return {"type": kind, "prefixItems": items}
            min_items = int(schema.get("minItems", 0))
            max_items = min(int(schema.get("maxItems", max(DEFAULT_MAX_ITEMS, min_items))), min_items + MAX_OPTIONAL)
            bounded = self.bound(schema.get("items"), f"{path}/0")
            return {"type": kind, "items": bounded, "minItems": min_items, "maxItems": max_items}
        if kind == "string":
            if "pattern" in schema or schema.get("format") in _FORMATS:
                form = {"format": schema["format"]} if "format" in schema else {}
                return {"type": kind, **form, **({"pattern": _plain(schema["pattern"])} if "pattern" in schema else {})}
            min_length = int(schema.get("minLength", 0))
            max_length = int(schema.get("maxLength", max(DEFAULT_MAX_LENGTH, min_length)))
            max_length = min(max_length, min_length + MAX_OPTIONAL)
            return {"type": kind, "minLength": min_length, "maxLength": max_length}
        if kind in _TYPE_TEXTS:
            return {"type": kind}
        raise UnsupportedError(f"The schema has no type for {path or '/'}.", "Add a type.")

    def _resolve(self, name: str) -> Any:
        target: Any = self._root
        for part in name.removeprefix("#").split("/")[1:]:
            target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
        if target is None or not name.startswith("#"):
            raise UnsupportedError(f"The schema refers to {name}, which is not in it.")
        return target


def _plain(pattern: str) -> str:
    r"""A regular expression without the signs that grammars lack, such as `\d`, `\.` and `(?:…)`."""
    plain, in_class = "", False
    for match in re.finditer(r"\\(.)|\(\?:|.", pattern, re.DOTALL):
        piece, escaped = match[0], match[1] or ""
        if not escaped and piece in "[]":
            in_class = piece == "["
        elif piece == "(?:" and not in_class:
            piece = "("
        elif escaped in _CHARACTERS:
            piece = _CHARACTERS[escaped] if in_class else f"[{_CHARACTERS[escaped]}]"
        elif escaped in _OTHER_CHARACTERS and not in_class:
            piece = _OTHER_CHARACTERS[escaped]
        elif escaped and not escaped.isalnum():
            number = f"\\x{ord(escaped):02X}"
            piece = number if in_class else f"[{number}]"
        plain += piece
    return plain


def _describe(schema: Mapping[str, Any]) -> str:
    description = f" ({schema['description']})" if schema.get("description") else ""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_describe(option) for option in schema["anyOf"])) + description
    if "enum" in schema:
        return " or ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"]) + description
    if schema["type"] == "object":
        parts = [
            f"{json.dumps(name, ensure_ascii=False)}: {_describe(part)}" for name, part in schema["properties"].items()
        ]
        return f"{{{', '.join(parts)}}}{description}"
    if schema["type"] == "array":
        items = schema.get("prefixItems") or [schema["items"]]
        return f"[{', '.join(map(_describe, items))}{'' if 'prefixItems' in schema else ', …'}]{description}"
    return _TYPE_TEXTS[schema["type"]] + description


def _max_length(schema: Mapping[str, Any]) -> int:
    if "anyOf" in schema:
        return max(map(_max_length, schema["anyOf"]))
    if "enum" in schema:
        return max(len(json.dumps(value, ensure_ascii=False)) for value in schema["enum"])
    if schema["type"] == "object":
        return 2 + sum(len(json.dumps(name)) + 4 + _max_length(part) for name, part in schema["properties"].items())
    if schema["type"] == "array":
        if "prefixItems" in schema:
            return 2 + sum(2 + _max_length(part) for part in schema["prefixItems"])
        return 2 + int(schema["maxItems"]) * (2 + _max_length(schema["items"]))
    if schema["type"] == "string":
        return 2 + int(schema.get("maxLength", DEFAULT_MAX_LENGTH))
    return _TYPE_LENGTHS[schema["type"]]
