"""`ragfm chat`."""

from __future__ import annotations

import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.options import (
    collection_options,
    filter_option,
    k_option,
    make_rag,
    reader_options,
    text_option,
    usage_error,
)
from ragfm.cli.output import print_error, print_evidence, print_hit, print_text
from ragfm.cli.progress_bar import busy
from ragfm.collection import Collection
from ragfm.core.errors import RagfmError

if TYPE_CHECKING:
    from ragfm.core.types import Answer
    from ragfm.generation.conversation import Turn
    from ragfm.rag import Rag

_HELP = """\
/sources [N]     show the passages of the last answer, or passage N
/query           show the search query of the last answer
/filter [EXPR]   use only documents whose metadata matches, such as year >= 2024; without EXPR, use all
/k [N]           set the number of passages; without N, the default
/new             start a new conversation
/up, /down       rate the answer; text after /down is the correct answer
/help            show this help
/quit            end, like Ctrl-D. Ctrl-C stops an answer."""


@click.command()
@k_option
@reader_options
@filter_option
@text_option("--keep", metavar="FILE", help="Continue the conversation in FILE and save it there.")
@collection_options
def chat(collection: str, as_json: bool, filter: str | None, keep: str | None, **options: Any) -> None:
    """Hold a conversation about the documents; /help lists its commands, /quit ends it.

    A question may refer to earlier ones: "And for parents?".
    """
    if as_json:
        usage_error("chat has no JSON output; use `ragfm ask --json`.")
    with Collection.open(collection) as store:
        session = _Session(make_rag(store, options), Path(keep) if keep else None)
        session.set_filter(filter or "")
        store.status()  # raises an error if there is no collection, before the first question
        session.greet()
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                print_text("")
                return
            except KeyboardInterrupt:
                print_text("\nPress Ctrl-D or type /quit to end.")
                continue
            if line in ("/quit", "/exit"):
                return
            try:
                session.handle(line)
            except RagfmError as error:
                print_error(error.message, error.hint)


class _Session:
    """A conversation and the options for its next question."""

    def __init__(self, rag: Rag, keep: Path | None) -> None:
        from ragfm.generation.conversation import read_turns

        self._rag, self._keep = rag, keep
        self._default_k = rag.k
        self._filter: str | None = None
        self._turns: list[Turn] = read_turns(keep) if keep else []
        self._answer: Answer | None = None

    def greet(self) -> None:
        """Print how to get help, on a terminal, and the last turn of a conversation that continues."""
        if sys.stdin.isatty():
            with suppress(ImportError):
                import readline  # line editing and history

                for turn in self._turns:
                    readline.add_history(turn.question.replace("\n", " "))
            print_text(("/help lists the commands.", "dim"))
        if self._turns:
            last = self._turns[-1]
            print_text((f"> {last.question}\n{last.answer}\n", "dim"))

    def handle(self, line: str) -> None:
        """Answer a question, or run a command, which begins with a slash. Raises RagfmError."""
        command, _, argument = line.partition(" ")
        argument = argument.strip()
        if not line.startswith("/"):
            if line:
                self._ask(line)
        elif command == "/sources":
            hits = self._answer.hits if self._answer else ()
            selected = [hit for hit in hits if not argument or str(hit.n) == argument.strip("[]")]
            for hit in selected:
                print_hit(f"[{hit.n or '-'}]", hit)
            if not selected:
                print_text(f"There is no passage {argument}.\n" if hits else "There is no answer with passages.\n")
        elif command == "/query":
            print_text((self._answer.query if self._answer else "There is no question yet.") + "\n")
        elif command == "/filter":
            self.set_filter(argument)
        elif command == "/k":
            if argument and not (argument.isdecimal() and 0 < int(argument) < 1000):
                print_text("Specify the number of passages: /k 5\n")
            else:
                self._rag = self._rag.with_options(k=int(argument) if argument else self._default_k)
        elif command == "/new":
            self._turns, self._answer = [], None
            self._write()
        elif command in ("/up", "/down"):
            if self._rag.log is None:
                print_text("The answer log is off: set `log = true` under `[ask]` in ragfm.toml.\n")
            elif self._answer is None or self._answer.log_id is None:
                print_text("There is no answer in the log to rate.\n")
            else:
                self._rag.log.rate(self._answer.log_id, "up" if command == "/up" else "down", argument or None)
                print_text("Rating saved.\n")
        else:
            print_text(_HELP + "\n")

    def set_filter(self, expression: str) -> None:
        """Search only documents whose metadata matches; an empty expression means all. Raises FilterError."""
        if expression:
            self._rag.collection.documents(expression, limit=1)
        self._filter = expression or None

    def _ask(self, question: str) -> None:
        """Print the answer as it is generated; Ctrl-C stops the answer, not the chat."""
        from ragfm.generation.conversation import Turn, messages_of

        try:
            with busy("searching"):
                stream = self._rag.stream(question, history=messages_of(self._turns), filter=self._filter)
            with closing(stream):
                with busy("reading"):
                    first = next(stream, "")
                print_text(first, end="")
                for piece in stream:
                    print_text(piece, end="")
            print_text("")
            print_evidence(stream.answer)
            print_text("")
        except KeyboardInterrupt:
            print_text("  (stopped)\n")
            return
        self._answer = stream.answer
        self._turns.append(Turn.of(stream.answer))
        self._write()

    def _write(self) -> None:
        from ragfm.generation.conversation import write_turns

        if self._keep is not None:
            write_turns(self._keep, self._turns)
