"""Backup: a collection as one file, written while others read and write. `restore` turns it back into a collection.

A backup is an uncompressed tar archive with these members:

    manifest.json   format, id of the collection, generation and digest; size and block checksums of the catalog and of
                    each uploaded file, whose path it has, too; and its own checksum
    catalog.db      the database at one generation, copied by SQLite's backup interface
    uploads/0 …     the uploaded files, in the order of the manifest. They are copied after the catalog; the next sync
                    of the restored collection settles uploads and deletions in between

Views are not included: they are built from the catalog, without embedding.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import time
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ragfm.core.durable_files import (
    create_file,
    decode_checksummed,
    encode_checksummed,
    sync_file,
    sync_folder,
    temporary_path,
    write_error,
)
from ragfm.core.errors import CollectionError, UnsupportedError
from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.maintenance.integrity import newest_generation
from ragfm.maintenance.upload_files import copy_uploads
from ragfm.store.catalog import Catalog, Generation
from ragfm.store.collection_store import Store
from ragfm.store.sqlite_database import SqliteDatabase
from ragfm.store.sqlite_driver import sqlite
from ragfm.store.sqlite_file import (
    CATALOG_FILE,
    PAGE_BYTES,
    damaged_page,
    file_address,
    open_connection,
)
from ragfm.store.uploads import UPLOADS, UploadFolder
from ragfm.store.views import file_entry

MANIFEST = "manifest.json"
FORMAT = 3
_PAGES_PER_STEP = 2_000  # copied between two progress reports


@dataclass(frozen=True, slots=True)
class BackupReport:
    """A written backup: path, generation, number of documents, chunks and uploaded files, and size in bytes.

    `deleted` are the paths of older backups.
    """

    path: str
    generation: int
    documents: int
    chunks: int
    uploads: int
    bytes: int
    seconds: float
    deleted: tuple[str, ...] = ()


def backup(store: Store, out: Path, *, force: bool = False, progress: ProgressCallback | None = None) -> BackupReport:
    """Write a backup of the newest generation to the file `out`, durably. Others may read and write meanwhile.

    Reports `Progress("backup", bytes_copied, bytes)`. Raises CollectionError if `out` exists (unless `force`) or cannot
    be written (DiskFullError, AccessDeniedError), DamagedCollectionError for a damaged collection.
    """
    if store.database.shared:
        raise UnsupportedError(
            f"'{store.database.location}' is on a server, which has its own backups.",
            "Use `pg_dump --schema=NAME` or continuous archiving; docs/scale-out.md explains both.",
        )
    start, catalog = time.monotonic(), store.catalog
    if out.exists() and not (force and out.is_file()):
        hint = "Choose a different file, or overwrite it with --force." if out.is_file() else "Choose a file."
        raise CollectionError(f"'{out}' already exists.", hint)
    temporary = temporary_path(out)
    try:
        temporary.mkdir(0o700)
        try:
            _copy_database(catalog, temporary, progress or ignore_progress)
            copy_uploads(store.folder, temporary)
            copied = UploadFolder(temporary)
            copied.copy_records(UploadFolder(store.folder))  # of uploads that were stored since
            copied.drop_records()  # of uploads that were removed since
            with open_connection(temporary, writable=True) as connection:
                newest = newest_generation(connection)
            database = SqliteDatabase(temporary)
            database.write_head(newest.id, newest.digest)
            with closing(Catalog(database)) as copy:
                documents, collection = len(copy.documents(None)), copy.collection_id()
            archive = temporary / "archive"
            uploads = _write_archive(temporary, archive, newest, collection)
            if force:
                archive.replace(out)
            else:
                try:
                    os.link(archive, out)  # fails if `out` was created meanwhile; a rename would replace it
                except FileExistsError as error:
                    raise CollectionError(f"'{out}' already exists.", "Choose a different file.") from error
                except OSError:  # a file system without hard links
                    archive.replace(out)
            sync_folder(out.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, sa.exc.DatabaseError, sqlite.Error) as error:
        raise write_error("backup", out, error) from error
    seconds = round(time.monotonic() - start, 3)
    return BackupReport(str(out), newest.id, documents, newest.chunks, uploads, out.stat().st_size, seconds)


def backup_to_folder(store: Store, folder: Path, keep: int, progress: ProgressCallback | None = None) -> BackupReport:
    """Write a backup to `folder`, named `COLLECTION-TIME.tar`, then delete all but the newest `keep` of them.

    Deletes only complete backups of the same collection that have such a name, and none if the new one fails.
    Raises what `backup` raises, and CollectionError if an older one cannot be deleted.
    """
    if keep < 1:
        raise ValueError("keep must be at least 1")
    name = store.database.default_name
    out = folder / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.tar"
    report = backup(store, out, progress=progress)
    collection = _complete_backup_of(out)
    names = re.compile(rf"{re.escape(name)}-\d{{8}}T\d{{6}}Z\.tar")
    older = sorted((path for path in folder.iterdir() if names.fullmatch(path.name) and path != out), reverse=True)
    deleted = []
    for path in [path for path in older if _complete_backup_of(path) == collection][keep - 1 :]:
        try:
            path.unlink()
        except OSError as error:
            raise CollectionError(
                f"The backup '{out}' is complete, but the older '{path}' cannot be deleted: {error.strerror}.",
                "Delete it, or give this user the right to.",
            ) from error
        deleted.append(str(path))
    sync_folder(folder)
    return replace(report, deleted=tuple(deleted))


def _complete_backup_of(path: Path) -> str | None:
    """The id of the collection of a complete backup; None for anything else, and for one of ragfm 0.1."""
    if not path.is_symlink() and path.is_file():
        with suppress(OSError, tarfile.TarError, ValueError, KeyError, TypeError), tarfile.open(path, "r:") as tar:
            member = tar.next()
            file = tar.extractfile(member) if member and member.name == MANIFEST else None
            if file:
                manifest = decode_checksummed(file.read(), path.name)
                sizes = [entry["size"] for entry in (manifest["catalog"], *manifest["uploads"])]
                last = tar.getmembers()[-1]
                whole = [it.size for it in tar.getmembers()[1:]] == sizes
                if whole and last.offset_data + last.size <= path.stat().st_size:
                    return str(manifest["collection"])
    return None


def _copy_database(catalog: Catalog, folder: Path, progress: ProgressCallback) -> None:
    """Copy the database as of one moment, page by page, without blocking a writer.

    Raises DamagedCollectionError if the database is damaged, sqlite.Error if its copy cannot be written.
    """

    def report(_: int, remaining: int, total: int) -> None:
        progress(Progress("backup", (total - remaining) * PAGE_BYTES, total * PAGE_BYTES))

    create_file(folder / CATALOG_FILE).close()
    address = file_address(folder / CATALOG_FILE, "vfs=cksmvfs")
    with closing(sqlite.connect(address, uri=True)) as target, catalog.driver() as source:
        # Without a transaction, a commit in between would restart the copy.
        source.execute("BEGIN")
        try:
            source.execute("SELECT count(*) FROM properties").fetchone()
            source.backup(target, pages=_PAGES_PER_STEP, progress=report)
        except sqlite.Error as error:
            damage = damaged_page(catalog.database.folder)
            if damage is None and "malformed" not in str(error):  # then the copy cannot be written
                raise
            raise catalog.damage_error(damage or str(error)) from error
        finally:
            source.execute("ROLLBACK")
    damage = damaged_page(folder)
    if damage is not None:
        raise catalog.damage_error(f"in its copy, {damage}")


def _write_archive(folder: Path, archive: Path, newest: Generation, collection: str) -> int:
    """Write the archive of a copied collection. Returns the number of uploaded files."""
    paths = sorted((folder / UPLOADS).glob("*/*"))
    uploads = [{"path": path.relative_to(folder / UPLOADS).as_posix(), **file_entry(path)} for path in paths]
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "collection": collection,
        "generation": newest.id,
        "digest": newest.digest,
        "catalog": file_entry(folder / CATALOG_FILE),
        "uploads": uploads,
    }
    encoded = encode_checksummed(manifest)
    with (
        create_file(archive) as out,
        tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        tar.addfile(_member(MANIFEST, len(encoded)), io.BytesIO(encoded))
        names = [CATALOG_FILE, *(f"{UPLOADS}/{number}" for number in range(len(paths)))]
        for name, path in zip(names, [folder / CATALOG_FILE, *paths], strict=True):
            with path.open("rb") as file:
                tar.addfile(_member(name, path.stat().st_size), file)
    sync_file(archive)
    return len(uploads)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member
