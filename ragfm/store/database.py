"""A collection's database file and its HEAD: how they are opened, and what was acknowledged.

SQLite takes a damaged page for a page: a flipped bit is another text. So every page carries a checksum, which SQLite's
own checksum VFS (https://sqlite.org/cksumvfs.html) writes and verifies. The driver is pysqlite3, since the SQLite of
Python's standard library is often built without loadable extensions; the extension comes with apsw.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pysqlite3
import sqlalchemy as sa

from ragfm.core.durable_files import checksummed, read_checksummed, write_durably
from ragfm.core.errors import CollectionError, DamagedCollectionError

FILE = "catalog.db"
HEAD = "HEAD"
LOST_HEAD = "`ragfm verify --repair` writes it anew where the catalog is whole; else restore a backup."
_CACHE = 32 << 10  # KiB of pages that a connection keeps, so that the upper ones are read and checked once
PAGE = 4096
_CHECKSUM = 8  # bytes at the end of a page
_ROWS = 500  # per IN (...) list; SQLite's oldest limit is 999 variables
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")  # a wrong checksum is an SQLITE_IOERR, as is a failing disk


def create_database(folder: Path) -> None:
    """An empty database file whose pages have checksums. Raises OSError where it can't be made."""
    try:
        _create(folder)
    except pysqlite3.Error as error:
        raise OSError(errno.EIO, str(error), str(folder / FILE)) from error


def _create(folder: Path) -> None:
    file = folder / FILE
    with closing(pysqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size={PAGE}")
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("VACUUM")
    # The place for checksums can only be reserved through SQLite's C interface, or in the one page that an empty
    # database has (https://sqlite.org/fileformat2.html): bytes reserved per page, and where the page's content begins.
    page = bytearray(file.read_bytes())
    page[20] = _CHECKSUM
    page[105:107] = (PAGE - _CHECKSUM).to_bytes(2, "big")
    page[-_CHECKSUM:] = _checksums(bytes(page))[0].tobytes()
    file.write_bytes(page)
    engine = open_engine(folder, writable=True)
    with closing(engine.raw_connection()) as connection:
        mode = connection.cursor().execute("PRAGMA journal_mode=WAL").fetchone()
    engine.dispose()
    if mode != ("wal",):  # where it fails, SQLite may just keep the mode that it had
        raise pysqlite3.OperationalError(f"journal mode {mode} instead of wal")


def open_engine(folder: Path, *, writable: bool) -> sa.Engine:
    """Connections to a database; those of a reader can't write. A transaction begins as the option `begin` says."""
    name = quote(str((folder / FILE).absolute()))
    if writable or os.access(folder, os.W_OK):
        mode = "rw"  # readers too: SQLite needs its shared-memory file beside the database; see query_only below
    elif os.statvfs(folder).f_flag & os.ST_RDONLY and not _has_log(folder):
        mode = "ro&immutable=1"  # SQLite needs no shared memory where nothing can change
    else:
        mode = "ro"

    def connect() -> Any:
        _checksum_pages()
        connection = pysqlite3.connect(
            f"file:{name}?mode={mode}&vfs=cksmvfs", uri=True, check_same_thread=False, timeout=30
        )
        connection.isolation_level = None  # SQLAlchemy begins and commits, see below
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA cache_size=-{_CACHE}")
        if writable:
            connection.execute("PRAGMA secure_delete=ON")  # what was deleted can't be read from the file
        else:
            connection.execute("PRAGMA query_only=ON")
        return connection

    engine = sa.create_engine("sqlite+pysqlite://", module=pysqlite3, creator=connect, poolclass=sa.pool.QueuePool)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # The driver would begin only at the first write, so that two reads could see two states.
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    return engine


def unreadable(folder: Path, error: sa.exc.DatabaseError) -> CollectionError:
    """What it means that a catalog can't be read: damage, or something that passes."""
    cause = error.orig
    code = getattr(cause, "sqlite_errorname", "")
    try:
        why = damaged_page(folder)
    except OSError:  # the disk fails, or the file is gone
        why = None
    if why or code in _DAMAGE or "no such table" in str(cause) or "no such column" in str(cause):
        return DamagedCollectionError(
            f"The catalog {folder / FILE} can't be read: {why or cause}.",
            "Restore it from a backup, or save what can be read with `ragfm verify --salvage OUT`.",
        )
    hint = "Run it again."
    if not os.access(folder, os.W_OK):
        hint = f"To read it, SQLite must be able to write to {folder}, or the file system must be read-only."
        if _has_log(folder):
            hint = f"It has commits in {FILE}-wal; open it once where its folder can be written."
    return CollectionError(f"The catalog {folder / FILE} can't be opened: {cause}.", hint)


def damaged_page(folder: Path) -> str | None:
    """The first page of the database file whose checksum is wrong, in words: found and expected. None if all hold.

    Raises OSError where the file can't be read.
    """
    for what, expected, found in damaged_pages(folder):
        return f"{what} is {found}, expected {expected}"
    return None


def damaged_pages(folder: Path) -> Iterator[tuple[str, str, str]]:
    """What of the database file is not whole, as expected and as found. Raises OSError."""
    with (folder / FILE).open("rb") as file:
        first, pages = 1, 1
        while block := file.read(PAGE * 4096):
            if len(block) % PAGE:
                yield f"the length of page {first + len(block) // PAGE}", f"{PAGE} bytes", f"{len(block) % PAGE} bytes"
                return
            for row, sums in enumerate(_checksums(block)):
                expected, found = block[(row + 1) * PAGE - _CHECKSUM : (row + 1) * PAGE], sums.tobytes()
                if found != expected:
                    yield f"the checksum of page {first + row}", expected.hex(), found.hex()
            if first == 1:
                pages = int.from_bytes(block[28:32], "big")
            first += len(block) // PAGE
    if first - 1 < pages:
        yield "the length of the file", f"{pages} pages", f"{first - 1} pages"


def write_head(folder: Path, generation: int, digest: str) -> None:
    """Acknowledge a generation, durably. Raises CollectionError where it can't be written."""
    try:
        write_durably(folder / HEAD, checksummed({"generation": generation, "digest": digest}))
    except OSError as error:
        raise CollectionError(
            f"Generation {generation} is committed, but {folder / HEAD} can't be written: {error.strerror}.",
            "Mend the cause and run it again.",
        ) from error


def read_head(folder: Path) -> dict[str, Any]:
    """The last acknowledged generation and its digest. Raises DamagedCollectionError."""
    try:
        return read_checksummed(folder / HEAD)
    except (OSError, ValueError) as error:
        raise DamagedCollectionError(
            f"{folder / HEAD}, which says what was acknowledged, can't be read: {error}.", LOST_HEAD
        ) from error


def batches(values: list[Any]) -> Iterator[list[Any]]:
    """The values in parts that an `IN (...)` list takes."""
    for start in range(0, len(values), _ROWS):
        yield values[start : start + _ROWS]


def _has_log(folder: Path) -> bool:
    log = folder / f"{FILE}-wal"
    return log.exists() and log.stat().st_size > 0


def _checksums(pages: bytes) -> Any:
    """What the VFS writes at the end of each page. *Shape:* (n_pages, 2), of little-endian 32-bit words."""
    import numpy as np

    words = np.frombuffer(pages, dtype="<u4").reshape(-1, PAGE // 4).T
    sums = np.zeros((2, words.shape[1]), dtype="<u4")
    for at in range(0, len(words) - 2, 2):
        sums[0] += words[at] + sums[1]
        sums[1] += words[at + 1] + sums[0]
    return np.ascontiguousarray(sums.T)


@functools.cache
def _checksum_pages() -> None:
    """Register the checksum VFS with the driver's SQLite, once for the process."""
    connection = pysqlite3.connect(":memory:")
    connection.enable_load_extension(True)
    connection.load_extension(_extension())
    connection.close()


def _extension() -> str:
    spec = find_spec("apsw")  # not imported: two SQLite libraries in one process take each other's locks
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "sqlite_extra_binaries" / "cksumvfs")
