"""`ragfm status`."""

from __future__ import annotations

from dataclasses import asdict

import click

from ragfm.cli.options import OK, collection_options
from ragfm.cli.output import megabytes, print_json, print_table, print_text
from ragfm.collection import Collection
from ragfm.core.text import counted


@click.command()
@collection_options
def status(collection: str, as_json: bool) -> int:
    """Show the size of the collection, its models and indexes, and failed documents."""
    from ragfm.store.display_names import DisplayNames

    with Collection.open(collection) as store:
        status = store.status()
    if as_json:
        print_json(asdict(status))
        return OK
    print_text(f"{counted(document=status.documents, chunk=status.chunks)}, generation {status.generation}")
    rows = [("embedder", f"{status.embedder['model']}, {status.embedder['dim']} dimensions")]
    vectors, keywords = status.indexes[:2]

    if vectors["saved"]:
        kind = f"{vectors['kind']}, {counted(vector=vectors['vectors'])}, {vectors['state']}"
        rows.append(("index", f"{kind}, of generation {vectors['generation']}"))
    else:
        rows.append(("index", f"none saved, {counted(vector=vectors['pending'])} in memory only"))
    following = "" if vectors["kind"] in (vectors["wanted"], None) else f"the next one is {vectors['wanted']}: "
    rows.append(("", f"{following}{vectors['why']}"))
    dead = vectors["dead"] / max(1, vectors["dead"] + status.chunks)
    rows.append(("space", f"{dead:.0%} of the chunks are dead; generations from {vectors['floor']} on can be read"))

    if status.images:
        rows.append(("images", f"{counted(picture=status.images)}, {megabytes(status.image_bytes)}"))
        if status.image_embedder:
            model, dim = status.image_embedder["model"], status.image_embedder["dim"]
            rows.append(("", f"searched with {model}, {dim} dimensions"))
    rows.append(("keywords", f"{keywords['kind']}, language {keywords['language'] or 'not detected yet'}"))
    weight = "" if keywords["weight"] is None else f"weight of the cosine {keywords['weight']:g} (search.weight): "
    rows.append(("", f"hybrid search: {weight}{keywords['why']}"))

    rows += [
        ("source", f"{it['name']}  {counted(document=it['documents'])} by {it['connector']}") for it in status.sources
    ]
    formats: dict[str, list[str]] = {}
    for entry in status.parsers:
        formats.setdefault(", then ".join(entry["parsers"]) or "none", []).append(entry["format"])
    rows += [("parser", f"{names}: {', '.join(sorted(read))}") for names, read in formats.items()]
    if status.older:
        older = f"{counted(document=status.older)} of an older version or another parser"
        rows.append(("older", f"{older}; `ragfm ingest` parses and embeds them again"))
    names = DisplayNames(source["name"] for source in status.sources)
    rows += [("failed", f"{names.name_of(failure.uri)}  {failure.stage}: {failure.error}") for failure in status.failed]
    print_table(["", ""], rows)
    return OK
