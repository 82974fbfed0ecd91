from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from ragfm_backends import pgvector_backend
from ragfm_backends.pgvector_backend import PgvectorSnapshot
from support.generated_chunks import add, check_recall, predicate, unit, written
from support.postgres_server import PostgresServer, postgres_server
from support.torture.full_disk import small_disk

from ragfm import Collection
from ragfm.core.config import Settings
from ragfm.core.errors import AccessDeniedError, CollectionError, ConfigError
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.testing import HashingEmbedder

pytestmark = pytest.mark.usefixtures("_pgvector")

PGVECTOR = Settings(backend="pgvector")


@contextlib.contextmanager
def plans(catalog: CatalogWriter) -> Iterator[list[str]]:
    """How each query for vectors in the block is planned: by the `index`, or by `comparison` of all that match."""
    found: list[str] = []

    def explain(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
        if "<#>" in statement:
            cursor.execute(f"EXPLAIN {statement}", parameters)
            plan = "\n".join(row[0] for row in cursor.fetchall())
            found.append("index" if "Index Scan using pgvector_1_hnsw" in plan else "comparison")

    engine = catalog._engine
    sa.event.listen(engine, "before_cursor_execute", explain)
    try:
        yield found
    finally:
        sa.event.remove(engine, "before_cursor_execute", explain)


@pytest.mark.slow
def test_recall_and_hits_under_predicates(address: str) -> None:
    # Whether so few rows are sorted instead depends on the sample that ANALYZE took.
    with written(f"{address}&options=-c%20enable_sort%3Doff", 20_000, PgvectorSnapshot, PGVECTOR) as catalog:
        snapshot = PgvectorSnapshot.open(catalog, catalog.at(), PGVECTOR)
        assert snapshot.status(PGVECTOR)[0]["pending"] == 0
        _, stored = catalog.chunk_vectors(snapshot.generation)
        queries = unit(stored[::500] + np.random.default_rng(1).normal(0, 0.05, stored[::500].shape))
        cases = [
            (None, "index"),
            (predicate(catalog, "number < 100"), "index"),  # half of the chunks
            (predicate(catalog, None, frozenset()), "index"),
            (predicate(catalog, "number in (3, 77)"), "comparison"),  # 1 %
            (predicate(catalog, "number = 200"), "comparison"),  # 0.01 %
            (predicate(catalog, "number in (3, 4)", frozenset({"hr"})), "comparison"),
        ]
        for where, expected in cases:
            for k in (10, 120):
                with plans(catalog) as used:
                    recall = check_recall(snapshot, catalog, where, k, queries)
                assert recall >= 0.99, (where, k)
                assert set(used) == {expected}, where


def test_all_that_match_are_compared_if_the_index_returns_too_few(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgvector_backend, "_FEW", 50)
    monkeypatch.setattr(pgvector_backend, "_MAX_EF_SEARCH", 10)
    monkeypatch.setattr(pgvector_backend, "_MAX_SCAN_TUPLES", 1)
    # Few rows would be sorted.
    with written(f"{address}&options=-c%20enable_sort%3Doff", 1_000, PgvectorSnapshot, PGVECTOR) as catalog:
        snapshot = PgvectorSnapshot.open(catalog, catalog.at(), PGVECTOR)
        queries = catalog.chunk_vectors(snapshot.generation)[1][700:705]
        with plans(catalog) as used:
            assert check_recall(snapshot, catalog, predicate(catalog, "number = 1"), 20, queries) == 1
        assert used == ["index", "comparison"] * len(queries)


def test_an_index_is_built_without_shared_memory_if_there_is_too_little() -> None:
    """As in a container, whose /dev/shm has 64 MB by default."""
    with postgres_server(settings="dynamic_shared_memory_type = mmap\n") as postgres:
        postgres.stop()
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(small_disk(postgres.folder / "data/pg_dynshmem"))
            except OSError as error:
                pytest.skip(f"no file system can be mounted: {error}")
            postgres.start()
            address = postgres.address("c", options="-c%20min_parallel_table_scan_size%3D0")
            with written(address, 200, PgvectorSnapshot, PGVECTOR) as catalog:
                assert "could not resize shared memory segment" in (postgres.folder / "log").read_text()
                assert not list(PgvectorSnapshot.differences(catalog, PGVECTOR))
            postgres.stop()


def test_a_snapshot_keeps_its_generation_while_a_writer_commits(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgvector_backend, "_FEW", 50)
    with written(address, 500, PgvectorSnapshot, PGVECTOR) as catalog:
        pinned = PgvectorSnapshot.open(catalog, catalog.at(), PGVECTOR)
        query = catalog.chunk_vectors(pinned.generation)[1][:1]
        expected = [array.tolist() for array in pinned.search(query, 30)]

        def write() -> None:
            for version in range(1, 4):
                add(catalog, [0, 1], version=version)
                PgvectorSnapshot.save(catalog, PGVECTOR, language_changed=lambda *_: None)

        writer = threading.Thread(target=write)
        writer.start()
        searches = 0
        while writer.is_alive() or searches < 5:
            assert [array.tolist() for array in pinned.search(query, 30)] == expected
            newest = pinned.extend(catalog.at())
            assert check_recall(newest, catalog, None, 30, query) == 1
            searches += 1
        writer.join()
        assert catalog.generation() == pinned.generation.id + 3
        reopened = PgvectorSnapshot.open(catalog, catalog.at(), PGVECTOR)
        assert len(reopened._tail_ids) == 0 < len(newest._tail_ids) + len(reopened)


@pytest.fixture
def other_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))


def _open(place: str | Path, backend: str = "pgvector", embedder: HashingEmbedder | None = None) -> Collection:
    return Collection.open(place, settings=Settings(backend=backend), embedder=embedder or HashingEmbedder())


def _found(collection: Collection) -> list[Any]:
    return [
        [(hit.uri, hit.start, hit.scores) for hit in handle.search(query, 6, mode=mode, filter=filter)]
        for handle in (collection, collection.as_groups({"hr"}), collection.as_groups(set()))
        for mode in ("hybrid", "dense")  # words are searched as by `local`
        for query in ("days of leave", "dogs in the office")
        for filter in (None, "uri like docs/%.md")
    ]


def test_results_equal_those_of_the_other_backend(address: str, docs: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "pay.md").write_text("# Pay\n\nThe office pays for days of leave.\n")
    folder, collection = _open(tmp_path / ".ragfm", "local"), _open(address)
    for one in (folder, collection):
        one.sync(docs)
        one.sync(secret, allow=["hr"])
    assert _found(collection) == _found(folder)
    status = collection.status().indexes[0]
    assert (status["kind"], status["pending"], status["vectors"]) == ("pgvector", 0, folder.status().chunks)
    assert not [path for path in (tmp_path / "cache").rglob("vectors/*") if path.is_file()]
    assert not collection.verify().damaged
    for change in (lambda one: one.remove("docs/hours.txt"), lambda one: one.compact()):
        for one in (folder, collection):
            change(one)
        assert _found(collection) == _found(folder)
    assert _found(_open(address, "local")) == _found(folder)  # builds a view with vectors
    assert _found(_open(address)) == _found(folder)


@pytest.mark.slow
def test_without_an_index_and_behind_it_searches_are_exact(address: str, docs: Path, postgres: PostgresServer) -> None:
    schema = sa.make_url(address).query["collection"]
    _open(address, "local").sync(docs)
    reader = _open(address)
    expected = _found(_open(address, "local"))
    assert _found(reader) == expected
    assert reader.status().indexes[0]["kind"] is None
    _open(address).sync()
    assert _found(_open(address)) == expected
    some = f"SELECT text_hash FROM {schema}.pgvector_1 LIMIT 2"
    postgres.sql(f"DELETE FROM {schema}.pgvector_1 WHERE text_hash IN ({some})")
    behind = _open(address)
    assert _found(behind) == expected
    assert behind.status().indexes[0]["pending"] == 2
    postgres.sql(f"DROP TABLE {schema}.pgvector_1")
    assert _found(_open(address)) == expected


def test_damaged_rows_are_reported_and_repaired(address: str, docs: Path, postgres: PostgresServer) -> None:
    table = f"{sa.make_url(address).query['collection']}.pgvector_1"
    collection = _open(address)
    collection.sync(docs)
    expected = _found(collection)
    postgres.sql(f"DELETE FROM {table} WHERE text_hash IN (SELECT text_hash FROM {table} ORDER BY 1 LIMIT 2)")
    negative = "('[' || (SELECT string_agg((-x)::text, ',') FROM unnest(embedding::vector::real[]) x) || ']')::halfvec"
    postgres.sql(f"UPDATE {table} SET embedding = {negative} WHERE text_hash = (SELECT max(text_hash) FROM {table})")
    postgres.sql(f"DROP INDEX {table}_hnsw")
    rows, index = collection.verify().findings
    assert (rows.file, rows.found) == ("pgvector_1", "2 missing and 1 different")
    assert (index.what, index.found) == ("the index pgvector_1_hnsw", "missing or invalid")
    report = collection.verify(repair=True)
    assert not report.damaged
    assert rows.found in "".join(report.mended)
    reopened = _open(address)
    assert _found(reopened) == expected
    assert reopened.status().indexes[0]["pending"] == 0


def test_another_embedder_gets_an_index_of_its_own(address: str, docs: Path, postgres: PostgresServer) -> None:
    schema = sa.make_url(address).query["collection"]
    collection = _open(address)
    collection.sync(docs)
    collection.reembed(HashingEmbedder("other", dim=32))
    assert collection.search("days of leave", mode="dense")[0].uri == "docs/leave.md"
    assert collection.status().indexes[0]["pending"] == 0
    collection.compact()
    counts = f"SELECT (SELECT count(*) FROM {schema}.pgvector_1), (SELECT count(*) FROM {schema}.pgvector_2)"
    assert postgres.sql(counts) == f"0|{collection.status().chunks}"


def test_a_restricted_transaction_sees_no_vector_of_another_group(
    address: str, docs: Path, postgres: PostgresServer
) -> None:
    schema = sa.make_url(address).query["collection"]
    postgres.sql("CREATE EXTENSION IF NOT EXISTS vector")
    postgres.sql(f"CREATE ROLE {schema}_owner LOGIN; CREATE SCHEMA {schema} AUTHORIZATION {schema}_owner")
    collection = _open(address.replace("owner@", f"{schema}_owner@"))
    collection.sync(docs, allow=["hr"])

    def count(groups: set[str] | None) -> int:
        handle = collection if groups is None else collection.as_groups(groups)
        with handle._catalog().read() as connection:
            return int(connection.exec_driver_sql(f"SELECT count(*) FROM {schema}.pgvector_1").scalar_one())

    assert (count({"sales"}), count({"hr"}), count(None)) == (0, 5, 5)
    postgres.sql(
        f"ALTER TABLE {schema}.pgvector_1 DISABLE ROW LEVEL SECURITY; DROP POLICY access ON {schema}.pgvector_1"
    )
    assert [finding.file for finding in collection.verify().findings] == ["pgvector_1"]
    collection.remove("docs/hours.txt")
    assert not collection.verify().damaged
    collection.compact()
    assert (count({"sales"}), count({"hr"}), count(None)) == (0, 4, 4)


def test_a_writer_that_may_not_create_the_table_leaves_it_to_the_owner(
    address: str, docs: Path, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    schema = sa.make_url(address).query["collection"]
    _open(address, "local").sync(docs)
    postgres.sql(f"CREATE ROLE {schema}_writer LOGIN; GRANT USAGE ON SCHEMA {schema} TO {schema}_writer")
    postgres.sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {schema}_writer")
    postgres.sql(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {schema}_writer")
    writer = _open(address.replace("owner@", f"{schema}_writer@"))
    (docs / "more.txt").write_text("Night watchmen sleep by day.")
    assert writer.sync(docs).added == 1
    assert "the table pgvector_1 does not exist, and this role may not create it" in caplog.text
    assert writer.search("watchmen", 1)[0].uri == "docs/more.txt"
    _open(address).sync()
    (docs / "more.txt").write_text("Night watchmen sleep in the morning.")
    with pytest.raises(AccessDeniedError, match=r"permission denied for table pgvector_1\. [A-Z]"):
        writer.sync(docs)


def test_a_folder_is_refused(docs: Path, tmp_path: Path) -> None:
    _open(tmp_path / ".ragfm", "local").sync(docs)
    with pytest.raises(ConfigError, match="it is a folder"):
        _open(tmp_path / ".ragfm").search("leave")
    with pytest.raises(ConfigError, match="it is a folder"):
        _open(tmp_path / "other").sync(docs)


def test_an_old_pgvector_is_named(caplog: pytest.LogCaptureFixture) -> None:
    for version in (None, "0.8.4", "0.8.6", "0.10.0"):
        pgvector_backend._check_version(version, "db")
    assert not caplog.text
    pgvector_backend._check_version("0.8.0", "db")
    assert "pgvector 0.8.0" in caplog.text
    assert "CVE-2026-3172" in caplog.text
    with pytest.raises(CollectionError, match=r"has pgvector 0\.7\.4"):
        pgvector_backend._check_version("0.7.4", "db")
