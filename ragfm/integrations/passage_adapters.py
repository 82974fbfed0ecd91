"""Passages of any system as hits: strings, dictionaries, and the objects of LangChain, LlamaIndex and Haystack.

No library is imported for them: an object is known by its attributes.

    LangChain     Document        page_content, metadata
    LlamaIndex    NodeWithScore   get_content(), metadata; so has TextNode
    Haystack      Document        content, meta

A dictionary has the same keys, or `text`. Where a passage is from, its page and its first character in the document are
its own keys or those of its metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ragfm.core.errors import DataError
from ragfm.core.text import check_characters
from ragfm.core.types import Hit

_TEXT = ("text", "content", "page_content")
_SOURCE = ("uri", "source", "url", "file_path", "file_name")
_PAGE = ("page_label", "page_number", "page")
_START = ("start", "start_index", "split_idx_start")
_SHOWN = 80  # characters of a passage in an error


def numbered_passages(passages: Iterable[object]) -> list[Hit]:
    """The passages as hits, numbered from 1. Raises DataError for one without text."""
    return [_passage(n, value) for n, value in enumerate(passages, 1)]


def _passage(n: int, value: object) -> Hit:
    if isinstance(value, Hit):
        return replace(value, n=n)
    fields = _fields(value)
    text = _first(fields, _TEXT)
    if not isinstance(text, str) or not text.strip():
        raise DataError(
            f"Passage {n} has no text: '{repr(value)[:_SHOWN]}'.",
            "A passage is a string, an object with `text`, or a document of LangChain, LlamaIndex or Haystack.",
        )
    check_characters(f"text of passage {n}", text)
    metadata = fields.get("metadata") or fields.get("meta")
    about = {**metadata, **fields} if isinstance(metadata, Mapping) else fields
    uri = str(_first(about, _SOURCE) or f"passage {n}")
    check_characters(f"source of passage {n}", uri)
    start = _number(_first(about, _START)) or 0
    page = _number(_first(about, _PAGE))
    return Hit(uri, text, start, start + len(text), chunk_id=n, score=None, scores={}, page=page, n=n, name=uri)


def _fields(value: object) -> Mapping[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, Mapping):
        return value
    get_content = getattr(value, "get_content", None)
    text = get_content() if get_content else _first({name: getattr(value, name, None) for name in _TEXT}, _TEXT)
    return {"text": text, "metadata": getattr(value, "metadata", None) or getattr(value, "meta", None)}


def _first(values: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)


def _number(value: object) -> int | None:
    return int(str(value)) if re.fullmatch(r"\d{1,9}", str(value)) else None
