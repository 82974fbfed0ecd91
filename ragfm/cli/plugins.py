"""`ragfm plugins`."""

from __future__ import annotations

import click

from ragfm.cli.options import json_options
from ragfm.cli.output import print_json, print_table


@click.command()
@json_options
def plugins(as_json: bool) -> None:
    """List the installed connectors, embedders, indexes, readers and rerankers."""
    from ragfm.core.registry import KINDS
    from ragfm.core.registry import plugins as installed

    found = {kind: {name: point.value for name, point in installed(kind).items()} for kind in KINDS}
    if as_json:
        print_json(found)
    else:
        rows = [(kind, name, value) for kind, points in found.items() for name, value in points.items()]
        print_table(["kind", "name", "object"], rows)
