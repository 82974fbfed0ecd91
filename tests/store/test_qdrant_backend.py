"""The backend `qdrant` on Qdrant's own engine, behind an HTTP server of the tests; see `support.qdrant_server`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qdrant_client")
pytest.importorskip("qdrant_edge")

import numpy as np
import qdrant_edge as edge
from ragfm_backends import qdrant_backend
from ragfm_backends.qdrant_backend import QdrantSnapshot
from support.generated_chunks import add, check_recall, predicate, written
from support.qdrant_server import QdrantServer, qdrant_server

from ragfm import Collection
from ragfm.core.config import Settings
from ragfm.core.errors import CollectionError, CollectionUnavailableError, ConfigError
from ragfm.testing import HashingEmbedder, check_backend


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[QdrantServer]:
    with qdrant_server(tmp_path / "qdrant") as running:
        monkeypatch.setenv("RAGFM_BACKEND_OPTIONS", json.dumps({"qdrant": {"url": running.url}}))
        yield running


def _open(place: str | Path, backend: str = "qdrant") -> Collection:
    return Collection.open(place, settings=Settings(backend=backend), embedder=HashingEmbedder())


def _found(collection: Collection) -> list[Any]:
    return [
        [(hit.uri, hit.start, hit.scores) for hit in handle.search(query, 6, mode=mode, filter=filter)]
        for handle in (collection, collection.as_groups({"hr"}), collection.as_groups(set()))
        for mode in ("hybrid", "dense")
        for query in ("days of leave", "dogs in the office")
        for filter in (None, "uri like docs/%.md")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("few", [20, 10_000])
def test_qdrant_keeps_the_contract(
    few: int, server: QdrantServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdrant_backend, "_FEW", few)  # above it, more candidates are asked for
    check_backend(QdrantSnapshot, tmp_path / "collection")


def test_equal_chunks_that_the_graph_leaves_out_are_found(
    server: QdrantServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(backend="qdrant")
    with written(tmp_path / "c", 200, QdrantSnapshot, settings) as catalog:
        add(catalog, [50], chunks=12, equal=True)
        ids, vectors = catalog.chunk_vectors(catalog.at(), born_after=catalog.at().id - 1)
        QdrantSnapshot.save(catalog, settings, language_changed=lambda *_: None)
        snapshot = QdrantSnapshot.open(catalog, catalog.at(), settings)
        search = qdrant_backend._Points.search

        def without_lowest(points: Any, *arguments: Any, exact: bool) -> Any:
            scores, found = search(points, *arguments, exact=exact)
            kept = exact | ~np.isin(found, ids[:6])
            return scores[kept], found[kept]

        monkeypatch.setattr(qdrant_backend._Points, "search", without_lowest)
        for k in range(2, 7):
            assert snapshot.search(vectors[:1], k)[1].tolist() == sorted(ids)[:k], k


@pytest.mark.slow
def test_qdrant_keeps_the_contract_on_postgresql(server: QdrantServer, address: str) -> None:
    check_backend(QdrantSnapshot, address)


def test_the_graph_finds_what_a_predicate_leaves(
    server: QdrantServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdrant_backend, "_FEW", 50)
    settings = Settings(backend="qdrant")
    with written(tmp_path / "c", 2_000, QdrantSnapshot, settings) as catalog:
        (collection,) = server.collections.values()
        assert collection.shard.info().indexed_vectors_count >= 1_000
        snapshot = QdrantSnapshot.open(catalog, catalog.at(), settings)
        queries = catalog.chunk_vectors(snapshot.generation)[1][::100]
        for where in (None, predicate(catalog, "number < 10"), predicate(catalog, "number = 3", frozenset({"hr"}))):
            assert check_recall(snapshot, catalog, where, 10, queries) >= 0.99, where


def test_results_equal_those_of_the_other_backend(server: QdrantServer, docs: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "pay.md").write_text("# Pay\n\nThe office pays for days of leave.\n")
    local, collection = _open(tmp_path / "local", "local"), _open(tmp_path / "on-a-server")
    for one in (local, collection):
        one.sync(docs)
        one.sync(secret, allow=["hr"])
    assert _found(collection) == _found(local)
    status = collection.status().indexes[0]
    assert (status["kind"], status["pending"], status["vectors"]) == ("qdrant", 0, local.status().chunks)
    for change in (lambda one: one.remove("docs/hours.txt"), lambda one: one.compact(), lambda one: one.sync(docs)):
        for one in (local, collection):
            change(one)
        assert _found(collection) == _found(local)
        assert _found(_open(tmp_path / "on-a-server")) == _found(local)
        assert not collection.verify().damaged


def test_damaged_points_are_reported_and_repaired(server: QdrantServer, docs: Path, tmp_path: Path) -> None:
    collection = _open(tmp_path / "c")
    collection.sync(docs)
    expected = _found(collection)
    ((name, stored),) = server.collections.items()
    points, _ = stored.shard.scroll(edge.ScrollRequest(limit=100, with_vector=True, with_payload=True))
    first, second = points[0], points[1]
    stored.update(edge.UpdateOperation.delete_points([first.id]))
    opposite = [-number for number in second.vector]
    stored.update(edge.UpdateOperation.upsert_points([edge.Point(second.id, opposite, second.payload)]))
    (finding,) = collection.verify().findings
    assert (finding.file, finding.found) == (f"Qdrant, {name}", "1 missing, 1 different and 0 unknown")
    behind = _open(tmp_path / "c")
    assert _found(behind) == expected  # all vectors are in memory
    assert behind.status().indexes[0]["pending"] == len(points)
    stored.update(edge.UpdateOperation.upsert_points([edge.Point(2**50, opposite, second.payload)]))
    report = collection.verify(repair=True)
    assert not report.damaged
    assert "1 missing, 1 different and 1 unknown" in "".join(report.mended)
    reopened = _open(tmp_path / "c")
    assert reopened.status().indexes[0]["pending"] == 0
    assert _found(reopened) == expected


def test_points_of_another_history_are_not_used(server: QdrantServer, docs: Path, tmp_path: Path) -> None:
    collection = _open(tmp_path / "c")
    collection.sync(docs)
    collection.backup(tmp_path / "backup")
    (docs / "more.txt").write_text("Night watchmen sleep by day.")
    collection.sync(docs)
    (stored,) = server.collections.values()
    stored.metadata["digest"] = "of another history"
    assert _open(tmp_path / "c").search("watchmen", 1, mode="dense")[0].uri == "docs/more.txt"
    restored = _open(tmp_path / "restored")
    restored.restore(tmp_path / "backup")
    expected = _found(_open(tmp_path / "restored", "local"))
    assert _found(_open(tmp_path / "restored")) == expected
    (docs / "more.txt").unlink()
    collection.sync(docs)
    assert _found(collection) == expected
    assert _open(tmp_path / "c").status().indexes[0]["pending"] == 0


def test_another_embedder_gets_points_of_its_own(server: QdrantServer, docs: Path, tmp_path: Path) -> None:
    collection = _open(tmp_path / "c")
    collection.sync(docs)
    collection.reembed(HashingEmbedder("other", dim=32))
    assert collection.search("days of leave", mode="dense")[0].uri == "docs/leave.md"
    assert collection.status().indexes[0]["pending"] == 0
    collection.compact()
    (docs / "more.txt").write_text("Night watchmen sleep by day.")
    collection.sync(docs)
    assert [name[-2:] for name in server.collections] == ["_2"]


def test_a_server_that_is_away_is_named_and_catches_up(docs: Path, tmp_path: Path, server: QdrantServer) -> None:
    collection = _open(tmp_path / "c")
    collection.sync(docs)
    (docs / "more.txt").write_text("Night watchmen sleep by day.")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAGFM_BACKEND_OPTIONS")
        nobody = Settings(backend="qdrant", backend_options={"qdrant": {"url": "http://127.0.0.1:9"}})
        away = Collection.open(tmp_path / "c", settings=nobody, embedder=HashingEmbedder())
        with pytest.raises(CollectionUnavailableError, match=r"Qdrant at 'http://127\.0\.0\.1:9' cannot be used"):
            away.sync(docs)
    assert collection.search("watchmen", 1, mode="dense")[0].uri == "docs/more.txt"  # the tail
    collection.sync(docs)
    assert _open(tmp_path / "c").status().indexes[0]["pending"] == 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [({}, "no server to connect to"), ({"url": "ftp://host"}, "Unknown scheme"), ({"url": "http://h", "x": 1}, "'x'")],
)
def test_options_are_checked(options: dict[str, Any], problem: str, docs: Path, tmp_path: Path) -> None:
    settings = Settings(backend="qdrant", backend_options={"qdrant": options})
    with pytest.raises(ConfigError, match=problem):
        Collection.open(tmp_path / "c", settings=settings, embedder=HashingEmbedder()).sync(docs)


def test_a_server_without_metadata_is_refused(
    server: QdrantServer, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QdrantServer, "_patch", lambda *_: True)
    with pytest.raises(CollectionError, match=r"Use version 1\.16 or later"):
        _open(tmp_path / "c").sync(docs)


def test_vectors_are_stored_exactly(server: QdrantServer, docs: Path, tmp_path: Path) -> None:
    collection = _open(tmp_path / "c")
    collection.sync(docs)
    (stored,) = server.collections.values()
    points, _ = stored.shard.scroll(edge.ScrollRequest(limit=100, with_vector=True))
    catalog = collection._store.catalog
    ids, vectors = catalog.chunk_vectors(catalog.at())
    assert [point.id for point in points] == ids.tolist()
    assert np.array_equal(np.array([point.vector for point in points], dtype=np.float32), vectors)
