"""What a search sees: the collection at one generation, by vectors and by keywords.

    view        indexes of what lived at generation B, if there are any
    tail        vectors of what came after B, compared one by one
    dead        ids of the view that have gone since B
    keywords    the view's keyword index, with the tail's texts and without the dead; made when first asked

It holds no lock and never changes: a newer generation gets a new snapshot, which shares the view and takes over the
tail.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ragfm.core.registry import load_plugin
from ragfm.store.catalog import Catalog, Generation, OvertakenError
from ragfm.store.views import KEYWORDS, View, newest_view

if TYPE_CHECKING:
    from ragfm.core.types import Ids, KeywordIndex, Vectors

_SPARE = 16  # asked for beyond what is needed, since some may be dead or equal to others
_MOST = 10_000  # equal ones that are looked through
_ROUNDING = 1e-6  # of a float32 cosine
_MARGIN = 20  # asked of an approximate index beyond k, and scored exactly
_FILTERS = 16  # whose survivors are kept


@dataclass(frozen=True, slots=True)
class Allowed:
    """The chunks that a filter and groups leave: their ids, ascending, and which rows of the tail are among them."""

    ids: Ids
    tail: NDArray[np.bool_]


class Snapshot:
    """The vectors of a collection at one generation. Thread-safe."""

    def __init__(
        self, catalog: Catalog, generation: Generation, view: View | None, *, language: str | None = None
    ) -> None:
        """For `open_snapshot` and `extend`, which fill in tail and dead."""
        self.generation = generation
        self.view = view
        self._catalog = catalog
        self._allowed: OrderedDict[Hashable, Allowed] = OrderedDict()
        self._lock, self._building = threading.Lock(), threading.Lock()
        self._ids: Ids = np.empty(0, dtype=np.int64)
        self._tail: Vectors = np.empty((0, int(generation.contract["dim"])), dtype=np.float32)
        self._dead: Ids = self._ids
        self._language = language
        self._keywords: KeywordIndex | None = None
        self._earlier: Snapshot | None = None  # whose keyword index can be built upon

    def __len__(self) -> int:
        return len(self._ids) + (len(self.view.index) - len(self._dead) if self.view else 0)

    @property
    def pending(self) -> int:
        """How many chunks came and went since the view."""
        return len(self._ids) + len(self._dead)

    @property
    def usable(self) -> bool:
        """Whether its view has not been found damaged."""
        return self.view is None or self.view.state != "damaged"

    def extend(self, generation: Generation) -> Snapshot:
        """The snapshot of a later generation of the same contract. Raises OvertakenError."""
        later = Snapshot(self._catalog, generation, self.view, language=self._language)
        later._read(self)
        later._earlier = self if self._keywords is not None else self._earlier
        return later

    def _read(self, earlier: Snapshot) -> None:
        """Take over an earlier tail, and add what came and went since; it must be all there."""
        catalog, now, after = self._catalog, self.generation, earlier.generation.id
        ids, tail = catalog.chunk_vectors(now, born_after=after)
        gone = catalog.dead_ids(after, now.id)
        kept = ~np.isin(earlier._ids, gone)
        self._ids = np.concatenate([earlier._ids[kept], ids])
        self._tail = np.concatenate([earlier._tail[kept], tail])
        self._dead = earlier._dead
        if self.view is not None:
            went = catalog.dead_ids(after, now.id, born_up_to=self.view.generation)
            self._dead = np.union1d(earlier._dead, went)
        if catalog.floor() > (after if after >= 0 else now.id):
            raise OvertakenError
        if len(self) != now.chunks:
            raise catalog.damaged(f"generation {now.id} has {len(self)} chunks with vectors, expected {now.chunks}")

    def allowed(self, key: Hashable, find: Callable[[], Ids]) -> Allowed:
        """The chunks that `find` gives, kept under `key` for the next search."""
        with self._lock:
            if key in self._allowed:
                self._allowed.move_to_end(key)
                return self._allowed[key]
        ids = find()
        ids.flags.writeable = False  # so that an index may keep what it makes of them
        allowed = Allowed(ids, np.isin(self._ids, ids, assume_unique=True))
        with self._lock:
            self._allowed[key] = allowed
            if len(self._allowed) > _FILTERS:
                self._allowed.popitem(last=False)
        return allowed

    def keywords(self) -> KeywordIndex:
        """The keyword index. Raises OvertakenError where compaction has passed."""
        with self._building:
            if self._keywords is None:
                self._keywords = self._updated_keywords()
                self._earlier = None
            return self._keywords

    def _updated_keywords(self) -> KeywordIndex:
        if self._earlier is not None:
            earlier = self._earlier
            new = np.setdiff1d(self._ids, earlier._ids)  # noqa: SLF001  its own class
            gone = np.concatenate([np.setdiff1d(earlier._ids, self._ids), np.setdiff1d(self._dead, earlier._dead)])  # noqa: SLF001
            return earlier.keywords().updated(new, self._catalog.chunk_texts(new), removed=gone)
        index = self.view.keywords if self.view else None
        if index is None:
            return self.new_keywords()
        return index.updated(self._ids, self._catalog.chunk_texts(self._ids), removed=self._dead)

    def new_keywords(self) -> KeywordIndex:
        """A keyword index of all texts; where most of them are new, its statistics and language are better."""
        ids = self._catalog.chunk_ids(self.generation.id)
        if self._catalog.floor() > self.generation.id:
            raise OvertakenError
        texts = self._catalog.chunk_texts(ids)
        index: KeywordIndex = load_plugin("keyword_indexes", KEYWORDS).build(ids, texts, language=self._language)
        return index

    def search_keywords(self, query: str, k: int, allowed: Allowed | None = None) -> tuple[Vectors, Ids]:
        """BM25 scores and chunk ids of the best `k` for one query, best first; fewer where fewer share a word with it.

        *Shape:* (m,) with m <= k. Raises OvertakenError where compaction has passed.
        """
        scores, ids = self.keywords().search([query], k, allowed=allowed.ids if allowed else None)
        return scores[0][ids[0] >= 0], ids[0][ids[0] >= 0]

    def cosines(self, query: Vectors, ids: Ids) -> Vectors:
        """Cosines of these chunks. *Shape:* (1, dim), (n,) -> (n,). Raises OvertakenError where one is gone."""
        known, vectors = self._catalog.vectors_of(self.generation, ids.tolist())
        if len(known) != len(ids):
            self.blame("it has chunks that the catalog lacks")
        return _cosines(vectors, query)[np.searchsorted(known, ids)]

    def bm25(self, query: str, ids: Ids) -> Vectors:
        """BM25 scores of these chunks, 0 where one shares no word. *Shape:* ids, ascending, (n,) -> (n,)."""
        scores = np.zeros(len(ids), dtype=np.float32)
        found, found_ids = self.keywords().search([query], len(ids), allowed=ids)
        living = found_ids[0] >= 0
        scores[np.searchsorted(ids, found_ids[0][living])] = found[0][living]
        return scores

    def search(self, query: Vectors, k: int, allowed: Allowed | None = None) -> tuple[Vectors, Ids]:
        """Cosines and chunk ids of the best `k` for one query, best first; fewer where there are fewer.

        *Shape:* query (1, dim), results (m,) with m <= k; equal cosines in order of id. Raises OvertakenError where
        compaction has passed.
        """
        tail_ids, tail = self._ids, self._tail
        if allowed is not None:
            tail_ids, tail = tail_ids[allowed.tail], tail[allowed.tail]
        if len(tail_ids) > k:
            rough = tail @ query[0]
            best = rough >= np.partition(rough, -k)[-k] - _ROUNDING
            tail_ids, tail = tail_ids[best], tail[best]
        ids, vectors = self._candidates(query, k, allowed)
        ids = np.concatenate([ids, tail_ids])
        # Scored in one way, whichever index has found it: a view that is missing or of another kind changes no score.
        scores = _cosines(np.concatenate([vectors, tail]), query)
        order = np.lexsort((ids, -scores))[:k]
        return scores[order], ids[order]

    def _candidates(self, query: Vectors, k: int, allowed: Allowed | None) -> tuple[Ids, Vectors]:
        """Living chunks of the view, among which are its best `k`, and their vectors as the catalog has them."""
        if self.view is None or not len(self.view.index):
            return self._ids[:0], self._tail[:0]
        wanted = k + (_SPARE if self.view.index.recall == 1 else _MARGIN)
        scores, ids = self._found(query, wanted, allowed)
        while len(ids) >= wanted and wanted < _MOST and scores[-1] >= scores[k - 1] - _ROUNDING:
            wanted *= 4  # equal ones are left, of which the lowest ids are to be found
            scores, ids = self._found(query, wanted, allowed)
        known, vectors = self._catalog.vectors_of(self.generation, ids.tolist())
        if len(known) != len(ids):
            self.blame("it has chunks that the catalog lacks")
        return known, vectors

    def _found(self, query: Vectors, k: int, allowed: Allowed | None) -> tuple[Vectors, Ids]:
        """Scores and ids of at least the best `k` that live; fewer where there are fewer."""
        scores, ids = self._ask(query, k + (_SPARE if len(self._dead) else 0), allowed.ids if allowed else None)
        if allowed is None and len(ids) < k and len(self._dead):  # the dead are in the way
            return self._ask(query, k, self._living().ids)
        return scores, ids

    def _ask(self, query: Vectors, k: int, allowed: Ids | None) -> tuple[Vectors, Ids]:
        assert self.view is not None
        scores, ids = self.view.index.search(query, min(k, len(self.view.index)), allowed=allowed)
        living = ids[0] >= 0
        if len(self._dead):
            places = np.searchsorted(self._dead, ids[0]) % len(self._dead)
            living &= self._dead[places] != ids[0]
        return scores[0][living], ids[0][living]

    def _living(self) -> Allowed:
        return self.allowed(None, lambda: self._catalog.chunk_ids(self.generation.id))

    def blame(self, why: str) -> None:
        """Chunks that the view has and the catalog lacks: compaction has passed, or else the view is damaged.

        Raises OvertakenError: the search is to be repeated with another snapshot.
        """
        if self._catalog.floor() <= self.generation.id and self.view is not None:
            self.view.blame(why)
        raise OvertakenError


def _cosines(rows: Vectors, query: Vectors) -> Vectors:
    cosines: Vectors = (rows.astype(np.float64) * query[0]).sum(axis=1).astype(np.float32)
    return cosines


def open_snapshot(root: Path, catalog: Catalog, generation: Generation, *, language: str | None = None) -> Snapshot:
    """A snapshot on the newest view that is whole, else on the catalog alone.

    Raises OvertakenError where another process was faster, DamagedCollectionError where a view is newer than the
    catalog, or the catalog lacks chunks. `language` is that of a keyword index made anew, None to detect it.
    """
    view = newest_view(root, catalog, generation)
    start = Snapshot(catalog, replace(generation, id=view.generation if view else -1), view, language=language)
    return start.extend(generation)
