"""The commands that keep a collection: what it holds, out of it, and whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ragfm.cli.options import FAILED, FILLED, OK, counting, filtered, open_collection, shared
from ragfm.cli.output import print_json, print_verify, printable


@click.command()
@shared
def sources(collection: str, as_json: bool) -> int:
    """List the sources: where documents come from, with which options, and what failed."""
    with open_collection(collection) as store:
        now = store.status()
    failed = [asdict(failure) for failure in now.failed]
    listed = [
        {**source, "failures": [row for row in failed if _of(row["uri"], source["name"])]} for source in now.sources
    ]
    if as_json:
        print_json({"sources": listed})
        return OK
    for source in listed:
        click.echo(printable(f"{source['name']}  {source['documents']} documents by {source['connector']}"))
        tags = [f"{key}={value}" for key, value in source["tags"].items()]
        for name in ("location", "connector", "options", "include", "exclude", "tags", "allow"):
            value = tags if name == "tags" else source.get(name)
            if value:
                click.echo(printable(f"    {name:<9} {value if isinstance(value, str) else ', '.join(value)}"))
        for row in source["failures"]:
            click.echo(printable(f"    failed    {row['uri']}  {row['stage']}: {row['error']}"))
    if not listed:
        click.echo("No sources. `ragfm ingest FOLDER` adds one.")
    return OK


@click.command()
@click.argument("name", metavar="SOURCE|URI", type=FILLED)
@shared
def remove(collection: str, as_json: bool, name: str) -> int:
    """Remove a source with all its documents, or one document."""
    with open_collection(collection) as store:
        report = store.remove(name)
    if as_json:
        print_json(asdict(report))
        return OK
    if report.uri is not None:
        click.echo(printable(f"Removed {report.uri}, {report.chunks} chunks."))
        click.echo(printable(
            f"The next ingest of {report.source} brings it back, unless it is gone there or left out with --exclude."
        ))  # fmt: skip
        return OK
    click.echo(printable(f"Removed {report.source}: {report.documents} documents, {report.chunks} chunks."))
    if report.listed:
        click.echo("It stands in ragfm.toml: the next `ragfm ingest` brings it back, unless you take it out there.")
    return OK


@click.command()
@click.argument("out", required=False, type=FILLED)
@click.option("--format", type=click.Choice(["jsonl", "parquet"]), help="Default: by OUT's ending, else jsonl.")
@filtered
@click.option("--vectors", is_flag=True, help="With the chunks' vectors.")
@shared
def export(
    collection: str, as_json: bool, out: str | None, format: Any, filter: str | None, vectors: bool
) -> int:  # fmt: skip
    """Write all documents with their chunks to OUT, or as JSON lines to standard output."""
    to_stdout = out in (None, "-")
    format = format or ("parquet" if out is not None and out.endswith(".parquet") else "jsonl")
    if to_stdout and (as_json or format != "jsonl"):
        what = "--json prints a report" if as_json else "Parquet needs a file"
        raise click.UsageError(f"{what}; name OUT.", click.get_current_context())
    target = sys.stdout.buffer if to_stdout else Path(str(out))
    with open_collection(collection) as store, counting("exporting", " documents") as progress:
        report = store.export(target, format=format, filter=filter, vectors=vectors, progress=progress)
    if as_json:
        print_json({"path": out, "format": format, **asdict(report)})
    elif not to_stdout:
        click.echo(printable(
            f"{report.documents} documents, {report.chunks} chunks of generation {report.generation} are in {out}."
        ))  # fmt: skip
    return OK


@click.command()
@click.option("--repair", is_flag=True, help="Build anew what follows from the catalog; nothing is embedded.")
@click.option("--salvage", metavar="OUT", type=FILLED, help="Save what is whole into a new collection OUT.")
@shared
def verify(collection: str, as_json: bool, repair: bool, salvage: str | None) -> int:
    """Check that everything is as it was committed; exit code 1 where it isn't."""
    if repair and salvage:
        raise click.UsageError("--repair and --salvage don't go together.", click.get_current_context())
    with open_collection(collection) as store:
        with counting("verifying", " documents") as progress:
            report = store.verify(repair=repair, progress=progress)
        saved = None
        if salvage is not None:
            with counting("saving", " documents") as progress:
                saved = store.salvage(salvage, progress)
    if as_json:
        shown = {"damaged": report.damaged, **asdict(report)}
        print_json(shown if saved is None else {**shown, "salvaged": asdict(saved)})
    else:
        print_verify(report, saved)
    return FAILED if report.damaged else OK


@click.command()
@click.argument("out", type=FILLED)
@click.option("--force", is_flag=True, help="Overwrite OUT.")
@shared
def backup(collection: str, as_json: bool, out: str, force: bool) -> int:
    """Write the collection to the file OUT, while others may read and write it."""
    with open_collection(collection) as store, counting("copying", " bytes") as progress:
        report = store.backup(out, force=force, progress=progress)
    if as_json:
        print_json(asdict(report))
    else:
        click.echo(printable(
            f"{report.documents} documents, {report.chunks} chunks of generation {report.generation} are in "
            f"{report.path}, {_size(report.bytes)}."
        ))  # fmt: skip
    return OK


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@shared
def restore(collection: str, as_json: bool, file: str) -> int:
    """Make a collection from the backup FILE."""
    with open_collection(collection) as store, counting("restoring", " bytes") as progress:
        report = store.restore(file, progress)
    if as_json:
        print_json(asdict(report))
        return OK
    click.echo(printable(f"{report.documents} documents, {report.chunks} chunks are in {report.path}."))
    for name in report.absent:
        click.echo(printable(f"The source {name} isn't found from here; its documents stay as they are."), err=True)
    return OK


@click.command()
@shared
def compact(collection: str, as_json: bool) -> int:
    """Give back the space of what has gone; searches go on meanwhile."""
    with open_collection(collection) as store, counting("compacting", " chunks") as progress:
        store.status()  # no collection: say so rather than make one
        report = store.compact(progress)
    if as_json:
        print_json(asdict(report))
    else:
        click.echo(
            f"{report.documents} old documents, {report.chunks} chunks, {report.vectors} vectors deleted; "
            f"{_size(report.bytes_before)} before, {_size(report.bytes_after)} now"
        )
    return OK


@click.command()
@click.option("--embedder", required=True, metavar="E", type=FILLED, help="The embedding model to switch to.")
@shared
def reembed(collection: str, as_json: bool, embedder: str) -> int:
    """Embed everything anew with another model; the old one serves until all is done."""
    with open_collection(collection) as store, counting("embedding", " documents") as progress:
        store.status()
        report = store.reembed(embedder, progress=progress)
        named = store.settings.embedder if "embedder" in store.settings.model_fields_set else embedder
    if as_json:
        print_json(asdict(report))
    else:
        click.echo(
            f"{report.chunks} chunks at generation {report.generation}, {report.embedded} embedded in "
            f"{report.seconds:.1f} s"
        )
    if named != embedder:
        where = "The environment variable RAGFM_EMBEDDER" if "RAGFM_EMBEDDER" in os.environ else "ragfm.toml"
        line = f'embedder = "{embedder}"'
        click.echo(printable(f"{where} names another embedder, {named}. Make it {line}, else it is refused."), err=True)
    return OK


COMMANDS: Sequence[click.Command] = (sources, remove, export, verify, backup, restore, compact, reembed)


def _of(uri: str, source: str) -> bool:
    return source == "." or uri == source or uri.startswith(f"{source.rstrip('/')}/")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
