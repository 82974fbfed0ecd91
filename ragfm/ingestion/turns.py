"""Turns: a sync in slices, in which each owner of documents gets a share.

    listing ─→ new and changed documents ─→ one of each owner in turn ─→ a slice: fetch, parse, embed, commit
                                                                      └→ postponed to the next slice

The collection's lock is released between two slices, so that other processes can write. What is added to the source
meanwhile takes part in the next slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import zip_longest
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ragfm.core.types import Ref

_MIN_DOCUMENTS, _MAX_DOCUMENTS = 4, 1000  # of a slice
_MIN_BYTES, _MAX_BYTES = 2**15, 2**24


class Turns:
    """Divides the syncs of a source into slices of about `seconds`.

    The first slice has up to `max_documents` documents and `max_bytes` of content; then both limits follow the speed,
    unless `seconds` is None. `owner_of` gives the owner of a path. A single document is never divided.
    """

    def __init__(
        self,
        owner_of: Callable[[str], str],
        *,
        seconds: float | None = 1.0,
        max_documents: int = 64,
        max_bytes: int = 256 * 2**10,
    ) -> None:
        self._owner_of = owner_of
        self._seconds, self._max_documents, self._max_bytes = seconds, max_documents, max_bytes
        self._began = 0.0  # when the slice began
        self._documents = self._bytes = 0  # fetched in this slice
        self._last_served: dict[str, int] = {}  # by owner, the last slice with one of its documents
        self._taken: set[tuple[str, str]] = set()  # path and revision
        self._ordered: list[Ref] = []  # of this slice
        self.slices = 0

    @property
    def postponed(self) -> list[Ref]:
        """The documents that the last slice has left to the next one."""
        return self._ordered[self._documents :]

    def begin_slice(self, refs: Iterable[Ref]) -> list[Ref]:
        """The new and changed documents in the order of turns. The owner that was served longest ago is first."""
        now = monotonic()
        if self._seconds is not None and self.postponed:
            factor = min(2.0, max(0.5, self._seconds / (now - self._began)))
            self._max_documents = min(_MAX_DOCUMENTS, max(_MIN_DOCUMENTS, int(self._max_documents * factor)))
            self._max_bytes = min(_MAX_BYTES, max(_MIN_BYTES, int(self._max_bytes * factor)))
        self._began = now
        self.slices += 1
        self._documents = self._bytes = 0
        queues: dict[str, list[Ref]] = {}
        for ref in refs:
            queues.setdefault(self._owner_of(ref.path), []).append(ref)
        owners = sorted(queues, key=lambda owner: self._last_served.get(owner, 0))
        turns = zip_longest(*(queues[owner] for owner in owners))
        self._ordered = [ref for turn in turns for ref in turn if ref is not None]
        return self._ordered

    def take(self, ref: Ref) -> bool:
        """Whether the document belongs to this slice, rather than to a later one."""
        if self._documents >= self._max_documents or self._bytes >= self._max_bytes:
            return False
        self._documents += 1
        self._taken.add((ref.path, ref.revision))
        self._last_served[self._owner_of(ref.path)] = self.slices
        return True

    def has_taken(self, ref: Ref) -> bool:
        """Whether a slice has had the document: if it failed, it is not tried again in the next slice."""
        return (ref.path, ref.revision) in self._taken

    def count(self, size: int) -> None:
        """Add the size of a fetched document, in bytes."""
        self._bytes += size
