"""`ragfm export`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from ragfm.cli.options import NON_EMPTY, collection_options, filter_option, usage_error
from ragfm.cli.output import print_json, print_text
from ragfm.cli.progress_bar import show_progress
from ragfm.collection import Collection
from ragfm.core.text import counted


@click.command()
@click.argument("out", required=False, type=NON_EMPTY)
@filter_option
@click.option("--vectors", is_flag=True, help="Include the vectors of the chunks.")
@collection_options
def export(collection: str, as_json: bool, out: str | None, filter: str | None, vectors: bool) -> None:
    """Write all documents with their chunks to OUT, or to standard output, as JSON lines."""
    to_stdout = out in (None, "-")
    if to_stdout and as_json:
        usage_error("--json requires OUT: standard output has the report.")
    target = sys.stdout.buffer if to_stdout else Path(str(out))
    with Collection.open(collection) as store, show_progress("documents") as progress:
        report = store.export(target, filter=filter, vectors=vectors, progress=progress)
    if as_json:
        print_json({"path": out, "format": "jsonl", **asdict(report)})
    elif not to_stdout:
        print_text(
            f"Exported {counted(document=report.documents, chunk=report.chunks)} "
            f"of generation {report.generation} to {out}."
        )
