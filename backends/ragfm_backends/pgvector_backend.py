"""The search backend `pgvector`: vectors are searched in PostgreSQL, words in the keyword index of this machine.

    pgvector_1      a table of the collection's schema, for the embedding contract 1: hash of an embedded text, and its
                    vector in half precision, with an HNSW index (https://arxiv.org/abs/1603.09320) and a policy

Chunks find their vector by the hash of their text, as they do in the catalog. So generations, filters and groups are
conditions on the catalog's own rows, and nothing has to be updated when a chunk dies. Vectors that the table lacks
yet are the tail of a snapshot. The candidates are scored again with the catalog's vectors.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, cast
from zlib import crc32

import numpy as np
import sqlalchemy as sa

from ragfm.core.config import Settings
from ragfm.core.errors import CollectionError, ConfigError
from ragfm.core.types import Ids, Vectors
from ragfm.store.catalog import Catalog, Generation, StaleReadError, alive, batches, read_property
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.search_backend import Predicate
from ragfm.store.snapshot import MAX_TIES, Snapshot
from ragfm.store.tables import chunks, documents, vectors

if TYPE_CHECKING:
    from ragfm.store.postgres import PostgresDatabase

_EXTRA = 20  # candidates beyond k, since half precision may change their order
_FEW = 4_000  # chunks that are compared one by one, which is then as fast as the index
_MAX_EF_SEARCH, _MIN_EF_SEARCH = 1_000, 200
_CHUNKS_PER_CANDIDATE = 1_000  # of `ef_search`: recall falls as the index grows, see decision 048
_LINKS, _EF_CONSTRUCTION = 24, 128  # of the graph
_MAX_SCAN_TUPLES = 100_000  # that a search with a predicate visits in the index; then all that match are compared
_MAX_DIM = 4_000  # of an index over halfvec
_BATCH_ROWS = 5_000
_GRAPH_BYTES = 1_024  # of a vector's links and their headers, while an index is built
_MIN_INDEX_BYTES, _MAX_INDEX_BYTES = 64 << 20, 512 << 20  # for building it; the latter unless the server has more
_NO_MEMORY = ("53100", "53200")  # `disk_full`, as which the system reports a lack of shared memory, `out_of_memory`
_MAX_CACHED_COUNTS = 64
_OLDEST, _OLDEST_SAFE = (0, 8, 0), (0, 8, 4)
_COPY_START, _COPY_END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
_log = logging.getLogger(__name__)


class _Halfvec(sa.types.UserDefinedType[str]):
    cache_ok = True

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def get_col_spec(self, **_: Any) -> str:
        return f"halfvec({self.dim})"


class PgvectorSnapshot(Snapshot):
    """The chunks of a collection on PostgreSQL at one generation. Thread-safe."""

    views_have_vectors = False

    @classmethod
    def open(cls, catalog: Catalog, generation: Generation, settings: Settings) -> Self:
        """A snapshot of a generation. Raises ConfigError if the collection is not on PostgreSQL."""
        _check_server(catalog)
        return super().open(catalog, generation, settings)

    @cached_property
    def _table(self) -> sa.Table | None:
        """The table of the index, None if there is none yet."""
        with self._catalog.read() as connection:
            exists = _exists(connection, _table_name(self.generation.contract_id))
        return _index_table(self.generation) if exists else None

    @cached_property
    def _counts(self) -> OrderedDict[tuple[Predicate, int], int]:
        return OrderedDict()

    @classmethod
    def save_vectors(cls, catalog: CatalogWriter, settings: Settings) -> bool:
        """Create the table and its index if there are none, and add the vectors that it lacks.

        Returns whether it lacked some.
        """
        _check_server(catalog)
        import psycopg  # a folder is refused without it

        generation, added = catalog.at(), 0
        dim = int(generation.contract["dim"])
        if dim > _MAX_DIM:
            raise ConfigError(
                f"The backend pgvector cannot index vectors of {dim} dimensions: its limit is {_MAX_DIM}.",
                'Use an embedder with fewer, or `backend = "local"`.',
            )
        table = _index_table(generation)
        database = cast("PostgresDatabase", catalog.database)
        with catalog.write() as connection:
            name = f'"{_schema(connection)}".{table.name}'
            if not _exists(connection, table.name):
                may_create = sa.text("SELECT has_schema_privilege(:schema, 'CREATE')")
                if not connection.scalar(may_create, {"schema": _schema(connection)}):
                    _log.warning(
                        "%s: the table %s does not exist, and this role may not create it. The next `ragfm ingest` of "
                        "the schema's owner does; until then, all vectors are in memory.",
                        *(database.location, table.name),
                    )
                    return False
                connection.execute(sa.text("CREATE EXTENSION IF NOT EXISTS vector"))
                connection.execute(
                    sa.text(
                        f"CREATE TABLE {name} (contract_id integer NOT NULL DEFAULT {generation.contract_id}, "
                        f"text_hash bytea PRIMARY KEY, embedding halfvec({dim}) NOT NULL, "
                        "FOREIGN KEY (contract_id, text_hash) "
                        f'REFERENCES "{_schema(connection)}".vectors ON DELETE CASCADE)'
                    )
                )
                database.security.create_policies(connection, [table.name])
        lacking = ~sa.exists().where(table.c.text_hash == vectors.c.text_hash)
        query = sa.select(vectors.c.text_hash, vectors.c.vector, vectors.c.checksum).where(
            vectors.c.contract_id == generation.contract_id, lacking
        )
        # COPY cannot write to a table with row-level security.
        create = f"CREATE TEMPORARY TABLE ragfm_new (text_hash bytea, embedding halfvec({dim})) ON COMMIT DROP"
        statement = "COPY pg_temp.ragfm_new FROM STDIN (FORMAT BINARY)"
        insert = f"INSERT INTO {name} (text_hash, embedding) SELECT text_hash, embedding FROM pg_temp.ragfm_new"  # noqa: S608
        with catalog.read() as reading:
            # One query for all batches: before the server has statistics of the new table, each takes seconds.
            for rows in reading.execute(query.execution_options(yield_per=_BATCH_ROWS)).partitions():
                if any(crc32(row.vector) != row.checksum for row in rows):
                    raise catalog.damage_error("a vector does not match its checksum")
                data = _COPY_START + b"".join(_copy_row(row.text_hash, row.vector) for row in rows) + _COPY_END
                try:
                    with catalog.write() as connection:
                        connection.execute(sa.text(create))
                        driver: Any = connection.connection.driver_connection
                        with driver.cursor() as cursor, cursor.copy(statement) as copy:
                            copy.write(data)
                        connection.execute(sa.text(insert))
                except psycopg.Error as error:  # of `copy`, which SQLAlchemy does not know
                    raise catalog.database.write_error(sa.exc.DatabaseError(statement, None, error)) from error
                added += len(rows)
        with catalog.write() as connection:
            # After the first rows, since building an index is faster than adding to one.
            owns_table = sa.text("SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass(:name)")
            indexed = _exists(connection, f"{table.name}_hnsw")
            if generation.chunks and not indexed and connection.scalar(owns_table, {"name": name}):
                _create_index(connection, table, dim)
            if added:
                for changed in (table, chunks, documents):
                    connection.execute(sa.text(f'ANALYZE "{_schema(connection)}".{changed.name}'))
        return added > 0

    @classmethod
    def differences(
        cls, catalog: Catalog, settings: Settings, *, repair: bool = False
    ) -> Iterator[tuple[str, str, str, str]]:
        """Rows that are missing or have another vector, and a missing or incomplete index."""
        _check_server(catalog)
        generation, missing, wrong = catalog.at(), 0, list[bytes]()
        table = _index_table(generation)
        same_text = table.c.text_hash == vectors.c.text_hash
        query = (
            sa.select(vectors.c.text_hash, vectors.c.vector, sa.func.halfvec_send(table.c.embedding).label("stored"))
            .select_from(vectors.outerjoin(table, same_text))
            .where(vectors.c.contract_id == generation.contract_id)
        )
        index = f"{table.name}_hnsw"
        with catalog.read() as connection:
            if not _exists(connection, table.name):
                return
            is_valid = sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
            indexed = bool(connection.scalar(is_valid, {"name": f'"{_schema(connection)}".{index}'}))
            for key, vector, stored in connection.execute(query.execution_options(yield_per=1000)):
                missing += stored is None
                if stored is not None and bytes(stored) != _halfvec(vector):
                    wrong.append(key)
        if repair and isinstance(catalog, CatalogWriter):
            with catalog.write() as connection:
                for batch in batches(wrong):
                    connection.execute(table.delete().where(table.c.text_hash.in_(batch)))
                if not indexed:
                    connection.execute(sa.text(f'DROP INDEX IF EXISTS "{_schema(connection)}".{index}'))
            cls.save_vectors(catalog, settings)
        if missing or wrong:
            found = f"{missing} missing and {len(wrong)} different"
            yield table.name, "the vectors", "those of the catalog", found
        if generation.chunks and not indexed:
            yield table.name, f"the index {index}", "valid", "missing or invalid"

    def _read_born(self, generation: Generation) -> tuple[Ids, Ids, Vectors]:
        catalog, after = self._catalog, self.generation.id
        born = catalog.chunk_ids(generation.id, chunks.c.born > after)
        if self.is_start:
            after = -1  # the table may lack older vectors than the words of the view
        if self._table is None:
            return born, *catalog.chunk_vectors(generation, born_after=after)
        lacking = ~sa.exists().where(self._table.c.text_hash == chunks.c.text_hash)
        missing = np.setdiff1d(catalog.chunk_ids(generation.id, chunks.c.born > after, lacking), self._tail_ids)
        return born, *catalog.vectors_of(generation, missing.tolist())

    def status(self, settings: Settings) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The state of the table and of the keyword index."""
        vectors, words = super().status(settings)
        exists, missing = self._table is not None, len(self._tail_ids)
        state = {
            "kind": "pgvector" if exists else None,
            "wanted": "pgvector",
            "why": "The backend pgvector is set: vectors are searched in the database.",
            "generation": self.generation.id,
            "vectors": len(self) - missing,
            "pending": missing,
            "state": "in the database" if exists else "none",
            "saved": exists,
        }
        return {**vectors, **state}, words

    def matches(self, where: Predicate) -> bool:
        """Whether a chunk meets the predicate."""
        with where.visible_part(self._catalog).read() as connection:
            return self._count(connection, where, _FEW) > 0

    def _count(self, connection: sa.Connection, where: Predicate | None, limit: int) -> int:
        """The number of chunks that meet the predicate, or `limit` + 1 if there are more; cached."""
        if where is None:
            return self.generation.chunks
        with self._lock:
            known = self._counts.get((where, limit))
        if known is None:
            some = self._matching(sa.select(sa.literal(1)).select_from(chunks), where).limit(limit + 1).subquery()
            known = int(connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one())
            with self._lock:
                self._counts[where, limit] = known
                if len(self._counts) > _MAX_CACHED_COUNTS:
                    self._counts.popitem(last=False)
        return known

    def _matching(self, query: sa.Select[Any], where: Predicate | None) -> sa.Select[Any]:
        """A query of chunks, limited to this generation and the predicate."""
        query = query.where(alive(chunks, self.generation.id))
        if where is not None:
            query = query.join(documents, documents.c.id == chunks.c.document_id).where(*where.conditions)
        return query

    def _candidates(self, query: Vectors, k: int, where: Predicate | None) -> Ids:
        table, count = self._table, k + _EXTRA
        if table is None:
            return self._ids[:0]
        catalog = where.visible_part(self._catalog) if where else self._catalog
        with catalog.read() as connection:
            if int(read_property(connection, "floor")) > self.generation.id:
                raise StaleReadError
            few = max(_FEW, count)
            matching = self._count(connection, where, few)
            compared = matching if matching <= few else None
            if compared is None:
                candidates = max(4 * count, self.generation.chunks // _CHUNKS_PER_CANDIDATE, _MIN_EF_SEARCH)
                index_settings = {
                    "hnsw.ef_search": str(min(_MAX_EF_SEARCH, candidates)),
                    "hnsw.iterative_scan": "relaxed_order",
                    "hnsw.max_scan_tuples": str(_MAX_SCAN_TUPLES),
                    "jit": "off",
                }  # for this transaction only
                calls = (sa.func.set_config(name, value, True) for name, value in index_settings.items())
                connection.execute(sa.select(*calls))
            while True:
                found = connection.execute(self._ranked(query, where, table, count, compared)).all()
                if len(found) < count and compared is None:  # the index gave up before it found as many as match
                    compared = self.generation.chunks
                    continue
                distances = sorted(row.distance for row in found)
                if len(found) < count or count >= MAX_TIES or distances[-1] > distances[k - 1]:
                    break
                # There may be more ties, of which the lowest ids are wanted.
                count, compared = 4 * count, compared or self.generation.chunks
        ids = np.array([row.id for row in found], dtype=np.int64)
        return ids[~np.isin(ids, self._tail_ids)]  # some may have been added to the index since

    def _ranked(
        self, query: Vectors, where: Predicate | None, table: sa.Table, count: int, compared: int | None
    ) -> sa.Select[Any]:
        """The `count` nearest chunks, in order of distance, the negative cosine.

        All chunks that match are compared, which are `compared` at most; or if None, those that the index returns.
        """
        text = sa.literal("[" + ",".join(map(str, query[0].tolist())) + "]", sa.String)
        distance = table.c.embedding.op("<#>", return_type=sa.Float)(sa.cast(text, table.c.embedding.type))
        if compared is not None:
            # The limit tells the planner how few they are. `+ 0` keeps it from using the index over vectors.
            some = self._matching(sa.select(chunks.c.id, chunks.c.text_hash), where).limit(compared)
            matching = some.cte("matching").prefix_with("MATERIALIZED")
            join = matching.join(table, table.c.text_hash == matching.c.text_hash)
            ranked = sa.select(matching.c.id, distance.label("distance")).select_from(join)
            return ranked.order_by(distance + 0).limit(count)
        join = chunks.join(table, table.c.text_hash == chunks.c.text_hash)
        by_index = self._matching(sa.select(chunks.c.id, distance.label("distance")).select_from(join), where)
        return by_index.order_by(distance).limit(count)


def _copy_row(key: bytes, vector: bytes) -> bytes:
    """A row of two columns in the binary format of COPY: a bytea and a halfvec."""
    fields = (key, _halfvec(vector))
    return (2).to_bytes(2) + b"".join(len(field).to_bytes(4) + field for field in fields)


def _halfvec(vector: bytes) -> bytes:
    """A vector of the catalog in the binary format of halfvec: dim, 0, and big-endian float16."""
    half = np.frombuffer(vector, dtype="<f4").astype(">f2").tobytes()
    return (len(half) // 2).to_bytes(2) + bytes(2) + half


def _create_index(connection: sa.Connection, table: sa.Table, dim: int) -> None:
    """Build the HNSW index, in memory where the server seems to have enough: without, it takes several times as long.

    Several processes build it in shared memory, of which containers have 64 MB by default; one process needs none.
    """
    name = f'"{_schema(connection)}".{table.name}'
    rows = connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
    # The buffers of a server are usually a quarter of its memory.
    sizes = (
        sa.func.pg_size_bytes(sa.func.current_setting(setting))
        for setting in ("shared_buffers", "maintenance_work_mem")
    )
    limit = max(_MAX_INDEX_BYTES, *connection.execute(sa.select(*sizes)).one())
    memory = min(max(_MIN_INDEX_BYTES, rows * (2 * dim + _GRAPH_BYTES)), limit)
    connection.execute(sa.select(sa.func.set_config("maintenance_work_mem", f"{memory >> 10}kB", True)))
    parameters = f"WITH (m = {_LINKS}, ef_construction = {_EF_CONSTRUCTION})"
    statement = f"CREATE INDEX {table.name}_hnsw ON {name} USING hnsw (embedding halfvec_ip_ops) {parameters}"
    try:
        with connection.begin_nested():
            connection.execute(sa.text(statement))
    except sa.exc.DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) not in _NO_MEMORY:
            raise
        connection.execute(sa.select(sa.func.set_config("max_parallel_maintenance_workers", "0", True)))
        connection.execute(sa.text(statement))


def _index_table(generation: Generation) -> sa.Table:
    columns = (
        sa.Column("text_hash", sa.LargeBinary, primary_key=True),
        sa.Column("embedding", _Halfvec(int(generation.contract["dim"])), nullable=False),
    )
    return sa.Table(_table_name(generation.contract_id), sa.MetaData(), *columns)


def _table_name(contract_id: int) -> str:
    return f"pgvector_{contract_id}"


def _exists(connection: sa.Connection, name: str) -> bool:
    """Whether the collection's schema has a table or an index of this name."""
    found = sa.func.to_regclass(f'"{_schema(connection)}".{name}')
    return bool(connection.scalar(sa.select(found.is_not(None))))


def _schema(connection: sa.Connection) -> str:
    return str(connection.get_execution_options()["schema_translate_map"][None])


def _check_server(catalog: Catalog) -> None:
    """Refuse a collection that is not on PostgreSQL with pgvector, and log if a fixed version exists."""
    with catalog.read() as connection:
        if connection.dialect.name != "postgresql":
            raise ConfigError(
                f"The backend pgvector cannot search '{catalog.database.location}': it is a folder.",
                'Move it with `ragfm copy`, or use `backend = "local"`.',
            )
        installed = connection.scalar(sa.text("SELECT extversion FROM pg_extension WHERE extname = 'vector'"))
    _check_version(installed, catalog.database.location)


def _check_version(installed: str | None, location: str) -> None:
    if installed is None:
        return  # `save` creates it
    version = tuple(map(int, re.findall(r"[0-9]+", installed)[:3]))
    if version < _OLDEST:
        raise CollectionError(
            f"The database of '{location}' has pgvector {installed}: searches with a filter need 0.8.0.",
            "Install a newer one, and run `ALTER EXTENSION vector UPDATE`.",
        )
    if version < _OLDEST_SAFE:
        _log.warning(
            "The database of '%s' has pgvector %s. Version 0.8.4 fixes CVE-2026-3172 and indexes damaged by VACUUM: "
            "install it, and run `ALTER EXTENSION vector UPDATE`.",
            location,
            installed,
        )
