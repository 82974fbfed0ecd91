"""A snapshot: the collection at one generation, searchable by vectors and by keywords. The search backend `local`.

    view        saved indexes of an earlier generation B, if any
    tail        vectors of the chunks born after B, searched exhaustively
    dead        ids of chunks in the view that died after B
    keywords    the keyword index of the view, plus the texts of the tail, minus the dead; built at the first use

A snapshot holds no lock and never changes. The snapshot of a later generation shares the view and extends the tail.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from ragfm.core.config import Settings
from ragfm.core.errors import ConfigError
from ragfm.core.registry import load_plugin
from ragfm.core.types import Ids, Vectors
from ragfm.store.catalog import Catalog, Generation, StaleReadError
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.search_backend import Predicate
from ragfm.store.views import KEYWORD_PLUGIN, KeywordIndex, View, newest_view, save_view

_EXTRA_EXACT = 16  # candidates beyond k: some may be dead, or have equal scores
_EXTRA_APPROXIMATE = 20  # the same for an approximate index, whose candidates are scored again exactly
MAX_TIES = 10_000  # candidates with equal scores that are considered
_ROUNDING = 1e-6  # rounding error of a float32 cosine
_MAX_CACHED_PREDICATES = 16
_PREPARED_PREDICATES = 4
_SMALL_VIEW = 5_000  # chunks up to which a view is saved again after any change
_MAX_TAIL = 10_000  # chunks outside of the view, above which a search gets slow
_MAX_FLAT_NUMBERS = 20_000_000  # compared exactly in 4 ms: 52,000 vectors of 384 dimensions (benchmarks/bench_index.py)
_NUMBERS_PER_MS = 5_500_000
_HYSTERESIS = 1.25  # a collection must be smaller than the limit by this factor to return to `faiss-flat`


class Snapshot:
    """The chunks of a collection at one generation. Thread-safe."""

    views_have_vectors = True

    def __init__(
        self,
        catalog: Catalog,
        generation: Generation,
        view: View | None,
        settings: Settings,
        changes: tuple[Ids, Ids, Ids, Vectors] | None = None,
        *,
        earlier: Self | None = None,
    ) -> None:
        """A snapshot of a view's generation, or one with the `changes` since.

        They are the chunks that were born, those that died, and the ids and vectors of those that no index has.
        `earlier` is a snapshot whose keyword index can be updated. See `open` and `extend`.
        """
        self.generation = generation
        self.view = view
        self._catalog = catalog
        self._allowed: OrderedDict[Predicate | None, tuple[Ids, NDArray[np.bool_]]] = OrderedDict()
        self._lock = threading.Lock()  # of the cache of predicates
        self._keyword_lock = threading.Lock()
        self.is_start = changes is None
        if changes is None:
            none: Ids = np.empty(0, dtype=np.int64)
            changes = none, none, none, np.empty((0, int(generation.contract["dim"])), dtype=np.float32)
        self._ids, self._dead, self._tail_ids, self._tail = changes
        self._settings = settings
        self._keywords: KeywordIndex | None = None
        self._earlier = earlier

    @classmethod
    def save(
        cls,
        catalog: Catalog,
        settings: Settings,
        *,
        always: bool = False,
        language_changed: Callable[[Generation, str | None], None],
    ) -> bool:
        """Save a view of the newest generation if it is outdated, or always. Returns whether it did.

        A view is outdated if it has another kind, language or version of the keyword index, or differs in over a tenth
        or 10,000 of its chunks; below 5,000 chunks, any difference counts.
        """
        updated = isinstance(catalog, CatalogWriter) and cls.save_vectors(catalog, settings)
        newest, language = catalog.at(), settings.language
        with catalog.database.views_lock() as is_free:
            if not is_free:  # another process of this machine is saving one
                return updated
            snapshot = cls.open(catalog, newest, settings)
            view = snapshot.view
            kind = wanted_kind(newest, view, settings)[0] if cls.views_have_vectors else None
            fits = view is not None and view.kind == kind and view.language == language
            if fits and not always and not snapshot.outdated:
                return updated
            # An updated keyword index keeps the language, and statistics from its first build: build it again once most
            # texts are new, or the language setting has changed.
            mostly_new = snapshot.pending > (view.count if view else 0)
            rebuild = mostly_new or (view is not None and view.language != language)
            keywords = snapshot.new_keywords() if rebuild else snapshot.keywords()
            save_view(catalog.database.folder, catalog, newest, kind, keywords=keywords, language=language)
        if view is None or view.keywords is None or view.keywords.language != keywords.language:
            language_changed(newest, keywords.language)
        return True

    @classmethod
    def save_vectors(cls, catalog: CatalogWriter, settings: Settings) -> bool:
        """Bring the vectors that a server has up to date. Returns whether there was something to do."""
        return False

    @classmethod
    def differences(
        cls, catalog: Catalog, settings: Settings, *, repair: bool = False
    ) -> Iterator[tuple[str, str, str, str]]:
        """None: everything is in the views, whose files `verify` checks."""
        return iter(())

    @classmethod
    def open(cls, catalog: Catalog, generation: Generation, settings: Settings) -> Self:
        """A snapshot of a generation, on top of the newest intact view if there is one.

        Raises StaleReadError if another process replaced what was being read, DamagedCollectionError if a view is newer
        than the catalog or chunks are missing.
        """
        view = newest_view(catalog.database.folder, catalog, generation)
        if view is not None and view.index is None and cls.views_have_vectors:
            view = None  # built by another backend
        at = replace(generation, id=view.generation if view else -1)
        return cls(catalog, at, view, settings).extend(generation)

    def __len__(self) -> int:
        return len(self._ids) + (self.view.count - len(self._dead) if self.view else 0)

    @property
    def pending(self) -> int:
        """Number of chunks that were born or died since the view."""
        return len(self._ids) + len(self._dead)

    @property
    def usable(self) -> bool:
        """False once its view turns out to be damaged."""
        return self.view is None or self.view.state != "damaged"

    @property
    def outdated(self) -> bool:
        """Whether a view or its words are missing, or so many chunks were born or died since that searches get slow."""
        if self.view is None or self.view.keywords is None:
            return len(self) > 0
        size = self.view.count
        return self.pending > (0 if size < _SMALL_VIEW else min(size // 10, _MAX_TAIL))

    def extend(self, generation: Generation) -> Self:
        """The snapshot of a later generation under the same contract.

        Raises StaleReadError if compaction has passed, DamagedCollectionError if chunks or vectors are missing.
        """
        catalog, after = self._catalog, self.generation.id
        born, tail_ids, tail = self._read_born(generation)
        died = catalog.dead_ids(after, generation.id)
        kept = ~np.isin(self._tail_ids, died)
        tail_ids, tail = np.concatenate([self._tail_ids[kept], tail_ids]), np.concatenate([self._tail[kept], tail])
        born = np.concatenate([self._ids[~np.isin(self._ids, died)], born])
        dead = self._dead
        if self.view is not None:
            died = catalog.dead_ids(after, generation.id, born_up_to=self.view.generation)
            dead = np.union1d(self._dead, died)
        if catalog.floor() > (after if after >= 0 else generation.id):
            raise StaleReadError
        changes = born, dead, tail_ids, tail
        earlier = self if self._keywords is not None else self._earlier
        later = type(self)(catalog, generation, self.view, self._settings, changes, earlier=earlier)
        if len(later) != generation.chunks:
            raise catalog.damage_error(
                f"generation {generation.id} has {len(later)} chunks with vectors, expected {generation.chunks}"
            )
        return later

    def _read_born(self, generation: Generation) -> tuple[Ids, Ids, Vectors]:
        """The chunks that were born since and live at a generation, and those of them for the tail, with vectors."""
        ids, vectors = self._catalog.chunk_vectors(generation, born_after=self.generation.id)
        return ids, ids, vectors

    def prepare(self, earlier: Self) -> None:
        """Update the keyword index, and look for the chunks that the predicates used last allow."""
        if earlier._keywords is not None:
            self.keywords()
        with earlier._lock:
            used = list(earlier._allowed)[-_PREPARED_PREDICATES:]
        for where in used:
            self._allowed_by(where and replace(where, now=self.generation.id))

    def matches(self, where: Predicate) -> bool:
        """Whether a chunk meets the predicate."""
        return len(self._allowed_by(where)[0]) > 0

    def _allowed_by(self, where: Predicate | None) -> tuple[Ids, NDArray[np.bool_]]:
        """Ids, ascending, of the chunks that meet the predicate, all without one, and a mask of the tail; cached."""
        with self._lock:
            if where in self._allowed:
                self._allowed.move_to_end(where)
                return self._allowed[where]
        catalog, conditions = (where.visible_part(self._catalog), where.conditions) if where else (self._catalog, ())
        ids = catalog.chunk_ids(self.generation.id, *conditions)
        ids.flags.writeable = False  # so that an index may cache what it derives from them
        allowed = ids, np.isin(self._tail_ids, ids, assume_unique=True)
        with self._lock:
            self._allowed[where] = allowed
            if len(self._allowed) > _MAX_CACHED_PREDICATES:
                self._allowed.popitem(last=False)
        return allowed

    def status(self, settings: Settings) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The state of the vector index and of the keyword index."""
        view = self.view
        wanted, why = wanted_kind(self.generation, view, settings)
        words = view.keywords if view else None
        generation = view.generation if view else None
        vectors = {
            "kind": view.kind if view else None,
            "wanted": wanted,
            "why": why,
            "generation": generation,
            "vectors": view.count if view else 0,
            "pending": self.pending,
            "state": view.state if view else "none",
            "saved": view is not None,
        }
        return vectors, {
            "generation": generation,
            "texts": len(words) if words else 0,
            "language": words.language if words else None,
            "saved": words is not None,
        }

    # --- Keywords ------------------------------------------------------------------------------------------------

    def keywords(self) -> KeywordIndex:
        """The keyword index. Raises StaleReadError if compaction has passed."""
        with self._keyword_lock:
            if self._keywords is None:
                earlier, catalog = self._earlier, self._catalog
                if earlier is not None:
                    earlier_ids, earlier_dead = earlier._ids, earlier._dead  # noqa: SLF001  its own class
                    added = np.setdiff1d(self._ids, earlier_ids)
                    removed = np.concatenate(
                        [np.setdiff1d(earlier_ids, self._ids), np.setdiff1d(self._dead, earlier_dead)]
                    )
                    self._keywords = earlier.keywords().updated(added, catalog.chunk_texts(added), removed=removed)
                elif self.view is not None and self.view.keywords is not None:
                    self._keywords = self.view.keywords.updated(
                        self._ids, catalog.chunk_texts(self._ids), removed=self._dead
                    )
                else:
                    self._keywords = self.new_keywords()
                self._earlier = None
            return self._keywords

    @property
    def language(self) -> str | None:
        """The language of the keyword index. Raises StaleReadError if compaction has passed."""
        return self.keywords().language

    def new_keywords(self) -> KeywordIndex:
        """A keyword index built from all texts: its statistics and language do not depend on earlier generations.

        Raises ConfigError if it does not support the language of the settings.
        """
        ids = self._catalog.chunk_ids(self.generation.id)
        if self._catalog.floor() > self.generation.id:
            raise StaleReadError
        texts, language = self._catalog.chunk_texts(ids), self._settings.language
        check_language(language)
        index: KeywordIndex = load_plugin("keyword_indexes", KEYWORD_PLUGIN).build(ids, texts, language=language)
        return index

    def search_keywords(self, query: str, k: int, where: Predicate | None = None) -> tuple[Vectors, Ids]:
        """BM25 scores and chunk ids of the best `k`, best first; fewer if fewer chunks share a word with the query.

        *Shape:* (m,), (m,) with m <= k. Raises StaleReadError if compaction has passed.
        """
        scores, ids = self.keywords().search([query], k, allowed=self._allowed_by(where)[0] if where else None)
        return scores[0][ids[0] >= 0], ids[0][ids[0] >= 0]

    def bm25(self, query: str, ids: Ids) -> Vectors:
        """BM25 scores of these chunks, 0 without a common word. *Shape:* ids, ascending, (n,) -> (n,)."""
        scores = np.zeros(len(ids), dtype=np.float32)
        hit_scores, hit_ids = self.keywords().search([query], len(ids), allowed=ids)
        valid = hit_ids[0] >= 0
        scores[np.searchsorted(ids, hit_ids[0][valid])] = hit_scores[0][valid]
        return scores

    # --- Vectors -------------------------------------------------------------------------------------------------

    def search(self, query: Vectors, k: int, where: Predicate | None = None) -> tuple[Vectors, Ids]:
        """Cosines and chunk ids of the best `k`, best first; fewer if there are fewer chunks.

        *Shape:* query (1, dim), results (m,) with m <= k. Equal cosines are ordered by id. Raises StaleReadError if
        compaction has passed.
        """
        tail_ids, tail = self._tail_ids, self._tail
        if where is not None and len(tail_ids):
            mask = self._allowed_by(where)[1]
            tail_ids, tail = tail_ids[mask], tail[mask]
        if len(tail_ids) > k:
            approximate = tail @ query[0]
            best = approximate >= np.partition(approximate, -k)[-k] - _ROUNDING
            tail_ids, tail = tail_ids[best], tail[best]
        found = self._candidates(query, k, where)
        ids, vectors = self._catalog.vectors_of(self.generation, found.tolist())
        if len(ids) != len(found):
            self.report_missing_chunks(found)
        ids = np.concatenate([ids, tail_ids])
        # Scores are computed from the catalog's vectors, so they do not depend on the view or the kind of index.
        scores = _cosines(np.concatenate([vectors, tail]), query)
        order = np.lexsort((ids, -scores))[:k]
        return scores[order], ids[order]

    def _candidates(self, query: Vectors, k: int, where: Predicate | None) -> Ids:
        """Ids of chunks outside of the tail that include the best `k` of them."""
        if self.view is None or not self.view.count:
            return self._ids[:0]
        assert self.view.index is not None
        allowed = self._allowed_by(where)[0] if where else None
        count = k + (_EXTRA_EXACT if self.view.index.recall == 1 else _EXTRA_APPROXIMATE)
        scores, found = self._search_view(query, count, allowed)
        while len(found) >= count and count < MAX_TIES and scores[-1] >= scores[k - 1] - _ROUNDING:
            count *= 4  # there may be more ties, of which the lowest ids are wanted
            scores, found = self._search_view(query, count, allowed)
        return found

    def cosines(self, query: Vectors, ids: Ids) -> Vectors:
        """Cosines of these chunks. *Shape:* (1, dim), (n,) -> (n,). Raises StaleReadError if one is gone."""
        known, vectors = self._catalog.vectors_of(self.generation, ids.tolist())
        if len(known) != len(ids):
            self.report_missing_chunks(ids)
        return _cosines(vectors, query)[np.searchsorted(known, ids)]

    def documents_of(self, ids: Ids) -> tuple[Ids, list[str]]:
        """The id of each chunk's document, and the chunk's context. *Shape:* (n,) -> (n,)."""
        return self._catalog.documents_of(ids)

    def report_missing_chunks(self, ids: Ids) -> NoReturn:
        """Raise StaleReadError, since not all of these chunks could be read: repeat with another snapshot.

        If the catalog lacks one of them, and compaction has not passed this generation, the view is damaged and is not
        used again. Otherwise access rights have changed.
        """
        missing = bool((self._catalog.documents_of(ids)[0] < 0).any())
        if missing and self._catalog.floor() <= self.generation.id and self.view is not None:
            self.view.mark_damaged("it has chunks that the catalog lacks")
        raise StaleReadError

    def _search_view(self, query: Vectors, k: int, allowed: Ids | None) -> tuple[Vectors, Ids]:
        """Scores and ids of at least the best `k` live chunks in the view; fewer if there are fewer."""
        if not len(self._dead):
            return self._search_index(query, k, allowed)
        scores, ids = self._search_index(query, k + _EXTRA_EXACT, allowed)
        if allowed is None and len(ids) < k:  # too many of the candidates are dead: search among the live chunks
            return self._search_index(query, k, self._allowed_by(None)[0])
        return scores, ids

    def _search_index(self, query: Vectors, k: int, allowed: Ids | None) -> tuple[Vectors, Ids]:
        assert self.view is not None
        assert self.view.index is not None
        scores, ids = self.view.index.search(query, min(k, self.view.count), allowed=allowed)
        valid = ids[0] >= 0
        if len(self._dead):
            positions = np.searchsorted(self._dead, ids[0]) % len(self._dead)
            valid &= self._dead[positions] != ids[0]
        return scores[0][valid], ids[0][valid]


def check_language(language: str | None) -> None:
    """Raise ConfigError for a language of the settings that the keyword index does not have."""
    if language is None:
        return
    try:
        load_plugin("keyword_indexes", KEYWORD_PLUGIN).build(np.empty(0, dtype=np.int64), (), language=language)
    except ValueError as error:
        raise ConfigError(
            f"The setting `language` is not valid: {error}.", "Correct it, or leave it out: then it is detected."
        ) from error


def _cosines(rows: Vectors, query: Vectors) -> Vectors:
    cosines: Vectors = (rows.astype(np.float64) * query[0]).sum(axis=1).astype(np.float32)
    return cosines


def wanted_kind(generation: Generation, view: View | None, settings: Settings) -> tuple[str, str]:
    """The kind of vector index that a view should have, and the reason as a sentence."""
    if settings.index != "auto":
        return settings.index, "It is set."
    dim = int(generation.contract["dim"])
    numbers, vectors = generation.chunks * dim, f"{generation.chunks:,} vectors of {dim} dimensions"
    if numbers > _MAX_FLAT_NUMBERS:
        return "faiss-hnsw", f"{vectors} are too many for an exhaustive search."
    if view is not None and view.kind == "faiss-hnsw" and numbers * _HYSTERESIS > _MAX_FLAT_NUMBERS:
        return "faiss-hnsw", f"{vectors} are just below the limit of faiss-flat; the index already is faiss-hnsw."
    milliseconds = max(1, round(numbers / _NUMBERS_PER_MS))
    return "faiss-flat", f"{vectors} are few enough for an exhaustive search, in about {milliseconds} ms."
