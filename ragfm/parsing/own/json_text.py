"""JSON: readable lines `key.path: value`; each record of a list is a block. Jupyter notebooks: their cells."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ragfm.core.errors import ParseError
from ragfm.parsing.own.markdown import read_markdown
from ragfm.parsing.rendering import MarkdownBuilder, ParsedText, clean, fenced

_MAX_PATH = 200  # characters of a value's path: a long key over many values would multiply the text


def read_json(text: str, name: str) -> ParsedText:
    """Return one block of lines, or one block per record of a top-level list. Nulls and empty values are left out.

    A Jupyter notebook is read as Markdown: its texts, its code, and what that printed.
    """
    builder = MarkdownBuilder()
    try:
        value = json.loads(text)
        if isinstance(value, dict) and "nbformat" in value and isinstance(value.get("cells"), list):
            return read_markdown(clean("\n\n".join(filter(None, _cells(value)))), name)
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


def _cells(notebook: Mapping[str, Any]) -> Iterator[str]:
    """The cells of a notebook as Markdown (https://nbformat.readthedocs.io, version 4). Pictures are left out."""
    language = _entry(_entry(notebook.get("metadata"), "language_info"), "name")
    for cell in notebook["cells"]:
        source = _joined(_entry(cell, "source"))
        if _entry(cell, "cell_type") != "code":
            yield source
            continue
        yield fenced(source, language if isinstance(language, str) and language.isidentifier() else "")
        outputs = _entry(cell, "outputs")
        for output in outputs if isinstance(outputs, list) else ():
            data = _entry(output, "data")
            if _entry(output, "output_type") == "error":
                yield fenced(f"{_joined(_entry(output, 'ename'))}: {_joined(_entry(output, 'evalue'))}")
            elif markdown := _joined(_entry(data, "text/markdown")):
                yield markdown
            elif not any(kind.startswith("image/") for kind in (data if isinstance(data, dict) else ())):
                yield fenced(_joined(_entry(output, "text")) or _joined(_entry(data, "text/plain")))


def _entry(value: object, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _joined(text: object) -> str:
    """A text, which notebooks may store as a list of lines."""
    lines = text if isinstance(text, list) else [text]
    return "".join(line for line in lines if isinstance(line, str)).strip("\n")
