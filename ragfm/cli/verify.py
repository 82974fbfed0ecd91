"""`ragfm verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ragfm.cli.options import FAILED, OK, collection_options, text_option, usage_error
from ragfm.cli.output import MAX_SKIPPED, one_line, print_json, print_text
from ragfm.cli.progress_bar import show_progress
from ragfm.collection import Collection
from ragfm.core.text import counted


@click.command()
@click.option("--repair", is_flag=True, help="Rebuild what can be derived from the catalog, without embedding.")
@text_option("--salvage", metavar="OUT", help="Save the undamaged documents to a new collection OUT.")
@collection_options
def verify(collection: str, as_json: bool, repair: bool, salvage: str | None) -> int:
    """Check the collection for damage; exit code 1 if there is any."""
    if repair and salvage:
        usage_error("--repair and --salvage cannot be combined.")
    from ragfm.maintenance.salvage import salvage as save_documents

    saved = None
    with Collection.open(collection) as opened, show_progress("documents") as progress:
        report = opened.verify(repair=repair, progress=progress)
        if salvage is not None:
            saved = save_documents(opened.store, Path(salvage).absolute(), progress)
    code = FAILED if report.damaged else OK
    if as_json:
        value = {"damaged": report.damaged, **asdict(report)}
        print_json(value if saved is None else {**value, "salvaged": asdict(saved)})
        return code
    for repaired in report.mended:
        print_text(f"repair: {repaired}")
    for finding in report.findings:
        print_text(f"{finding.file}: {one_line(finding.what)}: expected {finding.expected}, found {finding.found}")
    if not report.damaged:
        print_text(
            f"No damage: {counted(document=report.documents, chunk=report.chunks, view=report.views)}, "
            f"generation {report.generation}, checked in {report.seconds:.1f} s."
        )
    if saved is not None:
        print_text(f"Saved {counted(document=saved.documents, chunk=saved.chunks)} to {saved.path}.")
        for left in saved.left:
            print_text(f"not saved: {one_line(left.uri or 'a document without a name')}: {left.why}")
    elif any(finding.file == "catalog.db" for finding in report.findings):
        print_text(
            f"The catalog is damaged. `ragfm verify --salvage OUT` can save {report.whole} of {report.documents} "
            "documents to a new collection."
        )
        for uri in report.lost[:MAX_SKIPPED]:
            print_text(f"lost: {one_line(uri)}")
    elif report.damaged:
        print_text("The catalog is undamaged. `ragfm verify --repair` rebuilds the rest from it, without embedding.")
    return code
