"""Which kind of vector index a collection gets where none is set: `index = "auto"`.

    faiss-flat   while comparing with every vector is fast and the vectors fit into the memory allowed
    faiss-hnsw   then, while a graph over 8-bit codes fits
    faiss-ivf    else: lists of 8-bit codes, which need the least

The figures come from benchmarks/bench_index.py; memory means the files, which are mapped and shared by processes.
"""

from __future__ import annotations

import math
import os

from ragfm.models.hardware import cgroup_memory_limits

_KINDS = ("faiss-flat", "faiss-hnsw", "faiss-ivf")
_FLAT_NUMBERS = 20_000_000  # that are compared exactly in 4 ms: 52,000 vectors of 384 dimensions
_NUMBERS_PER_MS = 5_500_000
_SLACK = 1.25  # a collection must be smaller by this to go back to the kind for smaller ones
_SHARE = 0.25  # of the machine's memory


def choose_kind(count: int, dim: int, memory_bytes: int, *, current: str | None = None) -> tuple[str, str]:
    """The kind of index for `count` vectors, and why, in a sentence.

    `memory_bytes` is what the index may take. A collection whose index is of the kind `current` changes it as soon as
    it grows over a limit, but not back before it is a fifth under it.
    """
    kind = _fitting(count, dim, memory_bytes)
    if current in _KINDS and _KINDS.index(current) > _KINDS.index(kind):
        nearly = _fitting(math.ceil(count * _SLACK), dim, memory_bytes)
        kept = min(current, nearly, key=_KINDS.index)
        if kept != kind:
            return (
                kept,
                f"{_size(count, dim)} are little less than what {kind} is for, and the index is {kept} already.",
            )
    return kind, _why(kind, count, dim, memory_bytes)


def index_bytes(kind: str, count: int, dim: int) -> int:
    """About how large the files of an index of the kind are."""
    if kind == "faiss-flat":
        return count * (4 * dim + 8)
    if kind == "faiss-hnsw":  # a code, 66 links of four bytes, level, place and id
        return count * (dim + 284)
    return count * (dim + 16) + 4 * dim * round(4 * math.sqrt(count))  # a code, row and id; the centres


def default_memory() -> int:
    """What an index may take where nothing is set, in bytes: a quarter of the memory that this process may use."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(_SHARE * min([physical, *(int(file.read_text(encoding="utf-8")) for file in cgroup_memory_limits())]))


def _fitting(count: int, dim: int, memory_bytes: int) -> str:
    if count * dim <= _FLAT_NUMBERS and index_bytes("faiss-flat", count, dim) <= memory_bytes:
        return "faiss-flat"
    return "faiss-hnsw" if index_bytes("faiss-hnsw", count, dim) <= memory_bytes else "faiss-ivf"


def _why(kind: str, count: int, dim: int, memory_bytes: int) -> str:
    takes, allowed = _memory(index_bytes(kind, count, dim)), _memory(memory_bytes)
    if kind == "faiss-flat":
        milliseconds = max(1, round(count * dim / _NUMBERS_PER_MS))
        return (
            f"{_size(count, dim)} are few enough to compare each search with all of them, in about {milliseconds} ms."
        )
    if kind == "faiss-hnsw":
        return f"{_size(count, dim)} are too many to compare all; their graph takes {takes} of the {allowed} allowed."
    graph = _memory(index_bytes("faiss-hnsw", count, dim))
    fits = "" if index_bytes(kind, count, dim) <= memory_bytes else ", also more than that: it is read as it is needed"
    return f"A graph of {_size(count, dim)} takes {graph}, where {allowed} are allowed; faiss-ivf takes {takes}{fits}."


def _size(count: int, dim: int) -> str:
    return f"{count:,} vectors of {dim} dimensions"


def _memory(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
