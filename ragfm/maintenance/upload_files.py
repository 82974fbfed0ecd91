"""Uploaded files, which a collection stores in a folder of its own, with one folder for each upload.

They are a source like any other, so they are copied with the collection. An upload is created and removed by renaming
its folder, and never changes.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ragfm.core.durable_files import create_file
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.tables import uploads as uploads_table
from ragfm.store.upload_table import insert_upload
from ragfm.store.uploads import OVERHEAD_BYTES, UPLOADS, UPLOADS_SOURCE, upload_values

if TYPE_CHECKING:
    import sqlalchemy as sa

    from ragfm.store.collection_store import Store
    from ragfm.store.database import Database
    from ragfm.store.upload_table import UploadTable

_PATH = re.compile(r"[0-9a-f]{16}/[^./\x00][^/\x00]*")


def copy_uploads(collection: Path, target: Path) -> None:
    """Copy the uploads of a collection to another folder. An upload that is removed meanwhile is left out."""
    for upload in sorted((collection / UPLOADS).glob("[0-9a-f]*")):
        copy = target / UPLOADS / upload.name
        copy.parent.mkdir(mode=0o700, exist_ok=True)
        copy.mkdir(mode=0o700)
        try:
            for file in sorted(upload.iterdir()):
                if is_upload_path(f"{upload.name}/{file.name}") and stat.S_ISREG(file.lstat().st_mode):
                    try:
                        os.link(file, copy / file.name)
                    except FileNotFoundError:
                        raise
                    except OSError:  # another file system, or one without hard links
                        with file.open("rb") as source, create_file(copy / file.name) as out:
                            shutil.copyfileobj(source, out, 2**20)
        except FileNotFoundError:
            shutil.rmtree(copy)


def copy_to_database(source: Store, database: Database, writing: sa.Connection) -> int:
    """Copy the uploads from or to PostgreSQL, each under its id, in the transaction that creates the copy.

    Returns their number. On PostgreSQL, they count as not indexed until a server has synced them.
    """
    uploads, copied = source.open_uploads(), 0
    with tempfile.TemporaryDirectory(prefix="ragfm-copy-") as temporary:
        place = Path(temporary) if database.shared else database.folder / UPLOADS
        place.mkdir(mode=0o700, exist_ok=True)
        for number, record in uploads.records().items():
            folder = (place if source.database.shared else source.folder / UPLOADS) / number
            try:
                if source.database.shared:
                    folder.mkdir(mode=0o700)
                    cast("UploadTable", uploads).write_to(folder, number)
                with (folder / record.name).open("rb") as file:
                    status = os.fstat(file.fileno())
                    size = status.st_size + OVERHEAD_BYTES
                    values = upload_values(number, record.name, record.groups, size, record.digest)
                    if database.shared:
                        insert_upload(writing, values, file, created=status.st_mtime)
                    else:
                        row = {**values, "created": status.st_mtime, "state": "ready"}
                        writing.execute(uploads_table.insert(), row)
                copied += 1
            except FileNotFoundError:  # deleted meanwhile
                shutil.rmtree(place / number, ignore_errors=True)
            if database.shared:
                shutil.rmtree(place / number, ignore_errors=True)
    return copied


def is_upload_path(path: str) -> bool:
    """Whether this is the relative path of an uploaded file, which cannot point outside of the uploads."""
    return _PATH.fullmatch(path) is not None


def relocate_uploads(catalog: CatalogWriter, collection: Path) -> None:
    """Update the location of the uploads' source to where the collection is now."""
    location = f"{collection.name}/{UPLOADS}"
    for source in catalog.sources():
        if source.name == UPLOADS_SOURCE and source.root != location:
            catalog.save_source(replace(source, location=location, root=location))
