"""`ragfm documents`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ragfm.cli.options import OK, OUTPUT_FILE, collection_options, filter_option, usage_error
from ragfm.cli.output import print_json, print_table, print_text
from ragfm.collection import Collection
from ragfm.core.durable_files import write_durably, write_error


@click.command()
@click.argument("uri", required=False, metavar="[DOCUMENT]")
@filter_option
@click.option("--page", type=click.IntRange(1), metavar="N", help="Write page N of DOCUMENT to --out, as a PNG image.")
@click.option("--out", type=OUTPUT_FILE, metavar="FILE", help="File to write the page to.")
@collection_options
def documents(
    collection: str, as_json: bool, uri: str | None, filter: str | None, page: int | None, out: str | None
) -> int:
    """List the documents, or print the text of DOCUMENT, a name or URI.

    A name is a short form of a URI: the path that starts at the ingested folder. Pages of PDF documents and of images
    can be written as images.
    """
    if (page is None) != (out is None) or (page is not None and uri is None):
        usage_error("--page, --out and DOCUMENT require each other.")
    with Collection.open(collection) as store:
        if uri is not None and page is not None:
            target = Path(str(out))
            image = store.page_image(uri, page)
            try:
                write_durably(target, image, mode=0o600)
            except OSError as error:
                raise write_error("page", target, error) from error
            if as_json:
                print_json({"uri": store.info(uri).uri, "page": page, "path": out, "bytes": len(image)})
            else:
                print_text(f"Wrote page {page} of {uri} to {out}.")
            return OK
        if uri is not None:
            document = store.document(uri)
            if as_json:
                found = {key: value for key, value in asdict(document).items() if key not in ("marks", "images")}
                print_json({**found, "name": store.info(uri).name})
            else:
                print_text(document.text)
            return OK
        infos = store.documents(filter)
    if as_json:
        print_json({"documents": [asdict(info) for info in infos]})
    else:
        rows = [(info.name, info.media_type, f"{info.characters}", f"{info.chunks}") for info in infos]
        print_table(["document", "type", ">characters", ">chunks"], rows)
    return OK
