"""What a search may return: `allowed` ids, turned once into what the searches want."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from ragfm_indexes.vector_arrays import Rows


class Selection:
    """Rows among `count`, in ascending order, and the same as a mask. Each form is made when it is first wanted."""

    def __init__(self, rows: Rows, count: int) -> None:
        self.rows = rows
        self.count = count

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def share(self) -> float:
        """How much of everything is selected, from 0 to 1."""
        return len(self) / self.count if self.count else 0.0

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """True for the rows that are selected. *Shape:* (count,)."""
        mask = np.zeros(self.count, dtype=np.bool_)
        mask[self.rows] = True
        return mask


S = TypeVar("S", bound=Selection)


class Selections(Generic[S]):
    """Remembers what `make` made of the last few arrays, as long as those live. Thread-safe.

    A filter is asked for many times with the same array; looking half a million ids up costs ten times the search.
    Only read-only arrays are remembered: who makes one says that what it shows does not change.
    """

    def __init__(self, make: Callable[[ArrayLike], S], *, size: int = 8) -> None:
        self._make = make
        self._size = size
        self._kept: OrderedDict[int, tuple[weakref.ref[Any], S]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, allowed: ArrayLike) -> S:
        """The selection of these ids."""
        if not isinstance(allowed, np.ndarray) or allowed.flags.writeable:
            return self._make(allowed)
        key = id(allowed)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and kept[0]() is allowed:
                self._kept[key] = self._kept.pop(key, kept)  # now the last to be forgotten
                return kept[1]
        selection = self._make(allowed)
        with self._lock:
            self._kept[key] = (weakref.ref(allowed, _forgetter(self._kept, key)), selection)
            while len(self._kept) > self._size:
                with contextlib.suppress(KeyError):  # its array has died just now
                    self._kept.popitem(last=False)
        return selection


def _forgetter(kept: OrderedDict[int, tuple[weakref.ref[Any], S]], key: int) -> Callable[[object], None]:
    # Called whenever an array dies, even while this thread holds the lock: it must not wait for it.
    def forget(dead: object) -> None:
        entry = kept.get(key)
        if entry is not None and entry[0] is dead:  # another array may have got the same address
            kept.pop(key, None)

    return forget
