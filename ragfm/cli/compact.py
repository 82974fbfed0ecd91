"""`ragfm compact`."""

from __future__ import annotations

from dataclasses import asdict

import click

from ragfm.cli.options import collection_options
from ragfm.cli.output import megabytes, print_result
from ragfm.cli.progress_bar import show_progress
from ragfm.collection import Collection
from ragfm.core.text import counted


@click.command()
@collection_options
def compact(collection: str, as_json: bool) -> None:
    """Free the space of removed documents. Searches continue meanwhile."""
    with Collection.open(collection) as store, show_progress("chunks") as progress:
        store.status()  # raises an error if there is no collection, rather than creating one
        report = store.compact(progress=progress)
    text = (
        f"Deleted {counted(document=report.documents, chunk=report.chunks, vector=report.vectors)} "
        f"of older generations: {megabytes(report.bytes_before)} before, {megabytes(report.bytes_after)} now."
    )
    print_result(asdict(report), text, as_json=as_json)
