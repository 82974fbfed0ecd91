"""The HTML page of a comparison of readers: quality, costs, and which differences are noise."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ragfm.evaluation.html_report import write_page
from ragfm.evaluation.plots import bars
from ragfm.evaluation.reader_comparison import ContenderResult

QUALITY = (
    "f1, all",
    "f1, answerable",
    "contained, answerable",
    "contained as shown, answerable",
    "abstention recall",
    "citation precision",
)


def write_comparison_html(results: Sequence[ContenderResult], path: str | Path, data: str) -> None:
    """Write the page of a comparison. `data` is the name of the questions."""
    succeeded = [result for result in results if not result.error]
    sections = ['<p class="dim">The lines are 95 % intervals over questions.</p>']
    for measure in QUALITY:
        values = {one.contender.name: one.quality[measure] for one in succeeded if measure in one.quality}
        if values:
            sections += [f"<h2>{measure}</h2>", bars(values, measure)]

    header = ("", "p50, ms", "p95, ms", "tokens", "peak MB", "per 1,000", "licence", "data goes")
    rows = [f"<tr>{''.join(f'<th>{name}</th>' for name in header)}</tr>"]
    for result in succeeded:
        times = (result.latency_ms["p50"], result.latency_ms["p95"])
        cells = (
            result.contender.name,
            *(f"{time.value:.0f} [{time.low:.0f}, {time.high:.0f}]" for time in times),
            f"{result.prompt_tokens:.0f} + {result.completion_tokens:.0f}",
            str(result.peak_mb),
            "-" if result.cost is None else f"{result.cost:.3f}",
            result.licence or "unknown",
            result.data_goes,
        )
        rows.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    sections += ["<h2>Costs</h2>", f"<table>{''.join(rows)}</table>", "<h2>Differences and noise</h2>"]

    sections += [f"<p>{escape(remark)}</p>" for remark in remarks(results)]
    for result in results:
        if result.error:
            sections.append(f'<p class="dim">{escape(f"{result.contender.name}: {result.error}")}</p>')
    write_page(path, f"Readers: {data}", sections)


def remarks(results: Sequence[ContenderResult]) -> list[str]:
    """One sentence for each difference from the best contender, and for each training that pays for itself."""
    best = results[0].contender.name
    sentences = []
    for result in results:
        difference = result.beside_best
        if difference:
            verdict = "within noise" if difference.noise else f"p = {difference.p:.4f}"
            sentences.append(
                f"{result.contender.name} compared with {best}: {difference.difference:+.3f} "
                f"[{difference.low:+.3f}, {difference.high:+.3f}], {verdict}"
            )
    for result in results:
        for other, answers in result.break_even.items():
            sentences.append(
                f"The training of {result.contender.name} has paid for itself after {answers:,} answers, compared with "
                f"{other}."
            )
    return sentences
