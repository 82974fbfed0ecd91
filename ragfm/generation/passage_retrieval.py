"""Retrieve the passages for a question: make a follow-up stand alone, search, and leave out near-duplicates.

A follow-up also needs the passages of the turns that it depends on. They are searched again rather than stored, so that
access rights and changes since then apply; a cache saves the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Generic, Protocol, TypeVar

from ragfm.core.config import AskSection
from ragfm.core.text import QUESTION_MARKS, check_characters
from ragfm.core.tracing import span
from ragfm.core.types import Dropped, Embedder, Hit, Message, Scalar, SearchStep
from ragfm.generation.followups import stand_alone, turns_of
from ragfm.generation.prompt import EarlierTurn
from ragfm.generation.small_talk import SMALL_TALK
from ragfm.retrieval.document_dates import newest_first
from ragfm.retrieval.passages import distinct
from ragfm.retrieval.search import Mode, query_vectors
from ragfm.store.views import language_of

T = TypeVar("T")
_MAX_ENTRIES = 256  # of each cache
_CANDIDATES_PER_PASSAGE = 3  # hits searched for each passage, since some may be near-duplicates


class SearchHandle(Protocol):
    """What retrieval needs of a collection's handle."""

    @property
    def groups(self) -> frozenset[str] | None:
        """The access groups of the handle, None for the owner's."""

    @property
    def state(self) -> str:
        """Changes whenever the collection or its access rights do."""

    @property
    def embedder(self) -> Embedder:
        """The embedder of the chunks."""

    def search(
        self,
        query: str,
        k: int | None = None,
        *,
        mode: Mode = "hybrid",
        filter: str | None = None,
        rerank: str | None = None,
        hops: int = 1,
        record: Callable[[SearchStep], None] = ...,
    ) -> list[Hit]:
        """The best `k` hits, reranked by the reranker of a name; `record` is called for each search."""

    def neighbours(self, hits: Sequence[Hit]) -> list[Hit]:
        """The chunks next to each hit in its section."""

    def metadata(self, uri: str) -> Mapping[str, Scalar]:
        """The metadata of a document, empty if there is none that the handle may see."""


@dataclass(frozen=True, slots=True)
class Retrieved:
    """A question with its passages.

    `query` is the stand-alone form that was searched. `hits` are best first, `chosen` those for the prompt,
    `duplicates` the near-duplicates between them, `earlier` the turns that a follow-up depends on. `start` is when the
    question was asked, as `time.monotonic()`. `searched`: the hits were not given. `searches` are those for the query.
    `language` is that of the query, as ISO 639-1, if its words tell it. `small_talk`: it is no question, and has no
    passages.
    """

    question: str
    query: str
    start: float
    history: Sequence[Message]
    hits: Sequence[Hit]
    chosen: Sequence[Hit]
    duplicates: Sequence[Dropped] = ()
    earlier: Sequence[EarlierTurn] = ()
    searched: bool = True
    searches: Sequence[SearchStep] = ()
    language: str | None = None
    small_talk: bool = False

    @property
    def seconds(self) -> float:
        """Seconds since the question was asked."""
        return round(time.monotonic() - self.start, 3)


class PassageRetriever:
    """Retrieves passages. Caches are per access groups: no user sees what only others may see. Thread-safe."""

    def __init__(self, settings: AskSection, hops: int) -> None:
        self._followup = settings.followup
        self._reranker = settings.reranker
        self._hops = hops
        self._questions = lru_cache(_MAX_ENTRIES)(_Cached[str].value)
        self._closeness = lru_cache(_MAX_ENTRIES)(_Cached[float].value)
        self._searches = lru_cache(_MAX_ENTRIES)(_Cached[tuple[Sequence[Hit], Sequence[SearchStep]]].value)

    def find(
        self,
        question: str,
        history: Sequence[Message],
        filter: str | None,
        hits: Sequence[Hit] | None,
        *,
        k: int,
        collection: SearchHandle,
    ) -> Retrieved:
        """Find `k` passages, or take the given `hits`. Raises ValueError for an empty question."""
        if not question.strip():
            raise ValueError("the question is empty")
        start = time.monotonic()
        # `compute` must not refer to the cache that it is in.
        followup, reranker, hops, closest = self._followup, self._reranker, self._hops, self._closeness
        scope = filter, collection.groups, collection.state
        check_characters("question", question)
        for message in history:
            check_characters("conversation", message.text)

        def closeness(text: str) -> float:
            def compute() -> float:
                nearest = collection.search(text, 1, mode="dense", filter=filter, rerank="none")
                # Without passages, nothing is small talk or a follow-up.
                return max((hit.score or 0.0 for hit in nearest), default=1.0)

            return closest(_Cached((text, *scope), compute))

        def with_earlier(text: str, before: Sequence[Message]) -> str:
            def compute() -> str:
                return text if followup == "off" else stand_alone(text, before, closeness)

            return self._questions(_Cached((text, tuple(before), *scope), compute))

        def search(query: str) -> tuple[Sequence[Hit], Sequence[SearchStep]]:
            count = _CANDIDATES_PER_PASSAGE * k

            def compute() -> tuple[Sequence[Hit], Sequence[SearchStep]]:
                active.set(cached=False)
                steps: list[SearchStep] = []
                hits = collection.search(query, count, filter=filter, rerank=reranker, hops=hops, record=steps.append)
                return newest_first(query, hits, collection.metadata), tuple(steps)

            with span("retrieve", cached=True) as active:
                return self._searches(_Cached((query, count, *scope), compute))

        if hits is None and not question.rstrip().endswith(QUESTION_MARKS):
            asked, *talk = query_vectors(collection.embedder, [question, *SMALL_TALK])
            if max(float(one @ asked) for one in talk) > closeness(question):
                return Retrieved(question, question, start, history, (), (), small_talk=True)
        query = with_earlier(question, history)
        language = language_of(query)
        if hits is not None:
            return Retrieved(question, query, start, history, hits, hits, searched=False, language=language)
        found, searches = search(query)
        chosen, duplicates = distinct(found, k)
        earlier: list[EarlierTurn] = []
        if query != question:  # a follow-up: back to the last question that stands alone
            for turn in reversed(turns_of(history)):
                earlier_query = with_earlier(turn.question, history[: turn.at])
                earlier_hits, _ = distinct(search(earlier_query)[0], k)
                earlier.append(EarlierTurn(earlier_query, earlier_hits, turn.at))
                if earlier_query == turn.question:
                    break
        seen = found[: len(chosen) + len(duplicates)]
        return Retrieved(
            question,
            query,
            start,
            history,
            seen,
            chosen,
            tuple(duplicates),
            tuple(reversed(earlier)),
            searches=searches,
            language=language,
        )


@dataclass(frozen=True, slots=True)
class _Cached(Generic[T]):
    """A value to compute, unless the cache has the one of an equal key."""

    key: tuple[object, ...]
    compute: Callable[[], T] = field(compare=False)

    def value(self) -> T:
        return self.compute()
