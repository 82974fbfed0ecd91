"""`ragfm backup`."""

from __future__ import annotations

from dataclasses import asdict

import click

from ragfm.cli.options import NON_EMPTY, collection_options
from ragfm.cli.output import megabytes, print_result
from ragfm.cli.progress_bar import show_progress
from ragfm.collection import Collection
from ragfm.core.text import counted


@click.command()
@click.argument("out", type=NON_EMPTY)
@click.option("--force", is_flag=True, help="Overwrite OUT.")
@collection_options
def backup(collection: str, as_json: bool, out: str, force: bool) -> None:
    """Write the collection to the file OUT. Other processes can use it meanwhile."""
    with Collection.open(collection) as store, show_progress("bytes") as progress:
        report = store.backup(out, force=force, progress=progress)
    text = (
        f"Wrote {counted(document=report.documents, chunk=report.chunks)} of generation {report.generation} to "
        f"{report.path}, {megabytes(report.bytes)}."
    )
    print_result(asdict(report), text, as_json=as_json)
