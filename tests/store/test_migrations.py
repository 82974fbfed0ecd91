"""Collections with an older schema are migrated without loss."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from ragfm import Collection, Settings
from ragfm.core.durable_files import encode_checksummed
from ragfm.core.errors import CollectionError
from ragfm.store.migrations import SCHEMA_1_FILE
from ragfm.testing import HashingEmbedder

OLD = Path(__file__).parent / "collections" / "schema-1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A collection with schema 1, and its documents."""
    return _old_collection(tmp_path)


def _old_collection(parent: Path) -> Path:
    folder = parent / ".ragfm"
    folder.mkdir(parents=True)
    shutil.copy(OLD / "HEAD", folder)
    shutil.copytree(OLD / "docs", parent / "docs")
    connection = sqlite3.connect(folder / SCHEMA_1_FILE)
    connection.executescript((OLD / "catalog.sql").read_text())
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    return folder


def _open(folder: Path, embedder: HashingEmbedder | None = None) -> Collection:
    return Collection.open(folder, settings=Settings(), embedder=embedder or HashingEmbedder())


def test_schema_1_opens_with_the_same_content(folder: Path) -> None:
    collection = _open(folder)
    hits = collection.search("days of leave", k=9)
    assert hits[0].text.startswith("# Leave\n\nEverybody has 28 days")
    assert hits[0].headings == ("Leave",)
    status = collection.status()
    assert (status.documents, status.chunks, status.generation) == (2, 3, 2)
    assert [document.uri for document in collection.documents("year = 2026 and team = hr")] == [
        "docs/desks.csv",
        "docs/leave.md",
    ]
    assert collection.as_groups(set()).documents() == []
    assert len(collection.as_groups({"staff"}).documents()) == 2
    assert sorted(path.name for path in folder.iterdir() if "catalog" in path.name and "-" not in path.name) == [
        "catalog.db"
    ]


def test_verify_ignores_a_view_of_schema_1(folder: Path) -> None:
    view = folder / "views" / "dense-0000000002"
    view.mkdir(parents=True)
    manifest = {"generation": 2, "kind": "flat", "files": {"index.npy": "0f" * 16}}
    (view / "manifest.json").write_bytes(encode_checksummed(manifest))
    report = _open(folder).verify()
    assert (report.views, report.findings) == (1, ())


@pytest.mark.parametrize("name", ["50%25", "a#b", "what?", os.fsdecode(b"B\xfcro")])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    assert len(_open(_old_collection(tmp_path / name)).search("days of leave", k=9)) == 3


def test_the_next_sync_parses_again_and_embeds_what_has_another_context(folder: Path) -> None:
    embedder = HashingEmbedder()
    collection = _open(folder, embedder)
    report = collection.sync()
    assert (report.updated, report.chunks, report.removed, embedder.embedded) == (2, 1, 0, 1)  # it got a name
    assert collection.document("docs/leave.md").marks
    assert collection.sync().unchanged == 2


def test_a_failed_migration_leaves_the_collection_unchanged(folder: Path) -> None:
    connection = sqlite3.connect(folder / SCHEMA_1_FILE)
    connection.execute("UPDATE properties SET value = '0' WHERE key = 'schema'")
    connection.commit()
    connection.close()
    before = (folder / SCHEMA_1_FILE).read_bytes()
    with pytest.raises(CollectionError, match="schema"):
        _open(folder).status()
    assert (folder / SCHEMA_1_FILE).read_bytes() == before
    assert not list(folder.glob("catalog.db*"))


def test_an_interrupted_migration_runs_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("ragfm.store.migrations.sync_file", killed)
        with pytest.raises(KeyboardInterrupt):
            _open(folder).status()
    assert (folder / SCHEMA_1_FILE).exists()
    assert _open(folder).status().documents == 2
