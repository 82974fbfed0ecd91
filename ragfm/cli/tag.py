"""`ragfm tag`."""

from __future__ import annotations

import click

from ragfm.cli.options import NON_EMPTY, OK, collection_options, key_values
from ragfm.cli.output import print_json, print_text
from ragfm.collection import Collection


@click.command()
@click.argument("pattern", type=NON_EMPTY)
@click.argument("tags", nargs=-1, required=True, metavar="KEY=VALUE...")
@collection_options
def tag(collection: str, as_json: bool, pattern: str, tags: tuple[str, ...]) -> int:
    """Set metadata of all documents that match PATTERN, for filters; `KEY=` removes a tag.

    PATTERN is a glob that matches a URI or its last parts, such as 'reports/BESTBUY*'; a folder matches everything in
    it. Nothing is parsed or embedded again. New versions of the documents keep their tags. To tag documents that are
    ingested later, write [[tags]] tables in ragfm.toml.
    """
    values = {key: value or None for key, value in key_values(tags, "KEY=VALUE")}
    with Collection.open(collection) as store:
        report = store.tag(pattern, values)
    if as_json:
        print_json({"pattern": pattern, "tags": values, "documents": report.documents, "generation": report.generation})
    else:
        count = len(report.documents)
        print_text(f"{count} document{'s match' if count > 1 else ' matches'} {pattern}.")
    return OK
