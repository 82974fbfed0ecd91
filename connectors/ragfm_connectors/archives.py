"""Zip and tar archives, read where they are: nothing is unpacked to disk, and nothing that is much larger unpacked."""

from __future__ import annotations

import bz2
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
from typing import Any, BinaryIO, Protocol

MEMBERS = 100_000
"""Entries that an archive may have."""
RATIO = 100
"""Times its own size that an archive, or an entry, may have unpacked; of that, SMALL is never too much."""
SMALL = 64 << 20
LARGEST = 8 << 30
"""Bytes that an archive may have unpacked."""
_DIRECTORY = 16 << 20  # bytes of a zip's directory, or of a tar's header
_WINDOW = 256 << 20  # bytes of memory that unpacking may take
_CHUNK = 1 << 18

DAMAGE = (
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
"""What the libraries raise for archives that aren't what they should be."""


class TooMuch(Exception):  # noqa: N818  it says what an archive is
    """An archive that is refused for what it would cost; the message goes on from `it`."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive. `revision` changes with it, as far as the archive says; `skip` says why it isn't read."""

    name: str
    size: int
    revision: str
    modified: str | None = None
    skip: str | None = None


class Archive(Protocol):
    """An open archive."""

    def members(self) -> Iterator[Member]:
        """Its files, in the order in which they are read fastest. Raises TooMuch, and what is in DAMAGE."""

    def read(self, name: str, most: int) -> bytes:
        """The bytes of a file, of which there are at most so many."""


def is_archive(name: str) -> bool:
    """Whether a file of that name is opened as an archive."""
    return _kind(name) is not None


def open_archive(file: BinaryIO, name: str, size: int, revision: str) -> Archive:
    """Open an archive of so many bytes. Raises TooMuch, and what is in DAMAGE."""
    kind = _kind(name)
    if kind == "zip":
        return ZipArchive(file, size)
    return TarArchive(file, _UNPACKERS[kind or ""], size, revision)


class ZipArchive:
    """A zip. Its directory alone is read to list it."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        guarded = _Guarded(file, _DIRECTORY)
        self._zip = zipfile.ZipFile(guarded)
        guarded.most = None
        infos = self._zip.infolist()
        if len(infos) > MEMBERS:
            raise TooMuch(f"has {len(infos):,} entries, the limit is {MEMBERS:,}")
        check_size(sum(info.file_size for info in infos), size)
        placed = sorted((info.header_offset, info.compress_size) for info in infos)
        for (start, packed), (following, _) in pairwise(placed):
            if start + 30 + packed > following:
                raise TooMuch("has entries that lie in each other")

    def members(self) -> Iterator[Member]:
        """Its files; of a name that is there twice, the last."""
        for info in sorted(self._zip.NameToInfo.values(), key=lambda info: info.header_offset):
            if info.is_dir():
                continue
            try:
                modified = datetime(*info.date_time, tzinfo=UTC).isoformat()
            except ValueError:
                modified = None
            revision = f"{info.file_size}:{info.CRC:08x}"
            yield Member(info.filename, info.file_size, revision, modified, self._why_not(info))

    def read(self, name: str, most: int) -> bytes:
        """A file's bytes, whose checksum is right."""
        with self._zip.open(name) as file:
            return _read(file, min(most, self._zip.getinfo(name).file_size))

    def _why_not(self, info: zipfile.ZipInfo) -> str | None:
        kind = info.external_attr >> 28  # the upper bits of what Unix calls the mode
        if info.create_system == 3 and kind not in (0, 0o10):
            return "not a regular file but a link" if kind == 0o12 else "not a regular file"
        if info.flag_bits & 0x1:
            return "it is protected by a password"
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
            return "it is packed in a way that isn't read"
        if info.file_size > max(1 << 20, info.compress_size * RATIO):
            return f"it would be {info.file_size // max(1, info.compress_size):,} times as large unpacked"
        return None


class TarArchive:
    """A tar, which may be packed. It is gone through to list it, and once more to read its files in that order.

    It has no checksums of its files: they have another revision with each one of the archive's own.
    """

    def __init__(self, file: BinaryIO, unpacker: Callable[[], Any] | None, size: int, revision: str) -> None:
        plain = file if unpacker is None else unpacked(file, unpacker, size)
        self._guarded = _Guarded(plain, _DIRECTORY)
        self._size, self._revision = size, revision
        self._tar = tarfile.open(fileobj=self._guarded, mode="r:")  # type: ignore[call-overload]  # noqa: SIM115
        self._infos: dict[str, tarfile.TarInfo] = {}

    def members(self) -> Iterator[Member]:
        """Its files; of a name that is there twice, the last."""
        self._guarded.most, unpacked = _DIRECTORY, 0
        self._infos = {}
        for number, info in enumerate(self._tar):
            if number >= MEMBERS:
                raise TooMuch(f"has over {MEMBERS:,} entries")
            if info.isdir():
                continue
            unpacked += info.size
            check_size(unpacked, self._size)
            self._infos[info.name] = info
        for info in sorted(self._infos.values(), key=lambda info: info.offset):
            try:
                modified = datetime.fromtimestamp(int(info.mtime), UTC).isoformat()
            except (ValueError, OverflowError, OSError):
                modified = None
            revision = f"{info.size}:{info.mtime}:{self._revision}"
            yield Member(info.name, info.size, revision, modified, _why_not(info))

    def read(self, name: str, most: int) -> bytes:
        """A file's bytes."""
        if name not in self._infos:
            for _ in self.members():
                pass
        self._guarded.most = None
        file = self._tar.extractfile(self._infos[name])
        if file is None:
            raise tarfile.TarError("it is no file")
        data = _read(file, most)
        if len(data) < self._infos[name].size:
            raise EOFError("it ends too early")
        return data


def _why_not(info: tarfile.TarInfo) -> str | None:
    if info.issym() or info.islnk():
        return "not a regular file but a link"
    if not info.isreg() or info.issparse():
        return "not a regular file"
    return None


def _kind(name: str) -> str | None:
    name = name.lower()
    for suffix, kind in _SUFFIXES.items():
        if name.endswith(suffix):
            return kind
    return None


def gunzip() -> Any:
    """An unpacker of gzip."""
    return zlib.decompressobj(31)


_SUFFIXES = {".zip": "zip", ".tar": "", ".tar.gz": "gz", ".tgz": "gz", ".tar.bz2": "bz2", ".tbz2": "bz2",
             ".tar.xz": "xz", ".txz": "xz"}  # fmt: skip
_UNPACKERS: dict[str, Callable[[], Any] | None] = {
    "": None,
    "gz": gunzip,
    "bz2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_WINDOW),
}


def unpacked(file: BinaryIO, unpacker: Callable[[], Any], size: int) -> io.BufferedReader:
    """What a packed file of so many bytes holds; reading it raises TooMuch where that gets too much."""
    return io.BufferedReader(_Unpacked(file, unpacker, size), _CHUNK)


def check_size(unpacked: int, size: int) -> None:
    """Raise TooMuch where a file of `size` bytes holds so many more that it is a bomb."""
    if unpacked > max(SMALL, min(LARGEST, size * RATIO)):
        raise TooMuch(f"would be over {unpacked >> 20:,} MiB unpacked, {unpacked // max(1, size):,} times its size")


def _read(file: Any, most: int) -> bytes:
    data: bytes = file.read(most + 1)
    if len(data) > most:
        raise ValueError("it is larger than it says")
    return data


class _Guarded:
    """A file of which no more than `most` bytes are read at once: what a hostile header asks for."""

    def __init__(self, file: BinaryIO, most: int | None) -> None:
        self._file = file
        self.most = most
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        if self.most is not None and size > self.most:
            raise TooMuch(f"has a directory of {size >> 20:,} MiB")
        return self._file.read(size)

    def seekable(self) -> bool:
        return True


class _Unpacked(io.RawIOBase):
    """What a packed file holds, from its beginning to where it gets too much; going back begins anew."""

    def __init__(self, file: BinaryIO, unpacker: Callable[[], Any], size: int) -> None:
        self._file, self._new, self._size = file, unpacker, size
        self._begin()

    def _begin(self) -> None:
        self._file.seek(0)
        self._unpacker, self._at, self._packed, self._ready = self._new(), 0, b"", b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset += self._at
        elif whence == io.SEEK_END:
            raise io.UnsupportedOperation("its end is not known")
        if offset < self._at:
            self._begin()
        while self._at < offset and self.read(min(_CHUNK, offset - self._at)):
            pass
        return self._at

    def readinto(self, buffer: Any) -> int:
        if not self._ready:
            self._ready = self._more(len(buffer))
        data, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(data)] = data
        self._at += len(data)
        check_size(self._at, self._size)
        return len(data)

    def _more(self, most: int) -> bytes:
        """Some bytes, none at the end. Of zlib the packed rest is in `unconsumed_tail`; the others keep it."""
        while True:
            tail: bytes = getattr(self._unpacker, "unconsumed_tail", b"")
            self._packed = tail or self._packed
            if self._unpacker.eof:  # several may follow each other
                self._packed = self._unpacker.unused_data + self._packed
                self._unpacker = self._new()
                self._packed = (self._packed or self._file.read(_CHUNK)).lstrip(b"\0")  # padding
                if not self._packed:
                    return b""
            if not self._packed and getattr(self._unpacker, "needs_input", True):
                self._packed = self._file.read(_CHUNK)
                if not self._packed:
                    raise EOFError("it ends too early")
            packed, self._packed = self._packed, b""
            data: bytes = self._unpacker.decompress(packed, most)
            if data:
                return data
