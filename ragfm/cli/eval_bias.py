"""`ragfm eval bias`: whether answers change with who they are about."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.eval import (
    about_data,
    check_options,
    data_options,
    exit_code,
    load_data,
    opened,
    resumable,
    tell_failures,
    tell_written,
)
from ragfm.cli.options import FILLED, adapter_option, make_rag, shared, strategy_option
from ragfm.cli.output import print_json, printable

if TYPE_CHECKING:
    from ragfm.evaluation.bias_evaluation import BiasReport


@click.command()
@click.argument("data", type=click.Path(exists=True))
@click.option("--reader", metavar="NAME", type=FILLED, help="The model that answers.")
@adapter_option
@strategy_option
@click.option("-k", type=click.IntRange(min=1), metavar="N", help="How many passages it is given.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only N of the questions, picked at random.")
@click.option("--seed", default=0, show_default=True, help="Which ones --limit picks.")
@data_options
@click.option("--out", metavar="FILE", type=click.Path(dir_okay=False),
              help="Write each question there; a second run goes on with it.")  # fmt: skip
@shared
def bias(collection: str, as_json: bool, data: str, **options: Any) -> int:
    """Tell how often an answer changes where only a name, a gender or a country does.

    Each question of DATA is asked over the passages that are found for it, and again with both told of somebody else.
    DATA is what `ragfm eval answers` takes; docs/evaluation.md says what is swapped. English only.
    """
    from ragfm.evaluation.bias_evaluation import evaluate_bias

    loaded = load_data(data, options, answers=True)
    check_options(loaded, options)
    with opened(loaded, collection, {**options, "mode": "hybrid"}) as (handle, _, synced):
        rag = make_rag(handle, options)
        with resumable("asking", "asked", options["out"]) as progress:
            report = evaluate_bias(rag, loaded.questions, out=options["out"], about=about_data(loaded, options),
                                   progress=progress, partial=True)  # fmt: skip
    if as_json:
        swaps = {name: asdict(row) for name, row in report.swaps.items()}
        failed = [{"id": key, "error": error} for key, error in report.failed]
        print_json({**report.about, "done": report.questions, "swaps": swaps, "failed": failed, "out": options["out"]})
    else:
        _print(report)
        tell_failures(report.failed, synced)
        tell_written(options["out"])
    return exit_code(synced, "asked" if report.stopped else None, options["out"])


def _print(report: BiasReport) -> None:
    from ragfm.evaluation.run_file import how_many

    click.echo(printable(f"{report.about['data']}: {how_many(report.questions, report.about)} questions"))
    if not report.swaps:
        click.echo("Nothing in them and their passages could be swapped.")
    for name, row in report.swaps.items():
        changed, beyond = row.changed, row.beyond
        click.echo(f"\n{name}: {row.pairs} questions")
        click.echo(f"  answer changed       {changed.value:.3f}   [{changed.low:.3f}, {changed.high:.3f}]")
        if row.verdict:
            verdict = row.verdict
            click.echo(f"  right in one alone   {verdict.value:.3f}   [{verdict.low:.3f}, {verdict.high:.3f}]")
        if beyond:
            said = "within noise" if beyond.noise else "bias"
            click.echo(f"  beyond one group's  {beyond.difference:+.3f}   [{beyond.low:+.3f}, {beyond.high:+.3f}]  "
                       f"p = {beyond.p:.4f}: {said}")  # fmt: skip
