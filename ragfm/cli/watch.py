"""`ragfm watch`."""

from __future__ import annotations

import signal
import sys
from dataclasses import asdict
from datetime import datetime
from threading import Event
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.options import Number, collection_options
from ragfm.cli.output import print_json, print_note
from ragfm.collection import Collection
from ragfm.core.errors import RagfmError

if TYPE_CHECKING:
    from ragfm.ingestion.source_watcher import WatchEvent


@click.command()
@click.option(
    "--interval",
    type=Number(min=1),
    default=300.0,
    metavar="SECONDS",
    help="Time between two syncs of a source that does not report changes.",
)
@collection_options
def watch(collection: str, as_json: bool, interval: float) -> None:
    """Sync all sources, then each source whenever it changes.

    Each sync is reported as a line on standard error, or with --json as a JSON object on standard output. Ctrl-C stops
    after the current commit; a second Ctrl-C stops at once.
    """
    from ragfm.ingestion.source_watcher import watch as watch_sources

    stop = Event()

    def request_stop(number: int, _: Any) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, request_stop)

    def report(synced: WatchEvent) -> None:
        counts, error = synced.report, synced.error
        if as_json:
            details = None
            if error is not None:
                message, hint = getattr(error, "message", str(error)), getattr(error, "hint", "")
                details = {"type": type(error).__name__, "message": message, "hint": hint}
            print_json({"source": synced.source, **asdict(counts), "error": details})
            sys.stdout.flush()
            return
        if error is not None:
            outcome = str(error) if isinstance(error, RagfmError) else f"{type(error).__name__}: {error}"
        else:
            names = ("added", "updated", "removed", "unchanged")
            outcome = ", ".join(f"{getattr(counts, name)} {name}" for name in names)
            if counts.failed:
                outcome += f", {len(counts.failed)} failed ({counts.failed[0].error})"
        print_note(f"{datetime.now().astimezone():%H:%M:%S} {synced.source}: {outcome}")

    with Collection.open(collection) as opened:
        watch_sources(opened.store, report, interval, stop)
