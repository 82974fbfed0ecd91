"""`ragfm chat`: questions one after the other."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Literal

import click

from ragfm.cli_options import OK, adapter_option, filtered, k_option, make_rag, reader_option, shared
from ragfm.errors import LogError, RagfmError
from ragfm.show import indented, print_citations, printable, where

if TYPE_CHECKING:
    from ragfm.rag import Rag
    from ragfm.types import Answer, Message

_HELP = """\
/sources        the passages of the last answer
/query          what they were searched for by
/up, /down      say whether the answer was good; after /down, what would have been right
/quit           end"""


@click.command()
@k_option
@reader_option
@adapter_option
@filtered
@shared
def chat(
    collection: str, as_json: bool, k: int | None, filter: str | None, reader: str | None, adapter: str | None
) -> int:
    """Ask one question after the other; /sources shows the last answer's passages, /quit ends.

    A question may lean on those before it: "And for parents?".
    """
    from ragfm.collection import Collection

    if as_json:
        raise click.UsageError("chat has no JSON form; use `ask --json`.", click.get_current_context())
    history: list[Message] = []
    answer: Answer | None = None
    with Collection.open(collection) as store:
        rag = make_rag(store, reader, k, adapter)
        store.status()  # no collection: say so before the first question
        while (line := _read_line()) is not None:
            if line.startswith("/"):
                _obey(line, rag, answer)
            elif line:
                answer = _stream_answer(rag, line, history, filter) or answer
    return OK


def _obey(line: str, rag: Rag, answer: Answer | None) -> None:
    """Do what a line that begins with a slash says."""
    command, _, words = line.partition(" ")
    if command in ("/up", "/down"):
        _judge(rag, answer, "up" if command == "/up" else "down", words.strip() or None)
    elif command == "/query" and answer:
        click.echo(printable(answer.query) + "\n")
    elif command == "/sources":
        for hit in answer.hits if answer else ():
            click.echo(f"[{hit.n or '-'}] {where(hit)}\n{indented(hit.text)}\n")
    else:
        click.echo(_HELP)


def _judge(rag: Rag, answer: Answer | None, thumbs: Literal["up", "down"], correction: str | None) -> None:
    if rag.log is None:
        click.echo("No log is kept: `log = true` under `[ask]` in ragfm.toml turns it on.\n")
    elif answer is None or answer.log_id is None:
        click.echo("There is no answer in the log to say that of.\n")
    else:
        try:
            rag.log.judge(answer.log_id, thumbs, correction)
            click.echo("Kept.\n")
        except LogError as error:
            click.echo(f"ragfm: {error}", err=True)


def _stream_answer(rag: Rag, question: str, history: list[Message], filter: str | None) -> Answer | None:
    """Print an answer as it comes; Ctrl-C ends the answer, not the chat."""
    from ragfm.types import Message

    try:
        with closing(rag.stream(question, history=history, filter=filter)) as stream:
            for piece in stream:
                click.echo(printable(piece), nl=False)
    except KeyboardInterrupt:
        click.echo("  (stopped)\n")
        return None
    except RagfmError as error:
        click.echo(f"ragfm: {error}", err=True)
        return None
    click.echo("")
    print_citations(stream.answer)
    click.echo("")
    history += [Message("user", question), Message("assistant", stream.answer.text)]
    return stream.answer


def _read_line() -> str | None:
    try:
        line = input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        click.echo("")
        return None
    return None if line in ("/quit", "/exit") else line
