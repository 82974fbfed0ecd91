"""Pages of documents as images, and where quotes stand on them, from the bytes that the source has now.

A collection stores texts, not files. So the file is fetched again, by the source's connector, and is used only if it is
the indexed version. The caller has checked that the document may be read.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Set
from typing import TYPE_CHECKING, Any

from ragfm.core.errors import (
    ConfigError,
    ConnectorError,
    MissingExtraError,
    SourceError,
    UnknownPluginError,
    UnsupportedError,
)
from ragfm.core.types import Ref
from ragfm.ingestion.preparation import fetch
from ragfm.ingestion.source_request import build_source
from ragfm.parsing.formats import IMAGE, PDF
from ragfm.parsing.page_service import find_on_page, render_page

if TYPE_CHECKING:
    from ragfm.core.types import Box, Mark
    from ragfm.store.collection_store import Store

MIN_WIDTH, MAX_WIDTH = 100, 2400
"""Pixels of a rendered page."""
_MAX_CACHED = 64 << 20  # bytes of files and images together


class _Cache:
    """The files and images that were used last, by keys that contain the digest of a document. Thread-safe.

    The keys also contain the collection and the groups of its handle: how long a page takes must not tell that users
    with other groups have seen it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()

    def get(self, key: tuple[Any, ...], make: Callable[[], bytes]) -> bytes:
        with self._lock:
            value = self._values.pop(key, None)
        if value is None:
            value = make()
        if len(value) > _MAX_CACHED:
            return value
        with self._lock:
            self._values[key] = value
            while sum(map(len, self._values.values())) > _MAX_CACHED:
                self._values.popitem(last=False)
        return value


_cache = _Cache()


def page_image(store: Store, groups: Set[str] | None, row: Any, page: int, width: int) -> bytes:
    """A page of the document of a row of `documents`, as PNG, for a handle with these groups, None for the owner's.

    Raises as `Collection.page_image`.
    """
    if not MIN_WIDTH <= width <= MAX_WIDTH:
        raise ValueError(f"width is {width}; it must be between {MIN_WIDTH} and {MAX_WIDTH}")

    def render() -> bytes:
        return render_page(_file(store, groups, row), row.media_type, row.uri, page, width)

    return _cache.get((*_scope(store, groups), row.digest, page, width), render)


def page_boxes(
    store: Store,
    groups: Set[str] | None,
    row: Any,
    text: str,
    marks: tuple[Mark, ...],
    page: int,
    start: int,
    end: int,
) -> list[Box]:
    """The boxes of `text[start:end]` on a page of the document, see `page_image`."""
    data = _file(store, groups, row)
    spans = [(mark.start, mark.end) for mark in marks if mark.kind == "page" and mark.value == str(page)]
    first, last = spans[0] if spans else (0, len(text))
    start, end = max(start, first), min(end, last)
    if start >= end:
        return []
    return find_on_page(data, row.media_type, row.uri, page, text[first:last], start - first, end - first)


def _scope(store: Store, groups: Set[str] | None) -> tuple[Any, ...]:
    """What the handles that share cached files have in common."""
    return store.database.location, None if groups is None else frozenset(groups)


def _file(store: Store, groups: Set[str] | None, row: Any) -> bytes:
    """The bytes that a document was indexed from."""
    if row.media_type not in (PDF, IMAGE):
        raise UnsupportedError(f"{row.uri!r} has no pages to show.", "PDF documents and images do.")

    def fetch_again() -> bytes:
        sources = store.read_catalog(lambda catalog: catalog.sources())
        source = next((one for one in sources if one.id == row.source_id), None)
        if source is None:
            raise ConnectorError(f"The source of {row.uri!r} was removed.")
        try:
            connector = build_source(store, source)
        except (SourceError, ConfigError, MissingExtraError, UnknownPluginError) as error:
            raise ConnectorError(f"The source of {row.uri!r} cannot be read: {error}") from error
        allow = None if row.allow is None else tuple(row.allow)
        blob, outcome = fetch(connector, Ref(row.path, row.revision, allow=allow), row.digest)
        if blob is None:
            raise ConnectorError(f"The file of {row.uri!r} cannot be read: {outcome.reason}")
        if outcome.kind != "unchanged":
            raise ConnectorError(f"{row.uri!r} has changed since it was indexed.", "Run `ragfm ingest`.")
        return blob.data

    return _cache.get((*_scope(store, groups), row.digest), fetch_again)
