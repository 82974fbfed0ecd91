"""Progress on standard error, with and without a terminal."""

from __future__ import annotations

import io
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest

from ragfm.cli import progress_bar
from ragfm.cli.progress_bar import busy, format_seconds, show_progress
from ragfm.core.progress import Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_bar, "monotonic", clock)
    return clock


def test_without_a_terminal_it_is_a_line_every_few_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("documents") as progress, busy("reading"):
        for done in range(1, 81):
            clock.now += 0.125
            progress(Progress("verify", done, 80))
    assert capsys.readouterr().err.splitlines() == [
        "verify: 40 of 80 documents, 5 s, about 5 s left",
        "verify: 80 of 80 documents, 10 s",
    ]


def test_a_notebook_has_a_bar_of_html(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    handle = SimpleNamespace(update=shown.append)
    display = ModuleType("IPython.display")
    display.HTML, display.display = str, lambda *_, **__: handle  # type: ignore[attr-defined]
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    with show_progress("documents") as progress:
        for done in range(1, 5):
            clock.now += 0.1
            progress(Progress("<verify>", done, 4))
        progress(Progress("ingest", 7))
    assert shown == [
        '<progress max="4" value="1"></progress> &lt;verify&gt;: 1 of 4 documents',
        '<progress max="4" value="3"></progress> &lt;verify&gt;: 3 of 4 documents',
        '<progress max="4" value="4"></progress> &lt;verify&gt;: 4 of 4 documents',
        "<progress></progress> ingest: 7 documents",
        "",
    ]


def test_figures_and_units(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    figures = {
        "loss": 1.23456,
        "validation_loss": 2.0,
        "tokens_per_second": 1234.5,
        "seconds_left": 3700.0,
        "other": 0.5,
    }
    with show_progress() as progress:
        clock.now = 10
        progress(Progress("train", 3, 9, figures))
        clock.now = 20
        progress(Progress("ingest", 5, None, {"chunks": 40, "waiting": 0}))
        clock.now = 25
        progress(Progress("make examples", 12, None, {"seconds_left": 60.0}))
    with show_progress("bytes") as progress:
        clock.now = 30
        progress(Progress("backup", 1_500_000, 3_000_000))
    assert capsys.readouterr().err.splitlines() == [
        "train: 3 of 9 steps, 10 s, loss 1.235, validation loss 2.000, 1,234 tokens/s, 1 h 01 min left, other 0.5",
        "ingest: 5 documents, 20 s, 40 chunks, 2/s",
        "make examples: 12 examples, 25 s, 60 s left",
        "backup: 1.5 MB of 3.0 MB, 5 s",
    ]


def test_the_time_left_is_that_of_the_stage(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A job that continues has done a part before."""
    with show_progress("texts") as progress:
        progress(Progress("read", 0, 2))
        clock.now = 100
        progress(Progress("embed", 500, 1000))
        clock.now = 110
        progress(Progress("embed", 600, 1000))
    assert capsys.readouterr().err.splitlines() == [
        "embed: 500 of 1000 texts, 100 s",
        "embed: 600 of 1000 texts, 110 s, about 40 s left",
    ]


def test_on_a_terminal_it_is_a_bar_that_disappears(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with show_progress("questions") as progress:
        progress(Progress("search [1]", 1, 2))
        progress(Progress("answer", 1, 4, {"loss": 0.5}))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "answer" in shown
    assert "1 of 4 questions, loss 0.500" in shown
    assert stream.getvalue().endswith("\x1b[2K")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (90, "90 s"), (179, "179 s"), (180, "3 min"), (3900, "1 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
