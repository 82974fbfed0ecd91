"""Guards of a sync: what failed is not tried again and again, and a source that lost most of it is not believed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ragfm.core.access_groups import below
from ragfm.store.catalog import alive
from ragfm.store.tables import documents, properties

if TYPE_CHECKING:
    from ragfm.core.types import Ref
    from ragfm.store.catalog_writer import CatalogWriter

DELAYS = (0, 60, 300, 1_800, 7_200, 86_400)
"""Seconds from one attempt at a document to the next, by the number of attempts; the last holds for all later ones."""


def waits(attempts: int, at: str) -> bool:
    """Whether what failed at a time (ISO 8601), after so many attempts in all, is not to be tried again yet."""
    since = datetime.now(UTC) - datetime.fromisoformat(at)
    # Of a time that is still to come a clock has been set back: who knows how far.
    return timedelta(0) <= since < timedelta(seconds=DELAYS[min(attempts, len(DELAYS)) - 1])


def conditions(recipe: str) -> str:
    """What, beside a document's bytes, decides whether it can be read: the recipe, and what is installed."""
    return blake2b(f"{recipe}\n{_installed()}".encode(), digest_size=16).hexdigest()


def _installed() -> str:
    found = {entry.name for folder in map(Path, sys.path) if folder.is_dir() for entry in folder.glob("*.dist-info")}
    return " ".join((*sorted(found), which("soffice") or ""))


def not_held(paths: Iterable[str], refs: Iterable[Ref], skipped: Iterable[str] = ()) -> list[str]:
    """Those of the paths that a listing does not hold; what couldn't be looked at counts as held."""
    refs = list(refs)
    held = {ref.path for ref in refs if ref.skip is None}.difference(skipped)
    unseen = tuple(below(ref.path) for ref in refs if ref.error is not None)
    return [path for path in paths if path not in held and not path.startswith(unseen)]


def not_moved(paths: Iterable[str], current: Mapping[str, Any], arrived: Counter[str]) -> list[str]:
    """Those of the paths whose documents have not come back under another path: `arrived` counts new digests."""
    left = Counter(arrived)
    missing = []
    for path in paths:
        digest = current[path].digest
        if left[digest]:
            left[digest] -= 1
        else:
            missing.append(path)
    return missing


def known_before(catalog: CatalogWriter, source_id: int, current: Mapping[str, Any]) -> set[str]:
    """Those of the paths that the source had when it was last synced to its end; all of them before that.

    A sync that was interrupted or stopped may have brought in more: these must not outweigh what is lost.
    """
    with catalog.read() as connection:
        query = sa.select(properties.c.value).where(properties.c.key == _key(source_id))
        synced = connection.execute(query).scalar()
        if synced is None:
            return set(current)
        had = sa.select(documents.c.path).where(documents.c.source_id == source_id, alive(documents, int(synced)))
        return current.keys() & set(connection.execute(had).scalars()) or set(current)


def remember_sync(catalog: CatalogWriter, source_id: int) -> None:
    """Keep that a source was synced to its end at the newest generation."""
    generation = catalog.generation()
    with catalog.write() as connection:
        connection.execute(properties.delete().where(properties.c.key == _key(source_id)))
        connection.execute(properties.insert().values(key=_key(source_id), value=str(generation)))


def _key(source_id: int) -> str:
    return f"synced {source_id}"
