"""`ragfm doctor`: each check finds what it is for, and says what to do."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from support.postgres_server import PostgresServer

from ragfm import Collection
from ragfm.cli import doctor, ragfm
from ragfm.models.model_lookup import weights_sha256
from ragfm.server.api_keys import Key, KeyFile, default_key_path


@pytest.fixture
def folder(tmp_path: Path, docs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAGFM_READER", "none")
    with Collection.open(tmp_path / ".ragfm", embedder="hashing") as collection:
        collection.sync(docs)
    return tmp_path


def examine(*words: str) -> dict[str, tuple[str, str]]:
    """Of checks with something to do, what was found and what to do, by name. Compares the exit code."""
    done = CliRunner().invoke(ragfm, ["doctor", *words, "--json"], standalone_mode=False)
    assert done.exception is None
    report = json.loads(done.stdout)
    assert done.return_value == (0 if report["ok"] else 1)
    found = {check["name"]: (check["found"], check["action"]) for check in report["checks"] if check["action"]}
    assert report["ok"] == (not found)
    return found


def test_nothing_to_do(folder: Path) -> None:
    KeyFile(default_key_path(".ragfm")).add(Key(name="ann"))
    before = sorted(folder.rglob("*"))
    assert examine() == {}
    assert sorted(folder.rglob("*")) == before
    text = CliRunner().invoke(ragfm, ["doctor"], standalone_mode=False).stdout
    for part in ("4 documents", "embedder", "judge", "free", "is private", "SQLite"):
        assert part in text
    assert "!" not in text


def test_permissions(folder: Path) -> None:
    keys = folder / ".ragfm-keys.json"
    KeyFile(keys).add(Key(name="ann"))
    keys.chmod(0o640)
    found, action = examine()["permissions"]
    assert str(keys) in found
    assert action == f"Run `chmod go-rwx '{keys}'`."
    keys.chmod(0o600)
    (folder / ".ragfm").chmod(0o750)  # a group may read the documents
    assert examine() == {}
    (folder / ".ragfm").chmod(0o755)
    assert "chmod o-rwx" in examine()["permissions"][1]
    (folder / ".ragfm").chmod(0o700)
    if os.geteuid() == 0:
        os.chown(folder / ".ragfm" / "catalog.db", 65534, 65534)
        assert "chown" in examine()["permissions"][1]


def test_disk_and_clock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=400_000_000))
    assert examine()["disk"][1] == "Free 600.0 MB there."
    ahead = time.time() + 3600
    os.utime(folder / ".ragfm" / "catalog.db", (ahead, ahead))
    found, action = examine()["clock"]
    assert found.startswith("3")
    assert "behind the files" in found
    assert "NTP" in action


def test_models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGFM_READER", str(folder / "no.gguf"))
    assert "There is no model at" in examine()["reader"][0]

    blob = folder / "blobs" / "unnamed"
    blob.parent.mkdir()
    blob.write_bytes(b"weights")
    blob = blob.rename(blob.with_name(weights_sha256(blob)))
    (folder / "cached").mkdir()
    (folder / "cached" / "model.safetensors").symlink_to(blob)
    name = str(folder / "cached")
    assert [check.action for check in doctor._weights("embedder", name)] == [""]
    blob.write_bytes(b"wrights")
    (check,) = doctor._weights("embedder", name)
    assert "is damaged" in check.found
    assert str(blob) in check.action


def test_versions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda _: ["click>=99", "absent-one>=1", "other; extra == 'x'"])
    found, action = examine()["versions"]
    assert "absent-one is not installed" in found
    assert action == "Run `pip install 'click>=99' 'absent-one'`."


def test_no_collection_and_wrong_settings(folder: Path) -> None:
    assert "ragfm ingest" in examine("-c", "nowhere")["collection"][1]
    (folder / "ragfm.toml").write_text("[ask]\nkk = 1\n")
    assert "ask.kk" in examine()["collection"][0]


def test_postgresql(postgres: PostgresServer, address: str, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGFM_READER", "none")
    Collection.open(address, embedder="hashing").sync(docs)
    assert examine("-c", address) == {}
    monkeypatch.setattr(doctor, "_SPARE_CONNECTIONS", 10_000)
    monkeypatch.setattr(doctor, "_OLDEST_POSTGRES", 99)
    monkeypatch.setattr(doctor, "_CLOCK_SECONDS", 0)
    found = examine("-c", address)
    assert set(found) == {"database", "clock"}
    assert "max_connections" in found["database"][1]
