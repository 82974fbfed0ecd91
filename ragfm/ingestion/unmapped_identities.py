"""Identities of a source that stand for no group, as of its last listing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ragfm.store.catalog import read_property, set_property

if TYPE_CHECKING:
    from ragfm.core.types import Connector
    from ragfm.store.catalog import Catalog
    from ragfm.store.catalog_writer import CatalogWriter


def record_unmapped(catalog: CatalogWriter, source_id: int, connector: Connector) -> list[str]:
    """Store the identities without a group that a connector met in its listing. Returns them, sorted."""
    identities = getattr(connector, "identities", None)
    unmapped = sorted(identities.unmapped) if identities is not None else []
    if unmapped != unmapped_identities(catalog, source_id):
        with catalog.write() as connection:
            set_property(connection, f"unmapped {source_id}", json.dumps(unmapped) if unmapped else None)
    return unmapped


def unmapped_identities(catalog: Catalog, source_id: int) -> list[str]:
    """The identities without a group that the last listing of a source met, sorted."""
    with catalog.read() as connection:
        return list(json.loads(read_property(connection, f"unmapped {source_id}") or "[]"))
