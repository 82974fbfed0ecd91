"""Removing a source with all its documents, or one document."""

from __future__ import annotations

import os
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, NoReturn

from ragfm.core.errors import CollectionError
from ragfm.ingestion.sources import known_sources
from ragfm.store.tables import documents

if TYPE_CHECKING:
    from ragfm.store.catalog import Catalog, Source
    from ragfm.store.collection_store import Store

__all__ = ["RemoveReport", "remove"]

_LOOKED_AT = 10_000  # addresses, for near names


@dataclass(frozen=True, slots=True)
class RemoveReport:
    """What was removed: a whole source, or the document `uri` of it.

    `listed`: the source stands in `ragfm.toml`, so the next ingest without arguments brings it back.
    """

    source: str
    uri: str | None
    documents: int
    chunks: int
    generation: int
    listed: bool


def remove(store: Store, name: str) -> RemoveReport:
    """Remove the source of this name, else the document of this address. Raises CollectionError for neither."""
    known = store.catalog  # before the lock is taken, which would make a collection where there is none
    _find(known, name)
    with store.writing() as catalog:
        before = catalog.at()
        source, uri, path = _find(catalog, name)
        count = len(catalog.current(source.id)) if path is None else 1
        generation = catalog.remove_source(source) if path is None else catalog.commit(source, [], [path])
        chunks = before.chunks - catalog.at().chunks
        store.save_view(catalog)
    locations = {location for location, _, _ in known_sources(store)[: len(store.settings.sources)]}
    listed = source.location in locations or os.path.normpath(store.folder.parent / source.location) in locations
    return RemoveReport(source.name, uri, count, chunks, generation, listed)


def _find(catalog: Catalog, name: str) -> tuple[Source, str | None, str | None]:
    """The source, and uri and path of a document; both None where all of the source is meant."""
    sources = {source.name: source for source in catalog.sources()}
    if name in sources or name.rstrip("/") in sources:
        return sources.get(name) or sources[name.rstrip("/")], None, None
    rows = catalog.documents(None, documents.c.uri == name)
    if not rows:
        _unknown(catalog, name, list(sources))
    return sources[rows[0].source], rows[0].uri, rows[0].path


def _unknown(catalog: Catalog, name: str, sources: list[str]) -> NoReturn:
    uris = [row.uri for row in catalog.documents(None)[:_LOOKED_AT]]
    near = get_close_matches(name, [*sources, *uris], n=3)
    hint = f"Near it: {', '.join(near)}. " if near else ""
    raise CollectionError(
        f"There is neither a source nor a document {name!r} in {catalog.folder}.",
        f"{hint}`ragfm sources` and `ragfm documents` list them.",
    )
