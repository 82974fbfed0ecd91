"""`ragfm log …`: the answer log."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from ragfm.cli.help import CommandGroup
from ragfm.cli.options import NON_EMPTY, Number, collection_options, text_option, usage_error
from ragfm.cli.output import print_json, print_result, print_table, print_text
from ragfm.core.errors import LogError
from ragfm.core.text import counted

if TYPE_CHECKING:
    from ragfm.generation.answer_log import AnswerLog
    from ragfm.generation.log_entries import LogFilter

_thumbs_option = click.option("--thumbs", type=click.Choice(["up", "down"]), help="Select entries with this rating.")
_containing_option = text_option("--text", help="Select entries that contain TEXT; case-insensitive.")
_redacted_option = text_option(
    "--text", help="Text to redact; case-insensitive. Default: all text of the selected entries."
)
_MAX_DAYS = 36_500
_KEYS = {"r": "right", "w": "wrong", "s": "skipped", "q": "stopped"}
_MARKS = {"up": "+", "down": "-", None: " "}


@click.group(cls=CommandGroup)
def log() -> None:
    """View, rate and delete entries of the answer log. `log = true` under `[ask]` in ragfm.toml enables it."""


@log.command(name="list")
@click.option("--limit", type=click.IntRange(min=1), default=20, help="Maximum number of entries.")
@_containing_option
@_thumbs_option
@collection_options
def list_entries(collection: str, as_json: bool, limit: int, text: str | None, thumbs: Any) -> None:
    """List the most recent questions, newest last."""
    entries = _open(collection).entries(_selection(text=text, thumbs=thumbs), limit=limit)
    if as_json:
        print_json({"entries": [asdict(entry) for entry in entries]})
        return
    rows = []
    for entry in entries:
        question = " ".join(entry.question.split()) + ("" if entry.finished else "  (stopped)")
        rows.append((f"{entry.id}", _MARKS[entry.thumbs], entry.at[:16], question))
    print_table([">", "", "", ""], rows)
    if not entries:
        print_text("Nothing found.")


@log.command()
@click.argument("number", metavar="ID", type=int)
@collection_options
def show(collection: str, as_json: bool, number: int) -> None:
    """Show one entry: question, passages, answer and rating."""
    entry = asdict(_open(collection).entry(number))
    if as_json:
        print_json(entry)
        return
    for name, value in entry.items():
        if name == "prompt":
            text = "\n".join(f"<{message['role']}> {message['content']}" for message in value)
        elif name == "passages":
            text = "\n".join(
                f"[{hit['n'] or '-'}] {hit['uri']} {hit['start']}-{hit['end']}, chunk {hit['chunk_id']}, "
                f"score {hit['score']}"
                for hit in value
            )
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        print_text(f"{name:<11} " + text.replace("\n", "\n" + 12 * " "))


@log.command()
@click.argument("number", metavar="ID", type=int)
@click.argument("thumbs", type=click.Choice(["up", "down"]))
@text_option("--correction", help="The correct answer; may be “I don't know.”")
@collection_options
def thumbs(collection: str, as_json: bool, number: int, thumbs: Any, correction: str | None) -> None:
    """Rate an answer; a new rating replaces the old one."""
    answers = _open(collection)
    answers.rate(number, thumbs, correction)
    print_result(asdict(answers.entry(number)), "Rating saved.", as_json=as_json)


@log.command()
@click.argument("out", required=False, type=NON_EMPTY)
@click.option("--all", "everything", is_flag=True, help="Write all entries, complete, as JSON lines.")
@_containing_option
@_thumbs_option
@collection_options
def export(collection: str, as_json: bool, out: str | None, everything: bool, text: str | None, thumbs: Any) -> None:
    """Export the answers that were rated good or corrected, as questions for `ragfm eval answers`.

    They are written to OUT, or to standard output.
    """
    from ragfm.evaluation.log_questions import questions_from_log

    out = None if out == "-" else out
    if as_json and out is None:
        usage_error("--json requires OUT: standard output has the report.")
    entries = _open(collection).entries(_selection(text=text, thumbs=thumbs))
    lines = [asdict(entry) for entry in entries] if everything else list(questions_from_log(entries))
    with Path(out).open("w", encoding="utf-8") if out else nullcontext(sys.stdout) as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    exported = len({line["id"] for line in lines})
    if as_json:
        print_json({"path": out, "entries": exported, "lines": len(lines)})
    elif out:
        print_text(f"Exported {exported} of {len(entries)} entries to {out}.")


@log.command()
@text_option("--by", metavar="NAME", help="Who labels. Default: the name of the user.")
@click.option("--from", "labels", type=click.File(encoding="utf-8"), help="Read labels from a file of JSON lines.")
@collection_options
def review(collection: str, as_json: bool, by: str | None, labels: TextIO | None) -> None:
    """Label verified citations as right or wrong, for `ragfm tune --verified`.

    They come in random order, each with question, sentence, quote and document. A citation is right if the quote states
    what question and sentence say together. Each label is stored at once.

    With --from, the lines are `{"entry": ID, "citation": N, "right": true}`; citations are numbered from 1.
    """
    if as_json and labels is None:
        usage_error("--json requires --from.")
    answers, by = _open(collection), by or getpass.getuser()
    if labels is not None:
        count = 0
        for number, line in enumerate(labels, 1):
            entry, citation, right = _read_label(line, f"{labels.name}:{number}")
            answers.label(answers.entry(entry), citation, right=right, by=by)
            count += 1
        print_result({"labelled": count}, f"{counted(label=count)} saved.", as_json=as_json)
        return
    waiting = answers.to_review()
    for number, (logged, citation) in enumerate(waiting, 1):
        one = logged.citations[citation - 1]
        sentence = logged.answer[one["answer_start"] : one["answer_end"]]
        page = f", page {one['page']}" if one["page"] else ""
        print_text((f"\n{number} of {len(waiting)}: {logged.question}", "bold"))
        print_text(f"  says    {' '.join(sentence.split())}")
        print_text(f"  quote   {' '.join(one['quote'].split())}")
        print_text(f"  from    {one['name'] or one['uri']}{page}")
        print_text("[r]ight, [w]rong, [s]kip or [q]uit? ", end="")
        key = ""
        while key not in _KEYS:
            key = click.getchar().lower()
        print_text(_KEYS[key])
        if key == "q":
            break
        if key != "s":
            answers.label(logged, citation, right=key == "r", by=by)
    else:
        print_text("No verified citation is left to label.")


def _read_label(line: str, place: str) -> tuple[int, int, bool]:
    """The entry, the citation and whether it is right. Raises LogError, which names the place."""
    try:
        value = json.loads(line)
        entry, citation, right = (value[key] for key in ("entry", "citation", "right"))
    except (ValueError, KeyError, TypeError):
        entry = citation = right = None
    if type(entry) is not int or type(citation) is not int or type(right) is not bool:
        raise LogError(
            f"{place} is not a label: {line.strip()!r}.",
            'Write lines such as {"entry": 3, "citation": 1, "right": true}. The lines before it are stored.',
        )
    return entry, citation, right


def _ids_and_age_options(command: Callable[..., None]) -> Callable[..., None]:
    ids = click.argument("numbers", metavar="[ID]…", nargs=-1, type=int)
    older_than = click.option(
        "--older-than", metavar="DAYS", type=Number(0, _MAX_DAYS), help="Select entries older than DAYS."
    )
    return ids(older_than(collection_options(command)))


@log.command()
@_redacted_option
@_ids_and_age_options
def redact(collection: str, as_json: bool, **conditions: Any) -> None:
    """Redact text in the log but keep the entries.

    With --text, only that text is redacted, in the selected entries or in all; without it, all text of the selected
    entries.
    """
    count = _open(collection).redact(_required_selection(**conditions))
    print_result({"redacted": count}, f"{count} redacted.", as_json=as_json)


@log.command()
@_containing_option
@_ids_and_age_options
def forget(collection: str, as_json: bool, **conditions: Any) -> None:
    """Permanently delete the entries that match all conditions."""
    count = _open(collection).forget(_required_selection(**conditions))
    print_result({"forgotten": count}, f"{count} forgotten.", as_json=as_json)


def _open(collection: str) -> AnswerLog:
    from ragfm.collection import Collection

    return Collection.open(collection).answer_log


def _selection(**conditions: Any) -> LogFilter:
    from ragfm.generation.log_entries import LogFilter

    return LogFilter(**conditions)


def _required_selection(numbers: tuple[int, ...], text: str | None, older_than: float | None) -> LogFilter:
    if not numbers and text is None and older_than is None:  # never all entries, for lack of a condition
        usage_error("Select entries: IDs, --text or --older-than.")
    return _selection(ids=numbers, text=text, older_than=None if older_than is None else timedelta(days=older_than))
