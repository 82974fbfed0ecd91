"""Uploads: files that a collection keeps itself, in a folder of its own, one folder in it for each.

They are the source that the next sync goes by, so what takes a collection elsewhere takes them along. An upload is made
and removed by renaming its folder, and never changes in between.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.collection_store import UPLOADS, UPLOADS_SOURCE

__all__ = ["copy_uploads", "is_upload_path", "settle_uploads", "upload_files"]

_PATH = re.compile(r"[0-9a-f]{16}/(\.ragfm-access|[^./\x00][^/\x00]*)")


def copy_uploads(collection: Path, target: Path) -> None:
    """Copy the uploads of a collection's folder to another; one that is removed meanwhile is left out."""
    for upload in sorted((collection / UPLOADS).glob("[0-9a-f]*")):
        copy = target / UPLOADS / upload.name
        copy.mkdir(mode=0o700, parents=True)
        try:
            for file in sorted(upload.iterdir()):
                if is_upload_path(f"{upload.name}/{file.name}") and stat.S_ISREG(file.lstat().st_mode):
                    _copy(file, copy / file.name)
        except FileNotFoundError:
            shutil.rmtree(copy)


def upload_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of all uploads in a folder: path among the uploads, and where it is."""
    for file in sorted((folder / UPLOADS).glob("*/*")):
        yield file.relative_to(folder / UPLOADS).as_posix(), file


def is_upload_path(path: str) -> bool:
    """Whether it is a path that a file of an upload may have: nothing that leads elsewhere."""
    return _PATH.fullmatch(path) is not None


def settle_uploads(catalog: CatalogWriter, collection: Path) -> None:
    """Let the source of the uploads be where the collection is now."""
    here = f"{collection.name}/{UPLOADS}"
    for source in catalog.sources():
        if source.name == UPLOADS_SOURCE and source.root != here:
            catalog.save_source(replace(source, location=here, root=here))


def _copy(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(file, target)
