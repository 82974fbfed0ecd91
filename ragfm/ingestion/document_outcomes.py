"""Outcomes of earlier syncs: documents that failed, and documents that were fetched and skipped.

Both are stored in the table `failures`, so that an unchanged document is not read again at each sync. The stage `skip`
marks a skip; every other stage marks a failure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ragfm.store.catalog_writer import Failure

if TYPE_CHECKING:
    from ragfm.store.catalog import Catalog

SKIP_STAGE = "skip"


def stored_outcomes(catalog: Catalog, source_id: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The failures and the skips of a source's earlier syncs: rows by path."""
    rows = catalog.failures(source_id)
    failures = {row.path: row for row in rows if row.stage != SKIP_STAGE}
    return failures, {row.path: row for row in rows if row.stage == SKIP_STAGE}


def stored_failures(catalog: Catalog) -> list[Any]:
    """The rows of failed documents of all sources, without skips."""
    return [row for row in catalog.failures() if row.stage != SKIP_STAGE]


def skip_record(path: str, reason: str, revision: str, environment: str) -> Failure:
    """The row that stores a skip."""
    return Failure(path, SKIP_STAGE, reason, revision, environment)
