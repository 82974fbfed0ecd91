"""`ragfm watch`."""

from __future__ import annotations

import signal
import sys
from dataclasses import asdict
from datetime import datetime
from threading import Event
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.options import OK, collection_options, open_collection
from ragfm.cli.output import print_json, print_note
from ragfm.core.errors import RagfmError

if TYPE_CHECKING:
    from ragfm.ingestion.source_watcher import WatchEvent


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(min=1),
    default=300.0,
    metavar="SECONDS",
    help="Time between two syncs of a source that does not report changes.",
)
@collection_options
def watch(collection: str, as_json: bool, interval: float) -> int:
    """Sync all sources, then each source whenever it changes.

    Each sync is reported as a line on standard error, or with --json as a JSON object on standard output. Ctrl-C stops
    after the current commit; a second Ctrl-C stops at once.
    """
    stop = Event()

    def request_stop(number: int, _: Any) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, request_stop)
    with open_collection(collection) as store:
        store.watch(_print_json if as_json else _print_line, interval=interval, stop=stop)
    return OK


def _print_line(synced: WatchEvent) -> None:
    report, error = synced.report, synced.error
    if error is None:
        outcome = ", ".join(
            f"{getattr(report, count)} {count}" for count in ("added", "updated", "removed", "unchanged")
        )
        if report.failed:
            outcome += f", {len(report.failed)} failed ({report.failed[0].error})"
    else:
        outcome = str(error) if isinstance(error, RagfmError) else f"{type(error).__name__}: {error}"
    print_note(f"{datetime.now().astimezone():%H:%M:%S} {synced.source}: {outcome}")


def _print_json(synced: WatchEvent) -> None:
    error = None
    if synced.error is not None:
        message = getattr(synced.error, "message", str(synced.error))
        hint = getattr(synced.error, "hint", "")
        error = {"type": type(synced.error).__name__, "message": message, "hint": hint}
    print_json({"source": synced.source, **asdict(synced.report), "error": error})
    sys.stdout.flush()
