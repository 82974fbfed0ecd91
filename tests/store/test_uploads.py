"""Uploads: their records decide who may see them, in a folder and on PostgreSQL."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from ragfm_connectors.files import FilesConnector
from support.postgres_server import PostgresServer

from ragfm import Collection, Settings
from ragfm.core.types import Ref
from ragfm.ingestion.upload_connector import UploadFolderConnector
from ragfm.maintenance.salvage import salvage
from ragfm.store.sqlite_file import open_connection
from ragfm.store.tables import uploads as uploads_table
from ragfm.store.uploads import UPLOADS_SOURCE, UploadFolder, upload_id
from ragfm.testing import HashingEmbedder


def _open(place: str | Path) -> Collection:
    return Collection.open(place, settings=Settings(), embedder=HashingEmbedder())


def _upload(collection: Collection, text: str = "The zebra is called Bob.", name: str = "zebra.txt") -> str:
    uploads = collection.store.open_uploads()
    uri = uploads.store(io.BytesIO(text.encode()), name, ["key:ann", "hr"]).uri
    _sync(collection)
    return uri


def _sync(collection: Collection) -> None:
    collection.sync(collection.store.open_uploads().source, name=UPLOADS_SOURCE, retry=True)


def _visible(collection: Collection, *groups: str) -> list[str]:
    return [info.uri for info in collection.as_groups(set(groups)).documents()]


def _findings(collection: Collection) -> list[tuple[str, str]]:
    return [(finding.file, finding.what) for finding in collection.verify().findings]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Collection]:
    """A collection in a folder, without documents."""
    (tmp_path / "docs").mkdir()
    with _open(tmp_path / ".ragfm") as collection:
        collection.sync(tmp_path / "docs")
        yield collection


def _folder_of(collection: Collection, uri: str) -> Path:
    return Path(collection.store.open_uploads().source) / str(upload_id(uri))


@pytest.mark.parametrize("damage", ["UPDATE uploads SET owner = 'key:bob'", "UPDATE uploads SET groups = '[\"hr\"]'"])
def test_nobody_sees_an_upload_with_a_damaged_record(folder: Collection, damage: str) -> None:
    uri = _upload(folder)
    with open_connection(folder.path, writable=True) as connection, connection.begin():
        connection.exec_driver_sql(damage)
    _sync(folder)
    assert _visible(folder, "key:ann", "key:bob", "hr") == []
    assert list(_open(folder.path).store.open_uploads().all()) == []
    assert _findings(folder) == [(f"uploads/{upload_id(uri)}", "the checksum of its record")]


def test_nobody_sees_an_upload_without_any_record(folder: Collection) -> None:
    uri = _upload(folder)
    with open_connection(folder.path, writable=True) as connection, connection.begin():
        connection.execute(uploads_table.delete())
    _sync(folder)
    assert _visible(folder, "key:ann", "hr") == []
    assert _findings(folder) == [(f"uploads/{upload_id(uri)}", "its record")]


def test_a_changed_byte_of_an_upload_does_not_replace_its_text(folder: Collection) -> None:
    uri = _upload(folder)
    (_folder_of(folder, uri) / "zebra.txt").write_text("The zebra is called Rob.")
    report = folder.sync(folder.store.open_uploads().source, name=UPLOADS_SOURCE)
    assert [(failed.uri, failed.stage, failed.stale) for failed in report.failed] == [(uri, "fetch", True)]
    assert "is damaged: its content has the checksum" in report.failed[0].error
    assert folder.document(uri).text == "The zebra is called Bob."
    assert _findings(folder) == [(f"uploads/{upload_id(uri)}", "the checksum of zebra.txt")]


def test_an_upload_that_is_stored_during_the_listing_has_its_groups(folder: Collection) -> None:
    uploads = folder.store.open_uploads()
    assert isinstance(uploads, UploadFolder)

    class Late(FilesConnector):
        def refs(self) -> Iterator[Ref]:
            uploads.store(io.BytesIO(b"Late."), "late.txt", ["key:ann"])
            yield from super().refs()

    _upload(folder)
    listed = list(UploadFolderConnector(uploads, Late(uploads.folder)).refs())
    assert [ref.allow for ref in listed if ref.path.endswith("late.txt")] == [("key:ann",)]


def test_a_lost_file_is_found(folder: Collection) -> None:
    uri = _upload(folder)
    shutil.rmtree(_folder_of(folder, uri))
    assert _findings(folder) == [(f"uploads/{upload_id(uri)}", "zebra.txt")]


def test_a_removed_upload_leaves_no_record(folder: Collection) -> None:
    uri = _upload(folder)
    uploads = folder.store.open_uploads()
    uploads.remove(next(iter(uploads.all())))
    assert (list(uploads.all()), _findings(folder)) == ([], [])
    assert uri in [info.uri for info in folder.documents()]


def test_a_salvaged_upload_keeps_its_record(folder: Collection, tmp_path: Path) -> None:
    uri = _upload(folder)
    salvage(folder.store, tmp_path / "saved")
    with _open(tmp_path / "saved") as saved:
        _sync(saved)
        assert (_visible(saved, "sales"), _visible(saved, "hr")) == ([], [uri])


# --- On PostgreSQL -----------------------------------------------------------------------------------------------


@pytest.fixture
def server(address: str, docs: Path) -> Iterator[Collection]:
    """A collection on PostgreSQL with four documents, and no upload."""
    with _open(address) as collection:
        collection.sync(docs)
        yield collection


def _schema(address: str) -> str:
    found = re.search(r"collection=(\w+)", address)
    assert found is not None
    return found[1]


def _uploads_seen(collection: Collection, *groups: str) -> list[str]:
    return [uri for uri in _visible(collection, *groups) if uri.startswith(UPLOADS_SOURCE)]


@pytest.mark.parametrize("change", ["owner = 'key:bob'", 'groups = \'["key:ann", "sales"]\''])
def test_nobody_sees_an_upload_with_a_changed_row(
    server: Collection, address: str, postgres: PostgresServer, change: str
) -> None:
    uri = _upload(server)
    postgres.sql(f"UPDATE {_schema(address)}.uploads SET {change}")
    _sync(server)
    assert _uploads_seen(server, "key:ann", "key:bob", "hr", "sales") == []
    for owner in ("key:ann", "key:bob"):
        assert list(server.store.open_uploads().owned_by(owner)) == []
    assert (f"uploads/{upload_id(uri)}", "the checksum of its record") in _findings(server)


def test_changed_content_on_a_server_is_found_and_not_indexed(
    server: Collection, address: str, postgres: PostgresServer
) -> None:
    stored = server.store.open_uploads().store(io.BytesIO(b"The zebra is called Bob."), "zebra.txt", ["key:ann"])
    schema = _schema(address)
    postgres.sql(f"UPDATE {schema}.upload_parts SET data = 'The zebra is called Rob.'")
    report = server.sync(server.store.open_uploads().source, name=UPLOADS_SOURCE)
    assert len(report.failed) == 1
    assert "is damaged: its content has the checksum" in report.failed[0].error
    assert (f"uploads/{upload_id(stored.uri)}", "the checksum of zebra.txt") in _findings(server)
