"""How the last sync of a source ended, and when the next one is due: `sources.every` in `ragfm.toml`.

The collection knows both, so that all processes that sync its sources follow one schedule.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ragfm.ingestion.ingest_report import Failed
from ragfm.ingestion.source_request import (
    SourceEntry,
    absolute_location,
    known_sources,
    settings_of,
    source_name,
    stored_location,
)
from ragfm.store.catalog import set_property
from ragfm.store.tables import properties

if TYPE_CHECKING:
    from ragfm.store.catalog_writer import CatalogWriter
    from ragfm.store.collection_store import Store

_RETRY_SECONDS = 600.0  # after a failure, if the schedule would wait longer
_PREFIX = "last sync "  # of keys in `properties`


def record_sync(store: Store, catalog: CatalogWriter, entry: SourceEntry, failure: Failed | None = None) -> None:
    """Store how the sync of a known source ended. Without a schedule, a success only deletes the last failure."""
    last, every = _last_syncs(store).get(_key(store, entry)), sync_interval(store, entry)
    if every is None and failure is None and last is None:
        return
    if failure is not None and absolute_location(entry) not in {known.location for known in known_sources(store)}:
        return  # mistyped, for example
    state: dict[str, Any] = {"at": datetime.now(UTC).isoformat()}
    if failure is not None:
        state |= {"stage": failure.stage, "error": failure.error, "attempts": 1 + (last or {}).get("attempts", 0)}
    value = None if failure is None and every is None else json.dumps(state)
    with catalog.write() as connection:
        set_property(connection, _key(store, entry), value)


def failed_sources(store: Store) -> tuple[Failed, ...]:
    """The sources whose last sync failed as a whole; `uri` is the name."""
    states = _last_syncs(store)
    return tuple(
        Failed(source_name(store, entry), state["stage"], state["error"], state["attempts"], stale=True, known=True)
        for entry in known_sources(store)
        if "error" in (state := states.get(_key(store, entry), {}))
    )


def sync_interval(store: Store, entry: SourceEntry) -> float | None:
    """The seconds between two syncs of a source with a schedule."""
    section = settings_of(store, entry)
    return section.interval if section is not None else None


def seconds_until_due(store: Store, entry: SourceEntry) -> float:
    """The seconds until a source with a schedule is due; 0 for other sources."""
    every, last = sync_interval(store, entry), _last_syncs(store).get(_key(store, entry))
    if every is None or last is None:
        return 0.0
    pause = min(every, _RETRY_SECONDS) if "error" in last else every
    elapsed = (datetime.now(UTC) - datetime.fromisoformat(last["at"])).total_seconds()
    return pause - elapsed if 0 <= elapsed < pause else 0.0  # a time in the future: the clock was set back


def due_sources(store: Store) -> list[SourceEntry]:
    """The sources with a schedule that are due."""
    if not any(section.every for section in store.settings.sources):
        return []
    entries = [entry for entry in known_sources(store) if sync_interval(store, entry) is not None]
    return [entry for entry in entries if not seconds_until_due(store, entry)]


def _last_syncs(store: Store) -> dict[str, dict[str, Any]]:
    if not store.exists:
        return {}
    query = sa.select(properties.c.key, properties.c.value).where(properties.c.key.startswith(_PREFIX))
    with store.catalog.read() as connection:
        return {key: json.loads(value) for key, value in connection.execute(query)}


def _key(store: Store, entry: SourceEntry) -> str:
    """The key in `properties`: a hash, since a location that was refused may contain a password."""
    return _PREFIX + blake2b(stored_location(store, entry).encode(), digest_size=16).hexdigest()
