"""Sources: from what a user names to a connector and a row in the catalog."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeAlias

from ragfm.core.access_groups import changed, narrowed
from ragfm.core.errors import ConfigError, MassDeleteError, SourceError
from ragfm.ingestion.connector_options import connect
from ragfm.ingestion.sync import SKIP, Failed, Progress, Sync, SyncReport, document_uri, list_refs, merge_reports
from ragfm.store.catalog import Catalog, Source
from ragfm.store.collection_store import UPLOADS_SOURCE
from ragfm.store.compaction import compact, should_compact
from ragfm.store.filters import RESERVED_KEYS

if TYPE_CHECKING:
    from ragfm.core.types import Connector, Ref
    from ragfm.store.catalog_writer import CatalogWriter
    from ragfm.store.collection_store import Store


_log = logging.getLogger(__name__)

Asked: TypeAlias = tuple[str, str | None, Mapping[str, Any]]
"""A location, the name that its source is to have, and options."""
_PATTERNS = ("include", "exclude")


def sync_sources(
    store: Store,
    asked: Sequence[Asked],
    progress: Callable[[Progress], None] | None = None,
    *,
    retry: bool = False,
    allow_mass_delete: bool = False,
) -> SyncReport:
    """Sync the sources asked for, else all that are known, under one lock; the view is saved at the end.

    `retry` tries all that failed, however short ago. Raises SourceError for a source that was asked for, among them
    MassDeleteError where it lost over half of its documents and `allow_mass_delete` isn't given.
    """
    if not asked and not store.exists:
        for entry in known_sources(store):
            resolve_source(store, *entry)
        if not store.settings.sources:
            raise SourceError("There is no source to sync.", "Name a folder, or list sources in ragfm.toml.")
    reports = []
    with store.writing() as catalog:
        if store.names_embedder:
            store.embedder()  # another embedder is refused even where there is nothing to embed
        chunking = store.chunk_settings(int(catalog.at().contract["max_tokens"]))
        for location, name, given in asked or known_sources(store):
            run = None
            try:
                # Under the lock, since another process may just have changed the sources.
                source, connector = resolve_source(store, location, name, given)
                refs = list_refs(connector)
                kept = _save(catalog, source, refs)  # not before it could be listed
                saving = partial(store.save_grown_view, catalog)
                run = Sync(catalog, kept, store.embedder, chunking, progress=progress, committed=saving)
                wide = _unfiltered(store, kept)
                report = run.run(connector, refs, retry=retry, allow_mass_delete=allow_mass_delete, unfiltered=wide)
            except SourceError as error:
                if asked:
                    if run is not None:
                        store.save_view(catalog)  # of what it has committed
                    raise
                stage = "remove" if isinstance(error, MassDeleteError) else "list"
                failed = Failed(name or location, stage, str(error), 1, stale=True)
                reports += [*([run.report] if run else []), SyncReport(failed=(failed,))]
                continue
            if not (report.added or report.updated or report.unchanged or report.failed):
                _log.warning("The source %s holds no document that can be indexed.", kept.name)
            reports.append(report)
        store.save_view(catalog)
        if should_compact(catalog):
            compact(store, catalog)
    return merge_reports(reports)


def _save(catalog: CatalogWriter, source: Source, refs: Sequence[Ref]) -> Source:
    """Keep a source. Where other groups are allowed, what the listing closes is closed before they see anything."""
    known = next((other for other in catalog.sources() if other.name == source.name), None)
    if known is not None and set(known.allow) != set(source.allow):
        allow = {path: row.allow for path, row in catalog.current(known.id).items()}
        closed = changed(allow, narrowed(allow, refs))
        if closed:
            catalog.restrict(known, closed)
    return catalog.save_source(source)


def _unfiltered(store: Store, source: Source) -> Connector | None:
    """A connector for all that lies in a source of which include and exclude leave something out."""
    if not any(source.options.get(key) for key in _PATTERNS):
        return None
    rest = {key: value for key, value in source.options.items() if key not in _PATTERNS}
    return _connect(store, source.connector, _absolute(store, source.location), rest)


def known_sources(store: Store) -> list[Asked]:
    """Location, name and options of the sources in `ragfm.toml`, then of those synced before."""
    listed = [
        (_absolute(store, section.location), section.name, section.model_dump(exclude={"location", "name"}))
        for section in store.settings.sources
    ]
    before = store.catalog.sources() if store.exists else []
    seen = {location for location, _, _ in listed}
    rest: list[Asked] = [(_absolute(store, source.location), source.name, {}) for source in before]
    return listed + [entry for entry in rest if entry[0] not in seen]


def known_name(store: Store, asked: Asked) -> str:
    """What a source is called, which may not be there any more."""
    location, name, _ = asked
    sources = store.catalog.sources() if store.exists else []
    return name or next((other.name for other in sources if _absolute(store, other.location) == location), location)


def resolve_source(store: Store, location: str, name: str | None, given: Mapping[str, Any]) -> tuple[Source, Connector]:
    """The source that a location means, and a connector for it.

    Options that are None are those of the source's entry in `ragfm.toml`, else of its last sync. Raises SourceError
    where it overlaps another source.
    """
    others = store.catalog.sources() if store.exists else []
    absolute = location if "://" in location else os.path.abspath(location)  # noqa: PTH100  keeps a glob's `..` literal
    section = next((s for s in store.settings.sources if _absolute(store, s.location) == absolute), None)
    if section is not None:
        name = name or section.name
        given = section.model_dump() | {key: value for key, value in given.items() if value is not None}
    before_as = (other.connector for other in others if _absolute(store, other.location) == absolute)
    plugin = given.get("connector") or next(before_as, None) or _default(location)
    for key in RESERVED_KEYS:
        if key in (given.get("tags") or {}):
            raise ConfigError(
                f"A filter takes {key!r} for the document's own, not for a tag.", "Name the tag otherwise."
            )
    probe = _connect(store, plugin, absolute, {})
    root = _relative(store, str(probe.root))
    known = next((other for other in others if _same(store, other, root, name) and name in (None, other.name)), None)
    if known and _relative(store, absolute) not in (known.location, root):
        raise SourceError(
            f"The folder {root!r} is synced as {known.location!r} already, so {location!r} would remove the rest.",
            f"Sync `{root} --include PATTERN`; --include may be repeated.",
        )
    before: Mapping[str, Any] = known.options if known else {}
    options = {key: list(given[key]) if given.get(key) is not None else before.get(key, []) for key in _PATTERNS}
    own = given.get("options")
    options |= dict(own) if own is not None else {key: before[key] for key in before if key not in _PATTERNS}
    source = Source(
        name=name or (known.name if known else root),
        connector=plugin,
        location=_relative(store, absolute),
        root=root,
        options=options,
        tags=dict(given["tags"]) if given.get("tags") is not None else (known.tags if known else {}),
        allow=tuple(given["allow"]) if given.get("allow") is not None else (known.allow if known else ()),
    )
    _check_overlap(store, source, others)
    return source, _connect(store, plugin, absolute, options)


def _default(location: str) -> str:
    """The connector of a location that says nothing of it."""
    if location.startswith(("https://", "http://")):
        return "web"
    if "://" in location:
        raise SourceError(
            f"Which connector reads {location.partition('://')[0]}://… must be said.",
            "Name it with --connector; `ragfm plugins` lists them.",
        )
    return "files"


def failed_documents(catalog: Catalog) -> tuple[Failed, ...]:
    """The documents that could not be brought in at their source's last sync."""
    return tuple(
        Failed(document_uri(row.source, row.path), row.stage, row.error, row.attempts, bool(row.stale))
        for row in catalog.failures()
        if row.stage != SKIP
    )


def _connect(store: Store, plugin: str, location: str, options: Mapping[str, Any]) -> Connector:
    return connect(plugin, location, options, {"max_bytes": int(store.settings.files.max_mb * 2**20)})


def _check_overlap(store: Store, source: Source, others: list[Source]) -> None:
    for other in others:
        if other.name == source.name and _same(store, other, source.root, source.name):
            continue
        apart = _apart(store, other.root, source.root)
        shared = not apart and _nested(_real(store, other.root), _real(store, source.root))
        if shared or (_nested(other.name, source.name) and not (apart and "." in (other.name, source.name))):
            raise SourceError(
                f"The source {source.name!r} ({source.root}) overlaps the source {other.name!r} ({other.root}).",
                "Sync the larger one alone, or leave files out with --exclude.",
            )


def _apart(store: Store, one: str, other: str) -> bool:
    """Whether one lies in the collection's own folder, as uploads do, and the other doesn't: it leaves that out."""
    inside = os.path.realpath(store.folder)
    return len({PurePath(_real(store, root)).is_relative_to(inside) for root in (one, other)}) > 1


def _same(store: Store, other: Source, root: str, name: str | None) -> bool:
    """Whether a source is that of a root. Uploads are where the collection is, wherever it was before."""
    return _real(store, other.root) == _real(store, root) or other.name == name == UPLOADS_SOURCE


def _real(store: Store, location: str) -> str:
    """A path without symbolic links, by which one folder may be reached in two ways."""
    return location if "://" in location else os.path.realpath(_absolute(store, location))


def _nested(one: str, other: str) -> bool:
    a, b = PurePath(one), PurePath(other)
    return a.is_relative_to(b) or b.is_relative_to(a)


def _relative(store: Store, location: str) -> str:
    path, parent = PurePath(location), store.folder.parent
    return path.relative_to(parent).as_posix() if path.is_relative_to(parent) else location


def _absolute(store: Store, location: str) -> str:
    return location if "://" in location else os.path.normpath(Path(store.folder.parent, location))
