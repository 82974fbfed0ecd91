"""`ragfm restore`."""

from __future__ import annotations

from dataclasses import asdict

import click

from ragfm.cli.options import collection_options
from ragfm.cli.output import print_json, print_note, print_text
from ragfm.cli.progress_bar import show_progress
from ragfm.collection import Collection
from ragfm.core.text import counted


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@collection_options
def restore(collection: str, as_json: bool, file: str) -> None:
    """Create a collection from the backup FILE."""
    with Collection.open(collection) as store, show_progress("bytes") as progress:
        report = store.restore(file, progress=progress)
    if as_json:
        print_json(asdict(report))
        return
    print_text(f"Restored {counted(document=report.documents, chunk=report.chunks)} to {report.path}.")
    for name in report.absent:
        print_note(f"The location of the source {name} does not exist here; its documents are kept as they are.")
