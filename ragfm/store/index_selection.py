"""Selects the kind of vector index for `index = "auto"`.

    faiss-flat   while an exhaustive search is fast and the vectors fit into the memory limit
    faiss-hnsw   above that, while a graph over 8-bit codes fits
    faiss-ivf    otherwise: lists of 8-bit codes, the smallest kind

The constants come from benchmarks/bench_index.py. Memory means the size of the files, which processes map and share.
"""

from __future__ import annotations

import math

from ragfm.models.hardware import memory_limit_bytes

_KINDS = ("faiss-flat", "faiss-hnsw", "faiss-ivf")  # in order of collection size
_MAX_FLAT_NUMBERS = 20_000_000  # compared exactly in 4 ms: 52,000 vectors of 384 dimensions
_NUMBERS_PER_MS = 5_500_000
_HYSTERESIS = 1.25  # a collection must be smaller than a limit by this factor to return to the smaller kind
_MEMORY_SHARE = 0.25


def choose_kind(count: int, dim: int, memory_bytes: int, *, current: str | None = None) -> tuple[str, str]:
    """The kind of index for `count` vectors of `dim` dimensions, and the reason as a sentence.

    `memory_bytes` is the limit for the index. If the collection already has an index of the kind `current`, it moves
    to a kind for more vectors at the limit, but back only when it is a fifth below it.
    """
    kind = _kind_for(count, dim, memory_bytes)
    if current in _KINDS and _KINDS.index(current) > _KINDS.index(kind):
        kept = min(current, _kind_for(math.ceil(count * _HYSTERESIS), dim, memory_bytes), key=_KINDS.index)
        if kept != kind:
            return kept, f"{_vectors(count, dim)} are just below the limit of {kind}; the index already is {kept}."

    size, limit = _megabytes(index_bytes(kind, count, dim)), _megabytes(memory_bytes)
    if kind == "faiss-flat":
        milliseconds = max(1, round(count * dim / _NUMBERS_PER_MS))
        why = f"{_vectors(count, dim)} are few enough for an exhaustive search, in about {milliseconds} ms."
    elif kind == "faiss-hnsw":
        why = f"{_vectors(count, dim)} are too many for an exhaustive search; their graph takes {size} of {limit}."
    else:
        graph = _megabytes(index_bytes("faiss-hnsw", count, dim))
        fits = index_bytes(kind, count, dim) <= memory_bytes
        excess = "" if fits else ", which is also above the limit and is read from disk as needed"
        why = f"A graph of {_vectors(count, dim)} takes {graph} of at most {limit}; {kind} takes {size}{excess}."
    return kind, why


def index_bytes(kind: str, count: int, dim: int) -> int:
    """Approximate size of the files of an index, in bytes."""
    if kind == "faiss-flat":
        return count * (4 * dim + 8)
    if kind == "faiss-hnsw":  # per vector: a code, 66 links of four bytes, level, position and id
        return count * (dim + 284)
    return count * (dim + 16) + 4 * dim * round(4 * math.sqrt(count))  # per vector: a code, row, id; and centroids


def default_memory() -> int:
    """Default memory limit for an index, in bytes: a quarter of the memory available to this process."""
    return int(_MEMORY_SHARE * memory_limit_bytes())


def _kind_for(count: int, dim: int, memory_bytes: int) -> str:
    if count * dim <= _MAX_FLAT_NUMBERS and index_bytes("faiss-flat", count, dim) <= memory_bytes:
        return "faiss-flat"
    return "faiss-hnsw" if index_bytes("faiss-hnsw", count, dim) <= memory_bytes else "faiss-ivf"


def _vectors(count: int, dim: int) -> str:
    return f"{count:,} vectors of {dim} dimensions"


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
