"""Outcomes of earlier syncs: documents that failed, and documents that were fetched and skipped.

Both are stored in the table `failures`, so that an unchanged document is not read again at each sync. The stage `skip`
marks a skip; every other stage marks a failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ragfm.store.catalog_writer import Failure

if TYPE_CHECKING:
    from ragfm.store.catalog import Catalog

SKIP_STAGE = "skip"


@dataclass(frozen=True, slots=True)
class StoredOutcomes:
    """Rows of the table `failures`, by path, divided into failures and skips."""

    failures: Mapping[str, Any]
    skips: Mapping[str, Any]


def stored_outcomes(catalog: Catalog, source_id: int) -> StoredOutcomes:
    """The outcomes of a source's earlier syncs."""
    rows = {row.path: row for row in catalog.failures(source_id)}
    return StoredOutcomes(
        failures={path: row for path, row in rows.items() if row.stage != SKIP_STAGE},
        skips={path: row for path, row in rows.items() if row.stage == SKIP_STAGE},
    )


def stored_failures(catalog: Catalog) -> list[Any]:
    """The rows of failed documents of all sources, without skips."""
    return [row for row in catalog.failures() if row.stage != SKIP_STAGE]


def skip_record(path: str, reason: str, revision: str, environment: str) -> Failure:
    """The row that stores a skip."""
    return Failure(path, SKIP_STAGE, reason, revision, environment)
