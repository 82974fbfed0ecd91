"""The command that follows the sources."""

from __future__ import annotations

import signal
import sys
from dataclasses import asdict
from datetime import datetime
from threading import Event
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.options import OK, shared
from ragfm.cli.output import print_json, printable
from ragfm.core.errors import RagfmError

if TYPE_CHECKING:
    from ragfm.ingestion.source_watcher import Synced


@click.command()
@click.option(
    "--interval", type=click.FloatRange(min=1), default=300.0, show_default=True, metavar="SECONDS",
    help="How often each source is looked at where nothing tells of changes.",
)  # fmt: skip
@shared
def watch(collection: str, as_json: bool, interval: float) -> int:
    """Keep the collection equal to its sources: sync all, then each whenever it changes.

    One line for each sync, on standard error, or with --json one JSON object on standard output. Ctrl-C ends it
    between two commits; once more ends it at once.
    """
    from ragfm.collection import Collection

    stop = Event()

    def end(number: int, _: Any) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    with Collection.open(collection) as store:
        store.watch(_tell_json if as_json else _tell, interval=interval, stop=stop)
    return OK


def _tell(synced: Synced) -> None:
    report, now = synced.report, datetime.now().astimezone().strftime("%H:%M:%S")
    if synced.error is not None:
        said = (
            str(synced.error)
            if isinstance(synced.error, RagfmError)
            else f"{type(synced.error).__name__}: {synced.error}"
        )
    else:
        counts = ("added", "updated", "removed", "unchanged")
        said = ", ".join(f"{getattr(report, count)} {count}" for count in counts)
        said += f", {len(report.failed)} failed ({report.failed[0].error})" if report.failed else ""
    click.echo(printable(f"{now} {synced.source}: {said}"), err=True)


def _tell_json(synced: Synced) -> None:
    error = None
    if synced.error is not None:
        message = getattr(synced.error, "message", str(synced.error))
        hint = getattr(synced.error, "hint", "")
        error = {"type": type(synced.error).__name__, "message": message, "hint": hint}
    print_json({"source": synced.source, **asdict(synced.report), "error": error})
    sys.stdout.flush()
