"""Repair: what follows from a catalog that is whole is made anew, with no embedding.

HEAD        for the newest generation that there is
views/      without what is damaged or was left behind; an index that is missing is built
catalog.db  a document's rows in `tags` and `groups`, from its metadata and what its source and connector allow
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from filelock import FileLock, Timeout

from ragfm.core.errors import CollectionBusyError
from ragfm.maintenance.integrity import LivingDocuments, newest_generation
from ragfm.store.collection_store import LOCK, LOCK_SECONDS
from ragfm.store.database import HEAD, open_engine, write_head
from ragfm.store.document_rows import restrict, tag_row
from ragfm.store.tables import documents, tags
from ragfm.store.views import FOLDER as VIEWS
from ragfm.store.views import remove_views

if TYPE_CHECKING:
    from ragfm.store.catalog_writer import Commit
    from ragfm.store.collection_store import Store


def repair(store: Store, damaged: Collection[str], stray: Sequence[int]) -> list[str]:
    """Mend what follows from the catalog, which is whole; gives what was done.

    `damaged` are the files and views that aren't whole, `stray` the documents whose groups or tags are not their own.
    """
    mended = [_mend_head(store.folder)] if HEAD in damaged else []
    with store.writing() as catalog:
        folders = [store.folder / name for name in sorted(damaged) if name.startswith(f"{VIEWS}/")]
        left = [path for folder in (store.folder, store.folder / VIEWS) for path in sorted(folder.glob("*.new"))]
        remove_views([*folders, *(path for path in left if path.is_dir())])
        for path in left:
            path.unlink(missing_ok=True)
        mended += [f"removed {path.relative_to(store.folder)}, which a writer had left" for path in left]
        if stray:
            catalog.generate(lambda commit: _mend_stray(commit, stray))
            mended.append(f"wrote groups and tags of {len(stray)} documents anew")
        before = {path.name for path in (store.folder / VIEWS).glob("*")}
        store.save_view(catalog)
        saved = {path.name for path in (store.folder / VIEWS).glob("*")} - before
        mended += [f"built {VIEWS}/{name} from the catalog" for name in sorted(saved)]
    return mended


def _mend_head(folder: Path) -> str:
    """Acknowledge the newest generation there is, since nobody knows any more which one was."""
    lock = FileLock(folder / LOCK, timeout=LOCK_SECONDS, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise CollectionBusyError(f"Another process is writing to {folder}.", "Wait for it to end.") from error
    engine = open_engine(folder, writable=False)
    try:
        with engine.connect() as connection:
            newest = newest_generation(connection)
        write_head(folder, newest.id, newest.digest)
    finally:
        engine.dispose()
        lock.release()
    return (
        f"wrote {HEAD} anew for generation {newest.id}, the newest in the catalog; commits that were acknowledged "
        "later, if there were any, are lost, and nothing else will tell"
    )


def _mend_stray(commit: Commit, ids: Sequence[int]) -> None:
    sources = LivingDocuments(commit.connection).sources
    for document_id in ids:
        row = commit.connection.execute(sa.select(documents).where(documents.c.id == document_id)).one()
        commit.connection.execute(tags.delete().where(tags.c.document_id == document_id))
        if row.metadata:
            commit.connection.execute(tags.insert(), [tag_row(document_id, *item) for item in row.metadata.items()])
        restrict(commit.connection, sources[row.source_id], {row.path: None if row.allow is None else tuple(row.allow)})
    commit.record("mend", ids)
