"""Schedules of sources: when a sync is due, and how the last one ended."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ragfm import Collection, Settings
from ragfm.core.config import SourceSection
from ragfm.core.errors import SourceError
from ragfm.ingestion import source_schedule
from ragfm.ingestion.source_request import known_sources
from ragfm.ingestion.source_schedule import failed_sources, seconds_until_due
from ragfm.ingestion.source_watcher import WatchEvent, watch
from ragfm.ingestion.sources import sync_sources
from ragfm.testing import HashingEmbedder


def _schedule(collection: Collection, folder: Path, every: str | None = "1h") -> None:
    section = SourceSection.model_validate({"location": str(folder), "name": "docs", "every": every})
    collection.store.settings = Settings(embedder="hashing", sources=[section])


@pytest.mark.both_databases
def test_a_source_is_due_once_in_each_interval_for_all_processes(collection: Collection, docs: Path) -> None:
    _schedule(collection, docs)
    reports = []
    entries = known_sources(collection.store)
    assert seconds_until_due(collection.store, entries[0]) == 0

    def sync() -> None:
        other = Collection.open(collection.location, settings=collection.store.settings, embedder=HashingEmbedder())
        reports.append(sync_sources(other.store, entries, only_due=True))

    sync()
    threads = [threading.Thread(target=sync) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [(report.added, report.unchanged) for report in reports] == [(4, 0), (0, 0), (0, 0)]
    assert 3500 < seconds_until_due(collection.store, known_sources(collection.store)[0]) <= 3600


@pytest.mark.both_databases
def test_a_failure_is_in_the_status_until_a_sync_succeeds(collection: Collection, docs: Path, tmp_path: Path) -> None:
    _schedule(collection, docs)
    collection.sync()
    docs.rename(tmp_path / "away")
    for attempts in (1, 2):
        collection.sync()
        (failure,) = collection.status().failed
        assert (failure.uri, failure.stage, failure.attempts) == ("docs", "list", attempts)
        assert str(docs) in failure.error
    # It is tried again earlier than after an hour.
    assert 500 < seconds_until_due(collection.store, known_sources(collection.store)[0]) <= 600
    (tmp_path / "away").rename(docs)
    collection.sync()
    assert collection.status().failed == ()


def test_a_source_without_a_schedule_stores_failures_only(collection: Collection, docs: Path, tmp_path: Path) -> None:
    _schedule(collection, docs, None)
    collection.sync()
    assert source_schedule._last_syncs(collection.store) == {}
    docs.rename(tmp_path / "away")
    assert len(collection.sync().failed) == 1
    assert [failure.uri for failure in failed_sources(collection.store)] == ["docs"]
    with pytest.raises(SourceError):
        collection.sync(tmp_path / "mistyped")
    assert len(source_schedule._last_syncs(collection.store)) == 1
    (tmp_path / "away").rename(docs)
    collection.sync(docs)
    assert source_schedule._last_syncs(collection.store) == {}


@pytest.mark.timing
def test_watch_follows_the_schedule(collection: Collection, docs: Path) -> None:
    _schedule(collection, docs, "1s")
    stop, events = threading.Event(), list[WatchEvent]()

    def callback(event: WatchEvent) -> None:
        events.append(event)
        if len(events) == 3:
            stop.set()

    ended = threading.Timer(60, stop.set)
    ended.start()
    watch(collection.store, callback, 300.0, stop)
    ended.cancel()
    assert [event.report.unchanged for event in events] == [0, 4, 4]


@pytest.mark.timing
def test_watch_does_not_sync_at_its_start_what_is_not_due_but_at_a_change(collection: Collection, docs: Path) -> None:
    _schedule(collection, docs)
    collection.sync()
    stop, events = threading.Event(), list[WatchEvent]()

    def callback(event: WatchEvent) -> None:
        events.append(event)
        stop.set()

    timers = [threading.Timer(3, lambda: (docs / "new.md").write_text("New.")), threading.Timer(60, stop.set)]
    for timer in timers:
        timer.start()
    watch(collection.store, callback, 300.0, stop)
    timers[1].cancel()
    assert [event.report.added for event in events] == [1]
