"""Compaction returns space, and readers do not notice."""

from __future__ import annotations

import resource
import threading
from pathlib import Path

import pytest

from ragfm import Collection, Settings
from ragfm.core.errors import CollectionError, UnsupportedError
from ragfm.store import compaction
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.tables import contracts, vectors
from ragfm.testing import HashingEmbedder


def _reopen(collection: Collection) -> Collection:
    return Collection.open(collection.location, settings=Settings(), embedder=HashingEmbedder())


def _hits(collection: Collection) -> list[tuple[str, int, float | None]]:
    return [(hit.uri, hit.chunk_id, hit.score) for hit in collection.search("28 days of leave", k=50)]


def _rewrite(docs: Path, collection: Collection, rounds: int, documents: int = 20) -> None:
    for number in range(rounds):
        for document in range(documents):
            (docs / f"{document}.txt").write_text(f"Round {number} of document {document}. " + f"word{number} " * 300)
        collection.sync(docs)


@pytest.mark.both_databases
def test_dead_rows_are_deleted_and_live_rows_stay(collection: Collection, docs: Path) -> None:
    _rewrite(docs, collection, 4)
    expected, generation = _hits(collection), collection.status().generation
    reader = _reopen(collection)
    assert _hits(reader) == expected
    seen: list[tuple[int, int | None]] = []
    report = collection.compact(lambda progress: seen.append((progress.done, progress.total)))
    assert report.chunks > 60
    assert report.documents == 60
    assert report.vectors > 60
    if collection.path.name == ".ragfm":  # a server keeps the space for new rows
        assert report.bytes_after < report.bytes_before / 2
    assert seen[-1] == (report.chunks, report.chunks)
    for handle in (collection, reader, _reopen(collection)):
        assert _hits(handle) == expected
        assert handle.status().generation == generation
    again = collection.compact()
    assert (again.chunks, again.documents, again.vectors) == (0, 0, 0)
    assert collection.sync(docs).chunks == 0  # no vector in use was deleted


@pytest.mark.both_databases
def test_a_reader_below_the_floor_reads_again(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    reader = _reopen(collection)
    snapshot = reader._store.snapshot()
    _rewrite(docs, collection, 2)
    (docs / "leave.md").unlink()
    collection.sync(docs)
    collection.compact()
    assert reader._store.catalog.floor() > snapshot.generation.id
    assert _hits(reader) == _hits(_reopen(collection))
    assert "docs/leave.md" not in {hit[0] for hit in _hits(reader)}


def test_compaction_erases_a_removed_source(collection: Collection, docs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "secret.txt").write_text("The secret is xyzzy-4711.")
    collection.sync(docs)
    collection.sync(other)
    with collection._store.writing() as catalog:
        (source,) = (source for source in catalog.sources() if source.name == "other")
        catalog.remove_source(source)
    assert [source["name"] for source in collection.status().sources] == ["docs"]
    collection.compact()
    collection.close()
    for file in collection.path.rglob("*"):
        assert not file.is_file() or b"xyzzy-4711" not in file.read_bytes()
    assert collection.sync(other).added == 1  # the name is free


def test_vectors_of_images_that_0_2_0_made_are_deleted(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    hits = _hits(collection)
    with collection.store.writing() as catalog, catalog.write() as connection:
        (contract,) = connection.execute(
            contracts.insert().values(fingerprint={"model": "clip", "dim": 4, "images": True})
        ).inserted_primary_key
        row = {"contract_id": contract, "text_hash": bytes(16), "vector": bytes(16), "checksum": 0}
        connection.execute(vectors.insert(), row)
    assert collection.compact().vectors == 1
    assert _hits(collection) == hits


def test_a_sync_compacts_when_many_chunks_are_dead(
    collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "_MIN_DEAD_CHUNKS", 50)
    _rewrite(docs, collection, 1)
    with collection._store.writing() as catalog:
        assert compaction.count_dead_chunks(catalog) == 0
    _rewrite(docs, collection, 3)
    with collection._store.writing() as catalog:
        assert compaction.count_dead_chunks(catalog) < 50
        assert catalog.floor() > 0


def test_readers_search_during_compaction(collection: Collection, docs: Path) -> None:
    _rewrite(docs, collection, 3)
    reader, stop = _reopen(collection), threading.Event()
    wrong: list[list[tuple[str, int, float | None]]] = []
    expected = _hits(reader)

    def search() -> None:
        while not stop.is_set():
            found = _hits(reader)
            if found != expected:
                wrong.append(found)

    thread = threading.Thread(target=search)
    thread.start()
    for _ in range(3):
        collection.compact()
    stop.set()
    thread.join()
    assert wrong == []


def test_a_restricted_handle_cannot_compact(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    with pytest.raises(UnsupportedError):
        collection.as_groups({"hr"}).compact()


def test_a_failed_shrink_is_reported_and_succeeds_later(
    collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _rewrite(docs, collection, 3)
    expected, shrink = _hits(collection), CatalogWriter.shrink
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def without_space(catalog: CatalogWriter) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            shrink(catalog)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(CatalogWriter, "shrink", without_space)
    with pytest.raises(CollectionError, match="cannot be returned"):
        collection.compact()
    monkeypatch.undo()
    report = collection.compact()
    assert report.bytes_after < report.bytes_before / 2
    assert _hits(collection) == expected
