"""Watching: a collection follows its sources, at each change of those that lie on this machine, else at intervals."""

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
from ragfm.ingestion.ingest_report import Progress, SyncReport
from ragfm.ingestion.sources import Asked, known_name, known_sources, resolve_source, sync_sources

if TYPE_CHECKING:
    from watchfiles import Change

    from ragfm.store.collection_store import Store

_TICK = 500  # milliseconds from one look at the clock to the next
_QUIET, _LATEST = 300, 2000  # milliseconds without a change before a sync, and from the first change to it
_LOOK = 5.0  # seconds from one look at which sources there are to the next
_BUSY = 10.0  # seconds until a collection is tried again that another process was writing to

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Synced:
    """One sync of one source; with `error`, it ended early, and what it had committed is in."""

    source: str
    report: SyncReport
    error: Exception | None = None


class _Stopped(BaseException):
    """Somebody wants no more, and nothing is half done."""


@dataclass(frozen=True, slots=True)
class _Watched:
    """A source, and the path whose changes are its own."""

    name: str
    asked: Asked
    path: Path | None


def watch(store: Store, told: Callable[[Synced], None], interval: float, stop: Event) -> None:
    """Sync all sources, then each at its changes and after each interval, until `stop` is set.

    A sync ends between two commits then. What fails is told and tried again. Raises SourceError where there is no
    source, and MissingExtraError.
    """
    try:
        import watchfiles  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("Watching needs watchfiles.", "Run `pip install 'ragfm[watch]'`.") from error
    if not known_sources(store):
        raise SourceError("There is no source to watch.", "Ingest a folder first, or list sources in ragfm.toml.")
    try:
        while not stop.is_set():
            _Round(store, told, interval, stop).run()
    except _Stopped:
        return


class _Round:
    """Watching as long as the sources are the same."""

    def __init__(self, store: Store, told: Callable[[Synced], None], interval: float, stop: Event) -> None:
        self._store, self._told, self._interval, self._stop = store, told, interval, stop
        self._stand = _stand(store)
        self._sources = [_look_at(store, asked) for asked in known_sources(store)]
        self._due = dict.fromkeys((source.name for source in self._sources), 0.0)
        self._collection = os.path.realpath(store.folder)

    def run(self) -> None:
        """Sync what is due, until there are other sources."""
        looked = monotonic()
        for changed in self._changes():
            for source in self._sources:
                if self._stop.is_set():
                    return
                if monotonic() >= self._due[source.name] or any(_concerns(path, source) for path in changed):
                    self._sync(source)
            if monotonic() - looked >= _LOOK:
                looked = monotonic()
                if _stand(self._store) != self._stand:
                    return

    def _sync(self, source: _Watched) -> None:
        pause = self._interval
        try:
            done = Synced(source.name, sync_sources(self._store, [source.asked], self._check))
        except Exception as error:  # of one source: the others go on, and it is tried again
            if not isinstance(error, RagfmError):
                _log.debug("%s", source.name, exc_info=True)
            pause = min(pause, _BUSY) if isinstance(error, CollectionBusyError) else pause
            done = Synced(source.name, SyncReport(), error)
        self._due[source.name] = monotonic() + pause
        self._told(done)

    def _check(self, _: Progress) -> None:
        if self._stop.is_set():
            raise _Stopped

    def _changes(self) -> Iterator[set[str]]:
        """Paths that have changed, and nothing now and then; what changes meanwhile comes with the next ones."""
        from watchfiles import watch

        paths = {source.path if source.path.is_dir() else source.path.parent for source in self._sources if source.path}
        try:
            for changes in watch(
                *paths, watch_filter=self._counts, debounce=_LATEST, step=_QUIET, stop_event=self._stop,
                rust_timeout=_TICK, yield_on_timeout=True, ignore_permission_denied=True,
            ):  # fmt: skip
                yield {path for _, path in changes}
        except (OSError, RuntimeError) as error:  # too many folders for the system, or one has just gone
            _log.warning("Changes can't be followed: %s. Sources are synced every %g s.", error, self._interval)
            while not self._stop.wait(_TICK / 1000):
                yield set()

    def _counts(self, change: Change, path: str) -> bool:
        """The collection may lie in the folder that it is made of."""
        return not Path(path).is_relative_to(self._collection)


def _concerns(path: str, source: _Watched) -> bool:
    return source.path is not None and Path(path).is_relative_to(source.path)


def _stand(store: Store) -> list[tuple[Asked, tuple[int, int] | None]]:
    """Which sources there are, and which folders they are in: another one may come in the place of one that went."""
    stand: list[tuple[Asked, tuple[int, int] | None]] = []
    for asked in known_sources(store):
        try:
            status = Path(asked[0]).stat()
            stand.append((asked, (status.st_dev, status.st_ino if stat.S_ISDIR(status.st_mode) else 0)))
        except OSError:
            stand.append((asked, None))
    return stand


def _look_at(store: Store, asked: Asked) -> _Watched:
    try:
        source, connector = resolve_source(store, *asked)
    except RagfmError:  # its sync says what is wrong
        return _Watched(known_name(store, asked), asked, None)
    root = str(connector.root)
    path = None if "://" in root else Path(os.path.realpath(root))
    return _Watched(source.name, asked, path if path and path.exists() else None)
