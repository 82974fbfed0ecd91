"""The commands that evaluate: how well a collection finds, and whether one run is better than another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.options import FILLED, INTERRUPTED, OK, SOME_FAILED, counting, shared
from ragfm.cli.output import print_json, printable

if TYPE_CHECKING:
    from ragfm.collection import Collection
    from ragfm.evaluation import Comparison, Estimate, QuestionSet, RetrievalReport, TimedEmbedder
    from ragfm.ingestion.sync import SyncReport
    from ragfm.retrieval.search import Mode

_FILE = click.Path(dir_okay=False)


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how data is read, and what becomes of the documents that it brings."""
    for option in (
        click.option("--keep", metavar="DIR", type=FILLED,
                     help="Keep the collection there, of data that brings documents."),
        click.option("--embedder", metavar="E", type=FILLED,
                     help="The embedding model, of data that brings its documents."),
        click.option("--distractors", multiple=True, metavar="FILE", type=click.Path(exists=True, dir_okay=False),
                     help="SQuAD: a file whose paragraphs are searched too; may be repeated."),
        click.option("--articles", is_flag=True,
                     help="SQuAD: whole articles are documents, and answers are to be found."),
        click.option("--split", metavar="NAME", help="Which qrels of a BEIR folder. Default: test."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group("eval")
def evaluation() -> None:
    """Measure how well it finds, and compare runs."""


@evaluation.command()
@click.argument("data", type=click.Path(exists=True))
@click.option("--mode", type=click.Choice(["hybrid", "dense", "keyword"]), default="hybrid", show_default=True,
              help="Which indexes to ask.")  # fmt: skip
@click.option("-k", type=click.IntRange(min=10), default=100, show_default=True, metavar="N",
              help="How many places of each ranking count.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only N of the questions, picked at random.")
@click.option("--seed", default=0, show_default=True, help="Which ones --limit picks.")
@data_options
@click.option("--out", metavar="FILE", type=_FILE, help="Write each question there; a second run goes on with it.")
@click.option("--report", metavar="FILE", type=_FILE, help="Write an HTML page.")
@shared
def retrieval(collection: str, as_json: bool, data: str, report: str | None, **options: Any) -> int:
    """Ask all questions of DATA, and measure what is found, and how fast.

    DATA is a BEIR folder or a SQuAD file, which bring their documents, or a JSONL file with a question and the uri that
    it should find in each line, about the collection. docs/evaluation.md has the formats and the measures.
    """
    from ragfm.evaluation import write_html

    loaded = load_data(data, options)
    check_options(loaded, options)
    with opened(loaded, collection, options) as (handle, stopwatch, synced):
        evaluated = _asked(handle, loaded, stopwatch, options)
        if report:
            write_html(evaluated, report, handle)
    if as_json:
        print_json(_as_json(evaluated, synced, options["out"], report))
    else:
        _print_evaluation(evaluated, synced)
        tell_written(options["out"], report)
    return exit_code(synced, "asked" if evaluated.stopped else None, options["out"])


@evaluation.command()
@click.argument("a", type=click.Path(exists=True, dir_okay=False))
@click.argument("b", type=click.Path(exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks and what is going on.")
def compare(a: str, b: str, as_json: bool) -> int:
    """Tell whether run B is better than run A, question by question; both were written with --out."""
    from ragfm.evaluation import compare_runs

    compared = compare_runs(a, b)
    if as_json:
        print_json({**asdict(compared), "settings": compared.settings})
    else:
        _print_comparison(compared)
    return OK


def load_data(
    path: str, options: Mapping[str, Any], *, answers: bool = False, by_document: bool = False
) -> QuestionSet:
    """The questions of a path, as many as --limit says; `by_document`: those about the same ones."""
    from ragfm.evaluation import load_questions

    given = {name: options[name] for name in ("split", "articles", "distractors")}
    loaded = load_questions(path, **given, answers=answers)
    limit = options["limit"]
    return loaded.sample(limit, options["seed"], by_document=by_document) if limit else loaded


def check_options(data: QuestionSet | None, options: Mapping[str, Any]) -> None:
    """Raise UsageError for options that go with another kind of data; None is data that is in the collection."""
    context = click.get_current_context()
    if data is None or data.documents is None:
        for name in ("embedder", "keep"):
            if options[name]:
                raise click.UsageError(f"--{name} goes with data that brings its documents.", context)
    elif context.get_parameter_source("collection") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("This data brings its documents; use --keep instead of -c.", context)


@contextmanager
def opened(
    data: QuestionSet | None, path: str, options: Mapping[str, Any]
) -> Iterator[tuple[Collection, TimedEmbedder | None, SyncReport | None]]:
    """The collection to ask: that at `path`, or one made of the data's documents with the settings that hold there."""
    from ragfm.collection import Collection
    from ragfm.core.config import load_settings
    from ragfm.embedders import load_embedder
    from ragfm.evaluation import TimedEmbedder, corpus_collection

    settings = load_settings(Path(path).absolute().parent, embedder=options["embedder"])
    folder, synced, stopwatch = Path(path), None, None
    with ExitStack() as stack:
        if data is not None and data.documents is not None:
            with counting("ingesting", "documents") as show:
                made = corpus_collection(
                    data, settings, keep=options["keep"], progress=lambda now: show(now.documents, now.total)
                )
                folder, synced = stack.enter_context(made)
        if options["mode"] != "keyword":
            with Collection.open(folder, settings=settings) as collection:
                stopwatch = TimedEmbedder(load_embedder(str(collection.status().embedder["embedder"])))
        handle = stack.enter_context(Collection.open(folder, settings=settings, embedder=stopwatch))
        yield handle, stopwatch, synced


def about_data(data: QuestionSet, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's file says of the questions."""
    picked = {"limit": options["limit"], "seed": options["seed"]} if options["limit"] else {}
    return {"data": data.name, "left_out": dict(data.left_out), **picked}


@contextmanager
def resumable(doing: str, done: str, out: str | None) -> Iterator[Callable[[int, int], None]]:
    """How far a run is; after a Ctrl-C, where what was done is kept."""
    try:
        with counting(doing, "questions") as progress:
            yield progress
    except KeyboardInterrupt:
        tell_kept(done, out)
        raise


def exit_code(synced: SyncReport | None, stopped: str | None, out: str | None) -> int:
    """Of a run; where a Ctrl-C `stopped` it, so that not all was asked (or answered), what there is of it is said."""
    if stopped:
        tell_kept(stopped, out)
        return INTERRUPTED
    return SOME_FAILED if synced and synced.failed else OK


def tell_kept(done: str, out: str | None) -> None:
    """Where what was done is kept, on standard error."""
    kept = f"what was {done} is kept in {out}, and the same command goes on there"
    click.echo(printable(kept if out else f"with --out FILE, what was {done} would be kept"), err=True)


def tell_written(*paths: str | None) -> None:
    """Which files were written, on standard error."""
    for path in filter(None, paths):
        click.echo(printable(f"written: {path}"), err=True)


def tell_failures(questions: Sequence[tuple[str, str]], synced: SyncReport | None) -> None:
    """Which questions, as (id, error), could not be asked, and which documents not ingested, on standard error."""
    if questions:
        first, error = questions[0]
        click.echo(printable(f"{len(questions)} questions could not be asked: {first}: {error}"), err=True)
    for failure in synced.failed if synced else ():
        click.echo(printable(f"failed {failure.uri} ({failure.stage}): {failure.error}"), err=True)


# --- Inside ------------------------------------------------------------------------------------------------------


def _asked(
    collection: Collection, data: QuestionSet, stopwatch: TimedEmbedder | None, options: Mapping[str, Any]
) -> RetrievalReport:
    from ragfm.evaluation import evaluate_retrieval

    mode: Mode = options["mode"]
    with resumable("asking", "asked", options["out"]) as progress:
        return evaluate_retrieval(
            collection, data.questions, mode=mode, k=options["k"], out=options["out"], about=about_data(data, options),
            stopwatch=stopwatch, progress=progress, partial=True,
        )  # fmt: skip


def _as_json(
    evaluated: RetrievalReport, synced: SyncReport | None, out: str | None, report: str | None
) -> dict[str, Any]:  # fmt: skip
    from ragfm.evaluation import first_ranks

    return {
        **evaluated.about,
        **{name: {key: asdict(value) for key, value in getattr(evaluated, name).items()}
           for name in ("measures", "latency_ms", "embed_ms")},
        "first_rank": first_ranks(evaluated.results),
        "missing": list(evaluated.missing),
        "failed": [{"id": result.id, "error": result.error} for result in evaluated.results if result.error],
        "done": len(evaluated.results),
        "ingest": asdict(synced) if synced else None,
        "out": out,
        "report": report,
    }  # fmt: skip


def _print_evaluation(evaluated: RetrievalReport, synced: SyncReport | None) -> None:
    from ragfm.evaluation import first_ranks, summary

    click.echo(printable(f"{evaluated.about['data']}: {summary(evaluated)}"))
    if synced and synced.chunks:
        click.echo(f"{synced.chunks} chunks embedded in {synced.seconds:.1f} s")
    click.echo("")
    print_estimates(evaluated.measures, 3)
    click.echo("\n" + "  ".join(f"{rank}: {count}" for rank, count in first_ranks(evaluated.results).items())
               + "  (questions by the rank of the first that should be found)")  # fmt: skip
    for what, times in (("search, ms", evaluated.latency_ms), ("of it embedding, ms", evaluated.embed_ms)):
        if times:
            click.echo(f"\n{what}")
            print_estimates(times, 1)
    if evaluated.missing:
        some = ", ".join(evaluated.missing[:3]) + (", …" if len(evaluated.missing) > 3 else "")
        count = len(evaluated.missing)
        click.echo(printable(f"{count} of the documents to be found not in the collection: {some}"), err=True)
    tell_failures([(result.id, result.error) for result in evaluated.results if result.error], synced)


def print_estimates(estimates: Mapping[str, Estimate], digits: int) -> None:
    """A line for each, with its interval."""
    width = max((len(name) for name in estimates), default=0)
    for name, value in estimates.items():
        numbers = (f"{number:>8.{digits}f}" for number in (value.value, value.low, value.high))
        first, low, high = numbers
        click.echo(f"  {name:<{max(width, 12)}}{first}   [{low.strip()}, {high.strip()}]")


def _print_comparison(compared: Comparison) -> None:
    only = f"; {compared.only_a} only in A, {compared.only_b} only in B" if compared.only_a or compared.only_b else ""
    click.echo(f"{compared.questions} questions{only}")
    for key, (a, b) in compared.settings.items():
        click.echo(printable(f"{key}: {_short(a)} in A, {_short(b)} in B"))
    click.echo(f"\n{'':<12}{'A':>8}{'B':>8}{'B - A':>9}  {'95 % interval':<18}{'p':>8}  better / worse / same in B")
    for row in compared.differences:
        interval = f"[{row.low:+.3f}, {row.high:+.3f}]"
        verdict = "within noise" if row.noise else "B is better" if row.difference > 0 else "A is better"
        click.echo(f"{row.measure:<12}{row.a:>8.3f}{row.b:>8.3f}{row.difference:>+9.3f}  {interval:<18}{row.p:>8.4f}  "
                   f"{row.wins} / {row.losses} / {row.ties}  {verdict}")  # fmt: skip
    if compared.changed:
        click.echo(f"\nmost changed by {compared.differences[0].measure}:")
    for change in compared.changed:
        click.echo(printable(f"  {change.a:.2f} → {change.b:.2f}  {' '.join(change.question.split())}  ({change.id})"))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
