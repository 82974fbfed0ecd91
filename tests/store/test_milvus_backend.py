from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from support.generated_chunks import add, check_recall, predicate, unit, written

from ragfm import Collection
from ragfm.core.config import MilvusSection, Settings
from ragfm.core.errors import CollectionUnavailableError, ConfigError
from ragfm.store import milvus_backend
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.milvus_backend import MilvusSnapshot, _Rows
from ragfm.testing import HashingEmbedder, check_backend

server_manager_instance = pytest.importorskip("milvus_lite.server_manager").server_manager_instance
from support.milvus_lite import milvus_settings  # noqa: E402  it needs milvus-lite


@pytest.fixture
def milvus(tmp_path: Path) -> Iterator[Settings]:
    with milvus_settings(tmp_path) as settings:
        yield settings


def save(catalog: CatalogWriter, settings: Settings) -> MilvusSnapshot:
    MilvusSnapshot.save(catalog, settings, language_changed=lambda *_: None)
    return opened(catalog, settings)


def opened(catalog: CatalogWriter, settings: Settings) -> MilvusSnapshot:
    return MilvusSnapshot.open(catalog, catalog.at(), settings)


def rows_of(catalog: CatalogWriter, settings: Settings) -> _Rows:
    return _Rows(catalog, catalog.at().contract_id, settings)


def stored_queries(catalog: CatalogWriter, step: int) -> Any:
    rows = catalog.chunk_vectors(catalog.at())[1][::step]
    return unit(rows + np.random.default_rng(1).normal(0, 0.05, rows.shape))


@pytest.mark.slow
def test_it_keeps_the_contract(tmp_path: Path, milvus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milvus_backend, "_FEW", 20)  # above it, candidates are filtered
    monkeypatch.setenv("RAGFM_MILVUS__URI", milvus.milvus.uri)
    check_backend(MilvusSnapshot, tmp_path / "collection")


@pytest.mark.slow
def test_it_keeps_the_contract_on_postgresql(address: str, milvus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGFM_MILVUS__URI", milvus.milvus.uri)
    check_backend(MilvusSnapshot, address)


@pytest.mark.slow
def test_recall_and_hits_under_predicates(tmp_path: Path, milvus: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with written(tmp_path / "collection", 5_000, MilvusSnapshot, milvus) as catalog:
        rows = rows_of(catalog, milvus)
        rows._client.flush(rows.name)  # new rows are compared; only flushed ones are indexed
        snapshot = opened(catalog, milvus)
        assert not len(snapshot._tail_ids)
        wheres = [
            None,
            predicate(catalog, None, frozenset()),
            predicate(catalog, "number < 25"),
            predicate(catalog, "number = 7"),
            predicate(catalog, "number = 50"),
            predicate(catalog, "number in (7, 8)", frozenset({"hr"})),
        ]
        for few in (4_000, 10):
            monkeypatch.setattr(milvus_backend, "_FEW", few)
            for where in wheres:
                for k in (10, 120):
                    assert check_recall(snapshot, catalog, where, k, stored_queries(catalog, 500)) >= 0.99, where


def test_a_snapshot_keeps_its_generation(tmp_path: Path, milvus: Settings) -> None:
    with written(tmp_path / "collection", 300, MilvusSnapshot, milvus) as catalog:
        queries = stored_queries(catalog, 100)
        pinned = opened(catalog, milvus)
        expected = [array.tolist() for query in queries for array in pinned.search(query[np.newaxis], 30)]
        add(catalog, [0, 1], version=1)
        catalog.commit(catalog.sources()[0], [], ["2"])
        unsaved = pinned.extend(catalog.at())
        assert check_recall(unsaved, catalog, None, 30, queries) == 1
        for snapshot in (save(catalog, milvus), pinned.extend(catalog.at())):
            assert check_recall(snapshot, catalog, None, 30, queries) == 1
        assert [array.tolist() for query in queries for array in pinned.search(query[np.newaxis], 30)] == expected
        assert len(unsaved._tail_ids) == 200  # in the third, Milvus has them


def test_each_of_two_checks_keeps_other_groups_out(
    tmp_path: Path, milvus: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with written(tmp_path / "collection", 400, MilvusSnapshot, milvus) as catalog:
        snapshot = opened(catalog, milvus)
        queries, public = stored_queries(catalog, 100), predicate(catalog, None, frozenset())
        visible = catalog.chunk_ids(catalog.generation(), *public.conditions)

        def found(where: Any) -> set[int]:
            return {int(one) for query in queries for one in snapshot.search(query[np.newaxis], 50, where)[1]}

        assert found(public) <= set(visible.tolist())
        for few in (4_000, 10):
            monkeypatch.setattr(milvus_backend, "_FEW", few)
            for text in (None, "number < 9"):
                forgotten = replace(predicate(catalog, text, frozenset()), conditions=())
                assert found(forgotten)
                assert found(forgotten) <= set(visible.tolist()), "Milvus returned a row of another group"
        monkeypatch.setattr(MilvusSnapshot, "_condition", lambda self, where: "born >= 0")
        assert found(public) <= set(visible.tolist()), "the catalog confirmed a row of another group"


def test_changed_groups_apply_at_once(tmp_path: Path, milvus: Settings) -> None:
    with written(tmp_path / "collection", 300, MilvusSnapshot, milvus) as catalog:
        source, before = catalog.sources()[0], opened(catalog, milvus)
        catalog.restrict(source, {"0": ("board",), "1": None, "2": ()})
        for opening in (before.extend, lambda _: save(catalog, milvus)):
            snapshot = opening(catalog.at())
            for names in (set[str](), {"hr"}, {"board"}):
                where = predicate(catalog, None, frozenset(names))
                assert check_recall(snapshot, catalog, where, 150, stored_queries(catalog, 100)) == 1
        assert not len(snapshot._tail_ids)


def test_lost_and_wrong_rows_are_found_again(tmp_path: Path, milvus: Settings) -> None:
    with written(tmp_path / "collection", 300, MilvusSnapshot, milvus) as catalog:
        rows, queries = rows_of(catalog, milvus), stored_queries(catalog, 50)
        ids = catalog.chunk_ids(catalog.generation())
        rows.delete(ids[:40].tolist())
        columns = ["id", "text", "born", "died", "groups", "vector"]
        damaged = rows._client.query(rows.name, f"id in {ids[40:50].tolist()}", output_fields=columns)
        changes = [{"died": 1}, {"groups": [5]}, {"text": 3}, {"born": 9}]
        for number, row in enumerate(damaged):
            rows._client.upsert(rows.name, [{**row, **changes[number % 4]}])
        rows._client.upsert(rows.name, [{**damaged[0], "id": 2**50}])  # which the catalog does not have
        snapshot = opened(catalog, milvus)
        assert snapshot._tail_ids.tolist() == ids[:50].tolist()
        assert snapshot.status(milvus)[0]["pending"] == 50
        assert check_recall(snapshot, catalog, None, 60, queries) == 1
        saved = save(catalog, milvus)
        assert not len(saved._tail_ids)
        assert sorted(rows.ids("id > 0").tolist()) == ids.tolist()
        rows._client.drop_collection(rows.name)
        assert check_recall(opened(catalog, milvus), catalog, None, 60, queries) == 1


def test_a_file_is_opened_again(tmp_path: Path, milvus: Settings) -> None:
    with written(tmp_path / "collection", 100, MilvusSnapshot, milvus) as catalog:
        server_manager_instance.release_server(milvus.milvus.uri)
        milvus_backend._client.cache_clear()
        snapshot = opened(catalog, milvus)
        assert not len(snapshot._tail_ids)
        assert check_recall(snapshot, catalog, None, 10, stored_queries(catalog, 50)) == 1


def _open(place: Path, settings: Settings) -> Collection:
    return Collection.open(place, settings=settings, embedder=HashingEmbedder())


def _found(collection: Collection) -> list[Any]:
    return [
        [(hit.uri, hit.start, hit.scores) for hit in handle.search(query, 6, mode=mode, filter=filter)]
        for handle in (collection, collection.as_groups({"hr"}), collection.as_groups(set()))
        for mode in ("hybrid", "dense")
        for query in ("days of leave", "dogs in the office")
        for filter in (None, "uri like docs/%.md")
    ]


@pytest.mark.slow
def test_results_equal_those_of_local(docs: Path, tmp_path: Path, milvus: Settings) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "pay.md").write_text("# Pay\n\nThe office pays for days of leave.\n")
    both = [_open(tmp_path / "local", Settings()), _open(tmp_path / "milvus", milvus)]
    for one in both:
        one.sync(docs)
        one.sync(secret, allow=["hr"])
    assert _found(both[1]) == _found(both[0])
    status = both[1].status().indexes[0]
    assert (status["kind"], status["pending"], status["state"]) == ("milvus", 0, "in Milvus")
    assert not [path for path in (tmp_path / "milvus").rglob("vectors/*") if path.is_file()]
    for change in (lambda one: one.remove("docs/hours.txt"), lambda one: one.compact(), lambda one: one.sync(docs)):
        for one in both:
            change(one)
        assert _found(both[1]) == _found(both[0])
    both[1].reembed(HashingEmbedder("other", dim=32))
    both[1].compact()
    both[1].sync(docs)
    rows = _Rows(both[1]._store.catalog, 2, milvus)
    assert rows._client.list_collections() == [rows.name]


def test_damaged_rows_are_reported_and_repaired(docs: Path, tmp_path: Path, milvus: Settings) -> None:
    collection = _open(tmp_path / ".ragfm", milvus)
    collection.sync(docs)
    expected, catalog = _found(collection), collection._store.catalog
    assert not collection.verify().damaged
    rows = _Rows(catalog, 1, milvus)
    first, second, third, *_ = rows._client.query(rows.name, "id > 0", output_fields=["*"])
    rows.delete([first["id"]])
    rows._client.upsert(rows.name, [{**second, "vector": [-number for number in second["vector"]]}])
    rows._client.upsert(rows.name, [{**third, "groups": []}, {**third, "id": 2**50}])
    (finding,) = collection.verify().findings
    assert finding.file == f"Milvus, {rows.name}"
    assert finding.found == "2 missing or different, 1 unknown, 1 with another vector"
    report = collection.verify(repair=True)
    assert not report.damaged
    assert finding.found in "".join(report.mended)
    assert not any([*next(rows.differences(catalog)), *rows.wrong_vectors(catalog, catalog.at())])
    assert _found(_open(tmp_path / ".ragfm", milvus)) == expected


def test_a_server_that_is_away_is_named(docs: Path, tmp_path: Path, milvus: Settings) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://me:hidden@127.0.0.1:{unused.getsockname()[1]}"
        away = Settings(backend="milvus", milvus=MilvusSection(uri=uri, token=SecretStr("secret")))
        _open(tmp_path / ".ragfm", Settings()).sync(docs)
        message = r"^Milvus at 'http://127\.0\.0\.1:\d+' cannot be used: "
        with pytest.raises(CollectionUnavailableError, match=message) as raised:
            _open(tmp_path / ".ragfm", away).search("leave")
        assert "hidden" not in str(raised.value)
        assert "secret" not in repr(away)
        with pytest.raises(CollectionUnavailableError, match="the next ingest adds their vectors"):
            _open(tmp_path / "new", away).sync(docs)
    added = _open(tmp_path / "new", milvus)
    assert not added.sync(docs).added
    assert added.status().indexes[0]["pending"] == 0


def test_an_address_is_needed(docs: Path, tmp_path: Path) -> None:
    _open(tmp_path / ".ragfm", Settings()).sync(docs)
    with pytest.raises(ConfigError, match=r"Set `milvus\.uri`"):
        _open(tmp_path / ".ragfm", Settings(backend="milvus")).search("leave")
