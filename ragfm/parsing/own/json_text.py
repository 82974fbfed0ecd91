"""JSON: readable lines `key.path: value`; each record of a list is a block."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ragfm.core.errors import ParseError
from ragfm.parsing.rendering import MarkdownBuilder, ParsedText, clean

_MAX_PATH = 200  # characters of a value's path: a long key over many values would multiply the text


def read_json(text: str, name: str) -> ParsedText:
    """Return one block of lines, or one block per record of a top-level list. Nulls and empty values are left out."""
    builder = MarkdownBuilder()
    try:
        value = json.loads(text)
        records = value if isinstance(value, list) and _has_containers(value) else [value]
        for record in records:
            block = "\n".join(_lines(record, ""))
            if block:
                builder.add_block(clean(block))
    except json.JSONDecodeError as error:
        raise ParseError(
            f"{name} is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}."
        ) from error
    except (ValueError, RecursionError) as error:  # a number with too many digits; too many levels
        raise ParseError(f"{name} cannot be read as JSON: {error}.") from error
    return builder.build()


def _lines(value: object, path: str) -> Iterator[str]:
    path = path if len(path) <= _MAX_PATH else f"…{path[-_MAX_PATH:]}"
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _lines(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and _has_containers(value):
        for index, item in enumerate(value):
            yield from _lines(item, f"{path}[{index}]")
    else:
        texts = [
            scalar.strip().replace("\r\n", "\n") if isinstance(scalar, str) else json.dumps(scalar)
            for scalar in (value if isinstance(value, list) else [value])
            if scalar is not None
        ]
        if text := (", " if path else "\n").join(filter(None, texts)):
            yield f"{path}: {text}" if path else text


def _has_containers(items: list[object]) -> bool:
    return any(isinstance(item, (dict, list)) for item in items)
