"""What released versions wrote in a folder and on PostgreSQL; tests/upgrade/write.py makes it by a version's wheel."""

from __future__ import annotations

import gzip
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.postgres_server import PostgresServer

from ragfm import Collection, Settings
from ragfm.core.errors import RagfmError
from ragfm.store.sqlite_driver import sqlite
from ragfm.testing import HashingEmbedder

ARCHIVES = sorted((Path(__file__).parent / "upgrade").glob("*.tar.gz"))
URIS = ["docs/contacts.csv", "docs/hr/salaries.txt", "docs/leave.md", "docs/welcome.md"]
KINDS = [(archive, kind) for archive in ARCHIVES for kind in ("folder", "postgresql")]


@pytest.fixture(params=KINDS, ids=lambda one: f"{one[0].name.removesuffix('.tar.gz')}-{one[1]}")
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collection]:
    """The collection of a version; its documents and a backup are in the current folder."""
    archive, kind = request.param
    folder = tmp_path / "old"
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    place: str | Path = folder / ".ragfm"
    if kind == "postgresql":
        request.getfixturevalue("address")  # views in the folder of the test
        server: PostgresServer = request.getfixturevalue("postgres")
        database = f"upgrade_{uuid.uuid4().hex[:12]}"
        server.sql(f"CREATE DATABASE {database}")
        dump = archive.with_name(archive.name.replace(".tar.gz", ".sql.gz"))
        server.sql(gzip.decompress(dump.read_bytes()).decode(), database)
        # A collection on PostgreSQL has the absolute path of its source, which was in a folder of its writer.
        server.sql(f"UPDATE upgrade.sources SET location = '{folder}/docs', root = '{folder}/docs'", database)
        place = server.address("upgrade", database)
    monkeypatch.chdir(folder)
    with Collection.open(place, settings=Settings(), embedder=HashingEmbedder()) as collection:
        yield collection


def _uris(collection: Collection) -> list[str]:
    return sorted(info.uri for info in collection.documents())


def check_content(collection: Collection) -> None:
    """What the version wrote is all there: texts, chunks, vectors, metadata, groups."""
    assert _uris(collection) == URIS
    assert not collection.verify().damaged
    assert [(status.documents, status.chunks) for status in [collection.status()]] == [(4, 4)]
    assert collection.document("docs/leave.md").text == "# Leave\n\nEvery employee gets 28 days of leave a year.\n"
    assert [collection.metadata(uri)["team"] for uri in URIS] == ["office"] * 4
    for mode in ("dense", "keyword"):
        hits = collection.search("employee gets days of leave", 4, mode=mode, filter="team = 'office'")
        assert "28 days" in hits[0].text
        assert mode == "keyword" or sorted(hit.uri for hit in hits) == URIS
    assert _uris(collection.as_groups(set())) == [uri for uri in URIS if "/hr/" not in uri]
    assert _uris(collection.as_groups({"hr"})) == URIS


def test_a_collection_of_an_older_version_is_complete(old: Collection) -> None:
    check_content(old)


@pytest.mark.parametrize(
    "lost",
    [
        "DELETE FROM chunks WHERE id = (SELECT min(id) FROM chunks WHERE died IS NULL)",
        "UPDATE chunks SET died = born + 1 WHERE id = (SELECT min(id) FROM chunks WHERE died IS NULL)",
        "DELETE FROM vectors",
        "DELETE FROM tags WHERE key = 'team'",
        "DELETE FROM groups",
        "UPDATE documents SET restricted = (1 = 0)",
        "UPDATE documents SET text = replace(text, '28', '24')",
        "UPDATE documents SET died = 2 WHERE uri LIKE '%welcome.md'",
        "ALTER TABLE chunks DROP COLUMN context",
        "UPDATE properties SET value = '2' WHERE key = 'schema'",
    ],
)
def test_a_migration_that_loses_something_is_noticed(
    old: Collection, request: pytest.FixtureRequest, lost: str
) -> None:
    if "://" in old.location:
        server: PostgresServer = request.getfixturevalue("postgres")
        server.sql(f"SET search_path TO upgrade; {lost}", old.location.partition("@/")[2].partition("?")[0])
    else:
        with closing(sqlite.connect(str(old.path / "catalog.db"))) as connection:
            connection.execute("PRAGMA foreign_keys = OFF")
            connection.execute(lost)
            connection.commit()
    with pytest.raises((AssertionError, KeyError, RagfmError)):
        check_content(Collection.open(old.location, settings=Settings(), embedder=HashingEmbedder()))


def test_a_collection_of_an_older_version_is_synced(old: Collection) -> None:
    Path("docs/welcome.md").write_text("# Welcome\n\nThe probation period is six months.\n", encoding="utf-8")
    report = old.sync("docs")
    changed = report.updated + report.unchanged  # a new recipe may update more
    assert (report.added, report.removed, changed) == (0, 0, 4)
    assert "six months" in old.search("probation period", 1)[0].text
    assert not old.verify().damaged


@pytest.mark.parametrize("backup", ["backup", "new"])
def test_a_backup_of_an_older_version_or_collection_is_restored(
    old: Collection, collection: Collection, backup: str
) -> None:
    if backup == "new":
        if "://" in old.location:  # `pg_dump` saves those
            old.copy("copied")
            old = Collection.open("copied", embedder=HashingEmbedder())
        old.backup("new")
    collection.restore(backup)
    check_content(collection)


def test_a_collection_of_an_older_version_is_copied_to_postgresql(old: Collection, address: str) -> None:
    old.copy(address)
    with Collection.open(address, embedder=HashingEmbedder()) as copied:
        check_content(copied)
