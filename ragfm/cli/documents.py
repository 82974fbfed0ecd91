"""`ragfm documents`."""

from __future__ import annotations

from dataclasses import asdict

import click

from ragfm.cli.options import collection_options, filter_option
from ragfm.cli.output import print_json, print_table, print_text
from ragfm.collection import Collection


@click.command()
@click.argument("uri", required=False, metavar="[DOCUMENT]")
@filter_option
@collection_options
def documents(collection: str, as_json: bool, uri: str | None, filter: str | None) -> None:
    """List the documents, or print the text of DOCUMENT, a name or URI.

    A name is a short form of a URI: the path that starts at the ingested folder.
    """
    with Collection.open(collection) as store:
        if uri is not None:
            document = store.document(uri)
            if as_json:
                found = {key: value for key, value in asdict(document).items() if key not in ("marks", "images")}
                print_json({**found, "name": store.info(uri).name})
            else:
                print_text(document.text)
            return
        infos = store.documents(filter)
    if as_json:
        print_json({"documents": [asdict(info) for info in infos]})
    else:
        rows = [(info.name, info.media_type, f"{info.characters}", f"{info.chunks}") for info in infos]
        print_table(["document", "type", ">characters", ">chunks"], rows)
