"""`ragfm reembed`."""

from __future__ import annotations

import os
from dataclasses import asdict

import click

from ragfm.cli.options import collection_options, text_option
from ragfm.cli.output import print_note, print_result
from ragfm.cli.progress_bar import show_progress
from ragfm.collection import Collection
from ragfm.core.text import counted


@click.command()
@text_option("--embedder", required=True, metavar="E", help="Embedding model to switch to.")
@collection_options
def reembed(collection: str, as_json: bool, embedder: str) -> None:
    """Re-embed all chunks with a different model; searches use the old one until all are done."""
    with Collection.open(collection) as store, show_progress("documents") as progress:
        store.status()  # raises an error if there is no collection, rather than creating one
        report = store.reembed(embedder, progress=progress)
        configured = store.settings.embedder if "embedder" in store.settings.model_fields_set else embedder
    text = (
        f"{counted(chunk=report.chunks)} at generation {report.generation}, {report.embedded} embedded in "
        f"{report.seconds:.1f} s"
    )
    print_result(asdict(report), text, as_json=as_json)
    if configured != embedder:
        place = "The environment variable RAGFM_EMBEDDER" if "RAGFM_EMBEDDER" in os.environ else "ragfm.toml"
        print_note(
            f'{place} sets a different embedder, {configured}. Change it to embedder = "{embedder}", or the collection '
            "cannot be opened."
        )
