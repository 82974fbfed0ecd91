"""`ragfm sources`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

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
    failures: dict[str, list[dict[str, Any]]] = {source["name"]: [] for source in status.sources}
    by_length = sorted(failures, key=lambda name: (name == ".", -len(name)))  # "." has all that belong to no other one
    for failure in status.failed:
        for name in by_length:
            if name == "." or failure.uri == name or failure.uri.startswith(f"{name.rstrip('/')}/"):
                failures[name].append(asdict(failure))
                break
    listed = [{**source, "failures": failures[source["name"]]} for source in status.sources]
    if as_json:
        print_json({"sources": listed})
        return
    for source in listed:
        print_text((source["name"], "bold"), f"  {counted(document=source['documents'])} by {source['connector']}")
        for name in ("location", "connector", "options", "include", "exclude", "tags", "allow"):
            value = source.get(name)
            if isinstance(value, dict):
                value = [f"{key}={item}" for key, item in value.items()]
            if value:
                print_text(f"    {name:<9} {value if isinstance(value, str) else ', '.join(value)}")
        for failure in source["failures"]:
            print_text(f"    failed    {failure['uri']}  {failure['stage']}: {failure['error']}")
    if not listed:
        print_text("No sources. `ragfm ingest FOLDER` adds one.")
