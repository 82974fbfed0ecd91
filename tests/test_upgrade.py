"""Collections and backups that released versions wrote: tests/upgrade/write makes them, with the wheel of a version."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from ragfm import Collection
from ragfm.testing import HashingEmbedder

WRITTEN = sorted((Path(__file__).parent / "upgrade").glob("*.tar.gz"))
URIS = ["docs/contacts.csv", "docs/hr/salaries.txt", "docs/leave.md", "docs/welcome.md"]


@pytest.fixture(params=WRITTEN, ids=lambda path: path.name.removesuffix(".tar.gz"))
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Collection:
    """The collection of a version, in the current folder, together with its documents and a backup."""
    folder = tmp_path / "old"
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    monkeypatch.chdir(folder)
    return Collection.open(".ragfm", embedder=HashingEmbedder())


def _uris(collection: Collection) -> list[str]:
    return sorted(info.uri for info in collection.documents())


@pytest.mark.parametrize("mode", ["hybrid", "dense", "keyword"])
def test_a_collection_of_an_older_version_is_searched(old: Collection, mode: str) -> None:
    assert _uris(old) == URIS
    assert old.metadata("docs/leave.md")["team"] == "office"
    (hit,) = old.search("employee gets days of leave", 1, mode=mode)
    assert (hit.uri, "28 days" in hit.text) == ("docs/leave.md", True)


def test_a_collection_of_an_older_version_keeps_its_access_groups(old: Collection) -> None:
    assert _uris(old.as_groups(set())) == [uri for uri in URIS if "/hr/" not in uri]
    assert _uris(old.as_groups({"hr"})) == URIS


def test_a_collection_of_an_older_version_is_synced(old: Collection) -> None:
    Path("docs/welcome.md").write_text("# Welcome\n\nThe probation period is six months.\n", encoding="utf-8")
    report = old.sync("docs")
    assert (report.added, report.removed, report.updated + report.unchanged) == (
        0,
        0,
        4,
    )  # a new recipe may update more
    assert "six months" in old.search("probation period", 1)[0].text
    assert not old.verify().damaged


@pytest.mark.parametrize("backup", ["backup", "new"])
def test_a_backup_of_an_older_version_or_collection_is_restored(
    old: Collection, collection: Collection, backup: str
) -> None:
    if backup == "new":
        old.backup("new")
    collection.restore(backup)
    assert _uris(collection) == URIS
    assert collection.search("days of leave", 1)[0].uri == "docs/leave.md"
    assert not collection.verify().damaged


def test_a_collection_of_an_older_version_is_copied_to_postgresql(old: Collection, address: str) -> None:
    old.copy(address)
    with Collection.open(address, embedder=HashingEmbedder()) as copied:
        assert _uris(copied) == URIS
        assert copied.search("days of leave", 1)[0].uri == "docs/leave.md"
        assert not copied.verify().damaged
