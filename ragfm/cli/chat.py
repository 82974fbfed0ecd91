"""`ragfm chat`: questions one after the other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ragfm.cli.options import (
    FILLED,
    OK,
    adapter_option,
    busy,
    filtered,
    k_option,
    make_rag,
    reader_option,
    shared,
    strategy_option,
)
from ragfm.cli.output import indented, print_citations, printable, where
from ragfm.core.errors import RagfmError

if TYPE_CHECKING:
    from ragfm.core.types import Answer
    from ragfm.generation.conversation import Turn
    from ragfm.rag import Rag

_HELP = """\
/sources [N]     the passages of the last answer, or one of them
/query           what they were searched for by
/filter [EXPR]   only documents whose metadata meets it, as year >= 2024; without EXPR all again
/k [N]           how many passages the reader is given; without N as many as usual
/new             begin anew: what was said is forgotten
/save FILE       write the conversation to a file; `ragfm chat --keep FILE` goes on with it
/up, /down       say whether the answer was good; after /down, what would have been right
/help            this
/quit            end; so does Ctrl-D. Ctrl-C stops an answer."""


@click.command()
@k_option
@reader_option
@adapter_option
@strategy_option
@filtered
@click.option("--keep", metavar="FILE", type=FILLED, help="Go on with the conversation in FILE, and keep it there.")
@shared
def chat(collection: str, as_json: bool, filter: str | None, keep: str | None, **options: Any) -> int:
    """Ask one question after the other; /help lists what else can be typed, /quit ends.

    A question may lean on those before it: "And for parents?".
    """
    from ragfm.collection import Collection

    if as_json:
        raise click.UsageError("chat has no JSON form; use `ask --json`.", click.get_current_context())
    with Collection.open(collection) as store:
        talk = _Talk(make_rag(store, options), Path(keep) if keep else None)
        talk.set_filter(filter or "")
        store.status()  # no collection: say so before the first question
        talk.greet()
        while (line := _read_line()) is not None:
            try:
                talk.hear(line)
            except RagfmError as error:
                click.echo(printable(f"ragfm: {error}"), err=True)
    return OK


class _Talk:
    """A conversation, and how the next question is asked."""

    def __init__(self, rag: Rag, keep: Path | None) -> None:
        from ragfm.generation.conversation import read_turns

        self._rag, self._keep = rag, keep
        self._usual_k = rag.k
        self._filter: str | None = None
        self._turns: list[Turn] = read_turns(keep) if keep else []
        self._answer: Answer | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/sources": self._show_sources, "/query": self._show_query, "/filter": self.set_filter, "/k": self._set_k,
            "/new": self._begin_anew, "/save": self._save,
            "/up": lambda words: self._judge("up", words), "/down": lambda words: self._judge("down", words),
        }  # fmt: skip

    def greet(self) -> None:
        """On a terminal, say how to get help; where a conversation goes on, what was said last."""
        if sys.stdin.isatty():
            with suppress(ImportError):
                import readline  # the arrow keys edit, and bring back what was asked

                for turn in self._turns:
                    readline.add_history(turn.question.replace("\n", " "))
            click.echo(click.style("/help lists what else can be typed.", dim=True))
        if self._turns:
            last = self._turns[-1]
            click.echo(click.style(printable(f"> {last.question}\n{last.answer}"), dim=True) + "\n")

    def hear(self, line: str) -> None:
        """Answer a question, or do what a line that begins with a slash says. Raises RagfmError."""
        if not line.startswith("/"):
            if line:
                self._ask(line)
            return
        command, _, words = line.partition(" ")
        done = self._commands.get(command)
        if done is not None:
            done(words.strip())
        else:
            click.echo(_HELP + "\n")

    def set_filter(self, words: str) -> None:
        """Ask only documents whose metadata meets it; all, where it is empty."""
        from ragfm.store.filters import parse_filter

        if words:
            parse_filter(words)
        self._filter = words or None

    def _ask(self, question: str) -> None:
        """Print an answer as it comes; Ctrl-C ends the answer, not the chat."""
        from ragfm.generation.conversation import Turn, messages_of

        try:
            with busy("searching"):
                stream = self._rag.stream(question, history=messages_of(self._turns), filter=self._filter)
            with closing(stream):
                with busy("reading"):
                    first = next(stream, "")
                click.echo(printable(first), nl=False)
                for piece in stream:
                    click.echo(printable(piece), nl=False)
            click.echo("")
            print_citations(stream.answer)
            click.echo("")
        except KeyboardInterrupt:
            click.echo("  (stopped)\n")
            return
        self._answer = stream.answer
        self._turns.append(Turn.of(stream.answer))
        self._write(self._keep)

    def _show_sources(self, words: str) -> None:
        hits = self._answer.hits if self._answer else ()
        shown = [hit for hit in hits if not words or str(hit.n) == words.strip("[]")]
        for hit in shown:
            click.echo(click.style(f"[{hit.n or '-'}] {where(hit)}", bold=True) + f"\n{indented(hit.text)}\n")
        if not shown:
            click.echo(f"There is no passage {printable(words)}.\n" if hits else "There is no answer with passages.\n")

    def _show_query(self, words: str) -> None:
        click.echo((printable(self._answer.query) if self._answer else "Nothing was asked.") + "\n")

    def _set_k(self, words: str) -> None:
        if words and not (words.isdecimal() and 0 < int(words) < 1000):
            click.echo("How many passages? /k 5\n")
            return
        self._rag = self._rag.with_options(k=int(words) if words else self._usual_k)

    def _begin_anew(self, words: str) -> None:
        self._turns, self._answer = [], None
        self._write(self._keep)

    def _save(self, words: str) -> None:
        if not words:
            click.echo("To which file? /save talk.jsonl\n")
            return
        self._write(Path(words).expanduser())
        click.echo("Saved.\n")

    def _write(self, path: Path | None) -> None:
        from ragfm.generation.conversation import write_turns

        if path is not None:
            write_turns(path, self._turns)

    def _judge(self, thumbs: Literal["up", "down"], correction: str) -> None:
        if self._rag.log is None:
            click.echo("No log is kept: `log = true` under `[ask]` in ragfm.toml turns it on.\n")
        elif self._answer is None or self._answer.log_id is None:
            click.echo("There is no answer in the log to say that of.\n")
        else:
            self._rag.log.rate(self._answer.log_id, thumbs, correction or None)
            click.echo("Kept.\n")


def _read_line() -> str | None:
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            click.echo("")
            return None
        except KeyboardInterrupt:
            click.echo("\n/quit ends, or Ctrl-D.")
            continue
        return None if line in ("/quit", "/exit") else line
