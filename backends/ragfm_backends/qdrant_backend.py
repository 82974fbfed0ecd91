"""The search backend `qdrant`: vectors are searched on a Qdrant server, words in the keyword index of this machine.

    ragfm_ID_1      on the server: a collection for the embedding contract 1 of the collection ID. Its points are
                    chunks: id, vector, the generation in which the chunk was `born`, and if it has, in which it `died`.
                    Its metadata says up to which `generation`, of which `digest`, the points are complete

It is also the example of a backend on a server: `Snapshot` has the words, the scores, and the tail of chunks that the
server lacks. What remains is which chunks are the tail (`_read_born`), which are good candidates (`_candidates`), how
the server is brought up to date (`save_vectors`), and what it has wrong (`differences`).

Generations are conditions of Qdrant's own filter. Filters over metadata and access groups are the catalog's: the server
has neither tags nor groups, so that none can be outdated there. It is sent the ids of the chunks that are allowed, or
if they are many, asked for more candidates, of which those that are not allowed are left out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import sqlalchemy as sa
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException

from ragfm.core.config import Settings
from ragfm.core.errors import CollectionError, CollectionUnavailableError, ConfigError
from ragfm.core.types import Ids, Vectors
from ragfm.store.catalog import Catalog, Generation, StaleReadError, alive
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.search_backend import Predicate
from ragfm.store.snapshot import MAX_TIES, Snapshot
from ragfm.store.tables import chunks, generations

_EXTRA = 20  # candidates beyond k, of which some are dead or have equal scores
_FEW = 10_000  # chunks that meet a predicate, up to which their ids are sent
_MIN_EF = 200
_GRAPH = models.HnswConfigDiff(m=24, ef_construct=128)  # see decision 048
_ROUNDING = 1e-5  # rounding error of a float32 inner product
_BATCH_POINTS = 500  # about 4 MB of JSON with 384 dimensions; a server accepts 32 MB
_log = logging.getLogger(__name__)


class QdrantSnapshot(Snapshot):
    """The chunks of a collection at one generation, with their vectors in Qdrant. Thread-safe."""

    views_have_vectors = False

    @classmethod
    def save_vectors(cls, catalog: CatalogWriter, settings: Settings) -> bool:
        """Update the points. Returns whether there was something to do."""
        return _Points(catalog, settings).update(catalog)

    @classmethod
    def differences(
        cls, catalog: Catalog, settings: Settings, *, repair: bool = False
    ) -> Iterator[tuple[str, str, str, str]]:
        """Points that are missing, different or unknown to the catalog, at the generation that they were saved for."""
        points = _Points(catalog, settings)
        saved = points.saved(catalog)
        if saved is None:
            return
        expected, wrong, unknown = dict(_born(catalog, saved.id)), list[int](), list[int]()
        for page in points.at(saved.id):
            known, vectors = catalog.vectors_of(saved, [point.id for point in page if point.id in expected])
            stored = dict(zip(known.tolist(), vectors, strict=True))
            for point in page:
                born = expected.pop(point.id, None)
                if born is None:
                    unknown.append(point.id)
                elif point.payload != {"born": born} or not np.array_equal(np.float32(point.vector), stored[point.id]):
                    wrong.append(point.id)
        missing = list(expected)
        if repair and isinstance(catalog, CatalogWriter):
            points.delete(unknown)
            points.upsert(catalog, saved, [row for row in _born(catalog, saved.id) if row[0] in {*missing, *wrong}])
            points.update(catalog)
        if missing or wrong or unknown:
            found = f"{len(missing)} missing, {len(wrong)} different and {len(unknown)} unknown"
            yield f"Qdrant, {points.name}", "the points", "those of the catalog", found

    @cached_property
    def _points(self) -> _Points:
        return _Points(self._catalog, self._settings, self.generation)

    def _read_born(self, generation: Generation) -> tuple[Ids, Ids, Vectors]:
        catalog, after = self._catalog, self.generation.id
        born = catalog.chunk_ids(generation.id, chunks.c.born > after)
        if self.is_start:  # the server may have more or fewer chunks than the view has words of
            saved = self._points.complete(catalog)
            after = saved.id if saved else -1
            if after > generation.id:
                raise StaleReadError
        return born, *catalog.chunk_vectors(generation, born_after=after)

    def status(self, settings: Settings) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The state of the points and of the keyword index."""
        vectors, words = super().status(settings)
        missing = len(self._tail_ids)
        state = {
            "kind": "qdrant",
            "wanted": "qdrant",
            "why": "The backend qdrant is set: vectors are searched on its server.",
            "generation": self.generation.id,
            "vectors": len(self) - missing,
            "pending": missing,
            "state": "on the server" if missing < len(self) else "none",
            "saved": missing < len(self),
        }
        return {**vectors, **state}, words

    def _candidates(self, query: Vectors, k: int, where: Predicate | None) -> Ids:
        allowed, in_tail = self._allowed_by(where)
        stored = len(allowed) - int(in_tail.sum())
        if not stored:
            return allowed[:0]
        limit, among = k + _EXTRA, None
        if where and stored <= _FEW:
            among = np.setdiff1d(allowed, self._tail_ids)
        else:  # as many as it probably takes until enough of them are allowed
            limit = limit * len(self) // stored
        exact = among is not None
        while True:
            scores, found = self._points.search(query, limit, self.generation.id, among, exact=exact)
            position = np.searchsorted(allowed, found) % len(allowed)
            is_allowed = (allowed[position] == found) & ~np.isin(found, self._tail_ids)
            best: Ids = found[is_allowed]
            if len(best) >= k:
                # Of equal ones, those with the lowest ids are wanted, of which the graph may have left out some.
                last = scores[is_allowed][k - 1]
                equal = np.count_nonzero(np.abs(scores[is_allowed] - last) <= _ROUNDING)
                if len(best) >= MAX_TIES or (scores[-1] < last - _ROUNDING if exact else equal == 1):
                    break
            if exact and len(found) < limit:  # there are no others, unless the server has lost some
                best = np.setdiff1d(allowed, self._tail_ids)
                break
            # The graph gives up early where few are allowed.
            exact = exact or len(best) >= k or len(found) < limit
            limit *= 4
        if self._catalog.floor() > self.generation.id:  # points may be gone
            raise StaleReadError
        return best


class _Points:
    """The points of one embedding contract. Raises CollectionUnavailableError if the server cannot be used."""

    def __init__(self, catalog: Catalog, settings: Settings, generation: Generation | None = None) -> None:
        generation = generation or catalog.at()
        self._dim = int(generation.contract["dim"])
        self._prefix = f"ragfm_{catalog.collection_id()}_"
        self.name = f"{self._prefix}{generation.contract_id}"
        options = settings.backend_options.get("qdrant", {})
        if not options.get("url"):
            raise ConfigError(
                "The backend qdrant has no server to connect to.",
                'Set `url` in [backend_options.qdrant], such as "http://qdrant.lan:6333".',
            )
        self._url = options["url"]
        try:
            self._client = _client(json.dumps(options, sort_keys=True))
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(
                f"[backend_options.qdrant] cannot be used: {error}.", "Its keys are the options of QdrantClient."
            ) from error

    @contextmanager
    def _calls(self) -> Iterator[QdrantClient]:
        try:
            yield self._client
        except (ApiException, QdrantException) as error:
            why = " ".join(str(error).split()).rstrip(".")
            raise CollectionUnavailableError(
                f"Qdrant at '{self._url}' cannot be used: {why}.",
                'Check the server and [backend_options.qdrant], or use `backend = "local"`. Documents that were '
                "ingested meanwhile are committed: the next ingest adds their vectors.",
            ) from error

    def saved(self, catalog: Catalog) -> Generation | None:
        """The generation that a save was completed for; None if there was none, or in another history."""
        with self._calls() as client:
            exists = client.collection_exists(self.name)
            metadata = (client.get_collection(self.name).config.metadata if exists else None) or {}
        try:
            generation = catalog.at(int(metadata.get("generation", -1)))
        except StaleReadError:
            return None
        return generation if generation.digest == metadata.get("digest") else None

    def complete(self, catalog: Catalog) -> Generation | None:
        """As `saved`; None also if the server has lost points since."""
        saved = self.saved(catalog)
        if saved is None:
            return None
        with self._calls() as client:
            count = client.count(self.name, _alive_at(saved.id), exact=True).count
        if count < saved.chunks:
            _log.warning(
                "Qdrant at '%s' has %d of %d points of %s: all vectors are searched in memory. The next `ragfm ingest` "
                "adds those that are missing.",
                *(self._url, count, saved.chunks, self.name),
            )
            return None
        return saved

    def update(self, catalog: CatalogWriter) -> bool:
        """Bring the points up to the newest generation. Returns whether there was something to do."""
        newest, saved = catalog.at(), self.saved(catalog)
        if saved is None:
            self._create()
        complete = saved and self.complete(catalog)
        if complete == newest:
            return False
        # Points that were born later are of a save that was broken off, and may have died since.
        gone = [_field("died", lte=catalog.floor()), _field("born", gt=saved.id if saved else -1)]
        died = sa.select(chunks.c.died, chunks.c.id).where(chunks.c.died > (saved or newest).id)
        with self._calls() as client:
            client.delete(self.name, models.FilterSelector(filter=models.Filter(should=gone)), wait=True)
            with catalog.read() as connection:
                for generation, rows in groupby(connection.execute(died.order_by(chunks.c.died)), itemgetter(0)):
                    # A filter: that some ids have no point is then not an error.
                    those = models.Filter(must=[models.HasIdCondition(has_id=[row.id for row in rows])])
                    client.set_payload(self.name, {"died": generation}, points=those, wait=True)
        self.upsert(catalog, newest, _born(catalog, newest.id, complete.id if complete else -1))
        with catalog.read() as connection:
            contracts = connection.execute(sa.select(generations.c.contract_id).distinct()).scalars().all()
        kept = {f"{self._prefix}{contract}" for contract in contracts}
        with self._calls() as client:
            client.update_collection(self.name, metadata={"generation": newest.id, "digest": newest.digest})
            for other in client.get_collections().collections:
                if other.name.startswith(self._prefix) and other.name not in kept:
                    client.delete_collection(other.name)
        if self.saved(catalog) != newest:
            raise CollectionError(
                f"Qdrant at '{self._url}' does not keep the metadata of collections.", "Use version 1.16 or later."
            )
        return True

    def _create(self) -> None:
        """Create the collection again: what it has is of another history, or of a save that was broken off."""
        vectors = models.VectorParams(size=self._dim, distance=models.Distance.DOT)
        with self._calls() as client:
            client.delete_collection(self.name)
            client.create_collection(self.name, vectors_config=vectors, hnsw_config=_GRAPH)
            for field in ("born", "died"):
                client.create_payload_index(self.name, field, models.PayloadSchemaType.INTEGER, wait=True)

    def upsert(self, catalog: Catalog, generation: Generation, born: Sequence[tuple[int, int]]) -> None:
        """Add the points of these chunks or replace them, with the catalog's vectors."""
        for start in range(0, len(born), _BATCH_POINTS):
            batch = dict(born[start : start + _BATCH_POINTS])
            points = [
                models.PointStruct(id=int(chunk_id), vector=vector.tolist(), payload={"born": batch[chunk_id]})
                for chunk_id, vector in zip(*catalog.vectors_of(generation, list(batch)), strict=True)
            ]
            with self._calls() as client:
                client.upsert(self.name, points, wait=True)

    def delete(self, ids: Sequence[int]) -> None:
        """Delete points."""
        with self._calls() as client:
            client.delete(self.name, models.PointIdsList(points=list(ids)), wait=True)

    def at(self, generation: int) -> Iterator[list[Any]]:
        """All points at a generation with their vectors, in pages."""
        offset, first = None, True
        while first or offset is not None:
            with self._calls() as client:
                page, offset = client.scroll(
                    self.name, _alive_at(generation), limit=_BATCH_POINTS, offset=offset, with_vectors=True
                )
            first = False
            yield page

    def search(
        self, query: Vectors, limit: int, generation: int, among: Ids | None, *, exact: bool
    ) -> tuple[Vectors, Ids]:
        """Inner products and ids of the best points at a generation, best first. *Shape:* (m,), (m,), m <= limit."""
        parameters = models.SearchParams(exact=exact, hnsw_ef=max(_MIN_EF, limit))
        with self._calls() as client:
            found = client.query_points(
                self.name,
                query[0].tolist(),
                query_filter=_alive_at(generation, among),
                search_params=parameters,
                limit=limit,
                with_payload=False,
            ).points
        scores = np.array([point.score for point in found], dtype=np.float32)
        return scores, np.array([point.id for point in found], dtype=np.int64)


@lru_cache(8)
def _client(options: str) -> QdrantClient:
    # Without the check of versions, which warns when a server is away.
    return QdrantClient(**{"timeout": 30, "check_compatibility": False, **json.loads(options)})


def _born(catalog: Catalog, generation: int, after: int = -1) -> list[tuple[int, int]]:
    """Ids of the chunks at a generation that were born after another one, and their births."""
    query = sa.select(chunks.c.id, chunks.c.born).where(alive(chunks, generation), chunks.c.born > after)
    with catalog.read() as connection:
        return [(row.id, row.born) for row in connection.execute(query.order_by(chunks.c.id))]


def _alive_at(generation: int, among: Ids | None = None) -> models.Filter:
    """The condition that a point's chunk is visible at a generation, and one of these."""
    within = [] if among is None else [models.HasIdCondition(has_id=among.tolist())]
    return models.Filter(must=[_field("born", lte=generation), *within], must_not=[_field("died", lte=generation)])


def _field(name: str, **bounds: float) -> models.FieldCondition:
    return models.FieldCondition(key=name, range=models.Range(**bounds))
