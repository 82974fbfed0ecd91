"""`ragfm compare`: readers, adapters and numbers of passages on the same questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.eval import check_options, data_options, load_data, opened, tell_failures, tell_written
from ragfm.cli.options import FILLED, INTERRUPTED, OK, SOME_FAILED, counting, shared
from ragfm.cli.output import print_json, printable

if TYPE_CHECKING:
    from ragfm.evaluation import Contender, Entry
    from ragfm.ingestion.sync import SyncReport


@click.command("compare")
@click.argument("data", type=click.Path(exists=True))
@click.option("--reader", "readers", multiple=True, metavar="NAME", type=FILLED, help="A model that answers; may be "
              "repeated. Default: the collection's.")  # fmt: skip
@click.option("--adapter", "adapters", multiple=True, metavar="DIR", type=FILLED, help="An adapter, or `none`; may be "
              "repeated. Default: for the collection's reader that of ragfm.toml.")  # fmt: skip
@click.option("-k", "ks", multiple=True, type=click.IntRange(min=1), metavar="N", help="How many passages; may be "
              "repeated.")  # fmt: skip
@click.option("--strategy", "strategies", multiple=True, metavar="NAME|FILE", type=FILLED, help="How the reader is "
              "asked; may be repeated.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only N of the questions, picked at random.")
@click.option("--seed", default=0, show_default=True, help="Which ones --limit picks.")
@data_options
@click.option("--price-per-hour", type=click.FloatRange(min=0), metavar="P", help="What an hour of this machine costs, "
              "for the cost of 1,000 answers.")  # fmt: skip
@click.option("--out", default="ragfm-compare", show_default=True, metavar="DIR", type=FILLED,
              help="Where the runs are kept; a second one goes on there.")  # fmt: skip
@click.option("--report", metavar="FILE", type=click.Path(dir_okay=False), help="Write an HTML page.")
@shared
def compare_command(
    collection: str, as_json: bool, data: str, out: str, report: str | None, **options: Any
) -> int:  # fmt: skip
    """Answer the questions of DATA by several readers, adapters, strategies and numbers of passages, and compare.

    All combinations are tried, each in a process of its own. DATA is what `ragfm eval answers` takes.
    """
    from ragfm.core.config import load_settings
    from ragfm.evaluation import compare_readers, contenders
    from ragfm.evaluation.comparison_report import write_comparison_html

    settings = load_settings(Path(collection).absolute().parent)
    readers = options["readers"] or [settings.reader]
    brings_documents = not data.endswith((".jsonl", ".jsonl.gz"))
    check_options(load_data(data, options, answers=True) if brings_documents else None, options)
    options["keep"] = options["keep"] or str(Path(out) / "collection")
    command = [data, *(["--keep", options["keep"]] if brings_documents else ["-c", collection])]
    for name in ("split", "embedder", "limit", "seed"):
        command += [f"--{name}", str(options[name])] if options[name] is not None else []
    command += ["--articles"] if options["articles"] else []
    command += [word for file in options["distractors"] for word in ("--distractors", file)]
    those = contenders(readers, options["adapters"], options["ks"], options["strategies"])
    if not options["adapters"]:
        those = [replace(one, adapter=settings.adapter) if one.reader == settings.reader else one for one in those]
    kept = printable(f"what was answered is kept in {out}, and the same command goes on there")
    synced = _ingested(data, collection, options) if brings_documents else None
    try:
        with _progress() as progress:
            entries = compare_readers(those, command, Path(out), price_per_hour=options["price_per_hour"],
                                      progress=progress, partial=True)  # fmt: skip
    except KeyboardInterrupt:
        click.echo(kept, err=True)
        raise
    asked = len(dict.fromkeys(those))
    stopped = len(entries) < asked
    if report:
        write_comparison_html(entries, report, Path(data).name)
    if as_json:
        print_json({"entries": [{**asdict(entry), "name": entry.contender.name} for entry in entries], "out": out,
                    "report": report, "stopped": stopped,
                    "ingest": asdict(synced) if synced else None})  # fmt: skip
    else:
        _print(entries)
        click.echo(printable(f"runs kept in {out}"), err=True)
        tell_failures([], synced)
        tell_written(report)
    if stopped:
        click.echo(f"stopped: {len(entries)} of {asked} are compared; {kept}", err=True)
        return INTERRUPTED
    return SOME_FAILED if any(entry.error for entry in entries) or (synced and synced.failed) else OK


# --- Inside ------------------------------------------------------------------------------------------------------


def _ingested(data: str, collection: str, options: Mapping[str, Any]) -> SyncReport:
    """Fill the collection that is kept, before anything is timed, so that no reader's peak memory has it in it.

    In a process of its own, since what this one takes counts for those that it starts, too.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_ingest, data, collection, options).result()


def _ingest(data: str, collection: str, options: Mapping[str, Any]) -> SyncReport:
    loaded = load_data(data, options, answers=True)
    with opened(loaded, collection, {**options, "mode": "keyword"}) as (_, _, synced):
        assert synced is not None
        return synced


@contextmanager
def _progress() -> Iterator[Callable[[Contender, int, int], None]]:
    """A bar for each contender, one after the other."""
    with ExitStack() as stack:
        shown: dict[Contender, Callable[[int, int], None]] = {}

        def show(one: Contender, done: int, total: int) -> None:
            if one not in shown:
                stack.close()
                shown[one] = stack.enter_context(counting(one.name, "questions"))
            shown[one](done, total)

        yield show


def _print(entries: list[Entry]) -> None:
    from ragfm.evaluation.comparison_report import QUALITY, remarks

    width = max(len(entry.contender.name) for entry in entries)
    licences = max(len(entry.licence or "not said") for entry in entries)
    click.echo(f"{'':<{width}}  {'F1, all':>22}" + "".join(f"{name:>23}" for name in QUALITY[1:])
               + f"{'p50 / p95 ms':>18}{'tokens':>13}{'MB':>7}{'per 1,000':>11}  "
               + f"{'licence':<{licences}}  data goes")  # fmt: skip
    for entry in entries:
        if entry.error:
            click.echo(printable(f"{entry.contender.name:<{width}}  {entry.error}"), err=True)
            continue
        shares = [entry.quality.get(name) for name in QUALITY]
        cells = [f"{v.value:.3f} [{v.low:.3f}, {v.high:.3f}]" if v else "-" for v in shares]
        times = f"{entry.latency_ms['p50'].value:.0f} / {entry.latency_ms['p95'].value:.0f}"
        tokens = f"{entry.prompt_tokens:.0f} + {entry.completion_tokens:.0f}"
        cost = "-" if entry.cost is None else f"{entry.cost:.3f}"
        click.echo(printable(
            f"{entry.contender.name:<{width}}  {cells[0]:>22}" + "".join(f"{cell:>23}" for cell in cells[1:])
            + f"{times:>18}{tokens:>13}{entry.peak_mb:>7}{cost:>11}  "
            + f"{entry.licence or 'not said':<{licences}}  {entry.data_goes}"
        ))  # fmt: skip
    for remark in remarks(entries):
        click.echo(printable(remark))
