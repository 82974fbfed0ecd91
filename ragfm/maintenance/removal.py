"""Removal of a source with all its documents, or of one document."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ragfm.core.errors import CollectionError
from ragfm.core.text import without_secrets
from ragfm.ingestion.source_request import LISTINGS, known_sources
from ragfm.store.catalog import Catalog, Source
from ragfm.store.collection_store import Store

_MAX_SUGGESTION_URIS = 10_000  # compared with an unknown name


@dataclass(frozen=True, slots=True)
class RemoveReport:
    """The result of a removal: of a whole source, or of its document `uri`.

    `listed`: the source is in `ragfm.toml`, so the next ingest without arguments adds it again.
    """

    source: str
    uri: str | None
    documents: int
    chunks: int
    generation: int
    listed: bool


def remove(store: Store, name: str) -> RemoveReport:
    """Remove the source with this name, else the document with this uri or display name.

    Raises CollectionError if there is neither.
    """
    _find(store.catalog, name)  # before `writing`, which would create a collection
    with store.writing() as catalog:
        before = catalog.at()
        source, document = _find(catalog, name)
        if document is None:
            count = len(catalog.current(source.id))
            generation = catalog.remove_source(source)
            shutil.rmtree(store.folder / LISTINGS, ignore_errors=True)  # those of other sources are made again
        else:
            count = 1
            generation = catalog.commit(source, [], [document.path])
        chunks = before.chunks - catalog.at().chunks
        store.save_view(catalog)
    locations = {location for location, _, _ in known_sources(store)[: len(store.settings.sources)]}
    absolute = os.path.normpath(store.database.settings_file.parent / source.location)
    listed = source.location in locations or absolute in locations
    return RemoveReport(source.name, document.uri if document else None, count, chunks, generation, listed)


def _find(catalog: Catalog, name: str) -> tuple[Source, Any | None]:
    """The source with this name and None, or the row of a document and its source."""
    sources = {source.name: source for source in catalog.sources()}
    if name in sources or name.rstrip("/") in sources:
        return sources.get(name) or sources[name.rstrip("/")], None
    row = catalog.named(name)
    if row is not None:
        return sources[row.source], row
    uris = [row.uri for row in catalog.documents(None)[:_MAX_SUGGESTION_URIS]]
    similar = get_close_matches(name, [*sources, *uris], n=3)
    suggestion = f"Similar names: {', '.join(similar)}. " if similar else ""
    raise CollectionError(
        f"There is no source and no document {without_secrets(name)!r} in '{catalog.database.location}'.",
        f"{suggestion}`ragfm sources` and `ragfm documents` list them.",
    )
