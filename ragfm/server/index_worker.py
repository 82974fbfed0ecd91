"""The process that indexes uploads: `python -m ragfm.server.index_worker`, with the collection on standard input.

With the argument `sources`, it syncs the sources that are due by their schedules instead.

It has the owner's handle and takes no requests. It syncs uploads in slices in which the keys take turns, and reports as
lines of JSON on standard output. It ends when nothing is left, when another server has the turn, or when standard input
is closed, which means that the server has ended.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ragfm.collection import Collection
from ragfm.core.errors import CollectionBusyError, RagfmError
from ragfm.core.tracing import start_tracing
from ragfm.ingestion.source_request import source_name
from ragfm.ingestion.source_schedule import due_sources
from ragfm.ingestion.sources import sync_in_turns, sync_sources
from ragfm.ingestion.turns import Turns
from ragfm.server.json_logging import configure_logging
from ragfm.store.uploads import UPLOADS_SOURCE, Upload, upload_id


def main(collection: str) -> None:
    """Sync the uploads of a collection and report on standard output after each slice."""
    reasons: dict[str, str] = {}
    with Collection.open(collection) as owner, ExitStack() as held:
        uploads = owner.store.open_uploads()
        turns = Turns(uploads.owner_of_path)
        try:
            if not held.enter_context(uploads.turn()):
                return
            began, pending = time.monotonic(), dict(uploads.pending())
            stored = list(uploads.all())  # before the slice, which has then seen them all
            for report in sync_in_turns(owner.store, uploads.source, turns, name=UPLOADS_SOURCE):
                reasons |= {failure.uri: f"{failure.stage}: {failure.error}" for failure in report.failed}
                reasons |= {skip.uri: skip.why for skip in report.skipped}
                # Before the last slice, more files of an upload may follow.
                postponed = turns.postponed
                failed = reasons if postponed else _why_not_searchable(owner, stored, reasons)
                waiting = {ref.path.partition("/")[0]: uploads.owner_of_path(ref.path) for ref in postponed}
                unsettled = _unsettled(waiting, stored, reasons) if postponed else set()
                settled = {number: state for number, state in pending.items() if number not in unsettled}
                _report(failed=failed, waiting=waiting, began=began, settled=settled)
                if postponed:  # the models are loaded, and there is more to index: lower the priority of all threads
                    with suppress(OSError):  # other systems than Linux, where each thread has its own
                        for thread in Path("/proc/self/task").iterdir():
                            os.setpriority(os.PRIO_PROCESS, int(thread.name), 10)
                began, pending = time.monotonic(), {**pending, **uploads.pending()}
                stored = list(uploads.all())
        except RagfmError as error:
            _report(error=error.message, busy=isinstance(error, CollectionBusyError))


def sync_due_sources(collection: str) -> None:
    """Sync the sources that are due, and report on standard output after each one."""
    with Collection.open(collection) as owner:
        for entry in due_sources(owner.store):
            name = source_name(owner.store, entry)
            try:
                report = sync_sources(owner.store, [entry], only_due=True)
                counts = {key: getattr(report, key) for key in ("added", "updated", "removed", "unchanged")}
                _report(source=name, **counts, failed=len(report.failed))
            except CollectionBusyError as error:
                _report(source=name, error=str(error), busy=True)
                return
            except Exception as error:  # the other sources continue
                message = str(error) if isinstance(error, RagfmError) else f"{type(error).__name__}: {error}"
                _report(source=name, error=message)


def _unsettled(waiting: Iterable[str], stored: Sequence[Upload], failed: Iterable[str]) -> set[str]:
    """The uploads whose state is not known before the last slice, by id.

    These are the ones that are `waiting`, and archives of which a file has `failed`: others in it may be indexed.
    """
    files = {upload.uri for upload in stored}
    return {*waiting, *(str(upload_id(uri)) for uri in failed if uri not in files)}


def _why_not_searchable(owner: Collection, stored: Sequence[Upload], reasons: Mapping[str, str]) -> dict[str, str]:
    """The uploads of which their uploader finds nothing, by URI, and why.

    `reasons` are those of all documents that were not indexed; a file in an archive is a document of its own.
    """
    source = f"source = '{UPLOADS_SOURCE}'"
    indexed = {upload_id(info.uri) for info in owner.documents(source)}
    visible = {
        group: {upload_id(info.uri) for info in owner.as_groups({group}).documents(source)}
        for group in {upload.owner for upload in stored}
    }
    members: dict[str | None, list[str]] = {}
    for uri in sorted(reasons):
        members.setdefault(upload_id(uri), []).append(uri)
    failed: dict[str, str] = {}
    for upload in stored:
        number = upload_id(upload.uri)
        within = members.get(number, [])
        if number in visible[upload.owner]:
            continue
        if number in indexed:
            failed[upload.uri] = "a file .ragfm-access in it closes it to the key that uploaded it"
        elif not within:
            failed[upload.uri] = "it has no documents: hidden files and files that configure ragfm are left out"
        else:
            name = within[0].removeprefix(upload.uri).removeprefix("/")
            why = f"{name}: {reasons[within[0]]}" if name else reasons[within[0]]
            others = "" if len(within) == 1 else f"none of the {len(within)} files in it can be indexed; "
            failed[upload.uri] = others + why
    return failed


def _exit_with_parent() -> None:
    os.read(0, 1)  # nothing is ever written to standard input: this returns when the server has ended
    os._exit(1)


def _report(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    configure_logging(debug=False)
    start_tracing()
    location = sys.stdin.readline().rstrip("\n")
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    with suppress(OSError):
        os.nice(5)  # requests have priority
    (sync_due_sources if sys.argv[1:] == ["sources"] else main)(location)
