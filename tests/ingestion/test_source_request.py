"""Source requests: a source is resolved once per sync."""

from __future__ import annotations

import functools
import sqlite3
from pathlib import Path

import pytest
from ragfm_connectors.files import FilesConnector

from ragfm import Collection
from ragfm.core.errors import SourceError
from ragfm.ingestion.source_request import SourceEntry, resolve_source, stored_sources
from ragfm.store.catalog import Catalog, Source
from ragfm.testing import HashingEmbedder


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[FilesConnector]:
    """The connectors built since the last `clear`."""
    connectors: list[FilesConnector] = []
    construct = FilesConnector.__init__

    @functools.wraps(construct)
    def counted(self: FilesConnector, *arguments: object, **options: object) -> None:
        connectors.append(self)
        construct(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(FilesConnector, "__init__", counted)
    return connectors


def test_a_sync_builds_the_connector_once(
    tmp_path: Path, collection: Collection, docs: Path, built: list[FilesConnector]
) -> None:
    (tmp_path / "alias").symlink_to(docs)
    for location in (docs, docs, tmp_path / "alias"):
        for options in ({}, {"include": ["*.md", "*.txt"]}, {"options": {"hidden": "true"}}, {}):
            collection.sync(location, name="handbook", **options)
            assert len(built) == 1, (location, options)
            built.clear()
    collection.sync()
    assert len(built) == 1


def test_several_sources_build_one_connector_each(
    tmp_path: Path, collection: Collection, docs: Path, built: list[FilesConnector]
) -> None:
    (tmp_path / "other").mkdir()
    collection.sync(docs, tmp_path / "other")
    assert len(built) == 2
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    with pytest.raises(SourceError, match="overlaps"):  # each is valid alone
        collection.sync(inner.parent, inner)


def test_many_files_as_sources_take_linear_time(
    tmp_path: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{number}.txt" for number in range(20)]
    for file in files:
        file.write_text(f"Text of {file.name}.")
    read, reads = Catalog.sources, list[Catalog]()

    def counted(catalog: Catalog) -> list[Source]:
        reads.append(catalog)
        return read(catalog)

    monkeypatch.setattr(Catalog, "sources", counted)
    assert collection.sync(*files).added == 20
    assert collection.sync().unchanged == 20
    assert len(reads) < 10


def test_an_empty_location_is_not_the_working_directory(collection: Collection) -> None:
    with pytest.raises(SourceError, match="is empty"):
        collection.sync("")
    assert not collection.path.exists()


def test_an_address_is_outside_of_the_folder_around_the_collection(tmp_path: Path, collection: Collection) -> None:
    (tmp_path / "a.txt").write_text("A file.")
    with sqlite3.connect(tmp_path.with_name(f"{tmp_path.name}.db")) as database:
        database.execute("CREATE TABLE notes (id INTEGER, text TEXT)")
        database.execute("INSERT INTO notes VALUES (1, 'A row.')")
    database.close()
    address = f"sqlite:///{tmp_path}.db"
    query = {"query": "SELECT id, text FROM notes"}
    for _ in range(2):
        collection.sync(tmp_path)
        collection.sync(address, connector="sql", options=query)
    assert [source["name"] for source in collection.status().sources] == [".", address]
    assert [info.uri for info in collection.documents()] == ["a.txt", f"{address}/1"]


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ('connector = "nowhere"', "nowhere"),
        ("options = {nothing = 1}", "has no option 'nothing'"),
        ('connector = "jsonl"\noptions = {encoding = "utf-99"}', "There is no encoding"),
    ],
)
def test_a_source_with_invalid_settings_does_not_stop_the_others(
    tmp_path: Path, embedder: HashingEmbedder, docs: Path, setting: str, reason: str
) -> None:
    (tmp_path / "other").mkdir()
    with Collection.open(tmp_path / ".ragfm", embedder=embedder) as collection:
        collection.sync(docs)
    (tmp_path / "ragfm.toml").write_text(f'[[sources]]\nlocation = "other"\n{setting}\n')
    (docs / "new.md").write_text("Oaks grow slowly.")
    with Collection.open(tmp_path / ".ragfm", embedder=embedder) as collection:
        report = collection.sync()
        assert (report.added, report.unchanged) == (1, 4)
        (failed,) = report.failed
        assert reason in failed.error


def test_a_request_follows_what_another_process_has_changed(
    collection: Collection, docs: Path, built: list[FilesConnector]
) -> None:
    store = collection._store
    collection.sync(docs, name="handbook", tags={"year": 2025})
    request = resolve_source(store, SourceEntry(str(docs), None, {}))
    assert resolve_source(store, request, stored_sources(store)) == request
    collection.sync(docs, include=["*.md"], tags={"year": 2026})
    built.clear()
    fresh = resolve_source(store, request, stored_sources(store))
    assert (fresh.source.name, fresh.source.tags) == ("handbook", {"year": 2026})
    assert fresh.source.options == {"include": ["*.md"], "exclude": []}
    assert built == [fresh.connector]
