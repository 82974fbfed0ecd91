"""Identities of a source that stand for no group, as of its last listing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ragfm.store.catalog import read_property
from ragfm.store.tables import properties

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
            connection.execute(properties.delete().where(properties.c.key == _property_key(source_id)))
            if unmapped:
                connection.execute(properties.insert().values(key=_property_key(source_id), value=json.dumps(unmapped)))
    return unmapped


def unmapped_identities(catalog: Catalog, source_id: int) -> list[str]:
    """The identities without a group that the last listing of a source met, sorted."""
    with catalog.read() as connection:
        return list(json.loads(read_property(connection, _property_key(source_id)) or "[]"))


def _property_key(source_id: int) -> str:
    return f"unmapped {source_id}"
