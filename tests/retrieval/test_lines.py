"""Lines of hits and citations are those of the file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ragfm import Collection, Rag
from ragfm.core.text import line_range
from ragfm.core.types import Blob
from ragfm.parsing import parse
from ragfm.parsing.formats import FORMATS, WITH_LINES
from ragfm.testing import ScriptedReader

PARAGRAPHS = [
    f"Paragraph {n} is about subject{n}, and nothing else of interest.\nIts second line ends." for n in range(40)
]
CODE = "\n\n".join(f'def function_{n}(x):\n    """Return subject{n}."""\n\n    return x + {n}\n' for n in range(30))
MARKDOWN = "---\ntitle: Subjects\n---\n\n" + "\n\n".join(f"## Part {n}\n\nOf subject{n}." for n in range(30))
FILES = {
    "unix.txt": "\n\n\n" + "\n\n".join(PARAGRAPHS),
    "windows.txt": "\ufeff" + "\n\n\n".join(PARAGRAPHS).replace("\n", "\r\n"),
    "unicode.txt": "Ünïcödé 👩‍👩‍👧\u2028 no line end\x0c nor this\x85\n" + "\n\n".join(PARAGRAPHS),
    "module.py": "#!/usr/bin/python\n\n\n" + CODE,
    "script.js": "// comment\n\n" + CODE.replace("def ", "function "),
    "page.md": MARKDOWN,
}


def _lines_of(content: str) -> list[str]:
    return content.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")


@pytest.mark.parametrize("name", FILES)
def test_every_hit_is_in_its_lines(tmp_path: Path, collection: Collection, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name].encode())
    collection.sync(tmp_path / name)
    hits = collection.search("subject", k=500)
    assert len(hits) > 5
    for hit in hits:
        assert hit.lines is not None
        first, last = hit.lines
        lines = _lines_of(FILES[name])[first - 1 : last]
        assert hit.text.strip("\n") in "\n".join(lines)
        assert hit.text.startswith("\n") or hit.text.split("\n")[0] in lines[0]
        assert hit.text.rstrip("\n").split("\n")[-1] in lines[-1]
        assert len(lines) == hit.text.rstrip("\n").count("\n") + 1


def test_parsers_of_formats_with_lines_return_the_text_of_the_file() -> None:
    content = "\n \n# Title\n\n```\ncode\n```\n\n\n| a |\n|---|\n| b |\n\ttab  \n\n\n"
    for kind in WITH_LINES:
        for suffix in FORMATS[kind].suffixes:
            assert parse(Blob(content.replace("\n", "\r\n").encode()), f"docs/a{suffix}").text == content


def test_other_formats_have_no_lines(tmp_path: Path, collection: Collection) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.html").write_text("<p>A text about cats.</p>")
    (folder / "b.csv").write_text("animal,sound\ncats,meow\n")
    (folder / "c.txt").write_text("<!DOCTYPE html><p>A page about cats.</p>")
    collection.sync(folder)
    assert [hit.lines for hit in collection.search("cats", k=9)] == [None] * 3


def test_citations_and_merged_passages_have_lines(tmp_path: Path, collection: Collection) -> None:
    text = "Intro.\n\n" + "\n\n".join(
        f"Fact {n}: the lamp number {n} weighs {n + 100} grams exactly." for n in range(30)
    )
    (tmp_path / "lamps.txt").write_text(text)
    collection.sync(tmp_path / "lamps.txt")
    reader = ScriptedReader(["The lamp number 17 weighs 117 grams [1]."])
    answer = Rag(collection, reader=reader, k=3).ask("How much does the lamp number 17 weigh?")
    lines = text.split("\n")
    for hit in answer.hits:
        assert hit.lines == line_range(text, hit.start, hit.end)
    assert answer.citations
    for citation in answer.citations:
        assert citation.lines is not None
        assert citation.name == "lamps.txt"
        first, last = citation.lines
        assert re.sub(r"\s+", " ", citation.quote) in re.sub(r"\s+", " ", "\n".join(lines[first - 1 : last]))
        assert first == last or len(citation.quote.split("\n")) == last - first + 1
