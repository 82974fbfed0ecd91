"""The catalog: generations, live rows, and durability of acknowledged commits."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pysqlite3
import pytest
import sqlalchemy as sa

from ragfm import Settings
from ragfm.core.durable_files import encode_checksummed, read_checksummed
from ragfm.core.errors import CollectionError, DamagedCollectionError
from ragfm.core.types import Chunk, Document
from ragfm.store.catalog import Catalog, Source
from ragfm.store.catalog_writer import CatalogWriter, Failure
from ragfm.store.collection_store import Store
from ragfm.store.compaction import compact
from ragfm.store.database import Database
from ragfm.store.document_rows import NewDocument
from ragfm.store.postgres import PostgresDatabase
from ragfm.store.sqlite_database import SqliteDatabase
from ragfm.store.sqlite_file import CATALOG_FILE, HEAD_FILE
from ragfm.store.tables import chunks, documents, text_hash, vectors
from ragfm.testing import HashingEmbedder


@pytest.fixture
def folder(tmp_path: Path, embedder: HashingEmbedder) -> Path:
    folder = tmp_path / "collection"
    folder.mkdir()
    CatalogWriter.create(SqliteDatabase(folder), {**embedder.fingerprint, "embedder": "hashing"})
    return folder


@pytest.fixture(params=["folder", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path, embedder: HashingEmbedder) -> Iterator[Database]:
    """The database of an empty collection, with its lock."""
    if request.param == "folder":
        yield SqliteDatabase(request.getfixturevalue("folder"))
        return
    database = PostgresDatabase(request.getfixturevalue("address"))
    CatalogWriter.create(database, {**embedder.fingerprint, "embedder": "hashing"})
    with database.lock():
        yield database


def _add(catalog: CatalogWriter, source: Source, embedder: HashingEmbedder, path: str, *texts: str) -> int:
    text = "\n".join(texts)
    parts, start = [], 0
    for part_text in texts:
        parts.append(Chunk(part_text, start, start + len(part_text)))
        start += len(part_text) + 1
    hashes = [text_hash(chunk.embedded_text) for chunk in parts]
    new = dict(zip(hashes, texts, strict=True))
    missing = new.keys() - catalog.known_hashes(1, new)
    if missing:
        catalog.add_vectors(1, list(missing), embedder.embed_passages([new[key] for key in missing]))
    document = Document(f"docs/{path}", text, "text/plain", {"year": 2026})
    return catalog.commit(source, [NewDocument(path, "r", "d", "recipe", document, parts, hashes)], [])


def _source(catalog: CatalogWriter) -> Source:
    return catalog.save_source(Source("docs", "files", "docs", "docs"))


def test_reading_an_older_generation(database: Database, embedder: HashingEmbedder) -> None:
    catalog = CatalogWriter(database)
    source = _source(catalog)
    assert _add(catalog, source, embedder, "a", "one", "two") == 1
    assert _add(catalog, source, embedder, "a", "three") == 2
    assert catalog.commit(source, [], ["a"]) == 3
    assert catalog.chunk_ids(1).tolist() == [1, 2]
    assert catalog.chunk_ids(2).tolist() == [3]
    assert catalog.chunk_ids(3).tolist() == []
    assert [row.uri for row in catalog.documents(2)] == ["docs/a"]
    assert catalog.dead_ids(1, 2).tolist() == [1, 2]
    assert catalog.dead_ids(1, 3, born_up_to=1).tolist() == [1, 2]
    assert catalog.dead_ids(2, 3).tolist() == [3]
    assert catalog.dead_ids(2, 2).tolist() == []
    assert {key: row[1] for key, row in catalog.chunk_rows([1, 2, 3]).items()} == {1: "one", 2: "two", 3: "three"}


def test_a_commit_does_not_scan_tables(folder: Path, embedder: HashingEmbedder) -> None:
    catalog = CatalogWriter(SqliteDatabase(folder))
    source = _source(catalog)
    _add(catalog, source, embedder, "a", "one", "two")
    plans = _plans(catalog, lambda: _add(catalog, source, embedder, "a", "three"))
    assert any("chunks" in plan for plan in plans)
    walks = [plan for plan in plans if "SCAN" in plan or "died" in plan]
    assert set(walks) <= {"SCAN generations"}  # the newest row


def test_reads_use_indexes_and_do_not_sort(folder: Path, embedder: HashingEmbedder) -> None:
    catalog = CatalogWriter(SqliteDatabase(folder))
    _add(catalog, _source(catalog), embedder, "a", "one", "two")
    newest = catalog.at()
    plans = _plans(catalog, lambda: catalog.documents(None, documents.c.uri == "docs/a"))
    assert any("documents_alive" in plan for plan in plans)
    assert not any("SCAN" in plan for plan in plans)
    plans = _plans(catalog, lambda: catalog.chunk_vectors(newest))
    assert "SCAN chunks" in plans
    assert not any("TEMP B-TREE" in plan for plan in plans)  # which would have all vectors in it
    plans = _plans(catalog, lambda: catalog.chunk_vectors(newest, born_after=0))
    assert not any("SCAN" in plan for plan in plans)


def test_compaction_scans_documents_and_vectors_once(folder: Path, embedder: HashingEmbedder) -> None:
    catalog = CatalogWriter(SqliteDatabase(folder))
    source = _source(catalog)
    _add(catalog, source, embedder, "a", "one", "two")
    _add(catalog, source, embedder, "a", "three")
    store = Store(catalog.database, Settings(), embedder)
    plans = _plans(catalog, lambda: compact(store, catalog))
    assert plans.count("SCAN documents") == 1
    assert any("contract_id=? AND text_hash>?" in plan for plan in plans)
    assert not [plan for plan in plans if plan.startswith(("SCAN vectors", "SCAN tags", "SCAN groups"))]
    assert len(catalog.documents(None)) == 1


def _plans(catalog: CatalogWriter, action: Callable[[], object]) -> list[str]:
    """The query plans of the statements of an action."""
    statements, plans = list[tuple[str, Any]](), list[str]()

    def record(_: object, cursor: object, sql: str, parameters: Any, *rest: object) -> None:
        statements.append((sql, parameters))

    sa.event.listen(catalog._engine, "before_cursor_execute", record)
    action()
    sa.event.remove(catalog._engine, "before_cursor_execute", record)
    with catalog.read() as connection:
        for sql, parameters in statements:
            if sql.startswith(("SELECT", "UPDATE", "DELETE")):
                rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters)
                plans += [row.detail for row in rows]
    return plans


def test_text_of_a_chunk_is_its_slice_in_code_points(database: Database, embedder: HashingEmbedder) -> None:
    catalog = CatalogWriter(database)
    parts = ("𝔘𝔫𝔦 — naïve 👩‍👩‍👧", "zweiter Satz ß", "第三")
    _add(catalog, _source(catalog), embedder, "a", *parts)
    rows = catalog.chunk_rows([1, 2, 3])
    assert tuple(rows[key][1] for key in (1, 2, 3)) == parts


def test_vectors_are_returned_as_stored(database: Database, embedder: HashingEmbedder) -> None:
    catalog = CatalogWriter(database)
    source = _source(catalog)
    _add(catalog, source, embedder, "a", "one", "two")
    _add(catalog, source, embedder, "b", "two", "three")
    ids, vectors = catalog.chunk_vectors(catalog.at(2))
    assert ids.tolist() == [1, 2, 3, 4]
    assert np.array_equal(vectors, embedder.embed_queries(["one", "two", "two", "three"]))
    assert catalog.chunk_vectors(catalog.at(2), born_after=1)[0].tolist() == [3, 4]


def test_a_chunk_without_a_vector_is_reported_as_damage(database: Database, embedder: HashingEmbedder) -> None:
    catalog = CatalogWriter(database)
    _add(catalog, _source(catalog), embedder, "a", "one")
    with catalog.write() as connection:
        connection.execute(vectors.delete())
    with pytest.raises(DamagedCollectionError, match="chunk 1 "):
        catalog.chunk_vectors(catalog.at(1))


def test_chunk_ids_are_not_reused(database: Database, embedder: HashingEmbedder) -> None:
    catalog = CatalogWriter(database)
    source = _source(catalog)
    _add(catalog, source, embedder, "a", "one", "two")
    with catalog.write() as connection:
        connection.execute(chunks.delete())
    _add(catalog, source, embedder, "b", "three")
    assert catalog.chunk_ids(2).tolist() == [3]


def test_two_documents_with_the_same_uri_are_refused(database: Database, embedder: HashingEmbedder) -> None:
    catalog = CatalogWriter(database)
    source = _source(catalog)
    other = catalog.save_source(Source("other", "files", "other", "other"))
    _add(catalog, source, embedder, "a", "one")
    with pytest.raises(CollectionError):
        _add(catalog, other, embedder, "a", "two")
    assert catalog.generation() == 1
    assert catalog.chunk_ids(1).tolist() == [1]


def test_failures_are_saved_and_cleared(database: Database, embedder: HashingEmbedder) -> None:
    catalog = CatalogWriter(database)
    source = _source(catalog)
    _add(catalog, source, embedder, "a", "one")
    catalog.note(source.id, failed=[Failure("a", "parse", "why", "r2", attempts=2), Failure("b", "fetch", "gone", "r")])
    assert [(row.path, row.stage, row.attempts, bool(row.stale)) for row in catalog.failures()] == [
        ("a", "parse", 2, True),
        ("b", "fetch", 1, False),
    ]
    _add(catalog, source, embedder, "a", "two")
    catalog.note(source.id, cleared=["b"])
    assert catalog.failures() == []


def test_a_catalog_behind_head_is_damaged(folder: Path, embedder: HashingEmbedder) -> None:
    catalog = CatalogWriter(SqliteDatabase(folder))
    source = _source(catalog)
    _add(catalog, source, embedder, "a", "one")
    catalog.close()
    shutil.copy(folder / CATALOG_FILE, folder / "older")
    catalog = CatalogWriter(SqliteDatabase(folder))
    _add(catalog, source, embedder, "b", "two")
    catalog.close()
    (folder / "older").replace(folder / CATALOG_FILE)
    with pytest.raises(DamagedCollectionError, match=r"generation 2 .* was acknowledged"):
        Catalog(SqliteDatabase(folder))


def test_a_different_history_of_the_same_length_is_damaged(folder: Path, embedder: HashingEmbedder) -> None:
    catalog = CatalogWriter(SqliteDatabase(folder))
    _add(catalog, _source(catalog), embedder, "a", "one")
    catalog.close()
    head = read_checksummed(folder / HEAD_FILE)
    (folder / HEAD_FILE).write_bytes(encode_checksummed({**head, "digest": "0" * 32}))
    with pytest.raises(DamagedCollectionError):
        Catalog(SqliteDatabase(folder))


def test_a_catalog_ahead_of_head_opens_and_head_catches_up(folder: Path, embedder: HashingEmbedder) -> None:
    before = (folder / HEAD_FILE).read_bytes()
    catalog = CatalogWriter(SqliteDatabase(folder))
    _add(catalog, _source(catalog), embedder, "a", "one")
    catalog.close()
    (folder / HEAD_FILE).write_bytes(before)  # killed between the two
    assert Catalog(SqliteDatabase(folder)).generation() == 1
    assert read_checksummed(folder / HEAD_FILE)["generation"] == 0  # a reader writes nothing
    CatalogWriter(SqliteDatabase(folder)).close()
    assert read_checksummed(folder / HEAD_FILE)["generation"] == 1  # readers may have seen it: it must not be lost now


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"generation": 0}'])
def test_a_damaged_head_is_reported(folder: Path, content: bytes) -> None:
    (folder / HEAD_FILE).write_bytes(content)
    with pytest.raises(DamagedCollectionError, match="HEAD"):
        Catalog(SqliteDatabase(folder))


def test_a_changed_digit_in_head_is_detected(folder: Path) -> None:
    values = json.loads((folder / HEAD_FILE).read_bytes())
    values["generation"] = 1
    (folder / HEAD_FILE).write_text(json.dumps(values))
    with pytest.raises(DamagedCollectionError, match=r"checksum .* expected"):
        Catalog(SqliteDatabase(folder))


def test_a_file_that_is_not_a_database_is_reported(folder: Path) -> None:
    (folder / CATALOG_FILE).write_bytes(b"not a database at all" * 1000)
    with pytest.raises(DamagedCollectionError, match=CATALOG_FILE):
        Catalog(SqliteDatabase(folder))


def test_a_reader_cannot_write(folder: Path) -> None:
    with pytest.raises(CollectionError, match="readonly"), Catalog(SqliteDatabase(folder)).read() as connection:
        connection.exec_driver_sql("DELETE FROM generations")


def test_a_transient_error_is_not_reported_as_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: object, **__: object) -> None:
        raise pysqlite3.OperationalError("locked")

    monkeypatch.setattr("pysqlite3.connect", locked)
    with pytest.raises(CollectionError, match="cannot be opened") as raised:
        Catalog(SqliteDatabase(folder))
    assert not isinstance(raised.value, DamagedCollectionError)


def test_a_failed_write_of_head_fails_the_commit(
    folder: Path, embedder: HashingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = CatalogWriter(SqliteDatabase(folder))
    source = _source(catalog)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("ragfm.store.sqlite_database.write_durably", full)
        with pytest.raises(CollectionError, match="No space left"):
            _add(catalog, source, embedder, "a", "one")
    catalog.close()
    assert CatalogWriter(SqliteDatabase(folder)).generation() == 1
