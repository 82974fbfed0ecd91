"""`ragfm adapt retriever`: the embedder or a reranker taught on your own questions."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.eval import check_options, data_options, load_data, opened
from ragfm.cli.options import FILLED, OK, counting, shared
from ragfm.cli.output import print_json, printable

if TYPE_CHECKING:
    from ragfm.training.retriever_training import RetrieverReport


@click.command("retriever")
@click.argument("questions", type=click.Path(exists=True))
@click.option("--part", default="embedder", show_default=True, type=click.Choice(["embedder", "reranker"]),
              help="What learns: the model that embeds, or one that ranks anew what was found.")  # fmt: skip
@click.option("--base", default="bundled", show_default=True, metavar="NAME", type=FILLED,
              help="The model that it starts from; a reranker may start from an embedder, too.")  # fmt: skip
@click.option("--epochs", default=3, show_default=True, type=click.IntRange(min=1), help="How often each question is "
              "seen; the epoch that is best by questions held out is kept.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=2), metavar="N", help="Questions of a step. Default: 32, and 8 for a "
              "reranker.")  # fmt: skip
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="The highest learning rate. Default: 3e-5, "
              "and 5e-5 for a reranker.")  # fmt: skip
@click.option("--negatives", type=click.IntRange(min=0), metavar="N", help="Hard negatives of a question. Default: 1, "
              "and 4 for a reranker.")  # fmt: skip
@click.option("--held", default=0.3, show_default=True, type=click.FloatRange(0.02, 0.8), metavar="SHARE",
              help="How many questions nothing is learned from: half of them choose, the others test.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only N of the questions, picked at random.")
@click.option("--seed", default=0, show_default=True, help="Of all that is random.")
@data_options
@click.option("--out", default="ragfm-retriever", show_default=True, metavar="DIR", type=FILLED,
              help="The model's folder; a second run goes on there.")  # fmt: skip
@shared
def retriever_command(collection: str, as_json: bool, questions: str, out: str, **options: Any) -> int:
    """Teach the embedder, or a reranker, to find what QUESTIONS should find, and measure whether that has paid.

    QUESTIONS is what `ragfm eval retrieval` takes. Hard negatives are what a search finds instead. Nothing of the
    collection changes; how the result is adopted is said at the end.
    """
    # See `ragfm adapt train`.
    os.environ.setdefault("GOMP_SPINCOUNT", "300")
    from ragfm.training.hard_negatives import parted
    from ragfm.training.retriever_training import RetrieverSettings, adapt_retriever

    loaded = load_data(questions, options)
    check_options(loaded, options)
    names = ("part", "base", "epochs", "batch", "rate", "negatives", "seed")
    settings = RetrieverSettings(**{name: options[name] for name in names})
    parts = parted(loaded.questions, options["held"], options["seed"])
    with opened(loaded, collection, {**options, "mode": "hybrid"}) as (handle, _, _):
        try:
            with stages() as progress:
                report = adapt_retriever(handle, parts, out, settings, progress=progress)
        except KeyboardInterrupt:
            click.echo(printable(f"what was learned is kept in {out}, and the same command goes on there"), err=True)
            raise
    if as_json:
        print_json({**asdict(report), "better": report.better, "out": out})
    else:
        _print(report, out)
    return OK


# --- Inside ------------------------------------------------------------------------------------------------------


def _print(report: RetrieverReport, out: str) -> None:
    counts, numbers, first = report.questions, report.numbers, report.differences[0]
    click.echo(f"learned from {counts['learn']} questions ({report.lessons} passages), chosen by {counts['choose']}, "
               f"tested on {counts['test']}")  # fmt: skip
    click.echo(f"loss {numbers['loss']['first']:.3f} → {numbers['loss']['last_5']:.3f} in {numbers['steps']} steps, "
               f"{numbers['seconds']:.0f} s; epoch {numbers['kept_epoch']} is kept")  # fmt: skip
    click.echo(f"\n{'':<16}{'before':>8}{'after':>8}  {'difference, 95 %':<26}{'p':>8}")
    for prefix, rows in (("", report.differences), ("dense, ", report.dense[:1])):
        for row in rows:
            interval = f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
            click.echo(f"{prefix + row.measure:<16}{row.a:>8.3f}{row.b:>8.3f}  {interval:<26}{row.p:>8.4f}")
    if report.better:
        click.echo("\nIt finds better, beyond noise. To adopt it:")
    elif first.noise:
        click.echo(f"\nBy {first.measure} the change is within noise: there is no reason to adopt it. If you want to:")
    else:
        click.echo(f"\nBy {first.measure} it finds worse. Don't adopt it; if you want to all the same:")
    place = str(Path(out).absolute())
    if report.weight is None:
        click.echo(printable(f"    ragfm reembed --embedder {shlex.quote(place)}"))
    else:
        reranker = json.dumps(place, ensure_ascii=False)
        click.echo(
            printable(f"    [search]  # in ragfm.toml\n    reranker = {reranker}\n    rerank_weight = {report.weight}")
        )


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each thing that is done, one after the other."""
    units = {"learning": "steps", "embedding": "documents"}
    with ExitStack() as stack:
        bars: dict[str, Callable[[int, int], None]] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in bars:
                stack.close()
                bars.clear()
                bars[what] = stack.enter_context(counting(what, units.get(what, "questions")))
            bars[what](done, total)

        yield show
