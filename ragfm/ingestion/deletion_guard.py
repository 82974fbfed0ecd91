"""Deletion guard: a source that lost over half of its documents is more likely broken than emptied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ragfm.core.access_groups import path_prefix
from ragfm.store.catalog import alive, read_property, set_property
from ragfm.store.tables import documents

if TYPE_CHECKING:
    from ragfm.core.types import Ref
    from ragfm.store.catalog_writer import CatalogWriter


def missing_paths(paths: Iterable[str], refs: Iterable[Ref], skipped: Iterable[str] = ()) -> list[str]:
    """The paths that a listing lacks or skips. Paths below an entry that could not be listed are not missing."""
    refs = list(refs)
    listed = {ref.path for ref in refs if ref.skip is None}.difference(skipped)
    unlisted = tuple(path_prefix(ref.path) for ref in refs if ref.error is not None)
    return [path for path in paths if path not in listed and not path.startswith(unlisted)]


def lost_documents(
    missing: Sequence[str],
    current: Mapping[str, Any],
    baseline: Collection[str],
    new_digests: Counter[str],
    skipped: Collection[str],
    unfiltered: Callable[[], Sequence[Ref]] | None,
) -> tuple[list[str], int] | None:
    """The documents that a source has lost, and how many it had; None if that is at most half.

    missing      paths of `current` that the listing lacks
    current      the catalog's documents of the source, by path
    baseline     the paths at the last complete sync: those that an interrupted sync added since do not count
    new_digests  content digests of the documents that are new or changed; a missing one of such a digest was moved
    skipped      paths that this sync skips
    unfiltered   lists the source without include and exclude patterns: what only these leave out is not lost. It is
                 called only if over half seems to be lost. None if the source has no patterns.
    """
    not_new = {*baseline, *missing}
    moved = new_digests + Counter(row.digest for path, row in current.items() if path not in not_new)
    lost = []
    for path in missing:
        if path not in baseline:
            continue
        digest = current[path].digest
        if moved[digest]:
            moved[digest] -= 1
        else:
            lost.append(path)
    total = len(baseline)
    if 2 * len(lost) > total and unfiltered is not None:
        still_missing = missing_paths(lost, unfiltered(), skipped)
        total -= len(lost) - len(still_missing)
        lost = still_missing
    return (lost, total) if 2 * len(lost) > total else None


def paths_at_last_sync(catalog: CatalogWriter, source_id: int, current: Mapping[str, Any]) -> set[str]:
    """The paths of `current` that the source had at its last complete sync; all of them if there was none."""
    with catalog.read() as connection:
        generation = read_property(connection, f"synced {source_id}")
        if generation is None:
            return set(current)
        query = sa.select(documents.c.path).where(documents.c.source_id == source_id, alive(documents, int(generation)))
        return current.keys() & set(connection.execute(query).scalars()) or set(current)


def record_complete_sync(catalog: CatalogWriter, source_id: int) -> None:
    """Store that the source was completely synced at the newest generation."""
    generation = catalog.generation()
    with catalog.write() as connection:
        set_property(connection, f"synced {source_id}", str(generation))
