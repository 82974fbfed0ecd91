"""Sources: from what a user names to a connector and a row in the catalog."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ragfm.catalog import Catalog, Source
from ragfm.errors import SourceError
from ragfm.registry import load_plugin
from ragfm.sync import Failed, document_uri

if TYPE_CHECKING:
    from ragfm.store import Store
    from ragfm.types import Connector


def known_sources(store: Store) -> list[tuple[str, str | None, Mapping[str, Any]]]:
    """Location, name and options of the sources in `ragfm.toml`, then of those synced before."""
    listed = [
        (_absolute(store, section.location), section.name, section.model_dump(exclude={"location", "name"}))
        for section in store.settings.sources
    ]
    before = store.catalog.sources() if store.exists else []
    seen = {location for location, _, _ in listed}
    rest: list[tuple[str, str | None, Mapping[str, Any]]] = [
        (_absolute(store, source.location), source.name, {}) for source in before
    ]
    return listed + [entry for entry in rest if entry[0] not in seen]


def resolve_source(store: Store, location: str, name: str | None, given: Mapping[str, Any]) -> tuple[Source, Connector]:
    """The source that a location means, and a connector for it.

    Options that are None are taken from the source's last sync. Raises SourceError where it overlaps another source.
    """
    others = store.catalog.sources() if store.exists else []
    absolute = location if "://" in location else os.path.abspath(location)  # noqa: PTH100  keeps a glob's `..` literal
    plugin = given.get("connector") or next(
        (other.connector for other in others if _absolute(store, other.location) == absolute), "files"
    )
    probe = _connect(store, plugin, absolute, {})
    root = _relative(store, str(probe.root))
    known = next((other for other in others if other.root == root and name in (None, other.name)), None)
    before: Mapping[str, Any] = known.options if known else {}
    options = {
        key: list(given[key]) if given.get(key) is not None else before.get(key, []) for key in ("include", "exclude")
    }
    source = Source(
        name=name or (known.name if known else root),
        connector=plugin,
        location=_relative(store, absolute),
        root=root,
        options=options,
        tags=dict(given["tags"]) if given.get("tags") is not None else (known.tags if known else {}),
        allow=tuple(given["allow"]) if given.get("allow") is not None else (known.allow if known else ()),
    )
    _check_overlap(source, others)
    return source, _connect(store, plugin, absolute, options)


def failed_documents(catalog: Catalog) -> tuple[Failed, ...]:
    """The documents that could not be brought in at their source's last sync."""
    return tuple(
        Failed(document_uri(row.source, row.path), row.stage, row.error, row.attempts, bool(row.stale))
        for row in catalog.failures()
    )


def _connect(store: Store, plugin: str, location: str, options: Mapping[str, Any]) -> Connector:
    limits = {"max_bytes": int(store.settings.files.max_mb * 2**20)} if plugin == "files" else {}
    made: Connector = load_plugin("connectors", plugin)(location, **options, **limits)
    return made


def _check_overlap(source: Source, others: list[Source]) -> None:
    for other in others:
        if other.name == source.name and other.root == source.root:
            continue
        if _nested(other.root, source.root) or _nested(other.name, source.name):
            raise SourceError(
                f"The source {source.name!r} ({source.root}) overlaps the source {other.name!r} ({other.root}).",
                "Sync the larger one alone, or leave files out with --exclude.",
            )


def _nested(one: str, other: str) -> bool:
    a, b = PurePath(one), PurePath(other)
    return a.is_relative_to(b) or b.is_relative_to(a)


def _relative(store: Store, location: str) -> str:
    path, parent = PurePath(location), store.folder.parent
    return path.relative_to(parent).as_posix() if path.is_relative_to(parent) else location


def _absolute(store: Store, location: str) -> str:
    return location if "://" in location else os.path.normpath(Path(store.folder.parent, location))
