"""Copies to PostgreSQL and back."""

from __future__ import annotations

import gc
import io
import zipfile
from pathlib import Path

import pytest
from support.postgres_server import PostgresServer

from ragfm import Collection, Settings
from ragfm.core.errors import CollectionError, CollectionNotFound, DamagedCollectionError, UnsupportedError
from ragfm.core.progress import Progress
from ragfm.maintenance import copy as module
from ragfm.store.uploads import UploadFolder
from ragfm.testing import HashingEmbedder


def _open(place: str | Path) -> Collection:
    return Collection.open(place, settings=Settings(), embedder=HashingEmbedder())


@pytest.fixture
def filled(address: str, collection: Collection, docs: Path) -> Collection:
    """A collection in a folder, with dead rows, tags, groups, a failure and two sources."""
    del address  # it sets the working directory
    collection.sync(docs, tags={"year": 2026})
    (docs / "leave.md").write_text("# Leave\n\nYou get 30 days of leave, half\u2028and half: \U0001f334.\n")
    collection.sync(docs)
    (docs.parent / "board").mkdir()
    (docs.parent / "board" / "salaries.txt").write_text("The salaries of the board.")
    (docs.parent / "board" / "broken.docx").write_bytes(b"PK\3\4 not a document")
    collection.sync(docs.parent / "board", allow=["board"])
    return collection


def _content(collection: Collection) -> object:
    hits = [collection.search(query, 20) for query in ("days of leave", "salaries", "oak")]
    public = collection.as_groups(set()).search("salaries", 20)
    status = collection.status()
    documents = [collection.document(info.uri) for info in collection.documents("year = 2026")]
    return collection.state, hits, public, documents, status.failed, status.chunks, status.generation


def test_a_copy_is_equal_and_embeds_nothing(filled: Collection, address: str, docs: Path, tmp_path: Path) -> None:
    report = filled.copy(address)
    assert (report.documents, report.chunks) == (filled.status().documents, filled.status().chunks)
    assert report.digest == filled._store.catalog.at().digest
    server = _open(address)
    assert _content(server) == _content(filled)
    back = server.copy(tmp_path / "back")
    assert back.digest == report.digest
    folder = _open(tmp_path / "back")
    assert _content(folder) == _content(filled)
    assert folder.status().sources == filled.status().sources  # relative locations again
    (docs / "more.txt").write_text("Night watchmen sleep by day.")
    for collection in (filled, server, folder):  # all can go on, each by itself
        result = collection.sync()
        assert (result.added, result.unchanged, result.removed) == (1, 5, 0)
        assert not collection.verify().damaged
        assert collection.search("watchmen", 1)[0].uri == "docs/more.txt"
    assert len({collection._store.catalog.at().digest for collection in (filled, server, folder)}) == 1


@pytest.mark.parametrize("direction", ["to", "from"])
def test_an_interrupted_copy_leaves_nothing(
    filled: Collection, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    monkeypatch.setattr(module, "_BATCH_ROWS", 2)
    source: Collection = filled
    target: str | Path = address
    if direction == "from":
        filled.copy(address)
        source, target = _open(address), tmp_path / "copy"

    def interrupt(progress: Progress) -> None:
        if progress.done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source.copy(target, interrupt)
    with pytest.raises(CollectionNotFound):
        _open(target).search("leave")
    assert not list(tmp_path.glob("copy*"))
    report = source.copy(target)
    assert report.vectors >= source.status().chunks
    assert _content(_open(target)) == _content(source)


def test_an_existing_collection_is_never_overwritten(
    filled: Collection, address: str, docs: Path, tmp_path: Path
) -> None:
    _open(address).sync(docs)
    with pytest.raises(CollectionError, match="already"):
        filled.copy(address)
    with pytest.raises(CollectionError, match="already"):
        _open(address).copy(filled.path)
    with pytest.raises(UnsupportedError, match="backup"):
        filled.copy(tmp_path / "folder")
    with pytest.raises(CollectionNotFound):
        _open(tmp_path / "nothing").copy(f"{address}x")


def test_a_damaged_source_is_noticed(
    filled: Collection, address: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    filled.copy(address)
    schema = address.partition("collection=")[2]
    postgres.sql(f"UPDATE {schema}.documents SET text = replace(text, '30', '31')")
    with pytest.raises(DamagedCollectionError, match=r"differs from its source: .*docs/leave\.md"):
        _open(address).copy(tmp_path / "copy")


def test_uploads_are_copied_with_their_groups(filled: Collection, address: str, tmp_path: Path) -> None:
    uploads = UploadFolder(filled.path)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("inner.txt", "The okapi lives in the archive.")
    uploads.store(io.BytesIO(b"The zebra is called Bob."), "zebra.txt", ["key:ann", "hr"])
    uploads.store(archive, "okapi.zip", ["key:bob"])
    uploads.store(io.BytesIO(b""), "empty.txt", ["key:bob"])
    filled.sync(uploads.folder, name=".uploads")
    report = filled.copy(address)
    assert report.uploads == 3
    server = _open(address)
    assert [(one.uri, one.owner, one.bytes) for one in server.store.open_uploads().all()] == [
        (one.uri, one.owner, one.bytes) for one in uploads.all()
    ]
    back = server.copy(tmp_path / "back")
    assert (back.uploads, back.digest) == (3, report.digest)
    folder = _open(tmp_path / "back")
    elsewhere = address.replace("collection=", "collection=d")
    assert server.copy(elsewhere).uploads == 3
    for collection in (server, folder, _open(elsewhere)):
        result = collection.sync()
        assert (result.added, result.updated, result.removed) == (0, 0, 0)
        assert "zebra.txt" in collection.as_groups({"hr"}).search("zebra Bob", 1)[0].uri
        assert "zebra.txt" not in collection.as_groups({"key:bob"}).search("zebra Bob", 1)[0].uri
        assert "okapi.zip/inner.txt" in collection.as_groups({"key:bob"}).search("okapi archive", 1)[0].uri
    kept = sorted(path.relative_to(uploads.folder) for path in uploads.folder.rglob("*"))
    assert sorted(path.relative_to(folder.path / "uploads") for path in (folder.path / "uploads").rglob("*")) == kept
    gc.collect()
    assert not list(server.path.glob("uploads/*/*/*.zip"))  # contents do not stay on the machine
