"""The database file of a collection, with page checksums.

SQLite does not notice damaged page content: a flipped bit silently becomes a different text. Every page therefore has
a checksum, which SQLite's checksum VFS (https://sqlite.org/cksumvfs.html) writes and verifies. The extension is part
of the apsw wheel.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from ragfm.core.durable_files import (
    create_file,
    new_file_mode,
    storage_failure,
)
from ragfm.core.errors import AccessDeniedError, CollectionError, DamagedCollectionError, DiskFullError
from ragfm.store.sqlite_driver import sqlite

CATALOG_FILE = "catalog.db"
HEAD_FILE = "HEAD"
LOST_HEAD_HINT = "If the catalog is intact, `ragfm verify --repair` rewrites HEAD; otherwise restore a backup."
PAGE_BYTES = 4096
_CHECKSUM_BYTES = 8  # at the end of each page
_LOG_HEADER_WORDS, _LOG_FRAME_WORDS = 8, 6 + PAGE_BYTES // 4  # of 4 bytes, in the write-ahead log
_CACHE_KIB = 32 << 10  # per connection, so that inner pages are read and verified once
_DAMAGE_CODES = ("SQLITE_CORRUPT", "SQLITE_NOTADB")  # a wrong checksum is SQLITE_IOERR, as is a failing disk


def create_database(folder: Path) -> None:
    """Create an empty database file with page checksums. Raises OSError."""
    file = folder / CATALOG_FILE
    try:
        create_file(file, new_file_mode(folder)).close()  # SQLite's own files get the same mode
        with closing(sqlite.connect(file, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("VACUUM")
        # Space for checksums can be reserved only through SQLite's C interface, or in the single page of an empty
        # database (https://sqlite.org/fileformat2.html): byte 20 is the number of reserved bytes per page, bytes
        # 105-106 the start of the page's content.
        page = bytearray(file.read_bytes())
        page[20] = _CHECKSUM_BYTES
        page[105:107] = (PAGE_BYTES - _CHECKSUM_BYTES).to_bytes(2, "big")
        page[-_CHECKSUM_BYTES:] = _page_checksums(bytes(page))[0].tobytes()
        file.write_bytes(page)
        engine = open_engine(folder, writable=True)
        with closing(engine.raw_connection()) as connection:
            mode = connection.cursor().execute("PRAGMA journal_mode=WAL").fetchone()
        engine.dispose()
        if mode != ("wal",):  # on failure, SQLite may keep the old mode without an error
            raise sqlite.OperationalError(f"the journal mode is {mode} instead of wal")
    except sqlite.Error as error:
        error_type, why = storage_failure(folder, error)
        number = {DiskFullError: errno.ENOSPC, AccessDeniedError: errno.EACCES}.get(error_type, errno.EIO)
        raise OSError(number, why, str(file)) from error


def file_address(path: Path, options: str) -> str:
    """The address of a database file for SQLite, whatever characters or bytes its path has."""
    return f"file:{quote(os.fsencode(path.absolute()))}?{options}"


def open_engine(folder: Path, *, writable: bool, before_connect: Callable[[], None] = lambda: None) -> sa.Engine:
    """An engine for the database of a collection. Connections of a reader cannot write.

    `before_connect` is called before each connection is opened. The execution option `begin` is the SQL statement that
    starts a transaction, `BEGIN` by default.
    """
    if writable or os.access(folder, os.W_OK):
        mode = "rw"  # for readers too: SQLite must create its shared-memory file; `query_only` prevents writes
    elif os.statvfs(folder).f_flag & os.ST_RDONLY and not _has_wal(folder):
        mode = "ro&immutable=1"  # SQLite needs no shared memory if the file cannot change
    else:
        mode = "ro"
    address = file_address(folder / CATALOG_FILE, f"mode={mode}&vfs=cksmvfs")

    def connect() -> Any:
        before_connect()
        _register_checksum_vfs()
        connection = sqlite.connect(address, uri=True, check_same_thread=False, timeout=30)
        connection.isolation_level = None  # SQLAlchemy begins and commits, see below
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        if writable:
            connection.execute("PRAGMA secure_delete=ON")  # deleted text cannot be read from the file
        else:
            connection.execute("PRAGMA query_only=ON")
        return connection

    engine = sa.create_engine("sqlite+pysqlite://", module=sqlite, creator=connect, poolclass=sa.pool.QueuePool)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # The driver begins a transaction only at the first write: two reads could see two states.
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    return engine


@contextmanager
def open_connection(folder: Path, *, writable: bool = False) -> Iterator[sa.Connection]:
    """A connection to the database of a collection, without an open catalog."""
    engine = open_engine(folder, writable=writable)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def read_error(folder: Path, error: sa.exc.DatabaseError) -> CollectionError:
    """The error to raise for a failed read: damage, a full disk, a missing permission, or anything else."""
    file, cause = folder / CATALOG_FILE, error.orig
    try:
        damage = damaged_page(folder)
    except OSError:  # the disk fails, or the file is gone
        damage = None
    damaged = getattr(cause, "sqlite_errorname", "") in _DAMAGE_CODES
    if damage or damaged or "no such table" in str(cause) or "no such column" in str(cause):
        return DamagedCollectionError(
            f"The catalog '{file}' cannot be read: {damage or cause}.",
            "Restore it from a backup, or save the readable documents with `ragfm verify --salvage OUT`.",
        )
    error_type, why = storage_failure(folder, error)
    if error_type is DiskFullError:
        hint = "SQLite needs some space even to read it. Free space on the disk, and run the command again."
    elif os.access(folder, os.W_OK):
        hint = "Run the command again."
    elif _has_wal(folder):
        hint = f"There are commits in '{file}-wal': open the collection once where its folder is writable."
    else:
        hint = f"SQLite can read it only if '{folder}' is writable or the file system is read-only."
    return error_type(f"The catalog '{file}' cannot be opened: {why}.", hint)


def damaged_page(folder: Path) -> str | None:
    """A description of the first damaged page of the database file, None if all are intact. Raises OSError."""
    damages = damaged_pages(folder)
    return next((f"{item} is {actual}, expected {expected}" for item, expected, actual in damages), None)


def damaged_pages(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Damage of the database file, as (item, expected value, actual value). Raises OSError.

    A page whose committed content is in the write-ahead log is not damaged: it is written again at the next checkpoint.
    """
    logged, page_count = _logged_pages(folder)
    with (folder / CATALOG_FILE).open("rb") as file:
        next_page = 1
        while block := file.read(PAGE_BYTES * 4096):
            length, rest = divmod(len(block), PAGE_BYTES)
            for row, checksum in enumerate(_page_checksums(block[: length * PAGE_BYTES])):
                expected = block[(row + 1) * PAGE_BYTES - _CHECKSUM_BYTES : (row + 1) * PAGE_BYTES]
                if checksum.tobytes() != expected and next_page + row not in logged:
                    yield f"the checksum of page {next_page + row}", expected.hex(), checksum.tobytes().hex()
            if next_page == 1 and page_count is None:
                page_count = int.from_bytes(block[28:32], "big")
            next_page += length
            if rest and next_page not in logged:
                yield f"the length of page {next_page}", f"{PAGE_BYTES} bytes", f"{rest} bytes"
                return
    if not logged.issuperset(range(next_page, (page_count or 1) + 1)):
        yield "the length of the file", f"{page_count or 1} pages", f"{next_page - 1} pages"


def _logged_pages(folder: Path) -> tuple[set[int], int | None]:
    """Pages in the commits of the write-ahead log, and the number of the database's pages after the last of them.

    Checkpoints write the log into the database file. If one is interrupted, the file is torn, and SQLite reads these
    pages from the log (https://sqlite.org/fileformat2.html#the_write_ahead_log). The log ends at its first frame with
    another salt or a wrong checksum.
    """
    logged, uncommitted, page_count = set[int](), set[int](), None
    try:
        with (folder / f"{CATALOG_FILE}-wal").open("rb") as file:
            header = np.fromfile(file, ">u4", _LOG_HEADER_WORDS)
            if len(header) < _LOG_HEADER_WORDS:
                return logged, page_count
            word = ">u4" if header[0] & 1 else "<u4"
            salt, before = header[4:6], header[6:8]  # `before` is the checksum of everything before a frame
            intact = np.ones(1, dtype=bool)
            while intact.all():
                words = np.fromfile(file, ">u4", _LOG_FRAME_WORDS * 4096)
                frames = words[: len(words) // _LOG_FRAME_WORDS * _LOG_FRAME_WORDS].reshape(-1, _LOG_FRAME_WORDS)
                if not len(frames):
                    break
                # Page, number of pages after a commit (0 within one), salt (2 words), checksum (2 words), content.
                checksums = frames[:, 4:6]
                summed = np.delete(frames.view(word), np.s_[2:6], axis=1)
                intact = (frames[:, 2:4] == salt).all(axis=1)
                intact &= (_checksums(summed, np.vstack([before, checksums[:-1]])) == checksums).all(axis=1)
                for page, count_after_commit in frames[np.logical_and.accumulate(intact), :2].tolist():
                    uncommitted.add(page)
                    if count_after_commit:
                        logged |= uncommitted
                        uncommitted, page_count = set(), count_after_commit
                before = checksums[-1]
    except FileNotFoundError:
        pass
    return logged, page_count


def _has_wal(folder: Path) -> bool:
    wal = folder / f"{CATALOG_FILE}-wal"
    return wal.exists() and wal.stat().st_size > 0


def _page_checksums(pages: bytes) -> NDArray[np.uint32]:
    """The checksums that the VFS stores at the end of each page. *Shape:* (n_pages, 2), little-endian."""
    words = np.frombuffer(pages, dtype="<u4").reshape(-1, PAGE_BYTES // 4)[:, :-2]
    return _checksums(words, np.zeros((len(words), 2), dtype="<u4"))


def _checksums(words: NDArray[np.uint32], start: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """SQLite's checksum of each row of words, continued from a start value. *Shape:* (n, 2), little-endian."""
    columns, sums = words.T, start.T.astype("<u4")
    for index in range(0, len(columns), 2):
        sums[0] += columns[index] + sums[1]
        sums[1] += columns[index + 1] + sums[0]
    return np.ascontiguousarray(sums.T)


@functools.cache
def _register_checksum_vfs() -> None:
    """Register the checksum VFS with the SQLite of the driver, once per process."""
    # apsw is not imported: two SQLite libraries in one process release each other's file locks.
    spec = find_spec("apsw")
    assert spec is not None
    assert spec.origin is not None
    connection = sqlite.connect(":memory:")
    connection.enable_load_extension(True)
    connection.load_extension(str(Path(spec.origin).parent / "sqlite_extra_binaries" / "cksumvfs"))
    connection.close()
