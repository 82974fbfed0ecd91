"""What the next turns of a conversation ask for again: the forms of its questions, and what was found for them.

Nothing needs it: without it, or once it is forgotten, the same is made again, at the cost of a search for each turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from ragfm.generation.followups import stand_alone

if TYPE_CHECKING:
    from ragfm.collection import Collection
    from ragfm.core.types import Hit, Message, Reader
    from ragfm.generation.followups import Followup

__all__ = ["Remembered"]

_MOST = 256


class Remembered:
    """Stand-alone forms and searches. What one sees who may see certain groups is nobody else's. Thread-safe."""

    def __init__(self, followup: Followup) -> None:
        self._followup = followup
        self._forms = lru_cache(_MOST)(_Question.form)
        self._hits = lru_cache(_MOST)(_Search.hits)

    def form(self, question: str, history: Sequence[Message], collection: Collection, reader: Reader) -> str:
        """What `stand_alone` gives."""
        return self._forms(_Question(question, tuple(history), collection.groups, self._followup, reader))

    def hits(self, query: str, k: int, filter: str | None, collection: Collection) -> Sequence[Hit]:
        """What the collection finds, in the state in which it is."""
        return self._hits(_Search(query, k, filter, collection.groups, collection.state, collection))


@dataclass(frozen=True, slots=True)
class _Question:
    question: str
    history: tuple[Message, ...]
    groups: frozenset[str] | None
    followup: Followup
    reader: Reader = field(compare=False)

    def form(self) -> str:
        return stand_alone(self.question, self.history, how=self.followup, reader=self.reader)


@dataclass(frozen=True, slots=True)
class _Search:
    query: str
    k: int
    filter: str | None
    groups: frozenset[str] | None
    state: str
    collection: Collection = field(compare=False)

    def hits(self) -> Sequence[Hit]:
        return self.collection.search(self.query, self.k, filter=self.filter)
