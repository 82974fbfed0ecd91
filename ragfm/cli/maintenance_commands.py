"""`ragfm compact`, `backup`, `restore`, `copy` and `reembed`."""

from __future__ import annotations

import os
from dataclasses import asdict

import click

from ragfm.cli.options import (
    NON_EMPTY,
    collection_options,
    json_options,
    text_option,
)
from ragfm.cli.output import megabytes, print_json, print_note, print_result, print_text
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


@click.command()
@click.argument("source", type=NON_EMPTY)
@click.argument("target", type=NON_EMPTY)
@json_options
def copy(as_json: bool, source: str, target: str) -> None:
    """Copy a collection from a folder to PostgreSQL, back, or between databases. TARGET must not exist.

    Nothing is embedded, and the copy is verified. If it is interrupted, nothing is left at TARGET.
    """
    with Collection.open(source) as store, show_progress("rows") as progress:
        report = store.copy(target, progress)
    text = (
        f"Copied {counted(document=report.documents, chunk=report.chunks)} of generation {report.generation} to "
        f"{report.location}, and verified them."
    )
    print_result(asdict(report), text, as_json=as_json)


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
