"""Text, tables, answers and errors, with and without a terminal."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace

import pytest

from ragfm.cli.output import answer_json, print_answer, print_error, print_hit, print_table, print_text
from ragfm.core.table_rows import TableRow
from ragfm.core.text import counted
from ragfm.core.types import Answer, Citation, Contradiction, Hit, Usage

CITATION = Citation(1, "docs/leave.md", None, 9, 34, "You get\n28 days of leave.", verified=True)
CONTRADICTION = Contradiction(2, "docs/old.md", None, 0, 25, "You get 20 days of leave.", 0, 12)
ANSWER = Answer(
    question="How much leave?",
    text="28 days [1].",
    status="answered",
    citations=(replace(CITATION, answer_start=0, answer_end=12),),
    hits=(),
    dropped=(),
    usage=Usage(),
    seconds=0.1,
    contradictions=(CONTRADICTION,),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def attach_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return stream


def test_contradictions_follow_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    print_answer(ANSWER)
    assert capsys.readouterr().out == (
        "28 days [1].\n\nBut [2] says otherwise: “You get 20 days of leave.”\n"
        "  [1] docs/leave.md: “You get 28 days of leave.”\n"
    )


ROW = TableRow(("Country", "Half day 2025", "Half day 2026"), ("Norway", "€43", "€46"), label="Norway", column=2)


def test_a_table_row_is_shown_below_its_header_with_the_answer_marked(capsys: pytest.CaptureFixture[str]) -> None:
    quote = replace(CITATION, quote="| Norway | €43 | €46 |", row=ROW)
    print_answer(replace(ANSWER, shown="I am not sure.", contradictions=(), quote=quote))
    assert capsys.readouterr().out == (
        "I am not sure.\n"
        "  [1] docs/leave.md: Norway — Half day 2026: €46\n"
        "      Country  Half day 2025  Half day 2026\n"
        "      Norway   €43            → €46\n"
    )


def test_a_hit_shows_its_table_below_the_header_that_its_context_has(capsys: pytest.CaptureFixture[str]) -> None:
    context, text = "Rates\n| Size | > 3 km |\n| --- | --- |", "| Small | 12 |\n| Large | 30 |\n\nBy boat."
    print_hit("1.", Hit("docs/rates.md", text, 0, len(text), 1, 0.5, {}, context=context))
    assert capsys.readouterr().out == (
        "1. docs/rates.md\n   Size    > 3 km\n   Small  12\n   Large  30\n   By boat.\n\n"
    )


def test_the_json_of_an_answer() -> None:
    value = json.loads(json.dumps(answer_json(ANSWER)))
    keys = (
        "abstained answer answered_guarantee calculation citations confidence contradictions dropped guarantee hits "
        "log_id nearest notes query question quote said searches seconds shown status unsupported usage"
    )
    assert sorted(value) == keys.split()
    assert (value["question"], value["answer"], value["abstained"]) == ("How much leave?", "28 days [1].", False)
    assert value["contradictions"] == [
        {
            "n": 2,
            "uri": "docs/old.md",
            "page": None,
            "start": 0,
            "end": 25,
            "quote": "You get 20 days of leave.",
            "answer_start": 0,
            "answer_end": 12,
            "name": "",
            "row": None,
            "date": "",
        }
    ]
    (citation,) = value["citations"]
    assert value["answer"][citation["answer_start"] : citation["answer_end"]] == "28 days [1]."
    assert "reasoning" not in value


def test_counts_agree_with_their_nouns() -> None:
    assert counted(document=1, chunk=1) == "1 document, 1 chunk"
    assert counted(document=0, chunk=2) == "0 documents, 2 chunks"


def test_a_table_without_a_terminal_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", ">size", ""], [("a", "1", "x"), ("long\nname", "1000", "")], indent=1)
    assert capsys.readouterr().out == " name        size\n a              1  x\n long\\nname  1000\n"


def test_a_table_on_a_terminal_wraps_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = attach_terminal(monkeypatch)
    print_table(["name", ">size"], [("word " * 30, "[1]")])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[0].split() == ["name", "size"]
    assert "[1]" in lines[2]


def test_styles_appear_on_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    print_text("a ", ("[bold]b", "red"), " c")
    assert capsys.readouterr().out == "a [bold]b c\n"


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = attach_terminal(monkeypatch)
    print_text("a ", ("[bold]b", "red"), " c")
    assert terminal.getvalue() == "a \x1b[31m[bold]b\x1b[0m c\n"
    monkeypatch.setenv("NO_COLOR", "1")
    print_text("a ", ("[bold]b", "red"), " c")
    assert terminal.getvalue().endswith("\na [bold]b c\n")


def test_control_characters_are_escaped_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = attach_terminal(monkeypatch)
    print_text(("\x1b]0;title\x07", "bold"))
    print_table(["\x1b[2J"], [("\x9b31m",)])
    assert "\\x1b]0;title\\x07" in terminal.getvalue()
    assert "\x1b]0;" not in terminal.getvalue()
    assert "\x1b[2J" not in terminal.getvalue()
    assert "\x9b" not in terminal.getvalue()


def test_an_error_is_one_line_and_two_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    print_error("It failed.", "Try again.")
    assert capsys.readouterr().err == "Error: It failed. Try again.\n"
    terminal = attach_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    print_error("It failed.", "Try again.")
    assert re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()) == "Error: It failed.\nTry again.\n"
