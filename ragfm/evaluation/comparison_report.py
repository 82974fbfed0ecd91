"""A comparison of readers as one HTML page: the best first, with what it costs, and which differences are noise."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ragfm.evaluation.html_report import page
from ragfm.evaluation.plots import bars

if TYPE_CHECKING:
    from ragfm.evaluation.metrics import Estimate
    from ragfm.evaluation.reader_comparison import Entry

QUALITY = ("f1, all", "f1, answerable", "contained, answerable", "abstention recall", "citation precision")


def write_comparison_html(entries: Sequence[Entry], path: str | Path, data: str) -> None:
    """Write a comparison as a page that can be sent around."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(render_comparison_html(entries, data), encoding="utf-8")


def render_comparison_html(entries: Sequence[Entry], data: str) -> str:
    """The page's text."""
    done = [entry for entry in entries if not entry.error]
    title = f"Readers: {data}"
    sections = [f"<h1>{escape(title)}</h1>", '<p class="dim">The lines are 95 % intervals over questions.</p>']
    for name in QUALITY:
        rows = {entry.contender.name: entry.quality[name] for entry in done if name in entry.quality}
        sections += [f"<h2>{name}</h2>", bars(rows, name)] if rows else []
    sections += ["<h2>What it costs</h2>", _costs(done), "<h2>What is noise</h2>"]
    sections += [f"<p>{escape(remark)}</p>" for remark in remarks(entries)]
    failed = [entry for entry in entries if entry.error]
    sections += [f'<p class="dim">{escape(f"{one.contender.name}: {one.error}")}</p>' for one in failed]
    return page(title, sections)


def remarks(entries: Sequence[Entry]) -> list[str]:
    """What is better beyond noise, and when a training is paid for: a sentence for each."""
    best, said = entries[0].contender.name, []
    for entry in entries:
        if beside := entry.beside_best:
            verdict = "within noise" if beside.noise else f"p = {beside.p:.4f}"
            said.append(f"{entry.contender.name} beside {best}: {beside.difference:+.3f} "
                        f"[{beside.low:+.3f}, {beside.high:+.3f}], {verdict}")  # fmt: skip
    for entry in entries:
        for other, answers in entry.break_even.items():
            said.append(
                f"The training of {entry.contender.name} is paid for after {answers:,} answers, beside {other}."
            )
    return said


# --- Inside ------------------------------------------------------------------------------------------------------


def _costs(entries: Sequence[Entry]) -> str:
    head = ("", "p50, ms", "p95, ms", "tokens", "peak MB", "per 1,000", "licence", "data goes")
    rows = []
    for entry in entries:
        p50, p95 = (_told(entry.latency_ms[name]) for name in ("p50", "p95"))
        tokens = f"{entry.prompt_tokens:.0f} + {entry.completion_tokens:.0f}"
        cost = "-" if entry.cost is None else f"{entry.cost:.3f}"
        told = (entry.contender.name, p50, p95, tokens, str(entry.peak_mb), cost, entry.licence or "not said")
        rows.append((*told, entry.data_goes))
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{body}</table>"


def _told(value: Estimate) -> str:
    return f"{value.value:.0f} [{value.low:.0f}, {value.high:.0f}]"
