"""Read and write FAISS files: paths in any encoding, OSError for a full disk, and no crash on damaged files."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss

_limits_lock = threading.Lock()  # FAISS's limits are process-wide, so only one file is read at a time


def write_faiss(index: Any, path: Path) -> None:
    """Write an index to a file. Raises OSError."""
    # FAISS's own file handling rejects paths that are not UTF-8, and reports a full disk as a RuntimeError.
    with path.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def read_faiss(path: Path, magic: bytes, flags: int, layout: Sequence[int] = ()) -> Any:
    """Read an index from a file that begins with `magic`. Raises ValueError if FAISS cannot read it, and OSError.

    `layout` describes the sections of the file, for formats where FAISS crashes if a mapped file ends early or has an
    absurd length in it: n > 0 is a section of n bytes, n < 0 is a 64-bit count followed by that many items of -n bytes.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(len(magic))
        if start != magic:
            raise ValueError(f"{path.name} begins with {start!r}, expected {magic!r}")
        end = 0
        for section in layout:
            if section < 0:
                file.seek(min(end, size))
                end += 8 - section * int.from_bytes(file.read(8), "little")
            else:
                end += section
        if layout and size != end:
            raise ValueError(f"{path.name} has {size} bytes, expected {end}")
        with _limits(size):
            try:
                return faiss.read_index(f"/dev/fd/{file.fileno()}", flags)
            except (RuntimeError, MemoryError) as error:
                raise ValueError(f"{path.name} cannot be read: {error}") from error


@contextmanager
def _limits(size: int) -> Iterator[None]:
    """FAISS allocates no vector and runs no loop that is larger than a file of `size` bytes can describe."""
    limits = {
        "vector_byte_limit": size + 1,
        "loop_limit": size // 8 + 1,  # an inverted list takes at least eight bytes
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
