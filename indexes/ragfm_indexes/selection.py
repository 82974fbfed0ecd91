"""The rows that a search may return: `allowed` ids, converted once to row numbers."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rows: TypeAlias = NDArray[np.int64]
"""Row numbers of an index, whose rows are in ascending order of id; -1 stands for no row."""


S = TypeVar("S")


class SelectionCache(Generic[S]):
    """Caches the selections that `make` gives for the last few arrays of ids, as long as these live. Thread-safe.

    A filter is used many times with the same array, and converting half a million ids takes ten times as long as the
    search. Only read-only arrays are cached: marking an array read-only promises that its content does not change.
    """

    def __init__(self, make: Callable[[ArrayLike], S], *, size: int = 8) -> None:
        self._make = make
        self._size = size
        self._cache: OrderedDict[int, tuple[weakref.ref[Any], S]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, allowed: ArrayLike) -> S:
        """The selection of these ids."""
        if not isinstance(allowed, np.ndarray) or allowed.flags.writeable:
            return self._make(allowed)
        key = id(allowed)
        with self._lock:
            entry = self._cache.get(key)
            if entry is not None and entry[0]() is allowed:
                self._cache[key] = self._cache.pop(key, entry)  # mark it as the most recently used
                return entry[1]
        selection = self._make(allowed)
        with self._lock:
            self._cache[key] = (weakref.ref(allowed, _removal_callback(self._cache, key)), selection)
            while len(self._cache) > self._size:
                with contextlib.suppress(KeyError):  # the callback has just removed the last entry
                    self._cache.popitem(last=False)
        return selection


def _removal_callback(cache: OrderedDict[int, tuple[weakref.ref[Any], S]], key: int) -> Callable[[object], None]:
    # It runs whenever an array is freed, even while this thread holds the lock, so it must not acquire the lock.
    def remove(freed: object) -> None:
        entry = cache.get(key)
        if entry is not None and entry[0] is freed:  # a new array may have the same address
            cache.pop(key, None)

    return remove
