from __future__ import annotations

import sys

import pytest
from support.parsed_documents import document, headings, marked

from ragfm.parsing.own import source_code

PYTHON = '''"""Docs."""

import os

# Counts ships.
@cache
def count(day):
    def inner():
        return 1
    return inner() + 1


class Keeper:
    """Keeps."""

    async def wake(self) -> None:
        pass


if __name__ == "__main__":
    count("é")
'''


def test_definitions_are_headings() -> None:
    parsed = document(PYTHON, "a.py")
    assert parsed.text == PYTHON
    assert headings(parsed) == [
        (1, "count"),
        (2, "inner"),
        (1, "Keeper"),
        (2, "wake"),
        (1, 'if __name__ == "__main__":'),
    ]
    assert marked(parsed, "heading")[0] == "# Counts ships.\n@cache\ndef count(day):"
    assert [(mark.value, mark.start) for mark in parsed.marks if mark.kind == "code"] == [("python", 0)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.js", "// é\nexport function add(a) {}\nclass B {\n  c() {}\n}\n", ["add", "B", "c"]),
        ("a.ts", "export interface A { b: number }\nexport abstract class C {\n  d(): void {}\n}\n", ["A", "C", "d"]),
        ("a.java", "class A {\n  void b() {}\n}\n", ["A", "b"]),
        ("a.go", "package m\n\ntype A struct{}\n\nfunc (a A) B() {}\n", ["A", "B"]),
        ("a.rs", "struct A { b: i8 }\nimpl A {\n  fn c() {}\n}\n", ["A", "A", "c"]),
        ("a.c", "struct a { int b; };\nint c(struct a d) { return 0; }\n", ["a", "c"]),
        ("a.cpp", "namespace a {\nint B::c() { return 1; }\n}\n", ["a", "B::c"]),
        ("a.cs", "class A {\n  int B() { return 1; }\n}\n", ["A", "B"]),
        ("a.rb", "module A\n  class B\n    def c\n      1\n    end\n  end\nend\n", ["A", "B", "c"]),
        ("a.php", "<?php\nclass A {\n  function b() {}\n}\n", ["A", "b"]),
        ("a.sh", "a() {\n  echo 1\n}\n", ["a"]),
    ],
)
def test_languages(name: str, text: str, expected: list[str]) -> None:
    parsed = document(text, name)
    assert parsed.text == text
    found = [words for _, words in headings(parsed)]
    assert [words for words in found if words in expected] == expected


def test_without_the_extra_code_is_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    source_code._load_parser.cache_clear()
    monkeypatch.setitem(sys.modules, "tree_sitter", None)
    parsed = document(PYTHON, "a.py")
    source_code._load_parser.cache_clear()
    assert [mark.kind for mark in parsed.marks] == ["code"]


def test_code_with_syntax_errors_is_kept() -> None:
    assert document("def (((\n  class }}}\n", "a.py").text == "def (((\n  class }}}\n"
    assert document("x = '\u2028'\n", "https://x.org/a.py?raw=1").text
