"""Sync of a collection's sources, one after the other, under the collection's lock."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ragfm.core.access_groups import changed_groups, restrict_groups
from ragfm.core.config import SETTINGS_FILE
from ragfm.core.errors import (
    ConfigError,
    MassDeleteError,
    MissingExtraError,
    SourceError,
    UnknownPluginError,
    UnsupportedError,
)
from ragfm.core.tracing import span
from ragfm.ingestion.document_tags import check_tag_names, matches_uri
from ragfm.ingestion.ingest_report import SKIP_STAGE, Failed, SyncReport, document_uri, merge_reports
from ragfm.ingestion.source_request import (
    SourceEntry,
    SourceRequest,
    known_sources,
    resolve_source,
    source_name,
    stored_source,
    stored_sources,
    unfiltered_listing,
)
from ragfm.ingestion.source_schedule import record_sync, seconds_until_due
from ragfm.ingestion.sync import Sync, list_refs
from ragfm.store.compaction import compact, should_compact
from ragfm.store.uploads import UPLOADS_SOURCE

_PAUSE_SECONDS = 0.1  # between two slices, twice the interval at which others try to get the lock
if TYPE_CHECKING:
    from ragfm.core.progress import ProgressCallback
    from ragfm.ingestion.turns import Turns
    from ragfm.store.catalog import Catalog
    from ragfm.store.collection_store import Store

_SLICES_PER_VIEW = 20
_log = logging.getLogger(__name__)


def sync_in_turns(store: Store, source: str | Path, turns: Turns, *, name: str) -> Iterator[SyncReport]:
    """Sync one source in slices, see `Turns`, until nothing is postponed. Yields the report of each slice.

    The collection's lock is released between them. Any number of documents may be removed. Raises what `sync` does.
    """
    requests = [resolve_source(store, SourceEntry(str(source), name, {}))]
    while True:
        yield sync_sources(store, requests, allow_mass_delete=True, turns=turns)
        if not turns.postponed:
            return
        time.sleep(_PAUSE_SECONDS)


def sync_sources(
    store: Store,
    requests: Sequence[SourceRequest | SourceEntry] = (),
    progress: ProgressCallback | None = None,
    *,
    retry: bool = False,
    allow_mass_delete: bool = False,
    keep_recipe: bool = False,
    turns: Turns | None = None,
    executor: str = "local",
    only_due: bool = False,
) -> SyncReport:
    """Sync the requested sources, or all known ones without a request, and save the view at the end.

    `retry` tries all failed documents at once; for `keep_recipe` see `Sync`. With `turns`, a slice is synced, and the
    view is saved after the last one, and every few slices. With the `executor` "ray", a cluster prepares the documents,
    except uploads. `only_due` leaves out sources that are not due by their schedule. A requested source that cannot be
    read or has invalid options ends the sync; without a request, it is reported as a failure and the other sources
    continue. A source that lost over half of its documents raises MassDeleteError unless `allow_mass_delete` is set.
    """
    sync_all = not requests
    if not store.exists:  # a request that is wrong fails before the store is created
        requests = [resolve_source(store, item) for item in requests or known_sources(store)]
        if not requests:
            raise SourceError("There is no source to sync.", "Specify a folder, or list sources in ragfm.toml.")
    reports = []
    for rule in store.settings.tags:
        check_tag_names(rule.tags)
    parser_choice = store.parser_choice
    parser_choice.check()
    if executor not in ("local", "ray"):
        raise UnsupportedError(f"There is no executor {executor!r}.", "Choose local or ray.")
    ray = None
    if executor == "ray":
        from ragfm.ingestion.ray_executor import RayExecutor

        ray = RayExecutor(store)
    with store.writing() as catalog, ray or nullcontext():
        if store.names_embedder:
            store.embedder()  # a different embedder is refused even if there is nothing to embed
        chunk_settings = store.chunk_settings(int(catalog.at().contract["max_tokens"]))
        after_commit = partial(store.save_grown_view, catalog)
        items: Sequence[SourceRequest | SourceEntry] = requests or known_sources(store)
        stored = stored_sources(store)
        for item in items:
            entry = item.entry if isinstance(item, SourceRequest) else item
            if only_due and seconds_until_due(store, entry):  # another process was faster
                continue
            sync = None
            try:
                request = resolve_source(store, item, stored)
                uploads = request.source.name == UPLOADS_SOURCE
                if ray is not None and not uploads and not getattr(request.connector, "fetch_anywhere", False):
                    raise SourceError(
                        f"Ray cannot read sources of the connector {request.source.connector!r}: it does not fetch "
                        "without a listing of its own.",
                        "Ingest this source without --executor.",
                    )
                refs = list_refs(request.connector)
                # If the groups change, documents that the listing closes are closed first.
                known = stored.get(request.source.name)
                if known is not None and set(known.source.allow) != set(request.source.allow):
                    groups = {path: row.allow for path, row in catalog.current(known.source.id).items()}
                    if closed := changed_groups(groups, restrict_groups(groups, refs)):
                        catalog.restrict(known.source, closed)
                source = catalog.save_source(request.source)  # only after it was listed
                stored[source.name] = stored_source(store, source)
                sync = Sync(
                    catalog,
                    source,
                    store.embedder,
                    chunk_settings,
                    parser_choice=parser_choice,
                    rules=store.settings.tags,
                    progress=progress,
                    after_commit=after_commit,
                    keep_recipe=keep_recipe,
                )
                with span("sync", connector=source.connector, listed=len(refs)) as active:
                    report = sync.run(
                        request.connector,
                        refs,
                        retry=retry,
                        allow_mass_delete=allow_mass_delete,
                        unfiltered=unfiltered_listing(store, source),
                        turns=turns,
                        ray=None if uploads else ray,
                    )
                    active.set(added=report.added, updated=report.updated, removed=report.removed)
                    active.set(unchanged=report.unchanged, failed=len(report.failed), chunks=report.chunks)
            except (SourceError, ConfigError, MissingExtraError, UnknownPluginError) as error:
                stage = "remove" if isinstance(error, MassDeleteError) else "list"
                failed = Failed(source_name(store, entry), stage, str(error), 1, stale=True)
                record_sync(store, catalog, entry, failed)
                if not sync_all or (sync is not None and not isinstance(error, SourceError)):
                    if sync is not None:
                        store.save_view(catalog)  # of the commits before the error
                    raise
                if sync is not None:
                    reports.append(sync.report)
                reports.append(SyncReport(failed=(failed,)))
                continue
            if not (report.added or report.updated or report.unchanged or report.failed):
                _log.warning("The source %s contains no document that can be indexed.", source.name)
            record_sync(store, catalog, entry)
            reports.append(report)
        if turns is not None and turns.postponed and turns.slices % _SLICES_PER_VIEW:
            return merge_reports(reports)
        store.save_view(catalog)
        if sync_all and store.settings.tags:
            uris = [row.uri for row in catalog.documents(None)]
            for rule in store.settings.tags:
                if not any(matches_uri(rule.match, uri) for uri in uris):
                    _log.warning("No document matches %r of [[tags]] in %s.", rule.match, SETTINGS_FILE)
        if should_compact(catalog):
            compact(store, catalog)
    return merge_reports(reports)


def failed_documents(catalog: Catalog) -> tuple[Failed, ...]:
    """The documents that failed at the last sync of their source."""
    return tuple(
        Failed(document_uri(row.source, row.path), row.stage, row.error, row.attempts, bool(row.stale), known=True)
        for row in catalog.failures()
        if row.stage != SKIP_STAGE
    )
