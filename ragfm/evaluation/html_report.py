"""A run as one HTML page: plots, the questions that went worst, and how it was run. It loads and runs nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfm.core.errors import CollectionError
from ragfm.evaluation.metrics import TOP
from ragfm.evaluation.plots import bars, distribution, histogram
from ragfm.evaluation.retrieval_evaluation import first_ranks
from ragfm.evaluation.run_file import how_many

if TYPE_CHECKING:
    from ragfm.collection import Collection
    from ragfm.evaluation.answer_evaluation import Shown
    from ragfm.evaluation.metrics import Estimate, Ranked
    from ragfm.evaluation.question_sets import Gold
    from ragfm.evaluation.retrieval_evaluation import QuestionResult, RetrievalReport

_WORST = 20
_EXCERPT = 360  # characters

_STYLE = """
:root { color-scheme: light dark; --text: #1c1f24; --page: #fff; --soft: #e3e6ea; --dim: #5b6470; --bar: #3b78b8;
        --miss: #c2622d; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7eb; --page: #15181c; --soft: #30363d; --dim: #9aa4b0;
        --bar: #5b9bd9; --miss: #e08a57; --card: #1d2126; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 780px;
       margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p.dim, .dim { color: var(--dim); } p { margin: .4rem 0; }
svg { width: 100%; height: auto; } text { fill: var(--text); font-size: 13px; } text.small { font-size: 12px; }
.bar { fill: var(--bar); } .miss { fill: var(--miss); } .soft { stroke: var(--soft); }
.line { stroke: var(--text); stroke-width: 1.4; } .mark { stroke: var(--miss); stroke-width: 1.4; }
.path { fill: none; stroke: var(--bar); stroke-width: 2; } .path.second { stroke: var(--miss); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem 1.4rem .25rem 0; border-bottom: 1px solid var(--soft); font-weight: normal; }
th { color: var(--dim); }
article { background: var(--card); border-radius: 8px; padding: .7rem 1rem; margin: .7rem 0; overflow-wrap: anywhere; }
article h3 { font-size: 1rem; margin: 0 0 .3rem; } article p { font-size: .9rem; }
summary { cursor: pointer; } pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
"""


def write_html(report: RetrievalReport, path: str | Path, collection: Collection | None = None) -> None:
    """Write a run as a page. The collection that was asked gives the texts of what was found and what wasn't."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(render_html(report, collection), encoding="utf-8")


def render_html(report: RetrievalReport, collection: Collection | None = None) -> str:
    """The page's text."""
    about = report.about
    title = f"Retrieval: {about.get('data', 'questions')}"
    depth = f"{TOP} hits" if not report.embed_ms else f"{TOP} hits, and of it for the question's vector"
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="dim">{escape(summary(report))}</p>',
        "<h2>How much was found, and how far up</h2>",
        bars(report.measures, "Measures with their 95 % intervals"),
        '<p class="dim">Means over all questions; the lines are 95 % bootstrap intervals.</p>',
        "<h2>Rank of the first that should be found</h2>",
        histogram(first_ranks(report.results), "Questions by the rank of the first gold"),
    ]
    times = [result.ms for result in report.results if result.ms is not None]
    if times:
        marks = {name: value.value for name, value in report.latency_ms.items()}
        sections += [
            "<h2>Time of a search, in milliseconds, on a logarithmic scale</h2>",
            distribution(times, marks, "Searches by how long they took"),
            _times(report.latency_ms, report.embed_ms),
            f'<p class="dim">A search for {depth}, one at a time; models and indexes were loaded before.</p>',
        ]
    sections += [*_worst(report, collection), "<h2>How it was run</h2>", all_settings(about)]
    return page(title, sections)


def page(title: str, sections: Sequence[str]) -> str:
    """A page that loads and runs nothing."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def summary(report: RetrievalReport) -> str:
    """A run in one line: questions, and of how many if it was stopped; documents, mode, embedder."""
    about = report.about
    held = about["collection"]
    left_out = "".join(f", {count} {why} left out" for why, count in about.get("left_out", {}).items())
    return (
        f"{how_many(len(report.results), about)} questions{left_out}; {held['documents']} documents, "
        f"{held['chunks']} chunks; {about['mode']}, first {about['k']}; embedder {about['embedder']['model']}"
    )


def _times(latency: Mapping[str, Estimate], embedding: Mapping[str, Estimate]) -> str:
    rows = [("search", latency), ("embedding", embedding)] if embedding else [("search", latency)]
    head = "".join(f"<th>{name}</th>" for name in latency)
    body = "".join(
        f"<tr><td>{name}</td>"
        + "".join(f"<td>{v.value:.2f} [{v.low:.2f}, {v.high:.2f}]</td>" for v in values.values())
        + "</tr>"
        for name, values in rows
    )
    return f"<table><tr><th></th>{head}</tr>{body}</table>"


def _worst(report: RetrievalReport, collection: Collection | None) -> list[str]:
    measure = next(iter(report.measures))
    failed = [result for result in report.results if result.measures[measure] < 1]
    failed.sort(key=lambda result: (result.measures[measure], -(result.rank or 10**9)))
    if not failed:
        return [
            "<h2>What went wrong</h2>",
            "<p>Nothing: every question found all that it should, in the best order.</p>",
        ]
    head = f"<h2>What went wrong: the worst {min(len(failed), _WORST)} of {len(failed)} questions, by {measure}</h2>"
    return [head, *(_question(result, measure, collection) for result in failed[:_WORST])]


def _question(result: QuestionResult, measure: str, collection: Collection | None) -> str:
    where = escape(result.error or (f"first found at rank {result.rank}" if result.rank else "not found"))
    lines = [
        f"<h3>{escape(result.question)}</h3>",
        f'<p class="dim">{escape(result.id)} · {measure} {result.measures[measure]:.2f} · {where}</p>',
        *(f"<p><b>should find</b> {excerpt(gold, collection)}</p>" for gold in result.gold[:3]),
    ]
    if len(result.gold) > 3:
        lines.append(f'<p class="dim">and {len(result.gold) - 3} more</p>')
    instead = [place for place in result.ranked[:TOP] if place.gold is None][:2]
    lines += [
        f"<p><b>found at {result.ranked.index(place) + 1}</b> {excerpt(place, collection)}</p>" for place in instead
    ]
    return f"<article>{''.join(lines)}</article>"


def excerpt(place: Gold | Ranked | Shown, collection: Collection | None) -> str:
    """A place's address, and its text where the collection has it."""
    uri = f"<code>{escape(place.uri)}</code>"
    if collection is None:
        return uri
    try:
        text = collection.document(place.uri).text[place.start : place.end]
    except CollectionError:
        return f'{uri} <span class="dim">(not in the collection)</span>'
    short = " ".join(text[: 2 * _EXCERPT].split())
    return f"{uri} {escape(short if len(short) <= _EXCERPT else f'{short[:_EXCERPT]} …')}"


def all_settings(about: Mapping[str, Any]) -> str:
    """What was asked of what, to be unfolded."""
    told = json.dumps(about, indent=2, ensure_ascii=False)
    return f"<details><summary>All settings</summary><pre>{escape(told)}</pre></details>"
