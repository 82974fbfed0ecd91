"""`ragfm export`, `verify`, `compact`, `backup`, `restore`, `copy` and `reembed`."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

from ragfm.cli.options import (
    FAILED,
    NON_EMPTY,
    OK,
    collection_options,
    filter_option,
    json_options,
    text_option,
    usage_error,
)
from ragfm.cli.output import MAX_SKIPPED, megabytes, one_line, print_json, print_note, print_result, print_text
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


@click.command()
@click.option("--repair", is_flag=True, help="Rebuild what can be derived from the catalog, without embedding.")
@text_option("--salvage", metavar="OUT", help="Save the undamaged documents to a new collection OUT.")
@collection_options
def verify(collection: str, as_json: bool, repair: bool, salvage: str | None) -> int:
    """Check the collection for damage; exit code 1 if there is any."""
    if repair and salvage:
        usage_error("--repair and --salvage cannot be combined.")
    from ragfm.maintenance.salvage import salvage as save_documents

    saved = None
    with Collection.open(collection) as opened, show_progress("documents") as progress:
        report = opened.verify(repair=repair, progress=progress)
        if salvage is not None:
            saved = save_documents(opened.store, Path(salvage).absolute(), progress)
    code = FAILED if report.damaged else OK
    if as_json:
        value = {"damaged": report.damaged, **asdict(report)}
        print_json(value if saved is None else {**value, "salvaged": asdict(saved)})
        return code
    for repaired in report.mended:
        print_text(f"repair: {repaired}")
    for finding in report.findings:
        print_text(f"{finding.file}: {one_line(finding.what)}: expected {finding.expected}, found {finding.found}")
    if not report.damaged:
        print_text(
            f"No damage: {counted(document=report.documents, chunk=report.chunks, view=report.views)}, "
            f"generation {report.generation}, checked in {report.seconds:.1f} s."
        )
    if saved is not None:
        print_text(f"Saved {counted(document=saved.documents, chunk=saved.chunks)} to {saved.path}.")
        for left in saved.left:
            print_text(f"not saved: {one_line(left.uri or 'a document without a name')}: {left.why}")
    elif any(finding.file == "catalog.db" for finding in report.findings):
        print_text(
            f"The catalog is damaged. `ragfm verify --salvage OUT` can save {report.whole} of {report.documents} "
            "documents to a new collection."
        )
        for uri in report.lost[:MAX_SKIPPED]:
            print_text(f"lost: {one_line(uri)}")
    elif report.damaged:
        print_text("The catalog is undamaged. `ragfm verify --repair` rebuilds the rest from it, without embedding.")
    return code


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
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    metavar="N",
    help="Write a new file to the folder OUT, then delete all but the newest N backups of the collection there.",
)
@collection_options
def backup(collection: str, as_json: bool, out: str, force: bool, keep: int | None) -> None:
    """Write the collection to the file OUT. Other processes can use it meanwhile."""
    if force and keep:
        usage_error("--force and --keep cannot be combined.")
    with Collection.open(collection) as store, show_progress("bytes") as progress:
        report = store.backup(out, force=force, keep=keep, progress=progress)
    text = (
        f"Wrote {counted(document=report.documents, chunk=report.chunks)} of generation {report.generation} to "
        f"{report.path}, {megabytes(report.bytes)}."
    )
    if report.deleted:
        text += f" Deleted of older ones: {', '.join(Path(path).name for path in report.deleted)}."
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
