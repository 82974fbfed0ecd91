"""Restore: a backup's collection, anywhere.

An archive is read by the headers that must come next, into files of fixed names and such as uploads have, whatever else
it may have in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import xxhash

from ragfm.core.durable_files import beside, read_checksummed, sync_folder
from ragfm.core.errors import CollectionError, DamagedCollectionError
from ragfm.maintenance.backup import MANIFEST, PLAIN, WITH_UPLOADS, Progress
from ragfm.maintenance.upload_files import is_upload_path, settle_uploads
from ragfm.store.catalog import Catalog
from ragfm.store.collection_store import UPLOADS, UPLOADS_SOURCE
from ragfm.store.database import FILE, damaged_page, write_head
from ragfm.store.views import BLOCK

if TYPE_CHECKING:
    from ragfm.store.collection_store import Store

__all__ = ["RestoreReport", "restore"]

_LARGEST_MANIFEST = 256 << 20  # bytes; it has a checksum of 32 characters for each 8 MiB, and 200 for each upload


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """A collection that was restored: where, of which generation, and its sources that aren't found from there."""

    path: str
    generation: int
    documents: int
    chunks: int
    uploads: int
    absent: tuple[str, ...]
    seconds: float


def restore(store: Store, file: Path, progress: Progress | None = None) -> RestoreReport:
    """Make the collection of a store from a backup, and its view.

    Raises DamagedCollectionError for a backup that is not whole; CollectionError where the folder is taken, or can't
    be written.
    """
    start, folder = time.monotonic(), store.folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CollectionError(
            f"{folder} is there already.", "Name another folder with -c; nothing is restored over it."
        )
    temporary = beside(folder)
    try:
        temporary.mkdir(parents=True)
        try:
            newest, uploads = _unpack(file, temporary, progress)
            temporary.rename(folder)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise CollectionError(f"{error.filename or folder}: {error.strerror}.", "Nothing was restored.") from error
    with store.writing() as catalog:
        settle_uploads(catalog, folder)
        store.save_view(catalog)
    documents = len(store.catalog.documents(None))
    absent = tuple(
        source.name
        for source in store.catalog.sources()
        if "://" not in source.root and source.name != UPLOADS_SOURCE and not (folder.parent / source.root).exists()
    )
    chunks = store.catalog.at().chunks
    return RestoreReport(str(folder), newest, documents, chunks, uploads, absent, round(time.monotonic() - start, 3))


def _unpack(archive: Path, folder: Path, progress: Progress | None) -> tuple[int, int]:
    """Write catalog, HEAD and uploads from a backup; gives its generation, and of how many files the uploads are.

    All checksums are compared.
    """
    with archive.open("rb") as file:
        manifest = _manifest(archive, file, folder / MANIFEST)
        size = _header(archive, file, FILE)
        if size != manifest["size"]:
            raise _refused(archive, f"the size of {FILE}", f"{manifest['size']} bytes", f"{size} bytes")
        with (folder / FILE).open("wb") as target:
            for block in _blocks(archive, file, manifest, progress):
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
        _read(archive, file, "its end", -size % tarfile.BLOCKSIZE)
        uploads = manifest.get("uploads", [])
        for number, upload in enumerate(uploads):
            _unpack_upload(archive, file, f"{UPLOADS}/{number}", upload, folder / UPLOADS)
        if len(file.read(2 * tarfile.BLOCKSIZE)) < 2 * tarfile.BLOCKSIZE:
            raise _refused(archive, "its end", "two empty blocks", "cut off")
    (folder / MANIFEST).unlink()
    write_head(folder, manifest["generation"], manifest["digest"])
    if why := damaged_page(folder):
        raise _refused(archive, FILE, "pages with right checksums", why)
    with closing(Catalog(folder)) as catalog:  # its schema, and that it has the generation
        newest = catalog.at()
    for left in (f"{FILE}-wal", f"{FILE}-shm"):
        with contextlib.suppress(FileNotFoundError):
            (folder / left).unlink()
    return newest.id, len(uploads)


def _manifest(archive: Path, file: BinaryIO, path: Path) -> dict[str, Any]:
    size = _header(archive, file, MANIFEST)
    if size > _LARGEST_MANIFEST:
        raise _refused(archive, f"the size of {MANIFEST}", f"at most {_LARGEST_MANIFEST} bytes", f"{size}")
    path.write_bytes(_read(archive, file, MANIFEST, size))
    file.seek(-size % tarfile.BLOCKSIZE, os.SEEK_CUR)
    try:
        manifest = read_checksummed(path)
    except ValueError as error:
        raise _refused(archive, MANIFEST, "whole", str(error)) from error
    if manifest.get("format") not in (PLAIN, WITH_UPLOADS):
        raise CollectionError(f"The backup {archive} is of format {manifest.get('format')}.", "Use a newer ragfm.")
    return manifest


def _unpack_upload(archive: Path, file: BinaryIO, name: str, upload: dict[str, Any], folder: Path) -> None:
    size, path = _header(archive, file, name), str(upload["path"])
    if size != upload["size"] or not is_upload_path(path):
        raise _refused(archive, name, f"{path!r} of {upload['size']} bytes below {UPLOADS}", f"{size} bytes")
    target, checksum, left = folder / path, xxhash.xxh3_128(), size
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with target.open("xb") as kept:
        while left:
            block = _read(archive, file, name, min(BLOCK, left))
            checksum.update(block)
            kept.write(block)
            left -= len(block)
        kept.flush()
        os.fsync(kept.fileno())
    if checksum.hexdigest() != upload["checksum"]:
        raise _refused(archive, f"the checksum of {name}", upload["checksum"], checksum.hexdigest())
    sync_folder(target.parent)
    _read(archive, file, "its end", -size % tarfile.BLOCKSIZE)


def _header(archive: Path, file: BinaryIO, name: str) -> int:
    """The size of the member that must come next: a plain file of this name."""
    header = file.read(tarfile.BLOCKSIZE)
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise _refused(archive, f"the header of {name}", "whole", f"{error}, at {len(header)} bytes") from error
    if member.name != name or member.type != tarfile.REGTYPE or member.size < 0:
        raise _refused(archive, "a member", f"the file {name}", f"{member.name!r} of type {member.type!r}")
    return member.size


def _read(archive: Path, file: BinaryIO, name: str, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise _refused(archive, f"the size of {name}", f"{size} bytes", f"{len(data)} bytes: the file is cut off")
    return data


def _blocks(archive: Path, file: BinaryIO, manifest: dict[str, Any], progress: Progress | None) -> Iterator[bytes]:
    size, done = int(manifest["size"]), 0
    if len(manifest["blocks"]) != -(-size // BLOCK):
        raise _refused(archive, "the number of checksums", str(-(-size // BLOCK)), str(len(manifest["blocks"])))
    for number, expected in enumerate(manifest["blocks"]):
        block = _read(archive, file, f"block {number} of {FILE}", min(BLOCK, size - done))
        found = xxhash.xxh3_128_hexdigest(block)
        if found != expected:
            raise _refused(archive, f"the checksum of block {number} of {FILE}", expected, found)
        done += len(block)
        if progress is not None:
            progress(done, size)
        yield block


def _refused(archive: Path, what: str, expected: str, found: str) -> DamagedCollectionError:
    return DamagedCollectionError(
        f"The backup {archive} is damaged: {what}: expected {expected}, found {found}.",
        "Take another one, as `ragfm backup` writes it.",
    )
