"""Tags for the documents whose uri matches a pattern."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from ragfm.core.errors import CollectionError
from ragfm.ingestion.document_tags import check_tag_names, matches_uri, recipe_with_given, tags_of

if TYPE_CHECKING:
    from ragfm.core.types import Scalar
    from ragfm.store.catalog import Catalog
    from ragfm.store.collection_store import Store

__all__ = ["TagReport", "tag"]

_MAX_SUGGESTION_URIS = 10_000  # compared with a pattern that matches nothing


@dataclass(frozen=True, slots=True)
class TagReport:
    """The uris of the documents that a pattern matched, and the newest generation."""

    pattern: str
    documents: tuple[str, ...]
    generation: int


def tag(store: Store, pattern: str, tags: Mapping[str, Scalar | None]) -> TagReport:
    """Set tags of all documents that match a pattern, in one generation per source; None removes a tag.

    Nothing is parsed or embedded. Raises CollectionError if no document matches, ConfigError for a reserved name.
    """
    check_tag_names(tags)
    _matching(store.catalog, pattern)  # before `writing`, which would create a collection
    with store.writing() as catalog:
        matching = _matching(catalog, pattern)
        for source in catalog.sources():
            changes: dict[str, tuple[Mapping[str, Scalar | None], str]] = {}
            for path, row in catalog.current(source.id).items():
                if row.uri in matching:
                    recipe = recipe_with_given(row.recipe, tags)
                    # Where a tag is removed, one of the source or of a rule may take its place.
                    before, after = tags_of(row.recipe), tags_of(recipe)
                    if recipe != row.recipe:
                        changes[path] = {key: after.get(key) for key in tags if key in before or key in after}, recipe
            if changes:
                catalog.retag(source, changes)
        return TagReport(pattern, tuple(sorted(matching)), catalog.generation())


def _matching(catalog: Catalog, pattern: str) -> frozenset[str]:
    uris = [row.uri for row in catalog.documents(None)]
    matching = frozenset(uri for uri in uris if matches_uri(pattern, uri))
    if matching:
        return matching
    # Compare the pattern with as many levels of each uri; where it has a wildcard, up to its length.
    levels, length = pattern.strip("/").count("/") + 1, len(pattern) if "*" in pattern else None
    ends = {"/".join(uri.split("/")[-levels:])[:length]: uri for uri in reversed(uris[:_MAX_SUGGESTION_URIS])}
    close = [ends[end] for end in get_close_matches(pattern.strip("/*"), ends, n=3)]
    raise CollectionError(
        f"No document matches {pattern!r}.",
        f"Similar: {', '.join(close)}. `ragfm documents` lists all." if close else "`ragfm documents` lists them.",
    )
