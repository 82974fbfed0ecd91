"""The search backend `milvus`: vectors are searched in Milvus, words in the keyword index of this machine.

    ragfm_ID_1      in Milvus: the rows of the collection ID under its embedding contract 1, one per chunk: chunk id,
                    text (hash), born, died, groups (hashes), vector, with an HNSW index

The catalog has the truth. Generation and access groups are conditions of Milvus's own filter; filters over metadata
are applied to its candidates. Each candidate is confirmed by the catalog, and scored with the catalog's vector. Rows
that are missing or differ from the catalog when a snapshot is opened are its tail; the next writer corrects them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from typing import Any
from urllib.parse import urlsplit

import numpy as np

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own messages on stderr, such as those of forks
import pymilvus
import sqlalchemy as sa
from grpc import RpcError
from numpy.typing import NDArray
from pymilvus.client.types import LoadState

from ragfm.core.config import Settings
from ragfm.core.errors import CollectionUnavailableError, ConfigError
from ragfm.core.types import Ids, Vectors
from ragfm.store.catalog import Catalog, Generation, StaleReadError, batches, read_property
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.document_rows import ACCESS_CHANGED
from ragfm.store.search_backend import Predicate
from ragfm.store.tables import chunks, documents, generations, groups, text_hash, vectors
from ragfm.store.vector_server import VectorServerSnapshot

_EXTRA = 20  # candidates beyond k, since an index may round
_FEW = 4_000  # chunks that meet a filter, up to which their ids are sent
_MAX_LIMIT = 16_384  # hits of a search, a limit of Milvus
_MIN_EF, _MAX_EF = 200, 32_768
_ROUNDING = 1e-5  # rounding error of a float32 inner product
_PAGE_ROWS, _BATCH_ROWS = 5_000, 1_000
_ALIVE = 1 << 62  # `died` of a live chunk
_EVERYBODY = 0  # in `groups` of a document that is not restricted
_MAX_GROUPS = 4_096  # of a document, a limit of Milvus; beyond, its chunks stay in the tail
_FIELDS = ("id", "text", "born", "died", "groups")
_TIMEOUT = 30  # seconds
for _name in ("pymilvus", "grpc._server"):  # they log what they raise, with tracebacks; the second is Milvus Lite
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class MilvusSnapshot(VectorServerSnapshot):
    """The chunks of a collection at one generation, with their vectors in Milvus. Thread-safe."""

    kind, place = "milvus", "Milvus"

    @cached_property
    def _rows(self) -> _Rows | None:
        rows = _Rows(self._catalog, self.generation.contract_id, self._settings)
        return rows if rows.exist() else None

    @property
    def _has_rows(self) -> bool:
        return self._rows is not None

    @classmethod
    def _update_rows(cls, catalog: CatalogWriter, settings: Settings) -> int:
        generation, updated = catalog.at(), 0
        rows = _Rows(catalog, generation.contract_id, settings)
        rows.create(int(generation.contract["dim"]))
        for changed, unknown in rows.differences(catalog):
            rows.upsert(catalog, generation, changed)
            rows.delete(unknown)
            updated += len(changed) + len(unknown)
        rows.drop_others(catalog)
        return updated

    @classmethod
    def differences(
        cls, catalog: Catalog, settings: Settings, *, repair: bool = False
    ) -> Iterator[tuple[str, str, str, str]]:
        """Rows that are missing, different, unknown to the catalog, or have another vector."""
        generation = catalog.at()
        rows = _Rows(catalog, generation.contract_id, settings)
        if not rows.exist():
            return
        changed = unknown = 0
        for page, others in rows.differences(catalog):
            changed, unknown = changed + len(page), unknown + len(others)
        wrong = list(rows.wrong_vectors(catalog, generation))
        if repair and isinstance(catalog, CatalogWriter):
            rows.delete(wrong)
            cls._update_rows(catalog, settings)
        if changed or unknown or wrong:
            found = f"{changed} missing or different, {unknown} unknown, {len(wrong)} with another vector"
            yield f"Milvus, {rows.name}", "the rows", "those of the catalog", found

    def _without_row(self, generation: Generation, after: int) -> Ids:
        assert self._rows is not None
        catalog = self._catalog
        with catalog.read() as connection:
            if int(read_property(connection, ACCESS_CHANGED) or 0) > after:
                after = -1  # rows of older chunks have other groups
        differing = [row["id"] for changed, _ in self._rows.differences(catalog, after) for row in changed]
        return np.intersect1d(catalog.chunk_ids(generation.id, chunks.c.born > after), differing).astype(np.int64)

    def _candidates(self, query: Vectors, k: int, where: Predicate | None) -> Ids:
        if self._rows is None or len(self._tail_ids) == len(self):
            return self._ids[:0]
        found = self._nearest(self._rows, query, k, where)
        if self._catalog.floor() > self.generation.id:
            raise StaleReadError
        return found

    def _nearest(self, rows: _Rows, query: Vectors, k: int, where: Predicate | None) -> Ids:
        """Ids of chunks outside of the tail that include the best `k` of them."""
        indexed = matching = len(self) - len(self._tail_ids)
        if where is not None:
            allowed = self._allowed_by(where)
            matching = len(allowed.ids) - int(allowed.tail.sum())
        if not matching:
            return self._ids[:0]
        condition, filtered, limit = self._condition(where), where is not None and where.filter is not None, k + _EXTRA
        if filtered:  # as many as it probably takes until enough of them meet the filter
            limit = min(_MAX_LIMIT, 2 * limit * indexed // matching)
        while limit <= _MAX_LIMIT and not (filtered and matching <= _FEW):
            scores, ids = rows.search(query, limit, condition)
            confirmed = self._confirmed(ids, where)
            kept = scores[confirmed]
            # The last one must be worse than the best k: of equal ones, those with the lowest ids are wanted.
            if len(kept) == matching or (len(kept) >= k and scores[-1] < kept[k - 1] - _ROUNDING):
                return ids[confirmed]
            if len(ids) < limit:
                break  # the index gave up before it found all that match
            limit *= 4
        every = self._allowed_by(where).ids
        return self._compared(rows, query, k, every[~np.isin(every, self._tail_ids)], condition)

    def _condition(self, where: Predicate | None) -> str:
        """Generation and groups in the language of Milvus."""
        condition = f"born <= {self.generation.id} and died > {self.generation.id}"
        if where is not None and where.groups is not None:
            condition += f" and array_contains_any(groups, {[_EVERYBODY, *_numbers(where.groups)]})"
        return condition

    def _confirmed(self, ids: Ids, where: Predicate | None) -> NDArray[np.bool_]:
        """Which of the ids are chunks of this generation that meet the predicate and have a row that is right."""
        catalog, conditions = (where.visible_part(self._catalog), where.conditions) if where else (self._catalog, ())
        known = self._ids[:0]
        for batch in batches(ids.tolist()):
            of_batch = catalog.chunk_ids(self.generation.id, chunks.c.id.in_(batch), *conditions)
            known = np.concatenate([known, of_batch])
        confirmed: NDArray[np.bool_] = np.isin(ids, known) & ~np.isin(ids, self._tail_ids)
        return confirmed

    def _compared(self, rows: _Rows, query: Vectors, k: int, ids: Ids, condition: str) -> Ids:
        """The best `k` of these chunks and those that are about as good, all of which are compared."""
        best = self._ids[:0], np.empty(0, dtype=np.float32)
        for start in range(0, len(ids), _FEW):
            batch = ids[start : start + _FEW]
            among = f"id in {batch.tolist()} and {condition}"
            scores, found = rows.search(query, len(batch), among)
            if len(found) < len(batch):  # an index may leave some out
                others = rows.ids(among)
                found = np.concatenate([found, others[~np.isin(others, found)]])
                scores = np.concatenate([scores, np.full(len(found) - len(scores), np.inf, dtype=np.float32)])
            best = np.concatenate([best[0], found]), np.concatenate([best[1], scores])
            known = best[1][np.isfinite(best[1])]
            if len(known) > k:
                near = best[1] >= np.partition(known, -k)[-k] - _ROUNDING
                best = best[0][near], best[1][near]
        return best[0]


class _Rows:
    """The rows of one embedding contract in Milvus. Raises CollectionUnavailableError if it does not answer."""

    def __init__(self, catalog: Catalog, contract_id: int, settings: Settings) -> None:
        with catalog.read() as connection:
            self._prefix = f"ragfm_{read_property(connection, 'collection')}_"
        self._contract_id, self.name = contract_id, f"{self._prefix}{contract_id}"
        server = settings.milvus
        if not server.uri:
            raise ConfigError(
                "The backend milvus has no server to connect to.",
                'Set `milvus.uri`, such as "http://milvus.lan:19530".',
            )
        parts = urlsplit(server.uri)
        self._address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else server.uri
        with self._calls():
            self._client = _client(server.uri, server.token.get_secret_value(), server.database)

    @contextmanager
    def _calls(self) -> Iterator[None]:
        try:
            yield
        except (pymilvus.MilvusException, RpcError) as error:
            why = getattr(error, "message", None) or str(error)
            raise CollectionUnavailableError(
                f"Milvus at '{self._address}' cannot be used: {why.rstrip('.')}.",
                'Check the server and `milvus` in the settings, or use `backend = "local"`. Documents that were '
                "ingested meanwhile are committed: the next ingest adds their vectors.",
            ) from error

    def exist(self) -> bool:
        """Whether a writer has created them. Then they are loaded into the server's memory, if they are not yet."""
        with self._calls():
            if not self._client.has_collection(self.name, timeout=_TIMEOUT):
                return False
            if self._client.get_load_state(self.name, timeout=_TIMEOUT)["state"] != LoadState.Loaded:
                self._client.load_collection(self.name, timeout=_TIMEOUT)
            return True

    def create(self, dim: int) -> None:
        """Create them, with an index, if they do not exist."""
        if self.exist():
            return
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", pymilvus.DataType.INT64, is_primary=True)
        for field in ("text", "born", "died"):
            schema.add_field(field, pymilvus.DataType.INT64)
        schema.add_field(
            "groups", pymilvus.DataType.ARRAY, element_type=pymilvus.DataType.INT64, max_capacity=_MAX_GROUPS
        )
        schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=dim)
        index = self._client.prepare_index_params()
        index.add_index("vector", "HNSW", metric_type="IP", params={"M": 16, "efConstruction": 200})
        with self._calls():
            # A search sees everything that was written before.
            self._client.create_collection(
                self.name, schema=schema, index_params=index, consistency_level="Strong", timeout=_TIMEOUT
            )

    def differences(self, catalog: Catalog, after: int = -1) -> Iterator[tuple[list[dict[str, Any]], list[int]]]:
        """Rows as the catalog has them where Milvus has none or others, and ids that the catalog lacks, in pages.

        Only chunks that were born after a generation are compared. Vectors are not.
        """
        has_vector = sa.and_(vectors.c.text_hash == chunks.c.text_hash, vectors.c.contract_id == self._contract_id)
        columns = (chunks.c.id, chunks.c.text_hash, chunks.c.born, chunks.c.died, chunks.c.document_id)
        query = (
            sa.select(*columns, documents.c.restricted)
            .join(documents, documents.c.id == chunks.c.document_id)
            .join(vectors, has_vector)
            .where(chunks.c.born > after)
            .order_by(chunks.c.id)
            .limit(_PAGE_ROWS)
        )
        last, more = 0, True
        while more:
            allowed: dict[int, set[str]] = {}
            with catalog.read() as connection:
                page = connection.execute(query.where(chunks.c.id > last)).all()
                for batch in batches(list({row.document_id for row in page if row.restricted})):
                    for document_id, name in connection.execute(
                        sa.select(groups.c.document_id, groups.c.name).where(groups.c.document_id.in_(batch))
                    ):
                        allowed.setdefault(document_id, set()).add(name)
            expected = {
                row.id: {
                    "id": row.id,
                    "text": _number(row.text_hash),
                    "born": row.born,
                    "died": _ALIVE if row.died is None else row.died,
                    "groups": _numbers(allowed.get(row.document_id, ())) if row.restricted else [_EVERYBODY],
                }
                for row in page
            }
            more = len(page) == _PAGE_ROWS
            within = f"id > {last} and born > {after}" + (f" and id <= {page[-1].id}" if more else "")
            with self._calls():
                found = self._client.query(self.name, within, output_fields=list(_FIELDS), timeout=_TIMEOUT)
            stored = {row["id"]: {field: row[field] for field in _FIELDS} for row in found}
            yield (
                [row for row in expected.values() if stored.get(row["id"]) != row],
                sorted(stored.keys() - expected.keys()),
            )
            last = page[-1].id if page else last

    def wrong_vectors(self, catalog: Catalog, generation: Generation) -> Iterator[int]:
        """The ids of live chunks whose row has another vector than the catalog."""
        ids = catalog.chunk_ids(generation.id).tolist()
        for start in range(0, len(ids), _BATCH_ROWS):
            known, expected = catalog.vectors_of(generation, ids[start : start + _BATCH_ROWS])
            with self._calls():
                found = self._client.query(
                    self.name, f"id in {known.tolist()}", output_fields=["id", "vector"], timeout=_TIMEOUT
                )
            positions = np.searchsorted(known, [row["id"] for row in found])
            for row, vector in zip(found, expected[positions], strict=True):
                if not np.array_equal(np.asarray(row["vector"], dtype=np.float32), vector):
                    yield row["id"]

    def upsert(self, catalog: Catalog, generation: Generation, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows or replace them, with the catalog's vectors."""
        known = {row["id"]: row for row in rows if len(row["groups"]) <= _MAX_GROUPS}
        for start in range(0, len(known), _BATCH_ROWS):
            batch = zip(*catalog.vectors_of(generation, list(known)[start : start + _BATCH_ROWS]), strict=True)
            data = [{**known[int(chunk_id)], "vector": vector} for chunk_id, vector in batch]
            with self._calls():
                self._client.upsert(self.name, data, timeout=_TIMEOUT)

    def delete(self, ids: Sequence[int]) -> None:
        """Delete rows."""
        for start in range(0, len(ids), _BATCH_ROWS):
            with self._calls():
                self._client.delete(self.name, ids=list(ids[start : start + _BATCH_ROWS]), timeout=_TIMEOUT)

    def drop_others(self, catalog: Catalog) -> None:
        """Drop the rows of contracts that no generation has."""
        with catalog.read() as connection:
            kept = connection.execute(sa.select(generations.c.contract_id).distinct()).scalars().all()
        with self._calls():
            for name in self._client.list_collections(timeout=_TIMEOUT):
                if name.startswith(self._prefix) and name.removeprefix(self._prefix) not in map(str, kept):
                    self._client.drop_collection(name, timeout=_TIMEOUT)

    def search(self, query: Vectors, limit: int, condition: str) -> tuple[Vectors, Ids]:
        """Inner products and ids of rows that meet a condition, best first. *Shape:* (m,), (m,) with m <= limit."""
        limit = max(1, limit)
        parameters = {"metric_type": "IP", "params": {"ef": min(_MAX_EF, max(_MIN_EF, 2 * limit))}}
        with self._calls():
            hits = self._client.search(
                self.name,
                [query[0]],
                condition,
                limit,
                output_fields=["id"],
                search_params=parameters,
                timeout=_TIMEOUT,
            )[0]
        scores = np.array([hit["distance"] for hit in hits], dtype=np.float32)
        return scores, np.array([hit["id"] for hit in hits], dtype=np.int64)

    def ids(self, condition: str) -> Ids:
        """The ids of the rows that meet a condition."""
        with self._calls():
            rows = self._client.query(self.name, condition, output_fields=["id"], timeout=_TIMEOUT)
        return np.array([row["id"] for row in rows], dtype=np.int64)


@lru_cache(8)
def _client(uri: str, token: str, database: str) -> Any:
    return pymilvus.MilvusClient(uri, token=token, db_name=database, timeout=_TIMEOUT)


def _number(key: bytes) -> int:
    """A hash as a number for Milvus: positive, with 63 bits, and not the one for everybody."""
    return int.from_bytes(key[:8]) >> 1 or 1


def _numbers(groups: Iterable[str]) -> list[int]:
    return sorted(_number(text_hash(name)) for name in groups)
