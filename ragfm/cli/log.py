"""`ragfm log …`: what was asked and answered, what users thought of it, and how it is forgotten."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.options import FILLED, OK, shared
from ragfm.cli.output import print_json, printable

if TYPE_CHECKING:
    from ragfm.generation.answer_log import AnswerLog, LogFilter

_thumbs = click.option("--thumbs", type=click.Choice(["up", "down"]), help="Only those that users found so.")
_text = click.option("--text", metavar="TEXT", type=FILLED, help="Only where this stands, in upper or lower case.")
_MARKS = {"up": "+", "down": "-", None: " "}


@click.group()
def log() -> None:
    """See and keep the answer log, which `log = true` under `[ask]` in ragfm.toml turns on."""


@log.command(name="list")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="So many of the newest.")
@_text
@_thumbs
@shared
def list_entries(collection: str, as_json: bool, limit: int, text: str | None, thumbs: Any) -> int:
    """List what was asked, the newest last."""
    entries = _open(collection).entries(_which(text=text, thumbs=thumbs), limit=limit)
    if as_json:
        print_json({"entries": [asdict(entry) for entry in entries]})
        return OK
    for entry in entries:
        stopped = "" if entry.finished else "  (stopped)"
        click.echo(printable(f"{entry.id:>5} {_MARKS[entry.thumbs]} {entry.at[:16]}  {' '.join(entry.question.split())}"
                             f"{stopped}"))  # fmt: skip
    if not entries:
        click.echo("Nothing found.")
    return OK


@log.command()
@click.argument("number", metavar="ID", type=int)
@shared
def show(collection: str, as_json: bool, number: int) -> int:
    """Show all that is kept of one answer."""
    entry = _open(collection).entry(number)
    if as_json:
        print_json(asdict(entry))
        return OK
    for name, value in asdict(entry).items():
        if name == "prompt":
            value = "\n".join(f"<{message['role']}> {message['content']}" for message in value)
        elif name == "passages":
            value = "\n".join(f"[{hit['n'] or '-'}] {hit['uri']} {hit['start']}-{hit['end']}, chunk {hit['chunk_id']}, "
                              f"score {hit['score']}" for hit in value)  # fmt: skip
        elif not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False)
        click.echo(printable(f"{name:<11} " + value.replace("\n", "\n" + 12 * " ")))
    return OK


@log.command()
@click.argument("number", metavar="ID", type=int)
@click.argument("thumbs", type=click.Choice(["up", "down"]))
@click.option("--correction", metavar="TEXT", type=FILLED, help="What would have been right; “I don't know.” too.")
@shared
def thumbs(collection: str, as_json: bool, number: int, thumbs: Any, correction: str | None) -> int:
    """Say whether an answer was good; the last word counts."""
    answers = _open(collection)
    answers.rate(number, thumbs, correction)
    print_json(asdict(answers.entry(number))) if as_json else click.echo("Kept.")
    return OK


@log.command()
@click.argument("out", required=False, type=FILLED)
@click.option("--all", "everything", is_flag=True, help="All entries with all that is kept of them, as JSON lines.")
@_text
@_thumbs
@shared
def export(
    collection: str, as_json: bool, out: str | None, everything: bool, text: str | None, thumbs: Any
) -> int:  # fmt: skip
    """Write what users found good or put right to OUT, as questions for `ragfm eval answers`."""
    from ragfm.evaluation.log_questions import as_questions

    if as_json and out is None:
        raise click.UsageError("--json prints a report; name OUT.", click.get_current_context())
    entries = _open(collection).entries(_which(text=text, thumbs=thumbs))
    lines = [asdict(entry) for entry in entries] if everything else list(as_questions(entries))
    with Path(out).open("w", encoding="utf-8") if out else nullcontext(sys.stdout) as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    questions = len({line["id"] for line in lines})
    if as_json:
        print_json({"path": out, "entries": questions, "lines": len(lines)})
    elif out:
        click.echo(printable(f"{questions} of {len(entries)} entries are in {out}."))
    return OK


def _selecting(function: Callable[..., int]) -> Callable[..., int]:
    numbers = click.argument("numbers", metavar="[ID]…", nargs=-1, type=int)
    days = click.option("--older-than", metavar="DAYS", type=click.FloatRange(min=0), help="Only those that are older.")
    return numbers(_text(days(shared(function))))


@log.command()
@_selecting
def redact(collection: str, as_json: bool, numbers: tuple[int, ...], text: str | None, older_than: float | None) -> int:
    """Take words out of the log, and leave the rest.

    With --text, this text wherever it stands, in all entries or those named; else all words of the entries.
    """
    return _done("redacted", _open(collection).redact(_some(numbers, text, older_than)), as_json)


@log.command()
@_selecting
def forget(collection: str, as_json: bool, numbers: tuple[int, ...], text: str | None, older_than: float | None) -> int:
    """Delete the entries that meet all conditions given; nothing of them stays in the file."""
    return _done("forgotten", _open(collection).forget(_some(numbers, text, older_than)), as_json)


# --- Inside ------------------------------------------------------------------------------------------------------


def _done(what: str, count: int, as_json: bool) -> int:
    print_json({what: count}) if as_json else click.echo(f"{count} {what}.")
    return OK


def _open(collection: str) -> AnswerLog:
    from ragfm.generation.answer_log import AnswerLog

    return AnswerLog.for_collection(collection)


def _which(**conditions: Any) -> LogFilter:
    from ragfm.generation.answer_log import LogFilter

    return LogFilter(**conditions)


def _some(numbers: tuple[int, ...], text: str | None, older_than: float | None) -> LogFilter:
    """Never all entries, for want of a condition."""
    if not numbers and text is None and older_than is None:
        raise click.UsageError("Say which: IDs, --text or --older-than.", click.get_current_context())
    return _which(ids=numbers, text=text, older_than=None if older_than is None else timedelta(days=older_than))
