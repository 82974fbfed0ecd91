"""Helpers for tests of parsers: parse a document, and check the invariants of every document."""

from __future__ import annotations

from ragfm.core.types import Blob, Document
from ragfm.parsing import parse


def document(data: bytes | str, uri: str, declared: str | None = None) -> Document:
    parsed = parse(Blob(data.encode() if isinstance(data, str) else data, declared), uri)
    check_invariants(parsed)
    return parsed


def check_invariants(parsed: Document) -> None:
    assert "\r\n" not in parsed.text
    parsed.text.encode()
    assert list(parsed.marks) == sorted(parsed.marks, key=lambda mark: mark.start)
    for mark in parsed.marks:
        if mark.kind == "heading" and not mark.value:
            assert 0 <= mark.start == mark.end <= len(parsed.text)
            continue
        assert 0 <= mark.start < mark.end <= len(parsed.text)
        marked_text = parsed.text[mark.start : mark.end]
        assert marked_text[-1] != "\n"
        assert mark.start == 0 or mark.kind == "page" or parsed.text[mark.start - 1] in "\r\n"
        if mark.kind == "table":
            header = [line for line in mark.value.splitlines() if line.startswith("|")]  # without the caption
            assert marked_text.startswith("\n".join(header))
            assert len(header) != 1
        if mark.kind == "heading":
            assert mark.value in " ".join(marked_text.split())
            assert mark.level >= 1


def marked(parsed: Document, kind: str) -> list[str]:
    return [parsed.text[mark.start : mark.end] for mark in parsed.marks if mark.kind == kind]


def headings(parsed: Document) -> list[tuple[int, str]]:
    return [(mark.level, mark.value) for mark in parsed.marks if mark.kind == "heading"]
