"""The HTML page of a retrieval run: measures, the worst questions, and the settings. It loads and runs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ragfm.collection import Collection
from ragfm.core.errors import CollectionError
from ragfm.core.text import counted
from ragfm.evaluation.answer_evaluation import ShownPassage
from ragfm.evaluation.metrics import CUTOFF, Estimate, Ranked
from ragfm.evaluation.question_sets import Gold
from ragfm.evaluation.retrieval_evaluation import QuestionResult, RetrievalReport, first_ranks
from ragfm.evaluation.run_file import question_count

_MAX_QUESTIONS = 20
_EXCERPT = 360  # characters

_STYLE = """
:root { color-scheme: light dark; --text: #1c1f24; --page: #fff; --soft: #e3e6ea; --dim: #5b6470; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7eb; --page: #15181c; --soft: #30363d; --dim: #9aa4b0;
        --card: #1d2126; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 780px;
       margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p.dim, .dim { color: var(--dim); } p { margin: .4rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem 1.4rem .25rem 0; border-bottom: 1px solid var(--soft); font-weight: normal; }
th { color: var(--dim); }
article { background: var(--card); border-radius: 8px; padding: .7rem 1rem; margin: .7rem 0; overflow-wrap: anywhere; }
article h3 { font-size: 1rem; margin: 0 0 .3rem; } article p { font-size: .9rem; }
summary { cursor: pointer; } pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
"""


def write_retrieval_html(report: RetrievalReport, path: str | Path, collection: Collection | None = None) -> None:
    """Write the page of a run. The searched collection supplies the texts of gold and hits."""
    sections = [
        f'<p class="dim">{escape(retrieval_summary(report))}</p>',
        "<h2>Measures</h2>",
        estimates_table({"": report.measures}, 3),
        '<p class="dim">Means over all questions, with 95 % bootstrap intervals.</p>',
        "<h2>Rank of the first gold</h2>",
        counts_table(first_ranks(report.results)),
    ]
    if report.latency_ms:
        times = {"search": report.latency_ms, "embedding": report.embed_ms}
        embedding = ", and the part of it that embeds the question" if report.embed_ms else ""
        sections += [
            "<h2>Time of a search in milliseconds</h2>",
            estimates_table({name: estimates for name, estimates in times.items() if estimates}, 2),
            f'<p class="dim">Searches for {CUTOFF} hits{embedding}, one at a time, with models and indexes loaded.</p>',
        ]
    measure = next(iter(report.measures))
    failed = [result for result in report.results if result.measures[measure] < 1]
    failed.sort(key=lambda result: (result.measures[measure], -(result.rank or 10**9)))
    if failed:
        shown = failed[:_MAX_QUESTIONS]
        sections.append(f"<h2>Failures: the worst {len(shown)} of {len(failed)} questions, by {measure}</h2>")
        sections += [_question(result, measure, collection) for result in shown]
    else:
        sections += ["<h2>Failures</h2>", "<p>None: every question found all its gold, in the best order.</p>"]
    title = f"Retrieval: {report.about.get('data', 'questions')}"
    write_page(path, title, [*sections, settings_section(report.about)])


def retrieval_summary(report: RetrievalReport) -> str:
    """A run in one line: number of questions, documents and chunks, mode, depth and embedder."""
    about = report.about
    size = about["collection"]
    left_out = "".join(f", {count} {why} left out" for why, count in about.get("left_out", {}).items())
    return (
        f"{question_count(len(report.results), about)}{left_out}; "
        f"{counted(document=size['documents'], chunk=size['chunks'])}; {about['mode']}, first {about['k']}; "
        f"embedder {about['embedder']['model']}"
    )


def write_page(path: str | Path, title: str, sections: Sequence[str]) -> None:
    """Write a page with its title as a heading, and a content policy that loads and runs nothing.

    The folder of the page is created.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(sections) + "\n</body></html>\n"
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(page, encoding="utf-8")


def html_table(rows: Iterable[Sequence[str]]) -> str:
    """A table whose first row is its header."""
    header, *others = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    header = header.replace("td>", "th>")
    return f"<table><tr>{header}</tr>{''.join(f'<tr>{row}</tr>' for row in others)}</table>"


def estimates_table(series: Mapping[str, Mapping[str, Estimate]], digits: int) -> str:
    """A column for each series of estimates, with 95 % intervals; all have the names of the first one."""
    rows = [["", *series]]
    for name in next(iter(series.values())):
        estimates = (values[name] for values in series.values())
        rows.append([name, *(f"{e.value:.{digits}f} [{e.low:.{digits}f}, {e.high:.{digits}f}]" for e in estimates)])
    return html_table(rows)


def counts_table(counts: Mapping[str, int]) -> str:
    """The number and share of questions of each kind."""
    total = sum(counts.values()) or 1
    rows = [(name, str(count), f"{100 * count / total:.0f} %") for name, count in counts.items()]
    return html_table([("", "questions", "share"), *rows])


def settings_section(about: Mapping[str, Any]) -> str:
    """The last section of a page: the description of the run as JSON, collapsed."""
    text = escape(json.dumps(about, indent=2, ensure_ascii=False))
    return f"<h2>Settings</h2>\n<details><summary>All settings</summary><pre>{text}</pre></details>"


def excerpt(place: Gold | Ranked | ShownPassage, collection: Collection | None) -> str:
    """The address of a place, and the beginning of its text if the collection has it, as HTML."""
    uri = f"<code>{escape(place.uri)}</code>"
    if collection is None:
        return uri
    try:
        text = collection.document(place.uri).text[place.start : place.end]
    except CollectionError:
        return f'{uri} <span class="dim">(not in the collection)</span>'
    short = " ".join(text[: 2 * _EXCERPT].split())
    return f"{uri} {escape(short if len(short) <= _EXCERPT else f'{short[:_EXCERPT]} …')}"


def _question(result: QuestionResult, measure: str, collection: Collection | None) -> str:
    status = escape(result.error or (f"first gold at rank {result.rank}" if result.rank else "no gold found"))
    lines = [
        f"<h3>{escape(result.question)}</h3>",
        f'<p class="dim">{escape(result.id)} · {measure} {result.measures[measure]:.2f} · {status}</p>',
    ]
    lines += [f"<p><b>gold</b> {excerpt(gold, collection)}</p>" for gold in result.gold[:3]]
    if len(result.gold) > 3:
        lines.append(f'<p class="dim">and {len(result.gold) - 3} more</p>')
    others = [(rank, place) for rank, place in enumerate(result.ranked[:CUTOFF], 1) if place.gold is None]
    lines += [f"<p><b>hit at rank {rank}</b> {excerpt(place, collection)}</p>" for rank, place in others[:2]]
    return f"<article>{''.join(lines)}</article>"
