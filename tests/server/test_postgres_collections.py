"""The server over a collection on PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.postgres_server import postgres_server
from support.running_server import SECRET, eventually, make_collection, serve

from ragfm import Collection
from ragfm.cli.serve import key_file, named_collections
from ragfm.core.errors import ConfigError
from ragfm.testing import ScriptedReader


def test_names_and_keys(tmp_path: Path) -> None:
    address = "postgresql://me@host/db?collection=handbook"
    places = (address, f"other={address}", "postgresql://me@host/db", str(tmp_path))
    assert [name for name, _ in named_collections(places)] == ["handbook", "other", "ragfm", tmp_path.name]
    assert [place for _, place in named_collections(places)][:2] == [address, address]
    with pytest.raises(ConfigError, match="no folder for API keys"):
        key_file(None, address)
    assert key_file(str(tmp_path / "keys.json"), address).keys() == ()


def test_search_upload_and_an_absent_database(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragfm.server.service._COMMIT_SECONDS", 0.1)
    with postgres_server() as postgres:
        with Collection.open(make_collection(tmp_path)) as folder:
            folder.copy(postgres.address())
            commit = folder.commit
        with serve(tmp_path, ScriptedReader("Yes."), collection=postgres.address()) as running:  # type: ignore[arg-type]

            def search(key: str) -> list[str]:
                response = running.client(key).post("/v1/search", json={"query": SECRET, "model": "handbook"})
                response.raise_for_status()
                return [hit["text"].strip() for hit in response.json()["data"]]

            assert SECRET in search("hr")
            assert SECRET not in search("guest")
            body: dict[str, object] = {"query": SECRET, "model": "handbook"}
            for header, status in ((commit, 200), ("999-0f", 503), ("tomorrow", 400)):
                waited = running.client().post("/v1/search", json=body, headers={"x-ragfm-commit": header})
                assert waited.status_code == status
                question = {"model": "handbook", "messages": [{"role": "user", "content": SECRET}]}
                answer = running.client().post(
                    "/v1/chat/completions", json=question, headers={"x-ragfm-commit": header}
                )
                assert answer.status_code == status
            refused = running.client().post("/v1/documents", files={"file": ("a.txt", b"Text.")})
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported")
            assert eventually(lambda: running.client(None).get("/readyz").status_code == 200)
            postgres.stop("immediate")
            unready = running.client(None).get("/readyz")
            assert (unready.status_code, unready.json()["status"]) == (503, "database unavailable")
            absent = running.client().post("/v1/search", json=body)
            assert (absent.status_code, absent.json()["error"]["code"]) == (503, "collection_unavailable")
            postgres.start()
            assert SECRET in search("hr")
            assert running.client(None).get("/readyz").status_code == 200
