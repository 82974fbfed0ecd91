"""Exit codes, the options that commands share, and the pipeline that the options describe."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ragfm.cli.output import print_note
from ragfm.core.cache import cache_folder
from ragfm.core.errors import ConfigError

if TYPE_CHECKING:
    from ragfm.collection import Collection
    from ragfm.rag import Rag

OK, FAILED, USAGE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130


def text(value: str) -> str:
    """Refuse text that is empty: an unset shell variable must not mean the current folder, or everybody."""
    if not value.strip():
        raise click.BadParameter("the value is empty.")
    return value


class Number(click.FloatRange):
    """A number in a range: not infinite, and not NaN, which no limit of a range refuses."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


NON_EMPTY = click.types.FuncParamType(text)
OUTPUT_FILE = click.Path(dir_okay=False)
POSITIVE = Number(min=0, min_open=True)
text_option = partial(click.option, type=NON_EMPTY)


def share_option(
    name: str, default: float, limits: tuple[float, float], description: str, **kwargs: Any
) -> Callable[..., Any]:
    """Return an option whose value is a share, between the limits."""
    number = Number(*limits)
    return click.option(name, default=default, type=number, metavar="SHARE", help=description, **kwargs)


# --- Every command -----------------------------------------------------------------------------------------------

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks and debug messages.")


def _check_config(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Set `RAGFM_CONFIG` to the value of --config, unless the collection is a folder. Called for both options."""
    values = context.meta.setdefault("ragfm.options", {})
    values[option.name] = value
    config, collection = values.get("config"), values.get("collection")
    if config is not None and collection is not None:
        from ragfm.store.database import is_address

        if not is_address(collection):
            raise click.UsageError("--config requires a collection on PostgreSQL. A folder has ragfm.toml next to it.")
        os.environ["RAGFM_CONFIG"] = config
    return value


collection_option = text_option(
    "-c",
    "--collection",
    default=".ragfm",
    envvar="RAGFM_COLLECTION",
    metavar="DIR|ADDRESS",
    callback=_check_config,
    help="Folder of the collection, or `postgresql://user@host/database?collection=NAME`.",
)
config_option = text_option(
    "--config",
    metavar="FILE",
    expose_value=False,
    callback=_check_config,
    help="Settings file of a collection on PostgreSQL. Default: `RAGFM_CONFIG`, or `ragfm.toml` in this folder.",
)


def json_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json and --debug."""
    return json_option(debug_option(command))


def collection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --collection, --config, --json and --debug: the options of all commands about one collection."""
    return collection_option(config_option(json_options(command)))


def out_folder_option(default: str, description: str) -> Callable[..., Any]:
    """Return the option --out of a command that writes a folder."""
    return text_option("--out", default=default, metavar="DIR", help=description)


# --- Search and answers ------------------------------------------------------------------------------------------

filter_option = click.option(
    "--filter",
    metavar="EXPR",
    help="Use only documents whose metadata matches, such as \"year >= 2024 and uri like '%report%'\".",
)
k_option = click.option("-k", type=click.IntRange(min=1), metavar="N", help="Number of passages.")
mode_option = click.option(
    "--mode",
    type=click.Choice(["hybrid", "dense", "keyword"]),
    default="hybrid",
    help="Search by embeddings (dense), by words with BM25 (keyword), or by both.",
)
adapter_option = text_option(
    "--adapter",
    metavar="DIR|none",
    help="LoRA adapter for the reader, or `none`. Default: the adapter of ragfm.toml, or the one that ships with ragfm "
    "for `bundled`.",
)


def reader_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --reader, --adapter and --strategy, which `make_rag` takes together with `k_option`."""
    reader = text_option("--reader", metavar="NAME", help="Model that answers; see docs/readers.md.")
    strategy = text_option(
        "--strategy",
        metavar="NAME|FILE",
        help="Prompt template: zero-shot, or a TOML file.",
    )
    return reader(adapter_option(strategy(command)))


# --- Evaluation and training -------------------------------------------------------------------------------------

limit_option = click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Use a random sample of N questions."
)
run_option = click.option(
    "--out", type=OUTPUT_FILE, help="Write each question's result to FILE; running the command again resumes it."
)


split_option = click.option("--split", metavar="NAME", help="BEIR: name of the qrels. Default: test.")


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for reading a data set, and for the collection made of the documents that it contains."""
    options = (
        text_option("--embedder", metavar="E", help="Embedding model for data that contains its documents."),
        text_option("--keep", metavar="DIR", help="Keep the collection of data that contains its documents, in DIR."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def question_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --limit, which selects questions of a data set, and the data options."""
    return limit_option(data_options(command))


# --- Values ------------------------------------------------------------------------------------------------------


def usage_error(message: str) -> NoReturn:
    """Raise a usage error of the current command: exit code 2."""
    raise click.UsageError(message, click.get_current_context())


def require_text(text: str, name: str) -> str:
    """Return the text, or raise a usage error if it is all white space."""
    if not text.strip():
        usage_error(f"The {name} is empty.")
    return text


def key_values(texts: Iterable[str], option: str) -> Iterator[tuple[str, str]]:
    """Split each `KEY=VALUE`. Raises BadParameter, which names the option."""
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE.", param_hint=option)
        yield key.strip(), value.strip()


def split_names(texts: Iterable[str]) -> tuple[str, ...]:
    """Split comma-separated names, of an option that may be repeated."""
    return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())


def read_schema(path: str) -> Mapping[str, Any]:
    """Return the JSON schema in a file. Raises ConfigError."""
    try:
        schema = json.loads(Path(path).read_bytes())  # UTF-8 or UTF-16, with or without a byte order mark
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{path}' cannot be read: {error}.", "Specify a file with a JSON schema.") from error
    if not isinstance(schema, dict):
        raise ConfigError(f"'{path}' is not a JSON schema: it contains a {type(schema).__name__}, not an object.")
    return schema


def make_rag(collection: Collection, options: Mapping[str, Any]) -> Rag:
    """Return the pipeline of the options --reader, --adapter, --strategy, --hops and -k."""
    from ragfm.rag import Rag

    names = ("reader", "k", "adapter", "strategy", "hops")
    return Rag(collection, **{name: options[name] for name in names if name in options})


def suggest_larger_reader(rag: Rag) -> None:
    """Print, once per machine, how to get a better reader, if the bundled one is in use."""
    mark = cache_folder() / "suggested-larger-reader"
    if rag.reader_name != "bundled" or mark.exists():
        return
    print_note(
        "Note: the bundled reader is small (135 M parameters), so it often quotes the documents instead of answering. "
        "`ragfm models recommend` lists larger ones for this machine; set `reader` in ragfm.toml, or use --reader."
    )
    with suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
