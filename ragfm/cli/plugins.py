"""`ragfm plugins`."""

from __future__ import annotations

import click

from ragfm.cli.options import json_options
from ragfm.cli.output import print_json, print_table


@click.command()
@json_options
def plugins(as_json: bool) -> None:
    """List the installed connectors, embedders, indexes, parsers, readers and rerankers, and the parsers' formats."""
    from ragfm.core.registry import KINDS
    from ragfm.core.registry import plugins as installed
    from ragfm.parsing.parsers import known_formats

    found = {kind: {name: point.value for name, point in installed(kind).items()} for kind in KINDS}
    known = known_formats()
    formats = {
        entry.name: {"suffixes": list(entry.suffixes), "parsers": known.readers[kind]}
        for kind, entry in known.by_type.items()
    }
    if as_json:
        print_json({**found, "formats": formats})
    else:
        rows = [(kind, name, value) for kind, points in found.items() for name, value in points.items()]
        print_table(["kind", "name", "object"], rows)
        read = [(name, " ".join(it["suffixes"]), ", ".join(it["parsers"])) for name, it in formats.items()]
        print_table(["format", "suffixes", "parsers, the default first"], read)
