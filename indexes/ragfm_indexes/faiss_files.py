"""FAISS's files: written without its own file handling, and read within tight limits."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import faiss

_limits_lock = threading.Lock()  # FAISS's limits are global, and so are they while a file is read


def write_faiss(index: Any, path: Path) -> None:
    """Write an index to a file. Raises OSError where that is not possible."""
    # FAISS takes no path that is not UTF-8, and would report a full disk as a RuntimeError.
    with path.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def read_faiss(path: Path, magic: bytes, flags: int, layout: Sequence[int] = ()) -> Any:
    """An index from a file that begins with `magic`. Raises ValueError where FAISS can't read it, and OSError.

    `layout` is what the file consists of, where that must be checked: n > 0 stands for n bytes, n < 0 for a number and
    so many items of -n bytes. FAISS itself crashes where a file that it maps ends early or has an absurd number.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        found = file.read(len(magic))
        if found != magic:
            raise ValueError(f"{path.name} begins with {found!r}, expected {magic!r}")
        if layout and size != (ends := _end(file, size, layout)):
            raise ValueError(f"{path.name} has {size} bytes, expected {ends}")
        with _limits(size):
            try:
                return faiss.read_index(f"/dev/fd/{file.fileno()}", flags)
            except (RuntimeError, MemoryError) as error:
                raise ValueError(f"{path.name} can't be read: {error}") from error


def _end(file: BinaryIO, size: int, layout: Sequence[int]) -> int:
    at = 0
    for part in layout:
        if part < 0:
            file.seek(min(at, size))
            at += 8 - part * int.from_bytes(file.read(8), "little")
        else:
            at += part
    return at


@contextmanager
def _limits(size: int) -> Iterator[None]:
    """While it lasts, FAISS allocates no vector and enters no loop that a file of `size` bytes can't stand for."""
    limits = {
        "vector_byte_limit": size + 1,
        "loop_limit": size // 8 + 1,  # an inverted list costs eight bytes at the least
        "lattice_r2_limit": 1,  # no index here is a lattice
    }
    with _limits_lock:
        before = {name: getattr(faiss, f"get_deserialization_{name}")() for name in limits}
        try:
            for name, value in limits.items():
                getattr(faiss, f"set_deserialization_{name}")(value)
            yield
        finally:
            for name, value in before.items():
                getattr(faiss, f"set_deserialization_{name}")(value)
