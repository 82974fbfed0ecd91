"""Views: which generation a search sees, and how damaged views are handled."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ragfm_indexes.bm25 import BM25Index

from ragfm import Collection, Settings
from ragfm.core.errors import CollectionError, DamagedCollectionError
from ragfm.core.registry import KINDS, plugins
from ragfm.store import snapshot, views
from ragfm.testing import HashingEmbedder

pytestmark = pytest.mark.both_databases


def _view(collection: Collection) -> Path:
    (folder,) = (collection.path / "views").iterdir()
    return folder


def _files(collection: Collection) -> list[Path]:
    return sorted(path for path in _view(collection).rglob("*") if path.is_file())


def _ask(collection: Collection) -> list[tuple[str, float]]:
    return [(hit.uri, round(hit.score or 0, 6)) for hit in collection.search("28 days of leave", k=9)]


def _reopen(collection: Collection, **settings: str) -> Collection:
    return Collection.open(collection.location, settings=Settings(**settings), embedder=HashingEmbedder())


def test_a_sync_leaves_one_view_at_its_generation(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    first = _view(collection)
    (docs / "new.txt").write_text("Something new.")
    collection.sync(docs)
    assert not first.exists()
    index, words = collection.status().indexes
    assert (words["over"], words["texts"], words["saved"]) == ("words", index["vectors"], True)
    assert index["generation"] == collection.status().generation
    assert index["vectors"] == collection.status().chunks
    assert index["saved"]


@pytest.mark.in_a_folder
def test_changes_after_the_view_are_searched(collection: Collection, docs: Path, tmp_path: Path) -> None:
    collection.sync(docs)
    old = tmp_path / "old-view"
    shutil.copytree(_view(collection), old)
    (docs / "leave.md").unlink()
    (docs / "more.txt").write_text("Even 30 days of leave for night watchmen.")
    collection.sync(docs)
    expected = _ask(collection)
    # Only the older view is there, as after a crash before the new one was saved.
    name = _view(collection).name
    shutil.rmtree(_view(collection))
    old.rename(collection.path / "views" / name.replace(name[-1], "1"))
    late = _reopen(collection)
    assert _ask(late) == expected
    assert expected[0][0] == "docs/more.txt"
    assert "docs/leave.md" not in dict(expected)
    assert late.status().indexes[0]["generation"] < late.status().generation


def test_a_running_reader_sees_what_another_handle_commits(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    reader = _reopen(collection)
    assert reader.search("watchmen", k=1)[0].uri != "docs/more.txt"
    (docs / "more.txt").write_text("Night watchmen sleep by day.")
    collection.sync(docs)
    assert reader.search("watchmen", k=1)[0].uri == "docs/more.txt"


@pytest.mark.parametrize("kind", ["faiss-flat", "faiss-hnsw"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
def test_a_damaged_view_is_logged_and_not_used(
    tmp_path: Path, docs: Path, kind: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    collection = Collection.open(tmp_path / "c", settings=Settings(index=kind), embedder=HashingEmbedder())
    collection.sync(docs)
    expected = _ask(collection)
    for file in _files(collection):
        whole = file.read_bytes()
        if damage == "flip":
            file.write_bytes(
                whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :]
            )
        elif damage == "remove":
            file.unlink()
        else:
            file.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
        caplog.clear()
        late = _reopen(collection, index=kind)
        assert _ask(late) == expected
        assert "is damaged" in caplog.text
        assert not late.status().indexes[0]["saved"]
        file.write_bytes(whole)
    assert _reopen(collection, index=kind).status().indexes[0]["saved"]


def test_the_next_sync_replaces_a_damaged_view(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    for file in _files(collection):
        file.write_bytes(b"")
    late = _reopen(collection)
    assert late.sync(docs).chunks == 0
    assert _reopen(collection).status().indexes[0]["saved"]


def test_another_index_kind_is_built_from_the_catalog(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    expected = _ask(collection)
    other = _reopen(collection, index="faiss-hnsw")
    assert _ask(other) == expected
    other.sync(docs)
    index = other.status().indexes[0]
    assert (index["kind"], index["vectors"], index["pending"]) == ("faiss-hnsw", len(expected), 0)
    assert (index["state"], index["saved"]) == ("checked", True)


def test_the_first_search_opens_its_view_once(
    collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.sync(docs)
    opened = list[Path]()
    read = views.View.__init__

    def counted(view: views.View, folder: Path, manifest: Mapping[str, Any]) -> None:
        opened.append(folder)
        read(view, folder, manifest)

    monkeypatch.setattr(views.View, "__init__", counted)
    late = _reopen(collection)
    _ask(late)
    _ask(late)
    assert len(opened) == 1


def test_the_next_sync_rebuilds_a_keyword_index_of_an_older_version(
    collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr("ragfm_indexes.bm25.FINGERPRINT", "1")
        collection.sync(docs)
        expected = _ask(collection)
    late = _reopen(collection)
    assert _ask(late) == expected
    late.sync(docs)
    words = _reopen(collection).status().indexes[1]
    assert (words["saved"], words["texts"]) == (True, late.status().chunks)


def test_a_view_whose_plugin_was_removed_is_replaced(
    collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _reopen(collection, index="faiss-hnsw").sync(docs)
    expected = _ask(collection)
    others = {kind: {k: v for k, v in plugins(kind).items() if k != "faiss-hnsw"} for kind in KINDS}
    monkeypatch.setattr("ragfm.core.registry.plugins", others.get)
    late = _reopen(collection)
    assert _ask(late) == expected
    assert "is not used: There is no plugin 'faiss-hnsw'" in caplog.text
    late.sync(docs)
    assert _reopen(collection).status().indexes[0]["kind"] == "faiss-flat"


@pytest.mark.in_a_folder
def test_a_view_newer_than_the_catalog_means_lost_commits(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    older = collection.path.with_name("older")
    collection.close()
    shutil.copytree(collection.path, older)
    (docs / "new.txt").write_text("Something new.")
    collection.sync(docs)
    shutil.copytree(_view(collection), older / "views" / _view(collection).name)
    with pytest.raises(DamagedCollectionError, match="commits were lost"):
        Collection.open(older, settings=Settings(), embedder=HashingEmbedder()).search("leave")


def _folders(collection: Collection) -> list[str]:
    return sorted(path.name for path in (collection.path / "views").iterdir())


def test_a_view_saved_during_a_read_is_not_damage(
    collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    collection.sync(docs)
    reader = _reopen(collection)
    newest, overtaken = snapshot.newest_view, []

    def slowly(*given: object) -> object:
        if not overtaken:  # between reading the generation and looking for the view
            overtaken.append(True)
            (docs / "more.txt").write_text("Night watchmen sleep by day.")
            collection.sync(docs)
        return newest(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshot, "newest_view", slowly)
    assert reader.search("watchmen", k=1)[0].uri == "docs/more.txt"
    assert reader.status().indexes[0]["saved"]
    assert caplog.text == ""


def test_a_view_replaced_while_opened_is_not_damage(
    collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    collection.sync(docs)
    reader = _reopen(collection)
    read, overtaken = views._read_manifest, []

    def slowly(folder: Path, *given: object) -> object:
        if not overtaken:  # between listing the views and opening one
            overtaken.append(True)
            (docs / "more.txt").write_text("Night watchmen sleep by day.")
            collection.sync(docs)
        return read(folder, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(views, "_read_manifest", slowly)
    assert reader.search("watchmen", k=1)[0].uri == "docs/more.txt"
    assert reader.status().indexes[0]["saved"]
    assert caplog.text == ""


@pytest.mark.in_a_folder
def test_leftovers_of_a_full_disk_are_removed(
    collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.sync(docs)
    (docs / "more.txt").write_text("Night watchmen sleep by day.")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(views, "write_durably", full)
        with pytest.raises(CollectionError, match=r"documents are committed, but the view .* No space left"):
            collection.sync(docs)
    assert _folders(collection) == ["0000000001"]
    (collection.path / "views" / "0000000002.77.new").mkdir()  # left by writers that were killed
    (collection.path / "HEAD.1.new").touch()
    (collection.path.parent / f"{collection.path.name}.0123abcd.new" / "views").mkdir(parents=True)
    assert collection.search("watchmen", k=1)[0].uri == "docs/more.txt"
    collection.sync(docs)
    assert _folders(collection) == ["0000000002"]
    assert not list(collection.path.parent.rglob("*.new"))


def test_a_tail_is_extended_and_loses_dead_chunks(collection: Collection, docs: Path, tmp_path: Path) -> None:
    collection.sync(docs)
    reader = _reopen(collection)
    reader.search("leave")
    with collection._store.writing():  # no view is saved in here
        pass
    monkey = pytest.MonkeyPatch()
    monkey.setattr("ragfm.store.collection_store.Store.save_view", lambda *_: None)
    for number in range(6):
        (docs / "tail.txt").write_text(f"Tail number {number}.")
        (docs / f"more{number % 2}.txt").write_text(f"More of it, {number}.")
        if number == 3:
            (docs / "leave.md").unlink()
        collection.sync(docs)
        other = Collection.open(collection.location, settings=Settings(index="faiss-hnsw"), embedder=HashingEmbedder())
        for query in ("tail number 3", "28 days of leave", "more of it"):
            assert [(hit.chunk_id, hit.score) for hit in reader.search(query, k=50)] == [
                (hit.chunk_id, pytest.approx(hit.score, abs=1e-6)) for hit in other.search(query, k=50)
            ]
        assert len(reader._store.snapshot()) == reader.status().chunks
    monkey.undo()


def test_a_long_first_sync_saves_views_in_between(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragfm.store.collection_store._MIN_GROWTH", 10)
    monkeypatch.setattr("ragfm.ingestion.sync.MAX_COMMIT_DOCUMENTS", 5)
    (tmp_path / "many").mkdir()
    for number in range(100):
        (tmp_path / "many" / f"{number:02}.txt").write_text(f"Text number {number}.")
    saved = []
    monkeypatch.setattr(
        "ragfm.store.collection_store.Store.save_view", lambda _, catalog: saved.append(catalog.at().chunks)
    )
    collection.sync(tmp_path / "many")
    assert saved == [25, 65, 100]


def test_a_prepared_generation_serves_until_the_next_is_ready(
    collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.sync(docs)
    ready = Collection(collection.store, oldest=0)
    before = _ask(ready)
    (docs / "more.txt").write_text("Even 30 days of leave for night watchmen.")
    _reopen(collection).sync(docs)
    assert _ask(ready) == before
    collection.store.refresh()
    collection._store.settle()  # the newer view is opened in the background
    with monkeypatch.context() as changes:
        changes.setattr(BM25Index, "updated", None)  # a search has nothing left to do
        assert "docs/more.txt" in [uri for uri, _ in _ask(ready)]
    (docs / "more.txt").unlink()
    _reopen(collection).sync(docs)
    assert _ask(Collection(collection.store, oldest=collection.status().generation)) == before


def test_closed_documents_are_not_found_in_a_prepared_generation(collection: Collection, docs: Path) -> None:
    (docs / "boats").mkdir()
    (docs / "boats" / "leave.txt").write_text("Sailors get 28 days of leave.")
    access = docs / "boats" / ".ragfm-access"
    access.write_text("staff\n")
    collection.sync(docs)
    staff = collection.as_groups({"staff"}, oldest=0)
    both = _ask(staff)
    assert "docs/boats/leave.txt" in [uri for uri, _ in both]
    (docs / "hours.txt").write_text("Nobody works.")
    _reopen(collection).sync(docs)
    assert _ask(staff) == both
    access.write_text("board\n")
    _reopen(collection).sync(docs)
    open_to_all = [uri for uri, _ in _ask(staff)]
    assert open_to_all
    assert "docs/boats/leave.txt" not in open_to_all


@pytest.mark.in_a_folder
def test_a_prepared_generation_of_a_replaced_collection_is_not_searched(
    collection: Collection, docs: Path, tmp_path: Path
) -> None:
    collection.sync(docs)
    ready = Collection(collection.store, oldest=0)
    assert _ask(ready)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "zebras.txt").write_text("The zebra has 28 stripes.")
    with Collection.open(tmp_path / "other", settings=Settings(), embedder=HashingEmbedder()) as other:
        other.sync(tmp_path / "others")
    collection.path.rename(tmp_path / "before")
    (tmp_path / "other").rename(collection.path)
    assert [uri for uri, _ in _ask(ready)] == ["others/zebras.txt"]
