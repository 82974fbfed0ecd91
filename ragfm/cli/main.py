"""The command line. Exit codes: 0 all well, 1 it failed, 2 wrong usage, 3 some documents failed, 130 interrupted.

With `--json`, standard output is one JSON object and nothing else; progress and warnings go to standard error.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from ragfm import __version__
from ragfm.cli.adapt import adapt
from ragfm.cli.adapt_refresh import back_command, refresh_command
from ragfm.cli.adapt_retriever import retriever_command
from ragfm.cli.chat import chat
from ragfm.cli.collection_commands import COMMANDS
from ragfm.cli.compare import compare_command
from ragfm.cli.eval import evaluation
from ragfm.cli.eval_answers import answers
from ragfm.cli.eval_bias import bias
from ragfm.cli.log import log
from ragfm.cli.mcp import mcp
from ragfm.cli.models import models
from ragfm.cli.options import (
    FAILED,
    FILLED,
    INTERRUPTED,
    OK,
    SOME_FAILED,
    USAGE,
    adapter_option,
    busy,
    debug_option,
    filtered,
    json_option,
    k_option,
    make_rag,
    open_collection,
    read_schema,
    reader_option,
    shared,
    strategy_option,
)
from ragfm.cli.output import (
    answer_json,
    extraction_json,
    hit_json,
    indented,
    print_answer,
    print_extraction,
    print_index,
    print_json,
    print_keywords,
    print_report,
    printable,
    where,
)
from ragfm.cli.serve import keys, serve
from ragfm.cli.tune import tune
from ragfm.cli.watch import watch
from ragfm.core.errors import FilterError, RagfmError

if TYPE_CHECKING:
    from ragfm.ingestion.sync import Progress


def main() -> None:
    """Run a command and exit with its code; every failure is one clear line, `--debug` shows the traceback."""
    try:
        _check_words(sys.argv[1:])
        code = ragfm.main(standalone_mode=False) or OK
        if sys.stdout:
            sys.stdout.flush()
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.UsageError as error:
        hint = f"See `{error.ctx.command_path} --help`." if error.ctx else "See `ragfm --help`."
        code = _complain(USAGE, error, error.format_message(), hint)
    except FilterError as error:
        code = _complain(USAGE, error, error.message, error.hint)
    except RagfmError as error:
        code = _complain(FAILED, error, error.message, error.hint)
    except (KeyboardInterrupt, click.Abort):
        hint = "What was committed is kept; run it again to go on." if {"ingest", "reembed"} & set(sys.argv) else ""
        code = _complain(INTERRUPTED, KeyboardInterrupt(), "Interrupted.", hint)
    except BrokenPipeError:
        code = FAILED
    except OSError as error:
        code = _complain(FAILED, error, f"{error.strerror or error}: {error.filename or 'output'}", "")
    except Exception as error:  # the last line of defence: no traceback for users
        hint = "That is a mistake in ragfm; --debug shows where."
        code = _complain(FAILED, error, f"{type(error).__name__}: {error}", hint)
    _drop_what_cannot_be_written()
    sys.exit(code)


def _check_words(words: list[str]) -> None:
    """Raises UsageError for bytes that are not UTF-8, which neither a catalog nor JSON can hold."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(word).decode("utf-8", "backslashreplace")
            raise click.UsageError(f"The argument {shown} is not UTF-8.") from None


def _drop_what_cannot_be_written() -> None:
    """Let go of output that nobody takes, so that Python's exit doesn't try it again and fail."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(code: int, error: BaseException, message: str, hint: str) -> int:
    if "--debug" in sys.argv:
        logging.getLogger(__name__).error("%s", type(error).__name__, exc_info=error)
    try:
        if "--json" in sys.argv:
            print_json({"error": {"type": type(error).__name__, "message": message, "hint": hint}})
            sys.stdout.flush()
        else:
            click.echo(printable(f"ragfm: {message} {hint}".strip()), err=True)
    except OSError:  # standard output is what failed
        click.echo(printable(f"ragfm: {message} {hint}".strip()), err=True)
    return code


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__, prog_name="ragfm")
@click.pass_context
def ragfm(context: click.Context) -> None:
    """Cited answers over your own documents, with foundation models that you run yourself."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    logging.basicConfig(
        level=logging.DEBUG if "--debug" in sys.argv else logging.WARNING,
        format="ragfm: %(message)s",
        stream=sys.stderr,
    )
    for chatty in ("httpx", "httpcore", "urllib3", "filelock", "sentence_transformers", "transformers"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


for command in (*COMMANDS, adapt, chat, compare_command, evaluation, keys, log, mcp, models, serve, tune, watch):
    ragfm.add_command(command)
for command in (answers, bias):
    evaluation.add_command(command)
for command in (retriever_command, refresh_command, back_command):
    adapt.add_command(command)


@ragfm.command()
@click.argument("source", nargs=-1, type=FILLED)
@click.option(
    "--name", metavar="N", type=FILLED, help="What the documents' addresses begin with. Default: the location."
)
@click.option("--connector", metavar="C", type=FILLED, help="The connector plugin. Default: files, or web.")
@click.option("--include", multiple=True, metavar="GLOB", type=FILLED, help="Only files that match; may be repeated.")
@click.option("--exclude", multiple=True, metavar="GLOB", type=FILLED, help="No files that match; may be repeated.")
@click.option(
    "--option", multiple=True, metavar="K=V", help="An option of the connector; repeated, its values are a list."
)
@click.option("--tag", multiple=True, metavar="K=V", help="Metadata for all documents; may be repeated.")
@click.option(
    "--allow", multiple=True, metavar="GROUP", type=FILLED, help="Only this group may see them; may be repeated."
)
@click.option("--embedder", metavar="E", type=FILLED, help="The embedding model of a new collection.")
@click.option("--retry", is_flag=True, help="Try all that failed at once, however short ago that was.")
@click.option("--allow-mass-delete", is_flag=True, help="Remove what left a source, even where it is over half of it.")
@shared
def ingest(
    collection: str, as_json: bool, source: tuple[str, ...], embedder: str | None, **options: Any
) -> int:  # fmt: skip
    """Make the collection equal to its sources: folders, files, globs, addresses.

    Without SOURCE: the sources of ragfm.toml and those ingested before. Only what changed is parsed and embedded;
    what left a source leaves the collection.
    """
    if options["name"] and len(source) != 1:
        raise click.UsageError("--name goes with exactly one SOURCE.", click.get_current_context())
    given = {
        "name": options["name"],
        "connector": options["connector"],
        "include": options["include"] or None,
        "exclude": options["exclude"] or None,
        "options": _options(options["option"]) or None,
        "tags": dict(_pairs(options["tag"], "--tag")) or None,
        "allow": options["allow"] or None,
        "retry": options["retry"],
        "allow_mass_delete": options["allow_mass_delete"],
    }
    with open_collection(collection, embedder=embedder) as store, _progress_bar() as progress:
        report = store.sync(*dict.fromkeys(source), **given, progress=progress)
    if as_json:
        print_json(asdict(report))
    else:
        print_report(report)
    return SOME_FAILED if report.failed else OK


@ragfm.command()
@click.argument("query")
@k_option
@click.option(
    "--mode", type=click.Choice(["hybrid", "dense", "keyword"]), default="hybrid", show_default=True,
    help="By the meaning of embeddings, by words (BM25), or by both.",
)  # fmt: skip
@filtered
@shared
def search(collection: str, as_json: bool, query: str, k: int | None, mode: Any, filter: str | None) -> int:
    """Find the passages nearest to QUERY."""
    with open_collection(collection) as store, busy("searching"):
        hits = store.search(_not_empty(query, "query"), k, mode=mode, filter=filter)
    if as_json:
        print_json({"query": query, "hits": [hit_json(hit) for hit in hits]})
        return OK
    for rank, hit in enumerate(hits, 1):
        score = "" if hit.score is None else f"{hit.score:.3f}  "
        click.echo(f"{rank}. {score}{click.style(where(hit), bold=True)}\n{indented(hit.text)}\n")
    if not hits:
        click.echo("Nothing found.")
    return OK


@ragfm.command()
@click.argument("question")
@k_option
@reader_option
@adapter_option
@strategy_option
@filtered
@click.option("--schema", metavar="FILE", type=click.Path(exists=True, dir_okay=False), help="Answer with an object "
              "that meets this JSON schema.")  # fmt: skip
@shared
def ask(
    collection: str, as_json: bool, question: str, filter: str | None, schema: str | None, **options: Any
) -> int:  # fmt: skip
    """Answer QUESTION from the documents, with citations."""
    form = read_schema(schema) if schema else None
    with open_collection(collection) as store, busy("searching and reading"):
        rag = make_rag(store, options)
        if form is not None:
            extraction = rag.extract(_not_empty(question, "question"), form, filter=filter)
        else:
            answer = rag.ask(_not_empty(question, "question"), filter=filter)
    if form is not None:
        print_json(extraction_json(extraction)) if as_json else print_extraction(extraction)
    elif as_json:
        print_json(answer_json(answer))
    else:
        print_answer(answer)
    return OK


@ragfm.command()
@shared
def status(collection: str, as_json: bool) -> int:
    """Show what the collection holds, and what failed."""
    with open_collection(collection) as store:
        now = store.status()
    if as_json:
        print_json(asdict(now))
        return OK
    index = now.indexes[0]
    click.echo(f"{now.documents} documents, {now.chunks} chunks, generation {now.generation}")
    click.echo(f"embedder  {now.embedder['model']}, {now.embedder['dim']} dimensions")
    print_index(index, now.chunks)
    print_keywords(now.indexes[1])
    for source in now.sources:
        click.echo(f"source    {source['name']}  {source['documents']} documents by {source['connector']}")
    for failure in now.failed:
        click.echo(printable(f"failed    {failure.uri}  {failure.stage}: {failure.error}"))
    return OK


@ragfm.command()
@click.argument("uri", required=False)
@filtered
@shared
def documents(collection: str, as_json: bool, uri: str | None, filter: str | None) -> int:
    """List the documents, or print the text of the one at URI."""
    with open_collection(collection) as store:
        if uri is not None:
            document = store.document(uri)
            shown = {key: value for key, value in asdict(document).items() if key != "marks"}
            print_json(shown) if as_json else click.echo(printable(document.text))
            return OK
        infos = store.documents(filter)
    if as_json:
        print_json({"documents": [asdict(info) for info in infos]})
    for info in infos if not as_json else ():
        click.echo(
            printable(repr(info.uri)[1:-1]) + f"  {info.media_type}, {info.characters} characters, {info.chunks} chunks"
        )
    return OK


@ragfm.command()
@json_option
def plugins(as_json: bool) -> int:
    """List the connectors, embedders, indexes and readers that are installed."""
    from ragfm.core.registry import KINDS
    from ragfm.core.registry import plugins as installed

    if as_json:
        print_json({kind: {name: point.value for name, point in installed(kind).items()} for kind in KINDS})
        return OK
    for kind in KINDS:
        for name, point in installed(kind).items():
            click.echo(f"{kind:<11} {name:<22} {point.value}")
    return OK


@ragfm.command()
@click.argument("folder", default="ragfm-demo", type=click.Path(file_okay=False))
@json_option
@debug_option
def demo(folder: str, as_json: bool) -> int:
    """Ingest a sample handbook into FOLDER and answer three questions about it.

    Change a fact in FOLDER/handbook and run it again: the answers change with it.
    """
    from ragfm.rag import Rag
    from ragfm.samples import QUESTIONS, copy_handbook

    handbook = copy_handbook(folder)
    with open_collection(os.path.join(folder, ".ragfm")) as store:  # noqa: PTH118
        with _progress_bar() as progress:
            report = store.sync(handbook, progress=progress)
        if not as_json:
            print_report(report)
        rag = Rag(store)
        answers = []
        for question in QUESTIONS:
            if not as_json:
                click.echo(f"\n{click.style(question, bold=True)}")
            with busy("reading"):
                answers.append(rag.ask(question))
            if not as_json:
                print_answer(answers[-1])
    if as_json:
        print_json({"ingest": asdict(report), "answers": [answer_json(answer) for answer in answers]})
    else:
        store_folder = os.path.join(folder, ".ragfm")  # noqa: PTH118
        click.echo(
            f"\nThe documents are in {handbook}. Ask your own question, or chat in a browser:\n\n"
            f"    ragfm ask -c {store_folder} 'What is the wifi password?'\n"
            f"    ragfm serve -c {store_folder} --no-auth"
        )
    return SOME_FAILED if report.failed else OK


# --- Inside ------------------------------------------------------------------------------------------------------


@contextmanager
def _progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal: documents, chunks per second, time left."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from tqdm import tqdm

    start = monotonic()
    with tqdm(unit="doc", file=sys.stderr, leave=False, dynamic_ncols=True) as bar:
        bar.set_postfix_str("looking, and loading the model …")

        def show(progress: Progress) -> None:
            bar.total = progress.total
            bar.n = progress.documents
            rate = progress.chunks / max(monotonic() - start, 1e-9)
            waiting = f", {progress.waiting} waiting" if progress.waiting else ""
            bar.set_postfix_str(f"{progress.chunks} chunks, {rate:.0f}/s{waiting}", refresh=False)
            bar.refresh()

        yield show


def _pairs(texts: tuple[str, ...], option: str) -> Iterator[tuple[str, str]]:
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE.", param_hint=option)
        yield key.strip(), value.strip()


def _options(texts: tuple[str, ...]) -> Mapping[str, str | list[str]]:
    values: dict[str, list[str]] = {}
    for key, value in _pairs(texts, "--option"):
        values.setdefault(key, []).append(value)
    return {key: given[0] if len(given) == 1 else given for key, given in values.items()}


def _not_empty(text: str, what: str) -> str:
    if not text.strip():
        raise click.UsageError(f"The {what} is empty.", click.get_current_context())
    return text
