"""Assertions and searches shared by the contract tests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ragfm.core.types import Ids, VectorIndex


def require(condition: object, message: str) -> None:
    """An assertion that `python -O` does not remove."""
    if not condition:
        raise AssertionError(message)


def require_value_errors(calls: Mapping[str, Callable[[], object]]) -> None:
    """Each call, by a description of its invalid input, must raise ValueError."""
    for description, call in calls.items():
        try:
            call()
        except ValueError:
            continue
        raise AssertionError(f"{description} must raise ValueError, but is accepted")


def allowed_ids(ids: Ids) -> Sequence[Ids]:
    """Filters for a search of an index: none, some and all of its ids, unknown and repeated ones, in any order."""
    random = np.random.default_rng(1)
    shares = [random.permutation(ids)[: round(len(ids) * share)] for share in (0.01, 0.5, 0.9, 1)]
    unknown = np.array([5 * 10**9, 2**62, 1], dtype=np.int64)
    mixed = [np.concatenate([share, unknown, share[:3]]) for share in shares]
    return [ids[:0], ids[:1], np.sort(ids)[-1:], unknown[:2], np.sort(shares[1]), *shares, *mixed]


def check_in_threads(check: Callable[[Ids | None], None], ids: Ids) -> None:
    """Check searches of an index with all kinds of filters, four at a time."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check, [None, *allowed_ids(ids)] * 2))


def save_and_load(index_class: type[VectorIndex], index: VectorIndex) -> VectorIndex:
    """A saved and loaded copy. Its folder is deleted, as when a newer view replaces one that is still in use."""
    with tempfile.TemporaryDirectory() as name:
        index.save(Path(name))
        require(all(path.is_file() for path in Path(name).iterdir()), "save creates something other than files")
        return index_class.load(Path(name))
