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

from ragfm.core.table_rows import TableRow, text_blocks
from ragfm.core.text import counted

if TYPE_CHECKING:
    from rich.console import Console

    from ragfm.core.types import Answer, Hit, Usage
    from ragfm.evaluation import Estimate
    from ragfm.evaluation.metrics import StatusCount
    from ragfm.generation.structured_output import Extraction
    from ragfm.ingestion.ingest_report import SyncReport

Part: TypeAlias = str | tuple[str, str]
"""Text, or text with its style on a terminal, such as `("docs/leave.md", "bold")`."""

MAX_SKIPPED = 20
"""Maximum number of skipped documents that are listed one by one."""

_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


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
    left_out = {"text", "signals", "finish_reason", *(() if answer.reasoning else ("reasoning",))}
    return {
        **{key: value for key, value in asdict(answer).items() if key not in left_out},
        "answer": answer.text,
        "abstained": answer.abstained,
        "hits": [{**hit_json(hit), "n": hit.n} for hit in answer.hits],
        "usage": _usage_json(answer.usage),
    }


def extraction_json(extraction: Extraction[Any]) -> dict[str, Any]:
    """Return a structured answer in its documented JSON form."""
    value = asdict(replace(extraction, value=None))
    return {
        **{key: value[key] for key in ("question", "query", "fields", "dropped", "seconds", "log_id")},
        "value": value["data"],
        "hits": [{**hit_json(hit), "n": hit.n} for hit in extraction.hits],
        "usage": _usage_json(extraction.usage),
    }


def _usage_json(usage: Usage) -> dict[str, Any]:
    return {key: value for key, value in asdict(usage).items() if value is not None}


def print_hit(label: str, hit: Hit) -> None:
    """Print a hit's label and location, then its text, indented; the rows of a table are below their header."""
    print_text(f"{label} ", (one_line(hit.location), "bold"))
    for block in text_blocks(hit.text, hit.context):
        if isinstance(block, str):
            print_text("\n".join(f"   {line}" for line in block.splitlines()))
        else:
            print_rows(block, indent=3)
    print_text("")


def print_rows(rows: Sequence[TableRow], *, indent: int) -> None:
    """Print rows of a table below their header; an arrow marks the likeliest cell."""
    width = max(len(row.cells) for row in rows)
    titles = [f" {title}" if title.startswith(">") else title for title in rows[0].titles]
    cells = [[f"→ {cell}" if at == row.column else cell for at, cell in enumerate(row.cells)] for row in rows]
    padded = [[*row, *[""] * (width - len(row))] for row in (titles, *cells)]
    print_table(padded[0], padded[1:], indent=indent)


def print_answer(answer: Answer) -> None:
    """Print an answer with its contradictions and citations."""
    print_text(answer.shown)
    print_evidence(answer)


def print_evidence(answer: Answer) -> None:
    """Print what follows an answer's text: contradictions, citations, unsupported sentences, and notes."""
    for note in answer.notes:
        print_text((f"  ({note.rstrip('.')})", "dim"))
    if answer.contradictions:
        lines = "\n".join(contradiction.sentence for contradiction in answer.contradictions)
        print_text(f"\n{lines}")
    rows = list[TableRow]()
    for citation in answer.evidence:
        doubt = f" ({citation.doubt})" if citation.doubt else ""
        print_text(f"  [{citation.n}] {one_line(citation.location)}: ", (citation.displayed, "dim"), doubt)
        if citation.row and citation.row not in rows and answer.calculation is None:
            rows.append(citation.row)
            print_rows([citation.row], indent=6)
    if answer.nearest:
        print_text("The nearest passages say:")
    for nearest in answer.nearest:
        print_text(f"  {one_line(nearest.location)}: ", (nearest.displayed, "dim"))
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
            print_text(f"  {field.path}: [{citation.n}] {one_line(citation.location)}: ", (citation.displayed, "dim"))


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
    by_source: dict[str, list[str]] = {}
    for unmapped in report.unmapped:
        by_source.setdefault(unmapped.source, []).append(unmapped.identity)
    for source, identities in by_source.items():
        print_note(f"unmapped in {one_line(source)}: {unmapped_sentence(identities)}")
    print_failures([], report)


def unmapped_sentence(identities: Sequence[str]) -> str:
    """The identities that stand for no group, the first of them by name."""
    names = ", ".join(map(one_line, identities[:MAX_SKIPPED]))
    more = f" and {len(identities) - MAX_SKIPPED} more (--json lists them)" if len(identities) > MAX_SKIPPED else ""
    return f"{names}{more}; what only these may see is visible to nobody"


def print_failures(questions: Sequence[tuple[str, str]], synced: SyncReport | None) -> None:
    """Print the questions, as (id, error), and the documents that failed, to standard error."""
    if questions:
        first, error = questions[0]
        print_note(f"{counted(question=len(questions))} failed; the first is {first}: {error}")
    for failure in synced.failed if synced else ():
        stale = " An older version is still served." if failure.stale else ""
        print_note(f"failed {one_line(failure.uri)} ({failure.stage}): {failure.error}{stale}")


def print_statuses(runs: Mapping[str, Mapping[str, StatusCount]]) -> None:
    """Print, for each run by its name, how many answers have each status, and their precision with its interval."""
    rows = [
        (name, status, str(row.count), f"{it.value:.3f}" if it else "-", f"[{it.low:.3f}, {it.high:.3f}]" if it else "")
        for name, counts in runs.items()
        for status, row in counts.items()
        for it in (row.precision,)
    ]
    if rows:
        print_table(["", "status", ">answers", ">precision", ""], rows, indent=2)


def print_estimates(estimates: Mapping[str, Estimate], digits: int) -> None:
    """Print each estimate with its 95 % interval, rounded to `digits`."""
    rows = [
        (name, f"{value.value:.{digits}f}", f"[{value.low:.{digits}f}, {value.high:.{digits}f}]")
        for name, value in estimates.items()
    ]
    print_table(["", ">", ""], rows, indent=2)
