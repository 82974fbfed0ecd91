"""Backup: a collection as one file, taken while others read and write; and back, anywhere.

A backup is a tar archive, not compressed, of two members:

    manifest.json   format, generation, digest, size and block checksums of the catalog; it carries its own checksum
    catalog.db      the database at one generation, by SQLite's backup interface

Views are not in it: they are built from the catalog, with no embedding. An archive is read by its two headers alone and
into two files of fixed names, whatever else it may have in it.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

import pysqlite3
import xxhash

from ragfm.errors import CollectionError, DamagedCollectionError
from ragfm.store.catalog import Catalog
from ragfm.store.database import FILE, PAGE, damaged_page, open_engine, write_head
from ragfm.store.durable import beside, checksummed, read_checksummed, sync_file, sync_folder
from ragfm.store.views import BLOCK
from ragfm.upkeep.whole import newest_generation

if TYPE_CHECKING:
    from ragfm.store.store import Store

__all__ = ["BackupReport", "RestoreReport", "backup", "restore"]

MANIFEST = "manifest.json"
_FORMAT = 1
_LARGEST_MANIFEST = 64 << 20  # bytes; it has a checksum of 32 characters for each 8 MiB
_PAGES = 2_000  # that are copied between two reports

Progress = Callable[[int, int], None]
"""Is told how many bytes of how many are copied."""


@dataclass(frozen=True, slots=True)
class BackupReport:
    """A backup that was written: where, of which generation, how many documents and chunks, its size."""

    path: str
    generation: int
    documents: int
    chunks: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """A collection that was restored: where, of which generation, and its sources that aren't found from there."""

    path: str
    generation: int
    documents: int
    chunks: int
    absent: tuple[str, ...]
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
            with closing(_opened(temporary)) as copy:
                newest, documents = copy.at(), len(copy.documents(None))
            archive = temporary / "archive"
            _pack(temporary, archive, {"generation": newest.id, "digest": newest.digest})
            if force:
                archive.replace(out)
            else:
                _keep(archive, out)
            sync_folder(out.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise CollectionError(f"The backup {out} can't be written: {error.strerror}.", "Mend the cause.") from error
    seconds = round(time.monotonic() - start, 3)
    return BackupReport(str(out), newest.id, documents, newest.chunks, out.stat().st_size, seconds)


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
            newest = _unpack(file, temporary, progress)
            temporary.rename(folder)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise CollectionError(f"{error.filename or folder}: {error.strerror}.", "Nothing was restored.") from error
    with store.writing() as catalog:
        store.save_view(catalog)
    documents = len(store.catalog.documents(None))
    absent = tuple(
        source.name
        for source in store.catalog.sources()
        if "://" not in source.root and not (folder.parent / source.root).exists()
    )
    chunks = store.catalog.at().chunks
    return RestoreReport(str(folder), newest, documents, chunks, absent, round(time.monotonic() - start, 3))


# --- Writing -----------------------------------------------------------------------------------------------------


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


def _pack(folder: Path, archive: Path, identity: dict[str, Any]) -> None:
    size = (folder / FILE).stat().st_size
    with (folder / FILE).open("rb") as file:
        blocks = [xxhash.xxh3_128_hexdigest(block) for block in iter(lambda: file.read(BLOCK), b"")]
    manifest = checksummed({"format": _FORMAT, **identity, "size": size, "blocks": blocks})
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(_member(MANIFEST, len(manifest)), io.BytesIO(manifest))
        with (folder / FILE).open("rb") as file:
            tar.addfile(_member(FILE, size), file)
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


# --- Reading -----------------------------------------------------------------------------------------------------


def _unpack(archive: Path, folder: Path, progress: Progress | None) -> int:
    """Write catalog and HEAD from a backup; gives its generation. All checksums are compared."""
    with archive.open("rb") as file:
        size = _header(archive, file, MANIFEST)
        if size > _LARGEST_MANIFEST:
            raise _refused(archive, f"the size of {MANIFEST}", f"at most {_LARGEST_MANIFEST} bytes", f"{size}")
        (folder / MANIFEST).write_bytes(_read(archive, file, MANIFEST, size))
        file.seek(-size % tarfile.BLOCKSIZE, os.SEEK_CUR)
        try:
            manifest = read_checksummed(folder / MANIFEST)
        except ValueError as error:
            raise _refused(archive, MANIFEST, "whole", str(error)) from error
        if manifest.get("format") != _FORMAT:
            raise CollectionError(f"The backup {archive} is of format {manifest.get('format')}.", "Use a newer ragfm.")
        size = _header(archive, file, FILE)
        if size != manifest["size"]:
            raise _refused(archive, f"the size of {FILE}", f"{manifest['size']} bytes", f"{size} bytes")
        with (folder / FILE).open("wb") as target:
            for block in _blocks(archive, file, manifest, progress):
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
        rest = len(file.read(-size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE))
        if rest < -size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE:
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
    return newest.id


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
        f"The backup {archive} is damaged: {what}: expected {expected}, found {found}.", "Take another one."
    )
