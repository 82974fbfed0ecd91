"""`ragfm worker`."""

from __future__ import annotations

import sys
from threading import Thread

import click

from ragfm.cli.options import collection_options
from ragfm.cli.output import print_json, print_note
from ragfm.cli.progress_bar import show_progress
from ragfm.cli.stop_signals import stop_event
from ragfm.collection import Collection
from ragfm.core.text import counted


@click.command()
@click.option("--until-eof", is_flag=True, hidden=True, help="End with the process that started this one.")
@collection_options
def worker(collection: str, as_json: bool, until_eof: bool) -> None:
    """Prepare documents for each `ragfm ingest --workers` of a collection on PostgreSQL.

    Start any number on any machines that can read the sources. Ctrl-C returns what was not finished to the others.
    """
    from ragfm.ingestion.worker import Worker

    stop = stop_event()
    if until_eof:

        def wait_for_end() -> None:
            sys.stdin.buffer.read()
            stop.set()

        Thread(target=wait_for_end, name="ragfm-parent", daemon=True).start()
    with Collection.open(collection) as opened, show_progress("documents") as progress:
        running = Worker(opened.store, stop, (lambda _: None) if until_eof else progress)
        running.run()
    if as_json:
        print_json({"documents": running.documents})
    elif not until_eof:
        print_note(f"Prepared {counted(document=running.documents)}.")
