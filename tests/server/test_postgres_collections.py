"""The server over a collection on PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from support.postgres_server import PostgresServer, postgres_server
from support.running_server import SECRET, Running, eventually, make_collection, serve
from support.shell import InProcessShell

from ragfm import Collection, Settings
from ragfm.cli.serve import key_store, named_collections
from ragfm.testing import ScriptedReader


def test_names_and_keys(tmp_path: Path) -> None:
    address = "postgresql://me@host/db?collection=handbook"
    places = (address, f"other={address}", "postgresql://me@host/db", str(tmp_path))
    assert [name for name, _ in named_collections(places)] == ["handbook", "other", "ragfm", tmp_path.name]
    assert [place for _, place in named_collections(places)][:2] == [address, address]
    assert key_store(str(tmp_path / "keys.json"), address).keys() == ()


def test_search_upload_and_an_absent_database(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragfm.server.service._COMMIT_SECONDS", 0.1)
    with postgres_server() as postgres:
        with Collection.open(make_collection(tmp_path)) as folder:
            folder.copy(postgres.address())
            commit = folder.commit
        with serve(tmp_path, ScriptedReader("Yes."), collection=postgres.address()) as running:

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
            assert eventually(lambda: running.client(None).get("/readyz").status_code == 200, 120)
            postgres.stop("immediate")
            unready = running.client(None).get("/readyz")
            assert (unready.status_code, unready.json()["status"]) == (503, "database unavailable")
            absent = running.client().post("/v1/search", json=body)
            assert (absent.status_code, absent.json()["error"]["code"]) == (503, "collection_unavailable")
            postgres.start()
            assert SECRET in search("hr")
            assert running.client(None).get("/readyz").status_code == 200


def test_servers_of_one_database_accept_the_same_keys(
    address: str, postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/leave.md").write_text("You get 28 days of leave.")
    monkeypatch.setenv("RAGFM_COLLECTION", address)
    shell = InProcessShell()
    assert "There is no collection" in shell("keys", "add", "ann", code=1)
    Collection.open(address, settings=Settings(), embedder="hashing").sync("docs")
    assert shell.json("keys", "list") == {"keys": []}
    assert "There is no key 'ann'" in shell("keys", "revoke", "ann", code=1)
    ann = shell.json("keys", "add", "ann", "--groups", "hr,board", "--rate", "1000")["key"]
    assert "already exists" in shell("keys", "add", "ann", code=1)
    assert ann not in postgres.sql(f"SELECT * FROM {address.rpartition('=')[2]}.server_keys")

    def answers(server: Running, secret: str) -> int:
        client = httpx.Client(base_url=server.address, headers={"Authorization": f"Bearer {secret}"}, timeout=60)
        return client.get("/v1/models").status_code

    (tmp_path / "secrets.json").write_text("{}")
    reader = ScriptedReader("Yes.")
    with (
        serve(tmp_path, reader, collection=address, store=key_store(None, address)) as first,
        serve(tmp_path, reader, collection=address, store=key_store(None, address)) as second,
    ):
        assert [answers(server, ann) for server in (first, second)] == [200, 200]
        assert [answers(server, f"{ann}x") for server in (first, second)] == [401, 401]
        bob = shell.json("keys", "add", "bob")["key"]
        assert [answers(server, bob) for server in (first, second)] == [200, 200]
        assert [key["name"] for key in shell.json("keys", "list")["keys"]] == ["ann", "bob"]
        shell.json("keys", "revoke", "ann")
        assert [answers(server, ann) for server in (first, second)] == [401, 401]
        assert [answers(server, bob) for server in (first, second)] == [200, 200]
        assert first.keys.find(bob) == second.keys.keys()[0]
        postgres.sql(f"UPDATE {address.rpartition('=')[2]}.server_keys SET key = '[]'")
        assert answers(first, bob) == 503  # not a key: nobody is let in


def test_without_its_database_a_server_lets_nobody_in(address: str, tmp_path: Path) -> None:
    with postgres_server() as postgres:
        with Collection.open(make_collection(tmp_path)) as folder:
            folder.copy(postgres.address())
        store = key_store(None, postgres.address())
        with serve(tmp_path, ScriptedReader("Yes."), collection=postgres.address(), store=store) as running:
            assert running.client().get("/v1/models").status_code == 200
            postgres.stop("immediate")
            refused = running.client().get("/v1/models")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "keys_unreadable")
            assert running.client(None).get("/healthz").status_code == 200
            postgres.start()
            assert eventually(lambda: running.client().get("/v1/models").status_code == 200)
