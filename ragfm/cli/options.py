"""What the commands share: exit codes, options, and a word or a bar for what takes seconds."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.output import printable
from ragfm.core.errors import ConfigError

if TYPE_CHECKING:
    from ragfm.collection import Collection
    from ragfm.rag import Rag

OK, FAILED, USAGE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
_PATIENCE = 2.0  # seconds without a word


class _Filled(click.types.StringParamType):
    """A text that is not empty: an unset shell variable must not mean the current folder, or everybody."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not str(value).strip():
            self.fail("it is empty.", param, ctx)
        return str(super().convert(value, param, ctx))


FILLED = _Filled()


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks and what is going on.")


def shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that all commands on a collection have."""
    collection = click.option(
        "-c", "--collection", default=".ragfm", envvar="RAGFM_COLLECTION", metavar="DIR", type=FILLED,
        show_default=True, help="The collection's folder.",
    )  # fmt: skip
    return collection(json_option(debug_option(function)))


filtered = click.option("--filter", metavar="EXPR", help="Only documents whose metadata meets it: 'year >= 2024'.")

reader_option = click.option(
    "--reader", metavar="NAME", type=FILLED, help="The model that answers; see docs/readers.md."
)
adapter_option = click.option(
    "--adapter", metavar="DIR|none", type=FILLED,
    help="What the reader was taught. Default: for `bundled` the one that ragfm brings; `none`: nothing.",
)  # fmt: skip
strategy_option = click.option(
    "--strategy", metavar="NAME|FILE", type=FILLED, help="How the reader is asked: zero-shot, few-shot, "
    "chain-of-thought, or a TOML file.",
)  # fmt: skip
k_option = click.option("-k", type=click.IntRange(min=1), metavar="N", help="How many passages.")


def read_schema(path: str) -> Mapping[str, Any]:
    """The JSON schema in a file."""
    try:
        schema = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read: {error}.", "It has to hold a JSON schema.") from error
    if not isinstance(schema, dict):
        raise ConfigError(f"{path} holds no JSON schema, but {type(schema).__name__}.")
    return schema


def open_collection(path: str, embedder: str | None = None) -> Collection:
    """The collection in a folder."""
    from ragfm.collection import Collection

    return Collection.open(path, embedder=embedder)


def make_rag(store: Collection, options: Mapping[str, Any]) -> Rag:
    """The pipeline that a command's options ask for."""
    from ragfm.rag import Rag

    _tell_of_licence(options["reader"] or store.settings.reader)
    named = {name: options[name] for name in ("reader", "k", "adapter", "strategy")}
    return Rag(store, **named)


def _tell_of_licence(reader: str) -> None:
    """Say it where a model's licence may restrict its use, the first time that it is used here."""
    from ragfm.core.registry import plugin_and_model
    from ragfm.models.model_card import said_once

    path = Path(plugin_and_model("readers", reader)[1] or reader).expanduser()
    if path.exists() and (warning := said_once(path)):
        click.echo(printable(warning), err=True)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """A word on a terminal while models are loaded, which takes seconds; it goes when the result comes."""
    shown = sys.stderr.isatty()
    if shown:
        click.echo(f"{what} …", nl=False, err=True)
    try:
        yield
    finally:
        if shown:
            click.echo("\r\x1b[K", nl=False, err=True)


@contextmanager
def counting(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """How far a job is, on standard error once it takes longer than two seconds: a bar on a terminal, else lines."""
    from tqdm import tqdm

    terminal, start, told = sys.stderr.isatty(), monotonic(), 0.0
    bar = tqdm(desc=what, unit=unit, file=sys.stderr, leave=False, dynamic_ncols=True, delay=_PATIENCE,
               disable=not terminal)  # fmt: skip

    def show(done: int, total: int) -> None:
        nonlocal told
        bar.total = total
        bar.update(done - bar.n)
        seconds = monotonic() - start
        if not terminal and seconds >= max(_PATIENCE, 2 * told):  # ever more rarely: a log is not a bar
            click.echo(f"{what}: {done} of {total} {unit}, {seconds:.0f} s", err=True)
            told = seconds

    with bar:
        yield show
