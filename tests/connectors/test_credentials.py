"""Files that look like credentials are skipped by default, and taken if they are selected."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from ragfm_connectors.credentials import credential_by_content, credential_by_name
from ragfm_connectors.files import FilesConnector

from ragfm import Collection
from ragfm.core.errors import SkipDocument
from ragfm.core.types import Ref

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\n" + "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtz\n" * 3
HASH = "root:$6$saltsalt$" + "x" * 86 + ":19000:0:99999:7:::\n"


@pytest.mark.parametrize(
    "name",
    "shadow gshadow- credentials Credentials.json .env prod.env .env.local id_rsa id_ed25519 .netrc .pgpass token"
    " deploy.token store.p12 service-account-key.json".split(),
)
def test_names_of_credentials(name: str) -> None:
    assert credential_by_name(name)


@pytest.mark.parametrize(
    "name",
    "shadow.md credentials.md id_card.pdf id_rsa.pub .env.example environment.txt tokens.md tokenizer.json".split(),
)
def test_names_of_documents(name: str) -> None:
    assert credential_by_name(name) is None


@pytest.mark.parametrize(
    "content",
    [
        KEY,
        "Certificate\n" + KEY.replace("OPENSSH ", ""),
        HASH,
        "machine example.org login me password hunter2",
        "key = AKIA" + "ABCDEFGHIJKLMNOP",
        "ghp_" + "a1B2" * 9,
    ],
)
def test_contents_of_credentials(content: str) -> None:
    assert credential_by_content(content.encode())


@pytest.mark.parametrize(
    "content",
    [
        "A key begins with -----BEGIN PRIVATE KEY----- and ends with -----END PRIVATE KEY-----.",
        "-----BEGIN PUBLIC KEY-----\n" + "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtz\n",
        "root:x:0:0:root:/root:/bin/bash",
        "Example: AKIAIOSFODNN7EXAMPLE",
        "Log in to the machine with your password.",
    ],
)
def test_contents_of_documents(content: str) -> None:
    assert credential_by_content(content.encode()) is None


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    (home / "notes.md").write_text("Buy a new bicycle.")
    (home / "shadow").write_text(HASH)
    (home / "backup.txt").write_text(KEY)
    with zipfile.ZipFile(home / "old.zip", "w") as archive:
        archive.writestr("id_rsa", KEY)
        archive.writestr("key.txt", KEY)
        archive.writestr("diary.txt", "It rained all day.")
    return home


def test_credentials_are_skipped_unless_they_are_selected(home: Path, collection: Collection) -> None:
    report = collection.sync(home)
    assert {info.uri for info in collection.documents()} == {"home/notes.md", "home/old.zip/diary.txt"}
    secrets = {f"home/{name}" for name in ("shadow", "backup.txt", "old.zip/id_rsa", "old.zip/key.txt")}
    assert {skip.uri for skip in report.skipped} == secrets
    assert all("looks like a credential" in skip.why and "--include" in skip.why for skip in report.skipped)
    assert {skip.uri for skip in collection.sync(home).skipped} == secrets

    report = collection.sync(home, include=["*.txt", "shadow", "id_rsa"], allow_mass_delete=True)
    assert {info.uri for info in collection.documents()} >= {"home/shadow", "home/backup.txt", "home/old.zip/key.txt"}
    assert report.skipped == ()


def test_a_single_file_is_meant(home: Path) -> None:
    connector = FilesConnector(home / "shadow")
    assert [ref.skip for ref in connector.refs()] == [None]
    assert connector.fetch(Ref("")).data == HASH.encode()
    with pytest.raises(SkipDocument, match="password hash"):
        FilesConnector(home).fetch(Ref("shadow"))
