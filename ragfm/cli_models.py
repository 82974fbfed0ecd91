"""`ragfm models …`: what the models do on this machine."""

from __future__ import annotations

from dataclasses import asdict

import click

from ragfm.cli_options import FILLED, OK
from ragfm.errors import UnsupportedError
from ragfm.show import print_json, printable


@click.group()
def models() -> None:
    """See what the models do on this machine."""


@models.command()
@click.option("--embedder", default="bundled", show_default=True, metavar="E", type=FILLED, help="The embedding model.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks and what is going on.")
def bench(embedder: str, as_json: bool) -> int:
    """Measure the forms of an embedding model, and remember the fastest for `ragfm ingest`.

    A form must give every text of the sample a vector with a cosine of at least 0.999 to that of fp32.
    """
    from ragfm.embed import SentenceTransformerEmbedder, load_embedder
    from ragfm.embed.choice import fastest, machine

    model = load_embedder(embedder)
    if not isinstance(model, SentenceTransformerEmbedder):
        raise UnsupportedError(f"The embedder {embedder} has one form only.", "There is nothing to choose.")
    results = model.measure()
    chosen = fastest(results)
    if as_json:
        rows = [{**asdict(result), "chosen": result.form == chosen} for result in results]
        print_json({"embedder": embedder, "machine": machine(), "forms": rows})
        return OK
    click.echo(f"{'form':<12} {'texts/s':>8} {'tokens/s':>9} {'lowest cosine':>14}")
    for result in results:
        if result.error:
            click.echo(printable(f"{result.form:<12} {result.error}"))
            continue
        mark = "  chosen" if result.form == chosen else ""
        click.echo(
            f"{result.form:<12} {result.texts_per_second:>8.1f} {result.tokens_per_second:>9.0f} "
            f"{result.lowest_cosine:>14.6f}{mark}"
        )
    return OK
