"""Restore: a collection from a backup.

Archives are untrusted. Members are accepted only in the order in which `backup` writes them, and only into files with
fixed names or paths of uploads.
"""

from __future__ import annotations

import os
import tarfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from ragfm.core.durable_files import create_file, new_folder, read_checksummed, storage_failure, sync_folder
from ragfm.core.errors import CollectionError, DamagedCollectionError, UnsupportedError
from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.maintenance.backup import FORMAT, MANIFEST
from ragfm.maintenance.upload_files import is_upload_path, relocate_uploads
from ragfm.store.catalog import Catalog
from ragfm.store.collection_store import Store
from ragfm.store.sqlite_database import SqliteDatabase
from ragfm.store.sqlite_file import CATALOG_FILE, damaged_page
from ragfm.store.uploads import UPLOADS, UPLOADS_SOURCE
from ragfm.store.views import BLOCK_BYTES

_MAX_MANIFEST_BYTES = 256 << 20  # it has a checksum of 32 characters per 8 MiB, and 250 characters per upload


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """A restored collection: path, generation, counts, and the sources that do not exist relative to it (`absent`)."""

    path: str
    generation: int
    documents: int
    chunks: int
    uploads: int
    absent: tuple[str, ...]
    seconds: float


def restore(store: Store, file: Path, progress: ProgressCallback | None = None) -> RestoreReport:
    """Create the collection of a store from a backup, and build its view.

    Reports `Progress("restore", bytes_done, bytes)`. Raises DamagedCollectionError for a damaged backup,
    CollectionError if the folder exists or cannot be written.
    """
    if store.database.shared:
        raise UnsupportedError(
            f"A backup cannot be restored to '{store.database.location}', which is on a server.",
            "Restore it to a folder, then run `ragfm copy FOLDER ADDRESS`.",
        )
    start, folder = time.monotonic(), store.folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CollectionError(
            f"'{folder}' already exists.", "Choose a different folder with -c: a restore does not overwrite."
        )
    place = folder.resolve()  # the folder may be a link
    try:
        with new_folder(place) as temporary, file.open("rb") as opened:
            generation, uploads = _Archive(file, opened).unpack(temporary, progress or ignore_progress)
    except OSError as error:
        error_type, why = storage_failure(place.parent, error)
        raise error_type(f"'{error.filename or folder}': {why}.", "Nothing was restored.") from error
    with store.writing() as catalog:
        relocate_uploads(catalog, folder)
        store.save_view(catalog)
    absent = tuple(
        source.name
        for source in store.catalog.sources()
        if "://" not in source.root and source.name != UPLOADS_SOURCE and not (folder.parent / source.root).exists()
    )
    return RestoreReport(
        path=str(folder),
        generation=generation,
        documents=len(store.catalog.documents(None)),
        chunks=store.catalog.at().chunks,
        uploads=uploads,
        absent=absent,
        seconds=round(time.monotonic() - start, 3),
    )


class _Archive:
    """An open backup, read from front to back. All checksums are verified."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file

    def unpack(self, folder: Path, progress: ProgressCallback) -> tuple[int, int]:
        """Write catalog, HEAD and uploads to a folder. Returns the generation and the number of uploaded files."""
        size = self._next_member(MANIFEST)
        if size > _MAX_MANIFEST_BYTES:
            raise self._damaged(f"the size of {MANIFEST}", f"at most {_MAX_MANIFEST_BYTES} bytes", f"{size}")
        (folder / MANIFEST).write_bytes(self._read(MANIFEST, size))
        self._file.seek(-size % tarfile.BLOCKSIZE, os.SEEK_CUR)
        try:
            manifest = read_checksummed(folder / MANIFEST)
        except ValueError as error:
            raise self._damaged(MANIFEST, "intact", str(error)) from error
        if manifest.get("format") != FORMAT:
            raise CollectionError(
                f"The backup '{self._path}' has the unknown format {manifest.get('format')}.",
                "Use the version of ragfm that wrote it.",
            )
        self._unpack_file(CATALOG_FILE, manifest["catalog"], folder / CATALOG_FILE, progress)
        uploads = manifest["uploads"]
        for number, upload in enumerate(uploads):
            name, path = f"{UPLOADS}/{number}", str(upload["path"])
            if not is_upload_path(path):
                raise self._damaged(name, f"a path below {UPLOADS}", repr(path))
            target = folder / UPLOADS / path
            for parent in (folder / UPLOADS, target.parent):
                parent.mkdir(mode=0o700, exist_ok=True)
            self._unpack_file(name, upload, target, ignore_progress)
            sync_folder(target.parent)
        if len(self._file.read(2 * tarfile.BLOCKSIZE)) < 2 * tarfile.BLOCKSIZE:
            raise self._damaged("its end", "two empty blocks", "cut off")

        (folder / MANIFEST).unlink()
        database = SqliteDatabase(folder)
        database.write_head(manifest["generation"], manifest["digest"])
        damage = damaged_page(folder)
        if damage is not None:
            raise self._damaged(CATALOG_FILE, "intact pages", damage)
        with closing(Catalog(database)) as catalog:  # checks the schema and the generation
            generation = catalog.at().id
        for suffix in ("-wal", "-shm"):
            (folder / f"{CATALOG_FILE}{suffix}").unlink(missing_ok=True)
        return generation, len(uploads)

    def _unpack_file(self, name: str, entry: dict[str, Any], target: Path, progress: ProgressCallback) -> None:
        """Write the next member to a file. `entry` is its entry in the manifest."""
        size, done = self._next_member(name), 0
        if size != entry["size"]:
            raise self._damaged(f"the size of {name}", f"{entry['size']} bytes", f"{size} bytes")
        block_count = -(-size // BLOCK_BYTES)
        if len(entry["blocks"]) != block_count:
            raise self._damaged("the number of checksums", str(block_count), str(len(entry["blocks"])))
        with create_file(target) as file:
            for number, expected in enumerate(entry["blocks"]):
                block = self._read(f"block {number} of {name}", min(BLOCK_BYTES, size - done))
                actual = xxhash.xxh3_128_hexdigest(block)
                if actual != expected:
                    raise self._damaged(f"the checksum of block {number} of {name}", expected, actual)
                done += len(block)
                progress(Progress("restore", done, size))
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        self._read("its end", -size % tarfile.BLOCKSIZE)

    def _next_member(self, name: str) -> int:
        """Read the next header, which must be of a regular file with this name. Returns its size in bytes."""
        header = self._file.read(tarfile.BLOCKSIZE)
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise self._damaged(f"the header of {name}", "intact", f"{error}, at {len(header)} bytes") from error
        if member.name != name or member.type != tarfile.REGTYPE or member.size < 0:
            raise self._damaged("a member", f"the file {name}", f"{member.name!r} of type {member.type!r}")
        return member.size

    def _read(self, name: str, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise self._damaged(f"the size of {name}", f"{size} bytes", f"{len(data)} bytes: the file is cut off")
        return data

    def _damaged(self, item: str, expected: str, actual: str) -> DamagedCollectionError:
        return DamagedCollectionError(
            f"The backup '{self._path}' is damaged: {item}: expected {expected}, found {actual}.",
            "Use a different file, as written by `ragfm backup`.",
        )
