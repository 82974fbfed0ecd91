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

from ragfm.core.errors import CollectionBusyError, MissingExtraError, RagfmError, SourceError
from ragfm.core.progress import Progress
from ragfm.ingestion.ingest_report import SyncReport
from ragfm.ingestion.source_request import SourceEntry, known_name, known_sources, resolve_source
from ragfm.ingestion.sources import sync_sources

if TYPE_CHECKING:
    from watchfiles import Change

    from ragfm.store.collection_store import Store

_TICK_MS = 500  # how often the clock is checked
_QUIET_MS = 300  # how long nothing must change before a sync
_MAX_DELAY_MS = 2000  # from the first change to the sync, at the latest
_SOURCES_CHECK_SECONDS = 5.0  # how often the list of sources is checked
_BUSY_RETRY_SECONDS = 10.0  # pause after another process was writing to the collection

_log = logging.getLogger(__name__)

_SourceState = list[tuple[SourceEntry, tuple[int, int] | None]]


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One sync of one source. If `error` is set, the sync ended early; its commits up to then are kept."""

    source: str
    report: SyncReport
    error: Exception | None = None


class _Stopped(BaseException):
    """Raised between two commits to end a sync."""


@dataclass(frozen=True, slots=True)
class _WatchedSource:
    """A source, and the file or folder to watch, if it is a local one."""

    name: str
    entry: SourceEntry
    path: Path | None


def watch(store: Store, callback: Callable[[WatchEvent], None], interval: float, stop: Event) -> None:
    """Sync all sources, then each at its changes and every `interval` seconds, until `stop` is set.

    `callback` is called after each sync. A source that fails is tried again. A running sync stops between two commits.
    Raises SourceError if there is no source, MissingExtraError without watchfiles.
    """
    try:
        import watchfiles  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("Watching needs watchfiles.", "Run `pip install 'ragfm[watch]'`.") from error
    if not known_sources(store):
        raise SourceError("There is no source to watch.", "Ingest a folder first, or list sources in ragfm.toml.")
    try:
        while not stop.is_set():
            _WatchRound(store, callback, interval, stop).run()
    except _Stopped:
        return


class _WatchRound:
    """Watches until the list of sources changes."""

    def __init__(self, store: Store, callback: Callable[[WatchEvent], None], interval: float, stop: Event) -> None:
        self._store, self._callback, self._interval, self._stop = store, callback, interval, stop
        self._state = _source_state(store)
        self._sources = [_watched_source(store, entry) for entry in known_sources(store)]
        self._due = dict.fromkeys((source.name for source in self._sources), 0.0)
        self._collection = os.path.realpath(store.folder)

    def run(self) -> None:
        last_check = monotonic()
        for changed in self._changes():
            for source in self._sources:
                if self._stop.is_set():
                    return
                root = source.path
                has_changed = root is not None and any(Path(path).is_relative_to(root) for path in changed)
                if has_changed or monotonic() >= self._due[source.name]:
                    self._sync(source)
            if monotonic() - last_check >= _SOURCES_CHECK_SECONDS:
                last_check = monotonic()
                if _source_state(self._store) != self._state:
                    return

    def _sync(self, source: _WatchedSource) -> None:
        pause = self._interval
        try:
            report = sync_sources(self._store, [resolve_source(self._store, source.entry)], self._stop_if_asked)
            event = WatchEvent(source.name, report)
        except Exception as error:  # the other sources go on, and this one is tried again
            if not isinstance(error, RagfmError):
                _log.debug("%s", source.name, exc_info=True)
            if isinstance(error, CollectionBusyError):
                pause = min(pause, _BUSY_RETRY_SECONDS)
            event = WatchEvent(source.name, SyncReport(), error)
        self._due[source.name] = monotonic() + pause
        self._callback(event)

    def _stop_if_asked(self, _: Progress) -> None:
        if self._stop.is_set():
            raise _Stopped

    def _changes(self) -> Iterator[set[str]]:
        """Sets of changed paths, empty ones at each tick. Changes during a sync come with the next set."""
        from watchfiles import watch

        folders = {
            source.path if source.path.is_dir() else source.path.parent for source in self._sources if source.path
        }
        changes = watch(
            *folders,
            watch_filter=self._outside_collection,
            debounce=_MAX_DELAY_MS,
            step=_QUIET_MS,
            stop_event=self._stop,
            rust_timeout=_TICK_MS,
            yield_on_timeout=True,
            ignore_permission_denied=True,
        )
        try:
            for changed in changes:
                yield {path for _, path in changed}
        except (OSError, RuntimeError) as error:  # too many folders for the system, or one was just removed
            _log.warning("Changes cannot be watched: %s. Sources are synced every %g s.", error, self._interval)
            while not self._stop.wait(_TICK_MS / 1000):
                yield set()

    def _outside_collection(self, change: Change, path: str) -> bool:
        """Whether a change lies outside of the collection, which may be in a folder that it is made from."""
        return not Path(path).is_relative_to(self._collection)


def _source_state(store: Store) -> _SourceState:
    """The sources and the device and inode of their folders: a folder may be replaced by another of the same name."""
    state: _SourceState = []
    for entry in known_sources(store):
        try:
            status = Path(entry.location).stat()
            identity = (status.st_dev, status.st_ino if stat.S_ISDIR(status.st_mode) else 0)
        except OSError:
            state.append((entry, None))
        else:
            state.append((entry, identity))
    return state


def _watched_source(store: Store, entry: SourceEntry) -> _WatchedSource:
    try:
        request = resolve_source(store, entry)
    except RagfmError:  # reported by its sync
        return _WatchedSource(known_name(store, entry), entry, None)
    root = str(request.connector.root)
    path = None if "://" in root else Path(os.path.realpath(root))
    return _WatchedSource(request.source.name, entry, path if path and path.exists() else None)
