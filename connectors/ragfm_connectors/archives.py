"""Zip and tar archives, read in place: nothing is unpacked to disk, and decompression bombs are refused."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, BinaryIO, TypeAlias

MAX_ENTRIES = 100_000
"""Maximum number of entries of an archive, unless a smaller one is set."""
MAX_RATIO = 100
"""Maximum ratio of unpacked to packed size, for an archive and for an entry."""
MIN_LIMIT = 64 << 20
"""Bytes that an archive may always have unpacked, whatever the ratio."""
MAX_UNPACKED = 8 << 30
"""Maximum number of bytes of an unpacked archive."""
_MAX_DIRECTORY = 16 << 20  # bytes of a zip's directory or of a tar's header
_MIN_ENTRY_LIMIT = 1 << 20
_CHUNK = 1 << 18
_LOCAL_HEADER = 30  # bytes before a zip entry's name
_END_OF_DIRECTORY = b"PK\5\6"
_MAX_END_RECORD = 22 + 0xFFFF  # bytes of a zip's last record with the longest comment

ARCHIVE_ERRORS = (
    ArithmeticError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What the standard library raises for damaged archives."""


class ArchiveLimitError(Exception):
    """An archive exceeds a limit. The message continues a sentence that begins with the archive's name."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive. `revision` changes with its content; `skip` says why it is not read."""

    name: str
    size: int
    revision: str
    modified: str | None = None
    skip: str | None = None


_OPENERS: dict[str, Callable[[BinaryIO], Any] | None] = {
    ".zip": None,
    ".tar": None,
    ".tar.gz": lambda file: gzip.GzipFile(fileobj=file),
    ".tgz": lambda file: gzip.GzipFile(fileobj=file),
    ".tar.bz2": bz2.BZ2File,
    ".tbz2": bz2.BZ2File,
    ".tar.xz": lzma.LZMAFile,
    ".txz": lzma.LZMAFile,
}


def is_archive(name: str) -> bool:
    """Whether a file of this name is opened as an archive."""
    return name.lower().endswith(tuple(_OPENERS))


def open_archive(file: BinaryIO, name: str, size: int, revision: str, max_entries: int = MAX_ENTRIES) -> Archive:
    """Open an archive of `size` bytes. Raises ArchiveLimitError and ARCHIVE_ERRORS."""
    name = name.lower()
    file.seek(0)  # another process may have read from the same open file
    if name.endswith(".zip"):
        return ZipArchive(file, size, max_entries)
    opener = next(opener for suffix, opener in _OPENERS.items() if name.endswith(suffix))
    plain = file if opener is None else check_while_read(opener(file), size)
    return TarArchive(plain, size, revision, max_entries)


class ZipArchive:
    """A zip. Only its directory is read to list it. All methods raise ArchiveLimitError and ARCHIVE_ERRORS."""

    def __init__(self, file: BinaryIO, size: int, max_entries: int) -> None:
        # The number that the archive claims to have is known before its directory is read. 65,535 stands for any more.
        file.seek(max(0, size - _MAX_END_RECORD))
        _, found, end = file.read().rpartition(_END_OF_DIRECTORY)
        if found and len(end) >= 8:
            _check_entries(int.from_bytes(end[6:8], "little"), max_entries)
        limited = _LimitedFile(file, _MAX_DIRECTORY)
        self._zip = zipfile.ZipFile(limited)
        limited.max_read = None
        entries = self._zip.infolist()
        _check_entries(len(entries), max_entries)
        check_size(sum(entry.file_size for entry in entries), size)
        self._entries = {_zip_entry_name(entry): entry for entry in entries}
        # Overlapping entries would unpack the same bytes many times.
        positions = sorted((entry.header_offset, entry.compress_size) for entry in entries)
        for (start, packed), (following, _) in pairwise(positions):
            if start + _LOCAL_HEADER + packed > following:
                raise ArchiveLimitError("has entries that overlap")

    def members(self) -> Iterator[Member]:
        """The files, see Archive."""
        for name, entry in sorted(self._entries.items(), key=lambda item: item[1].header_offset):
            if entry.is_dir():
                continue
            try:
                modified = datetime(*entry.date_time, tzinfo=UTC).isoformat()
            except ValueError:
                modified = None

            skip = None
            file_type = entry.external_attr >> 28  # the upper bits of the Unix mode
            if entry.create_system == 3 and file_type not in (0, 0o10):
                skip = "not a regular file but a link" if file_type == 0o12 else "not a regular file"
            elif entry.flag_bits & 0x1:
                skip = "it is password-protected"
            elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
                skip = "its compression method is not supported"
            elif entry.file_size > max(_MIN_ENTRY_LIMIT, entry.compress_size * MAX_RATIO):
                skip = f"it would be {entry.file_size // max(1, entry.compress_size):,} times as large unpacked"

            revision = f"{entry.file_size}:{entry.CRC:08x}"
            yield Member(name, entry.file_size, revision, modified, skip)

    def read(self, name: str, max_bytes: int) -> bytes:
        """The content of a file; its checksum is verified. Raises ValueError if it is larger than `max_bytes`."""
        entry = self._entries[name]
        with self._zip.open(entry) as file:
            return _read(file, min(max_bytes, entry.file_size))


class TarArchive:
    """A tar, which may be compressed. It is read once to list it, and once more to read its files in that order.

    A tar has no checksums of its files: their revisions change with the archive's own. All methods raise
    ArchiveLimitError and ARCHIVE_ERRORS.
    """

    def __init__(self, file: BinaryIO, size: int, revision: str, max_entries: int) -> None:
        self._limited = _LimitedFile(file, _MAX_DIRECTORY)
        self._size, self._revision, self._max_entries = size, revision, max_entries
        self._tar = tarfile.open(fileobj=self._limited, mode="r:")  # type: ignore[call-overload]  # noqa: SIM115
        self._entries: dict[str, tarfile.TarInfo] = {}

    def members(self) -> Iterator[Member]:
        """The files, see Archive."""
        self._limited.max_read = _MAX_DIRECTORY
        self._entries = {}
        total = 0
        for number, entry in enumerate(self._tar, 1):
            _check_entries(number, self._max_entries)
            if entry.isdir():
                continue
            total += entry.size
            check_size(total, self._size)
            self._entries[entry.name] = entry
        while self._limited.read(_CHUNK):  # the checksum of gzip data is behind the end of the tar
            pass
        for entry in sorted(self._entries.values(), key=lambda entry: entry.offset):
            try:
                modified = datetime.fromtimestamp(int(entry.mtime), UTC).isoformat()
            except (ValueError, OverflowError, OSError):
                modified = None
            skip = None
            if entry.issym() or entry.islnk():
                skip = "not a regular file but a link"
            elif not entry.isreg() or entry.issparse():
                skip = "not a regular file"
            revision = f"{entry.size}:{entry.mtime}:{self._revision}"
            yield Member(entry.name, entry.size, revision, modified, skip)

    def read(self, name: str, max_bytes: int) -> bytes:
        """The content of a file. Raises ValueError if it is larger than `max_bytes`."""
        if name not in self._entries:
            for _ in self.members():
                pass
        self._limited.max_read = None
        file = self._tar.extractfile(self._entries[name])
        if file is None:
            raise tarfile.TarError("it is not a file")
        data = _read(file, max_bytes)
        if len(data) < self._entries[name].size:
            raise EOFError("it ends too early")
        return data


Archive: TypeAlias = ZipArchive | TarArchive
"""An open archive. Its members come in the fastest order to read them; if a name occurs twice, only the last one."""


def check_while_read(unpacked: Any, size: int) -> io.BufferedReader:
    """The content of a file that decompresses `size` bytes. Reading raises ArchiveLimitError if it is a bomb."""
    return io.BufferedReader(_CheckedFile(unpacked, size), _CHUNK)


def check_size(unpacked: int, size: int) -> None:
    """Raise ArchiveLimitError if `unpacked` bytes from a file of `size` bytes can only be a decompression bomb."""
    limit = max(MIN_LIMIT, min(MAX_UNPACKED, size * MAX_RATIO))
    if unpacked > limit:
        raise ArchiveLimitError(
            f"would be over {unpacked >> 20:,} MiB unpacked, {unpacked // max(1, size):,} times its size; "
            f"the limit is {limit >> 20:,} MiB"
        )


def _zip_entry_name(entry: zipfile.ZipInfo) -> str:
    """The name of an entry. Many programs write UTF-8 without the flag for it, which zipfile decodes as cp437."""
    if not entry.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            return entry.filename.encode("cp437").decode()
    return entry.filename


def _check_entries(count: int, max_entries: int) -> None:
    if count > max_entries:
        raise ArchiveLimitError(f"has {count:,} entries or more; the limit is {max_entries:,}")


def _read(file: Any, max_bytes: int) -> bytes:
    data: bytes = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError("it is larger than its header says")
    return data


class _LimitedFile:
    """A file of which at most `max_read` bytes are read at once, whatever a hostile header asks for."""

    def __init__(self, file: BinaryIO, max_read: int | None) -> None:
        self._file = file
        self.max_read = max_read
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        if self.max_read is not None and size > self.max_read:
            raise ArchiveLimitError(f"has a directory of {size >> 20:,} MiB; the limit is {self.max_read >> 20:,} MiB")
        return self._file.read(size)

    def seekable(self) -> bool:
        return True


class _CheckedFile(io.RawIOBase):
    """A file that is decompressed while it is read. Raises ArchiveLimitError if it is a decompression bomb."""

    def __init__(self, unpacked: Any, size: int) -> None:
        self._unpacked, self._size = unpacked, size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._unpacked.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        check_size(offset, self._size)
        return int(self._unpacked.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        data = self._unpacked.read1(len(buffer))  # `readinto` would lose what comes before an error
        buffer[: len(data)] = data
        check_size(self._unpacked.tell(), self._size)
        return len(data)
