"""JSON: readable lines `key.path: value`; the records of a list are blocks of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ragfm.core.errors import ParseError
from ragfm.parsing.rendering import Parsed, Rendering, clean

_LONGEST = 200  # characters of a value's path: a long key over many values would multiply the text


def read_json(text: str, name: str) -> Parsed:
    """One block of lines; of a list at the top, one block per record. Nulls and empty values are left out."""
    rendering = Rendering()
    try:
        value = json.loads(text)
        # A list of scalars is a block of lines; a list of records is a list of blocks.
        records = (
            value if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value) else [value]
        )
        for record in records:
            if block := "\n".join(_lines(record, "")):
                rendering.block(clean(block))
    except json.JSONDecodeError as error:
        raise ParseError(f"{name} is no valid JSON: line {error.lineno}, column {error.colno}: {error.msg}.") from error
    except (ValueError, RecursionError) as error:  # a number with too many digits; too many levels
        raise ParseError(f"{name} can't be read as JSON: {error}.") from error
    return rendering.finish()


def _lines(value: object, path: str) -> Iterator[str]:
    path = path if len(path) <= _LONGEST else f"…{path[-_LONGEST:]}"
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _lines(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        for index, item in enumerate(value):
            yield from _lines(item, f"{path}[{index}]")
    elif isinstance(value, list):
        words = [_word(item) for item in value]
        joint = ", " if path else "\n"
        if joined := joint.join(word for word in words if word):
            yield f"{path}: {joined}" if path else joined
    elif word := _word(value):
        yield f"{path}: {word}" if path else word


def _word(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip().replace("\r\n", "\n")
    return json.dumps(value)
