"""Repair: rebuilds what can be derived from an intact catalog, without embedding.

HEAD        is rewritten for the newest generation in the catalog
views/      damaged views and leftovers are removed, a missing view is built
backend     rows that the search backend keeps elsewhere are added, corrected and deleted
catalog.db  rows of `tags` and `groups` are rewritten from documents, sources and the connectors' rules
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

import sqlalchemy as sa

from ragfm.maintenance.integrity import LiveDocuments, newest_generation
from ragfm.store.collection_store import Store
from ragfm.store.document_rows import rewrite_tags, update_groups
from ragfm.store.sqlite_database import leftovers, write_lock
from ragfm.store.sqlite_file import HEAD_FILE, open_connection
from ragfm.store.tables import documents
from ragfm.store.views import VIEWS_FOLDER, remove_views


def repair(store: Store, damaged: Collection[str], document_ids: Sequence[int]) -> list[str]:
    """Rebuild derived data of an intact catalog. Returns a description of each repair.

    `damaged` are the damaged files and views, relative to the collection. `document_ids` are the documents whose groups
    or tags do not follow from their rows.
    """
    repairs: list[str] = []
    if HEAD_FILE in damaged and store.database.shared:
        (store.folder / HEAD_FILE).unlink(missing_ok=True)
        repairs.append(f"removed {HEAD_FILE}, which only says what this machine has seen")
    elif HEAD_FILE in damaged:
        # The newest generation is acknowledged, since there is no record of the last acknowledged one.
        with write_lock(store.folder):
            with open_connection(store.folder) as connection:
                newest = newest_generation(connection)
            store.database.write_head(newest.id, newest.digest)
        repairs.append(
            f"wrote {HEAD_FILE} for generation {newest.id}, the newest in the catalog; if later commits were "
            "acknowledged, they are lost, and this can no longer be detected"
        )

    views = store.folder / VIEWS_FOLDER
    swept = leftovers(store.folder)
    with store.catalog.read() as connection:  # opening it for writing switches them on
        tables = store.database.unprotected_tables(connection)
        repairs += [f"switched on row-level security of {name}" for name in tables]
    with store.writing() as catalog:
        repairs += [
            f"removed {os.path.relpath(path, store.folder)}, left by an interrupted writer"
            for path in swept
            if not path.exists()
        ]
        folders = [store.folder / name for name in sorted(damaged) if name.startswith(f"{VIEWS_FOLDER}/")]
        remove_views(folders)
        if document_ids:
            with catalog.new_generation() as commit:
                sources = LiveDocuments(commit.connection).sources
                for document_id in document_ids:
                    row = commit.connection.execute(sa.select(documents).where(documents.c.id == document_id)).one()
                    rewrite_tags(commit.connection, document_id, row.metadata)
                    allow = None if row.allow is None else tuple(row.allow)
                    commit.written += update_groups(commit.connection, sources[row.source_id], {row.path: allow})
                commit.record("mend", document_ids)
            repairs.append(f"rewrote groups and tags of {len(document_ids)} documents")
        for place, what, expected, found in store.backend.differences(catalog, store.settings, repair=True):
            repairs.append(f"corrected {what} of {place}: expected {expected}, found {found}")
        before = {path.name for path in views.glob("*")}
        store.save_view(catalog)
        saved = {path.name for path in views.glob("*")} - before
        repairs += [f"built {VIEWS_FOLDER}/{name} from the catalog" for name in sorted(saved)]
    return repairs
