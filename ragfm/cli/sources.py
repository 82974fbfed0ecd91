"""`ragfm sources`."""

from __future__ import annotations

from dataclasses import asdict

import click

from ragfm.cli.options import collection_options
from ragfm.cli.output import print_json, print_text
from ragfm.collection import Collection
from ragfm.core.text import counted


@click.command()
@collection_options
def sources(collection: str, as_json: bool) -> None:
    """List the sources: their location, options and failed documents."""
    with Collection.open(collection) as store:
        status = store.status()
    listed = []
    for source in status.sources:
        prefix = "" if source["name"] == "." else source["name"].rstrip("/") + "/"
        inside = (it for it in status.failed if it.uri == source["name"] or it.uri.startswith(prefix))
        failures = [asdict(failure) for failure in inside]
        listed.append({**source, "failures": failures})
    if as_json:
        print_json({"sources": listed})
        return
    for source in listed:
        print_text((source["name"], "bold"), f"  {counted(document=source['documents'])} by {source['connector']}")
        tags = [f"{key}={value}" for key, value in source["tags"].items()]
        for name in ("location", "connector", "options", "include", "exclude", "tags", "allow"):
            value = tags if name == "tags" else source.get(name)
            if value:
                print_text(f"    {name:<9} {value if isinstance(value, str) else ', '.join(value)}")
        for failure in source["failures"]:
            print_text(f"    failed    {failure['uri']}  {failure['stage']}: {failure['error']}")
    if not listed:
        print_text("No sources. `ragfm ingest FOLDER` adds one.")
