"""Backup: a collection as one file, taken while others read and write. `restore` makes a collection of it, anywhere.

A backup is a tar archive, not compressed, of these members:

    manifest.json   format, generation, digest, size and block checksums of the catalog; path, size and checksum of
                    each file that was uploaded; it carries its own checksum
    catalog.db      the database at one generation, by SQLite's backup interface
    uploads/0 …     the files that were uploaded, in the manifest's order; they are copied after the catalog, so what
                    was uploaded or deleted in between is indexed or removed by the next sync

Views are not in it: they are built from the catalog, with no embedding.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pysqlite3
import xxhash

from ragfm.core.durable_files import beside, checksummed, sync_file, sync_folder, unwritable
from ragfm.core.errors import CollectionError
from ragfm.maintenance.integrity import newest_generation
from ragfm.maintenance.upload_files import copy_uploads, upload_files
from ragfm.store.catalog import Catalog
from ragfm.store.collection_store import UPLOADS
from ragfm.store.database import FILE, PAGE, damaged_page, open_engine, write_head
from ragfm.store.views import BLOCK, block_sums

if TYPE_CHECKING:
    from ragfm.store.collection_store import Store

__all__ = ["MANIFEST", "PLAIN", "WITH_UPLOADS", "BackupReport", "Progress", "backup"]

MANIFEST = "manifest.json"
PLAIN, WITH_UPLOADS = 1, 2  # one without uploads can be read by any ragfm
_PAGES = 2_000  # that are copied between two reports

Progress = Callable[[int, int], None]
"""Is told how many bytes of how many are copied."""


@dataclass(frozen=True, slots=True)
class BackupReport:
    """A backup that was written: where, of which generation, how many documents, chunks and files of uploads."""

    path: str
    generation: int
    documents: int
    chunks: int
    uploads: int
    bytes: int
    seconds: float


def backup(store: Store, out: Path, *, force: bool = False, progress: Progress | None = None) -> BackupReport:
    """Write a backup of the newest generation to the file `out`, durably, while others may read and write.

    Raises CollectionError where `out` is there already, unless `force` is given, or can't be written, and
    DamagedCollectionError for a collection that isn't whole.
    """
    start, catalog = time.monotonic(), store.catalog
    if out.is_dir() or (out.exists() and not force):
        hint = "Name a file." if out.is_dir() else "Name another file, or overwrite it with --force."
        raise CollectionError(f"{out} is there already.", hint)
    temporary = beside(out)
    try:
        temporary.mkdir()
        try:
            _copy(catalog, temporary, progress)
            copy_uploads(store.folder, temporary)
            files = _listed(temporary)
            with closing(_opened(temporary)) as copy:
                newest, documents = copy.at(), len(copy.documents(None))
            archive = temporary / "archive"
            _pack(temporary, archive, {"generation": newest.id, "digest": newest.digest}, files)
            if force:
                archive.replace(out)
            else:
                _keep(archive, out)
            sync_folder(out.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise unwritable("backup", out, error) from error
    seconds = round(time.monotonic() - start, 3)
    return BackupReport(str(out), newest.id, documents, newest.chunks, len(files), out.stat().st_size, seconds)


# --- Inside ------------------------------------------------------------------------------------------------------


def _copy(catalog: Catalog, folder: Path, progress: Progress | None) -> None:
    """The database as it is at one moment, page by page; a writer is not held up."""

    def show(_: int, remaining: int, total: int) -> None:
        if progress is not None:
            progress((total - remaining) * PAGE, total * PAGE)

    target = pysqlite3.connect(f"file:{quote(str((folder / FILE).absolute()))}?vfs=cksmvfs", uri=True)
    with closing(target), catalog.driver() as source:
        # A transaction keeps what it sees, else a commit in between would start the copy anew.
        source.execute("BEGIN")
        try:
            source.execute("SELECT count(*) FROM properties").fetchone()
            source.backup(target, pages=_PAGES, progress=show)
        except pysqlite3.Error as error:
            raise catalog.damaged(str(error)) from error
        finally:
            source.execute("ROLLBACK")
    why = damaged_page(folder)
    if why is not None:
        raise catalog.damaged(f"in its copy, {why}")


def _opened(folder: Path) -> Catalog:
    """A catalog alone in a folder, which gets the HEAD that a collection has."""
    engine = open_engine(folder, writable=True)
    with engine.connect() as connection:
        newest = newest_generation(connection)
    engine.dispose()
    write_head(folder, newest.id, newest.digest)
    return Catalog(folder)


def _listed(folder: Path) -> list[dict[str, Any]]:
    """What the manifest says of the uploads."""
    listed = []
    for path, file in upload_files(folder):
        with file.open("rb") as data:
            checksum = xxhash.xxh3_128()
            for block in iter(lambda: data.read(BLOCK), b""):
                checksum.update(block)
        listed.append({"path": path, "size": file.stat().st_size, "checksum": checksum.hexdigest()})
    return listed


def _pack(folder: Path, archive: Path, identity: dict[str, Any], files: list[dict[str, Any]]) -> None:
    size = (folder / FILE).stat().st_size
    blocks = list(block_sums(folder / FILE))
    of_uploads = {"uploads": files} if files else {}
    what = {"format": WITH_UPLOADS if files else PLAIN, **identity, "size": size, "blocks": blocks, **of_uploads}
    manifest = checksummed(what)
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(_member(MANIFEST, len(manifest)), io.BytesIO(manifest))
        with (folder / FILE).open("rb") as file:
            tar.addfile(_member(FILE, size), file)
        for number, upload in enumerate(files):
            with (folder / UPLOADS / upload["path"]).open("rb") as file:
                tar.addfile(_member(f"{UPLOADS}/{number}", upload["size"]), file)
    sync_file(archive)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member


def _keep(archive: Path, out: Path) -> None:
    """Give a file its name, unless another has it by now."""
    try:
        os.link(archive, out)
    except FileExistsError as error:
        raise CollectionError(f"{out} is there already.", "Name another file.") from error
    except OSError:  # a file system without hard links
        archive.replace(out)
