"""`ragfm remove`."""

from __future__ import annotations

from dataclasses import asdict

import click

from ragfm.cli.options import NON_EMPTY, collection_options
from ragfm.cli.output import print_json, print_text
from ragfm.collection import Collection
from ragfm.core.text import counted


@click.command()
@click.argument("name", metavar="SOURCE|DOCUMENT", type=NON_EMPTY)
@collection_options
def remove(collection: str, as_json: bool, name: str) -> None:
    """Remove a source with all its documents, or one document, by name or URI."""
    with Collection.open(collection) as store:
        report = store.remove(name)
    if as_json:
        print_json(asdict(report))
    elif report.uri is not None:
        print_text(f"Removed {report.uri}, {counted(chunk=report.chunks)}.")
        print_text(
            f"The next ingest of {report.source} adds it again, unless it is deleted there or excluded with --exclude."
        )
    else:
        print_text(f"Removed {report.source}: {counted(document=report.documents, chunk=report.chunks)}.")
        if report.listed:
            print_text("The source is listed in ragfm.toml: delete it there, or the next `ragfm ingest` adds it again.")
