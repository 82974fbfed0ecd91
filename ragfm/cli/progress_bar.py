"""Progress of long jobs: a bar in a notebook or on a terminal, else a line on standard error every few seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from time import monotonic
from typing import TYPE_CHECKING

from ragfm.cli.output import megabytes, print_note, terminal

if TYPE_CHECKING:
    from rich.console import Console

    from ragfm.core.progress import Progress, ProgressCallback

LINE_INTERVAL = 5.0
"""Seconds between two lines where standard error is not a terminal."""
NOTEBOOK_INTERVAL = 0.2
"""Seconds between two updates in a notebook."""

_STAGE_UNITS = {
    "ingest": "documents",
    "make examples": "examples",
    "train": "steps",
    "re-embed": "documents",
    "reembed": "documents",
}
_FIGURES: Mapping[str, Callable[[float], str]] = {
    "chunks": lambda value: f"{value:,.0f} chunks",
    "waiting": lambda value: f"{value:,.0f} waiting" if value else "",
    "loss": lambda value: f"loss {value:.3f}",
    "validation_loss": lambda value: f"validation loss {value:.3f}",
    "tokens_per_second": lambda value: f"{value:,.0f} tokens/s",
    "seconds_left": lambda value: f"{format_seconds(value)} left",
}


@contextmanager
def show_progress(unit: str = "") -> Iterator[ProgressCallback]:
    """Yield a callback that shows the progress it is called with.

    `unit` names what is counted, in stages without a unit of their own; bytes are shown in MB.
    """
    ipython = sys.modules.get("IPython")
    if ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None:  # code of a notebook
        shown = _notebook_bar(unit)
    else:
        console = terminal(err=True)
        shown = _lines(unit) if console is None else _bar(console, unit)
    with shown as callback:
        yield callback


@contextmanager
def busy(activity: str) -> Iterator[None]:
    """Show an activity of unknown length on a terminal until the block ends."""
    console = terminal(err=True)
    if console is None:
        yield
    else:
        with console.status(f"{activity} …"):
            yield


def format_seconds(seconds: float) -> str:
    """Return a duration such as `45 s`, `12 min` or `3 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min" if minutes > 2 else f"{60 * minutes + rest} s"


@contextmanager
def _notebook_bar(unit: str) -> Iterator[ProgressCallback]:
    """One bar of HTML, which needs no widgets and disappears at the end."""
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)
    start = previous = monotonic()
    stage = ""

    def show(progress: Progress) -> None:
        nonlocal previous, stage, start
        now = monotonic()
        if progress.stage != stage:
            stage, start = progress.stage, now
        elif now - previous < NOTEBOOK_INTERVAL and progress.done != progress.total:
            return
        previous = now
        details = ", ".join([_count(progress, unit), *_figures(progress, now - start)])
        total = "" if progress.total is None else f' max="{max(progress.total, 1)}" value="{progress.done}"'
        handle.update(HTML(f"<progress{total}></progress> {escape(f'{stage}: {details}')}"))

    try:
        yield show
    finally:
        handle.update(HTML(""))


@contextmanager
def _lines(unit: str) -> Iterator[ProgressCallback]:
    start = previous = monotonic()
    stage, first_done, stage_start = "", 0, start

    def show(progress: Progress) -> None:
        nonlocal previous, stage, first_done, stage_start
        now = monotonic()
        if progress.stage != stage:
            stage, first_done, stage_start = progress.stage, progress.done, now
        if now - previous >= LINE_INTERVAL:
            previous = now
            figures = _figures(progress, now - start)
            if progress.total and progress.done > first_done and "seconds_left" not in progress.figures:
                left = (progress.total - progress.done) * (now - stage_start) / (progress.done - first_done)
                figures += [f"about {format_seconds(left)} left"] if left else []
            details = "".join(f", {figure}" for figure in figures)
            print_note(f"{progress.stage}: {_count(progress, unit)}, {format_seconds(now - start)}{details}")

    yield show


@contextmanager
def _bar(console: Console, unit: str) -> Iterator[ProgressCallback]:
    """One bar, which starts again with each stage and disappears at the end."""
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    text = TextColumn("{task.fields[details]}", markup=False)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        text,
        TimeRemainingColumn(),
    )
    previous = -1
    stage, start = "", monotonic()
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None, details="")

        def show(progress: Progress) -> None:
            nonlocal previous, stage, start
            if progress.stage != stage or progress.done < previous:
                stage, start = progress.stage, monotonic()
                bar.reset(task, total=progress.total, description=stage)
            previous = progress.done
            details = ", ".join([_count(progress, unit), *_figures(progress, monotonic() - start)])
            bar.update(task, completed=progress.done, total=progress.total, details=details)

        yield show


def _count(progress: Progress, unit: str) -> str:
    unit = _STAGE_UNITS.get(progress.stage, unit)
    if unit == "bytes":
        done, total = megabytes(progress.done), megabytes(progress.total or 0)
        return done if progress.total is None else f"{done} of {total}"
    count = f"{progress.done}" if progress.total is None else f"{progress.done} of {progress.total}"
    return f"{count} {unit}".rstrip()


def _figures(progress: Progress, seconds: float) -> list[str]:
    """The figures as short texts, with the rate of chunks, over `seconds`, where chunks are counted."""
    texts = []
    for name, value in progress.figures.items():
        if name in _FIGURES:
            texts.append(_FIGURES[name](value))
        else:
            texts.append(f"{name.replace('_', ' ')} {value:g}")
        if name == "chunks":
            texts.append(f"{value / max(seconds, 1e-9):,.0f}/s")
    return [text for text in texts if text]
