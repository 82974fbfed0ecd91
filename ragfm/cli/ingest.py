"""`ragfm ingest`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from ragfm.cli.options import NON_EMPTY, OK, SOME_FAILED, collection_options, key_values, text_option, usage_error
from ragfm.cli.output import print_json, print_sync_report
from ragfm.cli.progress_bar import show_progress
from ragfm.collection import Collection


@click.command()
@click.argument("source", nargs=-1, type=NON_EMPTY)
@text_option("--name", metavar="N", help="Name of the source: the prefix of its URIs. Default: its location.")
@text_option("--connector", metavar="C", help="Connector plugin. Default: files, or web for URLs.")
@text_option("--include", multiple=True, metavar="GLOB", help="Ingest only matching files; may be repeated.")
@text_option("--exclude", multiple=True, metavar="GLOB", help="Skip matching files; may be repeated.")
@click.option(
    "--option",
    "connector_options",
    multiple=True,
    metavar="K=V",
    help="Option of the connector; a repeated key makes a list.",
)
@click.option("--tag", "tags", multiple=True, metavar="K=V", help="Metadata for all documents; may be repeated.")
@text_option("--allow", multiple=True, metavar="GROUP", help="Let only this group read the documents; may be repeated.")
@text_option("--embedder", metavar="E", help="Embedding model, for a new collection.")
@click.option("--retry", is_flag=True, help="Retry all failed documents now, without waiting for the retry delay.")
@click.option(
    "--tolerate-failed",
    is_flag=True,
    help="Exit with 0 if nothing failed but documents that had failed before and have not changed: for schedulers.",
)
@click.option(
    "--allow-mass-delete", is_flag=True, help="Remove missing documents even if they are more than half of the source."
)
@click.option(
    "--keep-recipe",
    is_flag=True,
    help="After an upgrade of ragfm, do not parse and embed unchanged documents again.",
)
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="Fetch, parse and embed documents on this machine or, for a collection on PostgreSQL, on a Ray cluster.",
)
@collection_options
def ingest(
    collection: str,
    as_json: bool,
    source: tuple[str, ...],
    name: str | None,
    connector_options: tuple[str, ...],
    tags: tuple[str, ...],
    embedder: str | None,
    **options: Any,
) -> int:
    """Sync the collection with its sources: folders, files, globs, URLs.

    Without SOURCE, sync the sources of ragfm.toml and all previously ingested ones. Only new and changed documents are
    parsed and embedded; documents that are no longer in a source are removed.
    """
    if name and len(source) != 1:
        usage_error("--name requires exactly one SOURCE.")
    with Collection.open(collection, embedder=embedder) as store, show_progress("documents") as progress:
        values: dict[str, list[str]] = {}
        for key, value in key_values(connector_options, "--option"):
            values.setdefault(key, []).append(value)
        report = store.sync(
            *dict.fromkeys(source),
            name=name,
            include=options["include"] or None,
            exclude=options["exclude"] or None,
            options={key: texts[0] if len(texts) == 1 else texts for key, texts in values.items()} or None,
            tags=dict(key_values(tags, "--tag")) or None,
            allow=options["allow"] or None,
            progress=progress,
            connector=options["connector"],
            **{key: options[key] for key in ("retry", "allow_mass_delete", "keep_recipe", "executor")},
        )
        commit = store.commit
    if as_json:
        print_json({**asdict(report), "commit": commit})
    else:
        print_sync_report(report)
    tolerated = options["tolerate_failed"]
    return OK if all(tolerated and failed.known for failed in report.failed) else SOME_FAILED
