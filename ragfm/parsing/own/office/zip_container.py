"""Open archives safely: decompression bombs are refused before anything is unpacked."""

from __future__ import annotations

import io
import zipfile
import zlib
from itertools import pairwise
from typing import BinaryIO

from ragfm.core.errors import ParseError

MAX_ENTRIES = 20_000
MAX_UNPACKED = 1 << 29
"""Unpacked size of an archive, in bytes."""
MAX_RATIO = 300
"""Ratio of unpacked to packed size, for archives whose unpacked size is over `FREE_RATIO`."""
FREE_RATIO = 1 << 26
"""Unpacked size, in bytes, up to which any ratio is allowed."""
_LOCAL_HEADER = 30  # bytes before the name of an entry

DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ValueError)
"""Exceptions that `zipfile` raises for a damaged archive."""


def open_zip(file: bytes | BinaryIO, name: str) -> zipfile.ZipFile:
    """Open and check an archive without unpacking anything. Raises ParseError for a damaged archive or a bomb."""
    stream = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        archive = zipfile.ZipFile(stream)
    except DAMAGE as error:
        raise ParseError(f"{name} is a damaged archive: {error}") from error
    stream.seek(0, io.SEEK_END)
    check_entries(archive.infolist(), stream.tell(), name)
    return archive


def check_entries(entries: list[zipfile.ZipInfo], size: int, name: str) -> None:
    """Raise ParseError for entries that no valid archive of `size` bytes has: bombs, and entries that overlap."""
    if len(entries) > MAX_ENTRIES:
        raise ParseError(f"{name} has {len(entries):,} entries; the limit is {MAX_ENTRIES:,}.")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > MAX_UNPACKED:
        raise ParseError(f"{name} would unpack to {unpacked >> 20:,} MiB; the limit is {MAX_UNPACKED >> 20:,} MiB.")
    if unpacked > max(FREE_RATIO, MAX_RATIO * size):
        raise ParseError(
            f"{name} would unpack to {unpacked // max(size, 1):,} times its size; the limit is {MAX_RATIO} times."
        )
    spans = sorted(
        (entry.header_offset, entry.header_offset + _LOCAL_HEADER + len(entry.orig_filename) + entry.compress_size)
        for entry in entries
    )
    for (start, end), (next_start, _) in pairwise([*spans, (size, size)]):
        if end > next_start or start < 0:
            raise ParseError(f"{name} has entries that overlap: it is damaged, or a decompression bomb.")


def read_entry(archive: zipfile.ZipFile, path: str, name: str) -> bytes | None:
    """Return the bytes of an entry, None where it does not exist. Raises ParseError for a damaged or protected one."""
    try:
        entry = archive.getinfo(path)
    except KeyError:
        return None
    if entry.flag_bits & 1:
        raise ParseError(f"{name} is protected by a password.", "Save a copy without a password.")
    try:
        return archive.read(entry)
    except (*DAMAGE, RuntimeError) as error:
        raise ParseError(f"{name} is damaged: its part {path} cannot be unpacked ({error}).") from error
