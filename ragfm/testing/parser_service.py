"""The confined process in which the contract test of parsers runs a parser that need not be registered."""

from __future__ import annotations

from importlib import import_module
from typing import IO, Any


def handle(file: IO[bytes] | None, module: str, name: str, document: str, media_type: str) -> tuple[Any, bytes]:
    """Parse a document with the parser class `name` of a module. Returns its marks, and its text."""
    assert file is not None
    parsed = getattr(import_module(module), name)().parse(file.read(), document, media_type)
    marks = [(mark.kind, mark.start, mark.end, mark.value, mark.level) for mark in parsed.marks]
    return marks, parsed.text.encode("utf-8", "surrogatepass")
