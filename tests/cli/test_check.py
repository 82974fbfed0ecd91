"""`ragfm check`: the answer of any system against a file of passages, or a collection."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from support.shell import InProcessShell, Shell

PASSAGES = ["You get 28 days of leave.", {"text": "Parents get 16 weeks more.", "uri": "leave.md", "page": 2}]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcessShell:
    monkeypatch.chdir(tmp_path)
    Path("answer.txt").write_text("You get 28 days of leave [1]. Parents get 20 weeks more. The boss is Ann.\n")
    Path("array.json").write_text(json.dumps(PASSAGES, indent=2))
    Path("lines.jsonl").write_text("\n\n".join(map(json.dumps, PASSAGES)) + "\n")
    return InProcessShell()


@pytest.mark.parametrize("file", ["array.json", "lines.jsonl"])
def test_an_answer_is_checked_against_a_file(shell: InProcessShell, file: str) -> None:
    found = shell.json("check", "--answer", "answer.txt", "--passages", file)
    assert [sentence["status"] for sentence in found["sentences"]] == ["supported", "contradicted", "not_found"]
    assert (found["supported"], found["contradicted"], found["not_found"]) == (1, 1, 1)
    assert found["sentences"][1]["contradiction"]["page"] == 2


def test_an_answer_is_checked_against_a_collection(ingested: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ingested.folder)
    monkeypatch.setenv("RAGFM_EMBEDDER", "hashing")
    Path("answer.txt").write_text("You get 28 days of leave. Parents get 20 weeks more.")
    printed = InProcessShell()("check", "--answer", "answer.txt")
    assert printed.splitlines() == [
        "supported: You get 28 days of leave.",
        "  [1] docs/leave.md:3: “You get 28 days of leave.”",
        "contradicted: Parents get 20 weeks more.",
        "  But [2] docs/leave.md:7: “Parents get 16 weeks more.”",
        "1 supported, 1 contradicted, 0 not found",
    ]


def test_files_that_cannot_be_used_are_named(shell: InProcessShell) -> None:
    Path("broken.jsonl").write_text('"A text."\n{"text": \n')
    Path("latin.txt").write_bytes("Das Büro.".encode("latin-1"))
    check = ("check", "--answer", "answer.txt")
    assert "'broken.jsonl' cannot be read: value 2 is not JSON" in shell(*check, "--passages", "broken.jsonl", code=1)
    assert "'latin.txt' cannot be read" in shell("check", "--answer", "latin.txt", "--passages", "array.json", code=1)
    with pytest.raises(click.UsageError, match="cannot be combined"):
        shell(*check, "--passages", "array.json", "-c", ".ragfm")
    with pytest.raises(click.UsageError, match="does not exist"):
        shell("check", "--answer", "nothing.txt")


@pytest.mark.parametrize(
    ("answer", "passages", "words"),
    [
        ("", PASSAGES, "has no sentence"),
        (" [1]\n", PASSAGES, "has no sentence"),
        ("A word. " * 125_000, PASSAGES, "it has 1,000,000 characters, and the maximum is 20,000"),
        ("A word.", ["A word. " * 125_000], "its passages have 1,000,000 characters, and the maximum is"),
        ("A word.", ["A word.", {"uri": "leave.md"}], "Passage 2 has no text"),
    ],
)
def test_what_cannot_be_checked_ends_with_the_reason(
    shell: InProcessShell, answer: str, passages: list[object], words: str
) -> None:
    Path("answer.txt").write_text(answer)
    Path("array.json").write_text(json.dumps(passages))
    assert words in shell("check", "--answer", "answer.txt", "--passages", "array.json", code=1)


def test_an_answer_in_another_language_has_a_result_without_a_probability(shell: InProcessShell) -> None:
    Path("answer.txt").write_text("Sie bekommen 28 Tage Urlaub.")
    (sentence,) = shell.json("check", "--answer", "answer.txt", "--passages", "array.json")["sentences"]
    assert (sentence["status"], sentence["probability"]) == ("not_found", None)
