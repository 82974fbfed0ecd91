"""Watching: sync local sources when they change, and every source at regular intervals."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING

from ragfm.core.errors import CollectionBusyError, RagfmError, SourceError, needs_extra
from ragfm.core.progress import Progress
from ragfm.ingestion.ingest_report import SyncReport
from ragfm.ingestion.source_request import SourceEntry, known_sources, resolve_source, source_name
from ragfm.ingestion.source_schedule import seconds_until_due, sync_interval
from ragfm.ingestion.sources import sync_sources

if TYPE_CHECKING:
    from ragfm.store.collection_store import Store

_TICK_MS = 500  # how often the clock is checked
_QUIET_MS = 300  # how long nothing must change before a sync
_MAX_DELAY_MS = 2000  # from the first change to the sync, at the latest
_SOURCES_CHECK_SECONDS = 5.0  # how often the list of sources is checked
_BUSY_RETRY_SECONDS = 10.0  # pause after another process was writing to the collection

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One sync of one source. If `error` is set, the sync ended early; its commits up to then are kept."""

    source: str
    report: SyncReport
    error: Exception | None = None


class _Stopped(BaseException):
    """Raised between two commits to end a sync."""


def watch(store: Store, callback: Callable[[WatchEvent], None], interval: float, stop: Event) -> None:
    """Sync all sources, then each at its changes and every `interval` seconds, until `stop` is set.

    A source with a schedule is synced at its changes, and when it is due: not at the start if another sync was recent.
    `callback` is called after each sync. A source that fails is tried again. A running sync stops between two commits.
    Raises SourceError if there is no source, MissingExtraError without watchfiles.
    """
    with needs_extra("Watching", "watch"):
        import watchfiles  # noqa: F401
    if not known_sources(store):
        raise SourceError("There is no source to watch.", "Ingest a folder first, or list sources in ragfm.toml.")
    try:
        while not stop.is_set():
            _watch_sources(store, callback, interval, stop)
    except _Stopped:
        return


def _watch_sources(store: Store, callback: Callable[[WatchEvent], None], interval: float, stop: Event) -> None:
    """Watch until the list of sources changes."""
    state = _source_state(store)
    sources: list[tuple[str, SourceEntry, Path | None]] = []  # with the file or folder to watch, if it is a local one
    for entry in known_sources(store):
        try:
            request = resolve_source(store, entry)
        except RagfmError:  # reported by its sync
            sources.append((source_name(store, entry), entry, None))
            continue
        root = str(request.connector.root)
        path = None if "://" in root else Path(os.path.realpath(root))
        sources.append((request.source.name, entry, path if path and path.exists() else None))

    def stop_if_asked(_: Progress) -> None:
        if stop.is_set():
            raise _Stopped

    due = {name: monotonic() + seconds_until_due(store, entry) for name, entry, _ in sources}
    missed = set[str]()  # sources that have changed, and whose sync failed
    last_check = monotonic()
    for changed in _changes(store, [path for _, _, path in sources if path], interval, stop):
        for name, entry, path in sources:
            if stop.is_set():
                return
            has_changed = path is not None and any(Path(change).is_relative_to(path) for change in changed)
            if not has_changed and monotonic() < due[name]:
                continue
            has_changed = has_changed or name in missed
            if not has_changed and (wait := seconds_until_due(store, entry)):  # another process has synced it
                due[name] = monotonic() + wait
                continue
            missed.discard(name)
            try:
                event = WatchEvent(name, sync_sources(store, [entry], stop_if_asked, only_due=not has_changed))
            except Exception as error:  # the other sources continue, and this one is tried again
                if not isinstance(error, RagfmError):
                    _log.debug("%s", name, exc_info=True)
                if has_changed:
                    missed.add(name)
                event = WatchEvent(name, SyncReport(), error)
            pause = interval
            if sync_interval(store, entry) is not None:
                pause = seconds_until_due(store, entry) or _BUSY_RETRY_SECONDS  # 0 after an error that was not stored
            if isinstance(event.error, CollectionBusyError):
                pause = min(pause, _BUSY_RETRY_SECONDS)
            due[name] = monotonic() + pause
            callback(event)
        if monotonic() - last_check >= _SOURCES_CHECK_SECONDS:
            last_check = monotonic()
            if _source_state(store) != state:
                return


def _changes(store: Store, paths: list[Path], interval: float, stop: Event) -> Iterator[set[str]]:
    """Sets of changed paths, empty ones at each tick. Changes during a sync come with the next set."""
    from watchfiles import watch

    # A collection may be inside a folder that it ingests.
    collection = None if store.database.shared else os.path.realpath(store.folder)
    changes = watch(
        *{path if path.is_dir() else path.parent for path in paths},
        watch_filter=lambda _, path: collection is None or not Path(path).is_relative_to(collection),
        debounce=_MAX_DELAY_MS,
        step=_QUIET_MS,
        stop_event=stop,
        rust_timeout=_TICK_MS,
        yield_on_timeout=True,
        ignore_permission_denied=True,
    )
    try:
        for changed in changes:
            yield {path for _, path in changed}
    except (OSError, RuntimeError) as error:  # too many folders for the system, or one was just removed
        _log.warning("Changes cannot be watched: %s. Sources are synced every %g s.", error, interval)
        while not stop.wait(_TICK_MS / 1000):
            yield set()


def _source_state(store: Store) -> list[tuple[SourceEntry, tuple[int, int] | None]]:
    """The sources and the device and inode of their folders: a folder may be replaced by another of the same name."""
    state: list[tuple[SourceEntry, tuple[int, int] | None]] = []
    for entry in known_sources(store):
        try:
            status = Path(entry.location).stat()
            state.append((entry, (status.st_dev, status.st_ino if stat.S_ISDIR(status.st_mode) else 0)))
        except OSError:
            state.append((entry, None))
    return state
