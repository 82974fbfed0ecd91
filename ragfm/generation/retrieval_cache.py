"""A cache of stand-alone questions and searches: the next turns of a conversation ask for the same ones again.

It saves a search per turn; everything in it can be computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from ragfm.generation.followups import stand_alone

if TYPE_CHECKING:
    from ragfm.core.types import Hit, Message, Reader
    from ragfm.generation.followups import Followup

__all__ = ["RetrievalCache", "Searchable"]

_MAX_ENTRIES = 256


class Searchable(Protocol):
    """What the cache needs of a collection's handle."""

    @property
    def groups(self) -> frozenset[str] | None:
        """The groups of the handle, None for the owner's."""

    @property
    def state(self) -> str:
        """Changes with the collection and its access rights."""

    def search(self, query: str, k: int | None = None, *, filter: str | None = None) -> list[Hit]:
        """The best hits."""
        ...


class RetrievalCache:
    """Caches per access groups, so that no user sees what only others may see. Thread-safe."""

    def __init__(self, followup: Followup) -> None:
        self._followup = followup
        self._questions = lru_cache(_MAX_ENTRIES)(_Question.rewrite)
        self._searches = lru_cache(_MAX_ENTRIES)(_Search.run)

    def stand_alone(self, question: str, history: Sequence[Message], collection: Searchable, reader: Reader) -> str:
        """The question rewritten to stand alone; see `followups.stand_alone`."""
        return self._questions(_Question(question, tuple(history), collection.groups, self._followup, reader))

    def search(self, query: str, k: int, filter: str | None, collection: Searchable) -> Sequence[Hit]:
        """The hits of a collection in its present state."""
        return self._searches(_Search(query, k, filter, collection.groups, collection.state, collection))


@dataclass(frozen=True, slots=True)
class _Question:
    question: str
    history: tuple[Message, ...]
    groups: frozenset[str] | None
    followup: Followup
    reader: Reader = field(compare=False)

    def rewrite(self) -> str:
        return stand_alone(self.question, self.history, how=self.followup, reader=self.reader)


@dataclass(frozen=True, slots=True)
class _Search:
    query: str
    k: int
    filter: str | None
    groups: frozenset[str] | None
    state: str
    collection: Searchable = field(compare=False)

    def run(self) -> Sequence[Hit]:
        return self.collection.search(self.query, self.k, filter=self.filter)
