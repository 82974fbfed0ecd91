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

from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.sqlite_database import COPYING
from ragfm.store.uploads import UPLOADS, UPLOADS_SOURCE

if TYPE_CHECKING:
    from ragfm.store.collection_store import Store
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
                        with (
                            file.open("rb") as source,
                            os.fdopen(
                                os.open(copy / file.name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb"
                            ) as out,
                        ):
                            shutil.copyfileobj(source, out, 2**20)
        except FileNotFoundError:
            shutil.rmtree(copy)


def copy_to_database(source: Store, target: Store) -> int:
    """Copy the uploads from or to a database, each under its id, for `receiving`. Returns how many were copied now.

    They count as not indexed there until a server has synced them.
    """
    here = None if source.database.shared else source.folder / UPLOADS
    there = None
    if not target.database.shared:
        there = target.folder.with_name(f"{target.folder.name}{COPYING}") / UPLOADS
        there.mkdir(mode=0o700, exist_ok=True)
    copied = 0
    with tempfile.TemporaryDirectory(prefix="ragfm-copy-") as temporary:
        for number, record in source.open_uploads().records().items():
            folder = (here or there or Path(temporary)) / number
            try:
                if here is None:
                    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted copy
                    folder.mkdir(mode=0o700)
                    cast("UploadTable", source.open_uploads()).write_to(folder, number)
                if there is not None or cast("UploadTable", target.open_uploads()).add_from(folder, record):
                    copied += 1
            except FileNotFoundError:  # deleted meanwhile
                if there is not None:
                    shutil.rmtree(folder, ignore_errors=True)
            if folder.parent == Path(temporary):
                shutil.rmtree(folder, ignore_errors=True)
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
