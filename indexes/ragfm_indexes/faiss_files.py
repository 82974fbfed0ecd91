"""FAISS's files: written without its own file handling, and read within tight limits."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss

_limits_lock = threading.Lock()  # FAISS's limits are global, and so are they while a file is read


def write_faiss(index: Any, path: Path) -> None:
    """Write an index to a file. Raises OSError where that is not possible."""
    # FAISS takes no path that is not UTF-8, and would report a full disk as a RuntimeError.
    with path.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def read_faiss(path: Path, magic: bytes, flags: int) -> Any:
    """An index from a file that begins with `magic`. Raises ValueError where FAISS can't read it, and OSError."""
    with path.open("rb") as file:
        found = file.read(len(magic))
        if found != magic:
            raise ValueError(f"{path.name} begins with {found!r}, expected {magic!r}")
        with _limits(os.fstat(file.fileno()).st_size):
            try:
                return faiss.read_index(f"/dev/fd/{file.fileno()}", flags)
            except (RuntimeError, MemoryError) as error:
                raise ValueError(f"{path.name} can't be read: {error}") from error


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
