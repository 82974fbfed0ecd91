"""Source requests: what a user names as a source, resolved to a row of the catalog and to a connector.

`resolve_source` builds the connector; the rest of the sync uses that one. Once the collection is locked, the request is
resolved again, since another process may have changed the sources in between.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ragfm.core.errors import SourceError
from ragfm.core.text import without_secrets
from ragfm.ingestion.connector_options import build_connector
from ragfm.ingestion.document_tags import check_tag_names
from ragfm.ingestion.upload_connector import UploadConnector, UploadFolderConnector
from ragfm.store.catalog import Source
from ragfm.store.uploads import UPLOADS, UPLOADS_ADDRESS, UPLOADS_SOURCE

if TYPE_CHECKING:
    from ragfm.core.config import SourceSection
    from ragfm.core.types import Connector, Ref
    from ragfm.store.collection_store import Store
    from ragfm.store.upload_table import UploadTable
    from ragfm.store.uploads import UploadFolder

_PATTERN_OPTIONS = ("include", "exclude")
LISTINGS = "listings"
"""The folder, next to the catalog, for what connectors remember of their servers; it may be deleted at any time."""
_UPLOADED_ARCHIVE_FILES = 2000  # maximum, in an archive that a user uploads


class SourceEntry(NamedTuple):
    """A source as a user, `ragfm.toml` or the catalog names it.

    `settings` may hold connector, include, exclude, options, tags and allow. A setting that is missing or None keeps
    its value from `ragfm.toml`, else from the source's last sync.
    """

    location: str
    name: str | None
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """A source to sync.

    `entry` is what the user asked for. `source` is what it means: name, connector, location, options, tags and groups;
    it overlaps no other source. `connector` is built from these.
    """

    entry: SourceEntry
    source: Source
    connector: Connector


class StoredSource(NamedTuple):
    """A source of an earlier sync, with its location as an absolute path, and the real path of its root."""

    source: Source
    location: str
    root: str


def stored_sources(store: Store) -> dict[str, StoredSource]:
    """The sources of earlier syncs by name, to be read once for many entries."""
    return {source.name: stored_source(store, source) for source in _read_sources(store)}


def stored_source(store: Store, source: Source) -> StoredSource:
    """A source as `stored_sources` has it."""
    return StoredSource(source, _absolute_path(store, source.location), _real_path(store, source.root))


def resolve_source(
    store: Store, request: SourceEntry | SourceRequest, stored: Mapping[str, StoredSource] | None = None
) -> SourceRequest:
    """Resolve an entry and build its connector. `stored` are those of `stored_sources`.

    A request that was resolved before is resolved again; its connector is built again only if another process has
    changed the source's options.

    Raises SourceError where there is nothing at the location or the source overlaps another one, ConfigError for
    invalid options and tags, and UnknownPluginError.
    """
    # Options may come from the source's last sync. That source is found by its root, which the connector knows, but
    # also by the location, so one connector is enough unless the location's root has changed since.
    stored = stored_sources(store) if stored is None else stored
    if isinstance(request, SourceRequest):
        entry, expected, connector = request.entry, request.source, request.connector
        root = expected.root
    else:
        entry, expected = request, _make_source(store, request, None, stored)
        connector = build_source(store, expected)
        root = _relative_path(store, str(connector.root))
    source = _make_source(store, entry, root, stored)
    if (source.connector, source.options) != (expected.connector, expected.options):
        connector = build_source(store, source)
    return SourceRequest(entry, source, connector)


def unfiltered_listing(store: Store, source: Source) -> Callable[[], list[Ref]] | None:
    """Lists everything that a source's location holds; None if no include and exclude patterns leave out a part."""
    if not any(source.options.get(key) for key in _PATTERN_OPTIONS):
        return None
    options = {key: value for key, value in source.options.items() if key not in _PATTERN_OPTIONS}
    return lambda: list(build_source(store, replace(source, options=options)).refs())


def known_sources(store: Store) -> list[SourceEntry]:
    """The sources in `ragfm.toml`, then those of earlier syncs."""
    entries = [
        SourceEntry(
            _absolute_path(store, section.location),
            section.name,
            section.model_dump(exclude={"location", "name", "every"}),
        )
        for section in store.settings.sources
    ]
    listed = {entry.location for entry in entries}
    for source in _read_sources(store):
        location = _absolute_path(store, source.location)
        if location not in listed:
            entries.append(SourceEntry(location, source.name, {}))
    return entries


def settings_of(store: Store, entry: SourceEntry) -> SourceSection | None:
    """The table of `ragfm.toml` with the location of an entry."""
    absolute = absolute_location(entry)
    return next((one for one in store.settings.sources if _absolute_path(store, one.location) == absolute), None)


def absolute_location(entry: SourceEntry) -> str:
    """The location of an entry, a path as an absolute one."""
    if "://" in entry.location:
        return entry.location
    return os.path.abspath(entry.location)  # noqa: PTH100  keeps a glob's `..` literal


def stored_location(store: Store, entry: SourceEntry) -> str:
    """The location of an entry as the catalog has it."""
    return _relative_path(store, absolute_location(entry))


def source_name(store: Store, entry: SourceEntry) -> str:
    """The name of an entry, else of its last sync, else its location, without the parts that may hold a secret."""
    location = stored_location(store, entry)
    name = entry.name or next((source.name for source in _read_sources(store) if source.location == location), None)
    return name or without_secrets(location)


def _read_sources(store: Store) -> list[Source]:
    return store.catalog.sources() if store.exists else []


def _make_source(store: Store, entry: SourceEntry, root: str | None, stored: Mapping[str, StoredSource]) -> Source:
    """The source that an entry means; with root None, as far as the location alone shows, and unchecked."""
    if not entry.location:
        raise SourceError("The location of a source is empty.", "Specify a folder, a file or an address.")
    absolute = absolute_location(entry)
    location = stored_location(store, entry)

    # Settings in ragfm.toml apply where the user gave none.
    name, settings = entry.name, {key: value for key, value in entry.settings.items() if value is not None}
    if (section := settings_of(store, entry)) is not None:
        name = name or section.name
        settings = section.model_dump(exclude_none=True) | settings
    check_tag_names(settings.get("tags", {}))

    plugin = settings.get("connector")
    if not plugin:
        synced_with = (row.source.connector for row in stored.values() if row.location == absolute)
        plugin = next(synced_with, None)
    if not plugin:
        is_web = entry.location.startswith(("https://", "http://"))
        if "://" in entry.location and not is_web and entry.location != UPLOADS_ADDRESS:
            raise SourceError(
                f"No connector is set for {entry.location.partition('://')[0]}://… addresses.",
                "Name one with --connector; `ragfm plugins` lists them.",
            )
        plugin = "web" if is_web else "files"

    # Find the source's last sync.
    known, real_root = None, _real_path(store, root or location)
    for row in stored.values():
        same_place = _has_root(row, real_root, name) or (root is None and row.source.location == location)
        if same_place and name in (None, row.source.name):
            known = row.source
            break
    if root is not None and known is not None and location not in (known.location, root):
        raise SourceError(
            f"The folder {root!r} is already synced as {known.location!r}: syncing {entry.location!r} instead "
            "would remove the rest.",
            f"Sync `{root} --include PATTERN`; --include may be repeated.",
        )

    # What is still not set keeps its value of the last sync.
    previous: Mapping[str, Any] = known.options if known else {}
    options = {key: list(settings.get(key, previous.get(key, []))) for key in _PATTERN_OPTIONS}
    if "options" in settings:
        options |= settings["options"]
    else:
        options |= {key: value for key, value in previous.items() if key not in _PATTERN_OPTIONS}
    source = Source(
        name=name or (known.name if known else _relative_path(store, root or location, always=True)),
        connector=plugin,
        location=location,
        root=root or location,
        options=options,
        tags=dict(settings.get("tags", known.tags if known else {})),
        allow=tuple(settings.get("allow", known.allow if known else ())),
    )
    if root is not None:
        _check_overlap(store, source, real_root, stored)
    return source


def build_source(store: Store, source: Source) -> Connector:
    """The connector of a source. Raises the errors of `build_connector`, and SourceError if there is nothing."""
    location = _absolute_path(store, source.location)
    defaults: dict[str, Any] = {"max_bytes": int(store.settings.files.max_mb * 2**20)}
    if store.exists or not store.database.shared:  # on PostgreSQL, a collection has no folder before
        defaults["cache"] = str(store.folder / LISTINGS)
    options = dict(source.options)
    if isinstance(file := options.get("identities"), str):
        options["identities"] = _absolute_path(store, file)
    if source.name == UPLOADS_SOURCE:
        defaults["archive_files"] = _UPLOADED_ARCHIVE_FILES
        if store.database.shared:
            return UploadConnector(
                cast("UploadTable", store.open_uploads()),
                store.folder / UPLOADS,
                lambda folder: build_connector("files", str(folder), source.options, defaults),
                json.dumps([version("ragfm"), defaults, dict(source.options)], sort_keys=True),
            )
        files = build_connector(source.connector, location, source.options, defaults)
        return UploadFolderConnector(cast("UploadFolder", store.open_uploads()), files)
    return build_connector(source.connector, location, options, defaults)


def _check_overlap(store: Store, source: Source, root: str, stored: Mapping[str, StoredSource]) -> None:
    """Raise SourceError if a source, with the real path of its root, would have another source's documents."""
    folder = None if store.database.shared else os.path.realpath(store.folder)
    # Uploads are in the collection's own folder, which sources around it leave out.
    inside = folder is not None and _is_below(root, folder)
    for name, other in stored.items():
        if name == source.name and _has_root(other, root, source.name):
            continue
        separated = inside != (folder is not None and _is_below(other.root, folder))
        same_documents = not separated and (
            _takes(store, source, root, other.root) or _takes(store, other.source, other.root, root)
        )
        same_names = _takes(store, source, source.name, name) or _takes(store, other.source, name, source.name)
        if name == source.name and not same_documents and not (separated and name == "."):
            raise SourceError(
                f"There already is a source {name!r}, at {other.source.root}.",
                f"Give this one another name. If the documents have moved, run `ragfm remove {name}` first.",
            )
        if same_documents or (same_names and not (separated and "." in (name, source.name))):
            raise SourceError(
                f"The source {source.name!r} ({source.root}) overlaps the source {name!r} ({other.source.root}).",
                "Sync the larger one alone, or leave files out with --exclude.",
            )


def _takes(store: Store, outer: Source, folder: str, place: str) -> bool:
    """Whether a source at the path, address or name `folder` may have documents at `place`."""
    if not _is_below(place, folder):
        return False
    covers = None if place == folder else getattr(build_source(store, outer), "covers", None)
    return covers is None or bool(covers(posixpath.relpath(place, folder)))


def _has_root(stored: StoredSource, root: str, name: str | None) -> bool:
    """Whether a source covers the real path of a root. Uploads do by name, since they move with the collection."""
    return stored.root == root or stored.source.name == name == UPLOADS_SOURCE


def _is_below(place: str, folder: str) -> bool:
    """Whether a path or an address is a folder or address, or inside it. All relative paths are inside `.`."""
    if folder == ".":
        return "://" not in place and not place.startswith("/")
    return place == folder or place.startswith(folder if folder.endswith("/") else f"{folder}/")


def _real_path(store: Store, location: str) -> str:
    return location if "://" in location else os.path.realpath(_absolute_path(store, location))


def _relative_path(store: Store, location: str, *, always: bool = False) -> str:
    """A path relative to the folder of the settings, if it is inside that folder.

    The paths of a collection that other machines use stay absolute, unless `always`.
    """
    path, parent = PurePath(location), store.database.settings_file.parent
    relative = path.is_relative_to(parent) and (always or not store.database.shared)
    return path.relative_to(parent).as_posix() if relative else location


def _absolute_path(store: Store, location: str) -> str:
    return location if "://" in location else os.path.normpath(Path(store.database.settings_file.parent, location))
