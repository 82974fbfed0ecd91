"""`ragfm copy`."""

from __future__ import annotations

from dataclasses import asdict

import click

from ragfm.cli.options import NON_EMPTY, json_options
from ragfm.cli.output import print_result
from ragfm.cli.progress_bar import show_progress
from ragfm.core.text import counted


@click.command()
@click.argument("source", type=NON_EMPTY)
@click.argument("target", type=NON_EMPTY)
@json_options
def copy(as_json: bool, source: str, target: str) -> None:
    """Copy a collection from a folder to PostgreSQL, back, or between databases. TARGET must not exist.

    Nothing is embedded, and the copy is verified. If it was interrupted, run the command again to continue.
    """
    from ragfm.collection import Collection

    with Collection.open(source) as store, show_progress("rows") as progress:
        report = store.copy(target, progress)
    text = (
        f"Copied {counted(document=report.documents, chunk=report.chunks)} of generation {report.generation} to "
        f"{report.location}, and verified them."
    )
    print_result(asdict(report), text, as_json=as_json)
