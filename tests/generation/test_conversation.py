"""`ragfm chat` at a terminal of its own: what is typed, what comes, Ctrl-C, and what is kept between runs."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.shell import Shell

from ragfm.core.errors import DataError
from ragfm.core.table_rows import TableRow
from ragfm.core.types import Citation, Message
from ragfm.generation.conversation import Turn, messages_of, read_turns, write_turns

# The reader says what was asked of it, and for "slowly" a word every now and then until it is closed.
READER = """
import time
from ragfm.testing import ScriptedReader
from support.judges import ScriptedJudge
from ragfm.core.types import Stream, Usage

class Reader(ScriptedReader):
    def __init__(self, model, **_):
        super().__init__(self.say)

    def say(self, messages):
        lines = messages[-1].content.splitlines()
        turns = sum(line.startswith("A: ") for line in lines)
        passages = sum(line.startswith(("[1] ", "[2] ")) for line in lines)
        return f"You get 28 days of leave [1]. Turns before: {turns}. Passages: {passages}."

    def stream(self, messages, sampling=None):
        if "slowly" not in messages[-1].content:
            return super().stream(messages)
        return Stream(self.slowly())

    def slowly(self):
        for number in range(10_000):
            yield f"leave{number} "
            time.sleep(0.02)
        return Usage(), "stop"

import ragfm.generation.readers, ragfm.rag
ragfm.rag.configured_reader = lambda *_, **__: Reader("")
ragfm.answering.judge.load_judge = lambda _: ScriptedJudge(
    contradicts=lambda evidence: 0.9 if "20 days" in evidence.text else 0.0
)
from ragfm.cli import main
main()
"""


class Terminal:
    """A chat in a process whose terminal is a pseudo one."""

    def __init__(self, shell: Shell, *words: str) -> None:
        here, there = pty.openpty()
        command = [sys.executable, "-c", READER, "chat", *words]
        paths = [str(Path(__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        env = shell.env | {"TERM": "dumb", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self.process = subprocess.Popen(
            command, cwd=shell.folder, env=env, stdin=there, stdout=there, stderr=there, start_new_session=True
        )
        os.close(there)
        self._here, self.shown = here, ""

    def until(self, pattern: str, seconds: float = 60.0) -> str:
        """What is shown until the pattern, which is then behind us."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.shown)):
            ready, _, _ = select.select([self._here], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{pattern!r} did not come: {self.shown!r}"
            self.shown += os.read(self._here, 65536).decode()
            self.shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.shown.replace("\r\n", "\n"))  # no colours
        text, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return text

    def shows(self, pattern: str, seconds: float) -> bool:
        try:
            return bool(self.until(pattern, seconds))
        except AssertionError:
            return False

    def type(self, line: str) -> None:
        os.write(self._here, f"{line}\n".encode())
        self.until(re.escape(line))

    def ask(self, line: str) -> str:
        """What comes between a line that is typed and the next prompt."""
        self.type(line)
        return self.until(r"\n> $")

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        self.type("/quit")
        return self.process.wait(60)


@pytest.fixture
def shell(tmp_path: Path, docs: Path) -> Shell:
    shell = Shell(tmp_path)
    (docs / "old.md").write_text("---\nyear: 1999\n---\nYou got 20 days of leave once.\n")
    settings = 'reader = "openai:scripted"\n[ask]\nmin_confidence = 0\n'  # answers of the bundled reader come whole
    (tmp_path / "ragfm.toml").write_text(settings)
    shell("ingest", "docs")
    return shell


def test_a_chat_at_a_terminal(shell: Shell) -> None:
    chat = Terminal(shell, "--keep", "talk.jsonl")
    chat.until(r"/help lists.*\n> $")
    said = chat.ask("How many days of leave do I get?")
    assert "You get 28 days of leave [1]. Turns before: 0. Passages: 2." in said
    assert re.search(r"\[1\] docs/leave\.md:3, \d{4}-\d\d-\d\d: “You get 28 days of leave\.”", said)
    sources = chat.ask("/sources")
    assert "[1] docs/leave.md:1-3  Leave\n   # Leave" in sources
    assert "[2] docs/" in sources
    assert "[2] docs/" not in chat.ask("/sources 1")
    assert "There is no passage 9." in chat.ask("/sources 9")
    assert "How many days of leave do I get" in chat.ask("/query")
    chat.ask("/k 1")
    assert "Turns before: 1. Passages: 1." in chat.ask("How many days of leave did I get?")
    chat.ask("/filter year < 2000")
    assert "docs/old.md" in chat.ask("How many days of leave do I get now?") + chat.ask("/sources")
    assert "cannot be read" in chat.ask("/filter ((")
    chat.ask("/filter")
    chat.ask("How many days of leave do we get?")
    assert "docs/leave.md" in chat.ask("/sources")
    assert "ends the" not in chat.ask("/nonsense")
    assert chat.end() == 0
    kept = read_turns(shell.folder / "talk.jsonl")
    assert [turn.question for turn in kept][:1] == ["How many days of leave do I get?"]
    assert len(kept) == 4
    assert (shell.folder / "talk.jsonl").stat().st_mode & 0o777 == 0o600

    chat = Terminal(shell, "--keep", "talk.jsonl")
    assert "How many days of leave do we get?" in chat.until(r"\n> $")
    assert "Turns before: 4." in chat.ask("How many days of leave do they get?")
    chat.ask("/new")
    assert "Turns before: 0." in chat.ask("How many days of leave do you get?")
    assert chat.end() == 0
    assert len(read_turns(shell.folder / "talk.jsonl")) == 1


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_not_the_chat(shell: Shell) -> None:
    chat = Terminal(shell)
    chat.until(r"> $")
    for _ in range(20):  # one that comes just before the prompt waits for a key is noticed at the next
        chat.interrupt()
        if chat.shows(r"/quit ends.*\n> $", 1.0):
            break
    chat.type("How many days of leave do I get, slowly?")
    chat.until("leave9 ")
    chat.interrupt()
    assert len(re.findall(r"leave\d+", chat.until(r"\(stopped\)\n\n> $"))) < 500
    assert "Turns before: 0." in chat.ask("How many days of leave do I get?")
    os.write(chat._here, b"\x04")  # Ctrl-D
    assert chat.process.wait(60) == 0


def test_a_conversation_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    assert read_turns(path) == []
    row = TableRow(("Who", "Days"), ("Staff", "28"), label="Staff", column=1)
    citations = (
        Citation(1, "docs/é.md", 3, 0, 7, "28 days", True),
        Citation(1, "docs/é.md", 3, 9, 23, "| Staff | 28 |", True, row=row),
    )
    turns = [
        Turn("Leave?", "28 days [1].\nNo more.", citations),
        Turn("é", ""),
    ]
    write_turns(path, turns)
    assert read_turns(path) == turns
    assert messages_of(turns)[:2] == [Message("user", "Leave?"), Message("assistant", "28 days [1].\nNo more.")]
    invalid = [{"question": 1, "answer": "", "citations": []}, {"question": "a", "answer": "", "citations": ["x"]}]
    for line in ("{", "[]", *map(json.dumps, invalid), '{"question": "a"}'):
        path.write_text(line)
        with pytest.raises(DataError, match="line 1"):
            read_turns(path)
    with pytest.raises(DataError, match="cannot be written"):
        write_turns(tmp_path / "nowhere" / "talk.jsonl", turns)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\r\n"])
def test_a_conversation_keeps_every_kind_of_line_break(tmp_path: Path, separator: str) -> None:
    turns = [Turn(f"a{separator}b", f"x{separator}y"), Turn("more?", "no")]
    write_turns(tmp_path / "talk.jsonl", turns)
    assert read_turns(tmp_path / "talk.jsonl") == turns
