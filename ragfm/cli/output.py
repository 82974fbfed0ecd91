"""Printing: results as text, tables or JSON on standard output; notes and errors on standard error.

On a terminal, text is styled with rich, which respects NO_COLOR. Elsewhere it is plain. Control characters are always
escaped, so that no document can control the terminal that shows it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from ragfm.core.text import counted, displayed_quote

if TYPE_CHECKING:
    from rich.console import Console

    from ragfm.core.types import Answer, Citation, Hit, Usage
    from ragfm.evaluation import Estimate
    from ragfm.generation.structured_output import Extraction
    from ragfm.ingestion.ingest_report import SyncReport

Part: TypeAlias = str | tuple[str, str]
"""Text, or text with its style on a terminal, such as `("docs/leave.md", "bold")`."""

MAX_SKIPPED = 20
"""Maximum number of skipped documents that are listed one by one."""

_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_FAULTS = {
    "fabricated": "not supported by this or any other passage",
    "misattributed": "not supported by this passage, but by another one",
    "stitched": "not supported: its parts come from different places",
    "picture": "read from the picture, which is not checked",
    "subject": "supported, but without a mention of {missing}",
    "unclear": "supported; check that it is what the question asks for",
}


# --- Text, tables, JSON ------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """Return text with control characters escaped; line breaks and tabs stay."""
    return _CONTROL_CHARACTERS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """Return printable text with line breaks escaped, for names that must not span lines."""
    return printable(text.replace("\n", "\\n"))


def terminal(*, err: bool = False) -> Console | None:
    """Return a rich console if the stream is a terminal, else None."""
    stream = sys.stderr if err else sys.stdout
    if stream is None or not stream.isatty():
        return None
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, emoji=False)


def print_text(*parts: Part, err: bool = False, end: str = "\n") -> None:
    """Print text, whose parts may have a style, to standard output or standard error."""
    pairs = [(printable(part), "") if isinstance(part, str) else (printable(part[0]), part[1]) for part in parts]
    console = terminal(err=err) if any(style for _, style in pairs) else None
    if console is None:
        click.echo("".join(text for text, _ in pairs) + end, nl=False, err=err)
    else:
        from rich.text import Text

        console.print(Text.assemble(*pairs), soft_wrap=True, end=end)


def print_note(*parts: Part) -> None:
    """Print a line to standard error."""
    print_text(*parts, err=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, indent: int = 0) -> None:
    """Print rows under column names. A name that begins with `>` makes its column right-aligned.

    Without any column name, no header is printed.
    """
    names = [one_line(column.removeprefix(">")) for column in columns]
    cells = [[one_line(cell) for cell in row] for row in rows]
    if console := terminal():
        from rich.box import SIMPLE_HEAD
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        box = SIMPLE_HEAD if any(names) else None
        table = Table(box=box, show_header=any(names), show_edge=False, pad_edge=False)
        for column, name in zip(columns, names, strict=True):
            table.add_column(Text(name), justify="right" if column.startswith(">") else "left", overflow="fold")
        for row in cells:
            table.add_row(*map(Text, row))
        console.print(Padding(table, (0, 0, 0, indent), expand=False))
        return
    lines = [names, *cells] if any(names) else cells
    widths = [max((len(line[number]) for line in lines), default=0) for number in range(len(columns))]
    for line in lines:
        padded = [
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        click.echo(" " * indent + "  ".join(padded).rstrip())


def print_json(value: Any) -> None:
    """Print one JSON object as a line."""
    click.echo(json.dumps(value, ensure_ascii=False))


def print_result(value: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Print the result of a command: `value` with --json, else `text`."""
    if as_json:
        print_json(value)
    else:
        print_text(text)


def print_error(message: str, hint: str = "") -> None:
    """Print `Error: MESSAGE HINT` to standard error, on a terminal with the hint on a line of its own."""
    if hint and message[-1:] not in ".!?":
        message += "."
    separator = "\n" if hint and terminal(err=True) else " "
    print_text(("Error:", "bold red"), f" {message}{separator}{hint}".rstrip(), err=True)


def print_written(*paths: str | None) -> None:
    """Name the files that were written, on standard error; None means a file that was not requested."""
    for path in paths:
        if path:
            print_note(f"Written: {path}")


def megabytes(count: int) -> str:
    """Return a number of bytes in MB, such as `1.5 MB`."""
    return f"{count / 1e6:.1f} MB"


# --- Hits and answers --------------------------------------------------------------------------------------------


def hit_json(hit: Hit) -> dict[str, Any]:
    """Return a hit in its documented JSON form."""
    keys = (
        *("uri", "name", "page", "place", "start", "end", "lines", "headings", "text", "image", "box", "score"),
        *("scores", "chunk_id"),
    )
    return {key: getattr(hit, key) for key in keys}


def answer_json(answer: Answer) -> dict[str, Any]:
    """Return an answer in its documented JSON form."""
    value = asdict(answer)
    value["answer"] = value.pop("text")
    value["hits"] = [{**hit_json(hit), "n": hit.n} for hit in answer.hits]
    value["usage"] = _usage_json(answer.usage)
    keys = (
        *("question", "query", "answer", "status", "shown", "quote", "confidence", "said", "citations"),
        *(
            "contradictions",
            "searches",
            "hits",
            "nearest",
            "dropped",
            "usage",
            "seconds",
            "unsupported",
            "log_id",
            "notes",
        ),
    )
    result = {**{key: value[key] for key in keys}, "abstained": answer.abstained}
    if answer.reasoning:
        result["reasoning"] = answer.reasoning
    return result


def extraction_json(extraction: Extraction[Any]) -> dict[str, Any]:
    """Return a structured answer in its documented JSON form."""
    value = asdict(replace(extraction, value=None))
    value["value"] = value.pop("data")
    value["hits"] = [{**hit_json(hit), "n": hit.n} for hit in extraction.hits]
    value["usage"] = _usage_json(extraction.usage)
    keys = ("question", "query", "value", "fields", "hits", "dropped", "usage", "seconds", "log_id")
    return {key: value[key] for key in keys}


def _usage_json(usage: Usage) -> dict[str, Any]:
    return {key: value for key, value in asdict(usage).items() if value is not None}


def hit_location(hit: Hit) -> str:
    """Return a hit's document, lines or page, place and headings as one line."""
    place = f", {hit.place}" if hit.place else ""
    headings = f"  {' > '.join(hit.headings)}" if hit.headings else ""
    return one_line(f"{_location(hit)}{place}{headings}")


def _location(where: Hit | Citation) -> str:
    """The document's name, with lines as `name:12-40` or with the page, and a citation's date."""
    name = where.name or where.uri
    if where.lines:
        first, last = where.lines
        name = f"{name}:{first}-{last}" if last > first else f"{name}:{first}"
    elif where.page:
        name = f"{name}, page {where.page}"
    date = getattr(where, "date", "")
    return f"{name}, {date}" if date else name


def print_hit(label: str, hit: Hit) -> None:
    """Print a hit's label and location, then its text, indented."""
    text = "\n".join(f"   {line}" for line in hit.text.splitlines())
    print_text(f"{label} ", (hit_location(hit), "bold"), f"\n{text}\n")


def print_answer(answer: Answer) -> None:
    """Print an answer with its contradictions and citations."""
    print_text(answer.shown)
    print_evidence(answer)


def print_evidence(answer: Answer) -> None:
    """Print what follows an answer's text: contradictions, citations, unsupported sentences, and notes."""
    from ragfm.citations.decision import describe_contradiction

    for note in answer.notes:
        print_text((f"  ({note.rstrip('.')})", "dim"))
    if answer.contradictions:
        lines = "\n".join(describe_contradiction(contradiction) for contradiction in answer.contradictions)
        print_text(f"\n{lines}")
    quote = answer.quote
    for citation in answer.citations if answer.shows_text else ():
        fault = ""
        if citation.fault:
            fault = f" ({_FAULTS[citation.fault].format(missing=' and '.join(citation.missing))})"
        if quote and (citation.uri, citation.start, citation.end) == (quote.uri, quote.start, quote.end):
            quote = None
        print_text(f"  [{citation.n}] {one_line(_location(citation))}: ", _quote(citation), fault)
    if quote:
        print_text(f"  [{quote.n}] {one_line(_location(quote))}: ", _quote(quote))
    if answer.nearest:
        print_text("The nearest passages say:")
    for nearest in answer.nearest:
        print_text(f"  {one_line(_location(nearest))}: ", _quote(nearest))
    generated = answer.usage.completion_tokens  # a greeting is not
    if generated and answer.status == "answered" and not any(citation.supports for citation in answer.citations):
        print_text(("  (no passage supports this answer)", "dim"))
        return
    if answer.abstained and answer.confidence is not None:
        note = f"answer withheld: its confidence is {answer.confidence:.2f}; `ask.min_confidence` sets the minimum"
        print_text((f"  ({note})", "dim"))
    for start, end in answer.unsupported if answer.shows_text else ():
        sentence = " ".join(answer.text[start:end].split())
        print_text((f"  (no passage supports: “{sentence}”)", "dim"))


def print_extraction(extraction: Extraction[Any]) -> None:
    """Print the object, then each field's quotes, or that no passage supports it."""
    print_text(json.dumps(extraction.data, ensure_ascii=False, indent=2))
    for field in extraction.fields:
        if not field.supported:
            removed = "" if field.removed is None else f"; the reader's value was {json.dumps(field.removed)}"
            print_text((f"  {field.path}: no passage supports it{removed}", "dim"))
        for citation in field.citations:
            print_text(f"  {field.path}: [{citation.n}] {one_line(_location(citation))}: ", _quote(citation))


def _quote(citation: Citation) -> Part:
    return f"“{displayed_quote(citation.quote)}”", "dim"


# --- Reports -----------------------------------------------------------------------------------------------------


def print_sync_report(report: SyncReport) -> None:
    """Print the counts of a sync; skipped and failed documents go to standard error."""
    print_text(
        f"{report.added} added, {report.updated} updated, {report.removed} removed, {report.unchanged} unchanged, "
        f"{len(report.skipped)} skipped, {len(report.failed)} failed; "
        f"{counted(chunk=report.chunks)} embedded in {report.seconds:.1f} s"
    )
    for skip in report.skipped[:MAX_SKIPPED]:
        print_note(f"skipped {one_line(skip.uri)}: {skip.why}")
    if len(report.skipped) > MAX_SKIPPED:
        print_note(f"skipped {len(report.skipped) - MAX_SKIPPED} more; --json lists them")
    print_failures([], report)


def print_failures(questions: Sequence[tuple[str, str]], synced: SyncReport | None) -> None:
    """Print the questions, as (id, error), and the documents that failed, to standard error."""
    if questions:
        first, error = questions[0]
        print_note(f"{counted(question=len(questions))} failed; the first is {first}: {error}")
    for failure in synced.failed if synced else ():
        stale = "; an older version is still served" if failure.stale else ""
        print_note(f"failed {one_line(failure.uri)} ({failure.stage}): {failure.error}{stale}")


def print_estimates(estimates: Mapping[str, Estimate], digits: int) -> None:
    """Print each estimate with its 95 % interval, rounded to `digits`."""
    rows = [
        (name, f"{value.value:.{digits}f}", f"[{value.low:.{digits}f}, {value.high:.{digits}f}]")
        for name, value in estimates.items()
    ]
    print_table(["", ">", ""], rows, indent=2)
