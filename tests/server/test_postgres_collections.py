"""The server over a collection on PostgreSQL."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.postgres_server import PostgresServer, postgres_server
from support.running_server import ANSWER, LIMITS, QUESTION, SECRET, Running, eventually, make_collection, serve
from support.shell import InProcessShell

from ragfm import Collection, Settings
from ragfm.cli.server_commands import key_store, named_collections
from ragfm.server.api_keys import Key
from ragfm.store.postgres import PostgresDatabase
from ragfm.testing import ScriptedReader


def test_names_and_keys(tmp_path: Path) -> None:
    address = "postgresql://me@host/db?collection=handbook"
    places = (address, f"other={address}", "postgresql://me@host/db", str(tmp_path))
    assert [name for name, _ in named_collections(places)] == ["handbook", "other", "ragfm", tmp_path.name]
    assert [place for _, place in named_collections(places)][:2] == [address, address]
    assert key_store(str(tmp_path / "keys.json"), address).keys() == ()


def test_search_upload_and_an_absent_database(address: str, tmp_path: Path) -> None:
    limits = replace(LIMITS, commit_seconds=0.1)
    with postgres_server() as postgres:
        with Collection.open(make_collection(tmp_path)) as folder:
            folder.copy(postgres.address())
            commit = folder.commit
        with serve(tmp_path, ScriptedReader("Yes."), collection=postgres.address(), limits=limits) as running:

            def search(key: str) -> list[str]:
                response = running.client(key).post("/v1/search", json={"query": SECRET, "model": "handbook"})
                response.raise_for_status()
                return [hit["text"].strip() for hit in response.json()["data"]]

            assert SECRET in search("hr")
            assert SECRET not in search("guest")
            body: dict[str, object] = {"query": SECRET, "model": "handbook"}
            lost = f"{commit.partition('-')[0]}-0f"
            for header, status in ((commit, 200), ("999-0f", 503), ("tomorrow", 400), ("1-x", 400), (lost, 400)):
                waited = running.client().post("/v1/search", json=body, headers={"x-ragfm-commit": header})
                assert waited.status_code == status
                question = {"model": "handbook", "messages": [{"role": "user", "content": SECRET}]}
                answer = running.client().post(
                    "/v1/chat/completions", json=question, headers={"x-ragfm-commit": header}
                )
                assert answer.status_code == status
            assert running.client().get("/v1/documents", params={"after": "a\0b"}).status_code == 400
            assert eventually(lambda: running.client(None).get("/readyz").status_code == 200, 300)
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
        assert shell.json("keys", "list")["keys"][0]["last_used"] is not None
        new = shell.json("keys", "rotate", "bob", "--overlap", "1")["key"]
        assert [answers(server, secret) for server in (first, second) for secret in (bob, new)] == [200] * 4
        old, bob = bob, shell.json("keys", "rotate", "bob", "--overlap", "0")["key"]
        assert [answers(first, secret) for secret in (old, new)] == [401, 401]
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


# --- Two servers of one database ---------------------------------------------------------------------------------


@pytest.fixture
def two_servers(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Running, Running]]:
    """Two servers of one collection, which log answers and share their keys."""
    monkeypatch.setenv("RAGFM_ASK__LOG", "true")
    with Collection.open(make_collection(tmp_path)) as folder:
        folder.copy(address)
    options = {"collection": address, "limits": replace(LIMITS, uploads_waiting=3)}
    with (
        serve(tmp_path, ScriptedReader([ANSWER]), store=key_store(None, address), **options) as first,
        serve(tmp_path, ScriptedReader([ANSWER]), store=key_store(None, address), **options) as second,
    ):
        yield first, second


def test_servers_share_the_rate_of_a_key(
    two_servers: tuple[Running, Running], address: str, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    secret = two_servers[0].keys.add(Key(name="strict", per_minute=4))

    def answers(server: Running) -> httpx.Response:
        return httpx.get(f"{server.address}/v1/models", headers={"Authorization": f"Bearer {secret}"})

    said = [answers(two_servers[number % 2]) for number in range(8)]
    assert [response.status_code for response in said].count(200) == 4
    assert 1 <= int(said[-1].headers["Retry-After"]) <= 16
    again = [server.keys.take(Key(name="often", per_minute=6000)) for server in two_servers for _ in range(10)]
    assert again == [0.0] * 20
    postgres.sql(f"DROP TABLE {_schema(address)}.server_rates")
    assert [answers(server).status_code for server in two_servers] == [200, 200]  # each on its own
    assert caplog.text.count("Each server counts requests alone") == 2


def test_an_answer_of_one_server_is_rated_at_another(
    two_servers: tuple[Running, Running], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_servers
    answer = first.openai("guest").chat.completions.create(model="handbook", messages=QUESTION)
    rating = {"rating": answer.model_extra["ragfm"]["rating"], "thumbs": "down", "correction": "16 weeks"}
    for key in ("hr", "other"):
        assert second.client(key).post("/v1/ratings", json=rating).status_code == 404
    assert second.client("guest").post("/v1/ratings", json=rating).status_code == 200
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    log = Collection.open(address).answer_log
    (entry,) = log.entries()
    assert (entry.question, entry.thumbs, entry.correction) == (QUESTION[0]["content"], "down", "16 weeks")
    assert entry.groups == ["key:guest"]
    # The second wall, in case a query forgets whose answer it is.
    assert log.entry_of_rating(entry.rating_id, frozenset({"key:guest", "hr"})) == entry
    assert log.entry_of_rating(entry.rating_id, frozenset({"key:hr", "hr"})) is None
    assert InProcessShell().json("log", "list", "-c", address)["entries"][0]["id"] == entry.id
    assert not list((tmp_path / "cache").rglob("*log*"))


def _upload(server: Running, name: str, text: str, key: str = "guest", **form: Any) -> httpx.Response:
    return server.client(key).post("/v1/documents", files={"file": (name, text.encode())}, data=form)


def _state(server: Running, uri: str, key: str = "guest") -> str:
    return str(server.client(key).get(f"/v1/documents/{uri}").json().get("state"))


@pytest.mark.slow
def test_an_upload_to_one_server_is_seen_at_another(two_servers: tuple[Running, Running], address: str) -> None:
    first, second = two_servers
    zebra = _upload(first, "zebra.txt", "The zebra is called Bob.", groups=["hr"], key="hr").json()["uri"]
    broken = _upload(second, "broken.pdf", "%PDF-1.4 nothing").json()["uri"]
    eventually(lambda: [_state(server, zebra, "hr") for server in two_servers] == ["ready"] * 2, 300)
    eventually(lambda: [_state(server, broken) for server in two_servers] == ["failed"] * 2, 300)
    assert first.client("guest").get(f"/v1/documents/{broken}").json()["error"]
    for server in two_servers:
        hits = server.client("hr").post("/v1/search", json={"query": "zebra Bob", "k": 1}).json()["data"]
        assert hits[0]["uri"] == zebra
        assert _state(server, zebra, "guest") == "None"
        assert server.client("other").get("/v1/documents?mine=true").json()["data"] == []
        assert server.client("guest").delete(f"/v1/documents/{zebra}").status_code == 404
    gone = eventually(lambda: second.client("hr").delete(f"/v1/documents/{zebra}"))
    assert gone.status_code in (200, 202)
    eventually(lambda: [_state(server, zebra, "hr") for server in two_servers] == ["None"] * 2, 300)
    eventually(lambda: not Collection.open(address).documents(f"uri = '{zebra}'"), 300)


def test_limits_of_uploads_hold_across_servers(two_servers: tuple[Running, Running], address: str) -> None:
    first, second = two_servers
    secret = first.keys.add(Key(name="small", per_minute=1e6, uploads_mb=0.03))
    first.secrets["small"] = second.secrets["small"] = secret
    with PostgresDatabase(address).lock():  # nothing can be indexed
        assert _upload(first, "a.txt", "a" * 9000, "small").status_code == 201
        full = _upload(second, "b.txt", "b" * 9000, "small")
        assert (full.status_code, full.json()["error"]["code"]) == (413, "uploads_full")
        with ThreadPoolExecutor(8) as pool:  # together they would be too many
            tries = pool.map(lambda number: _upload(two_servers[number % 2], "n.txt", "A note."), range(8))
            statuses = sorted(said.status_code for said in tries)
        assert statuses == [201] * 3 + [429] * 5
        assert len(second.client("guest").get("/v1/documents?mine=true").json()["data"]) == 3


SERVER = """
import sys
from ragfm.server.app import create_app
from ragfm.server.key_table import KeyTable
from ragfm.server.uvicorn_server import Server
from ragfm.server.served_models import ServedModels
from ragfm.testing import ScriptedReader
served = ServedModels([("handbook", sys.argv[1])], [("script", ScriptedReader(["Yes."]))])
app = create_app(served, keys=KeyTable(sys.argv[1]))
Server(app, host="127.0.0.1", port=0, on_listening=lambda address: print(address, flush=True)).run()
"""


@pytest.mark.slow
def test_another_server_indexes_the_uploads_of_one_that_was_killed(
    address: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    with Collection.open(make_collection(tmp_path)) as folder:
        folder.copy(address)
    store, reader = key_store(None, address), ScriptedReader("Yes.")
    secret = store.add(Key(name="guest", per_minute=1e6))
    (tmp_path / "secrets.json").write_text(json.dumps({"guest": secret}))
    with ExitStack() as lock, ExitStack() as servers:
        lock.enter_context(PostgresDatabase(address).lock())  # nothing can be indexed
        killed = servers.enter_context(
            subprocess.Popen([sys.executable, "-c", SERVER, address], stdout=subprocess.PIPE, text=True)
        )
        assert killed.stdout
        client = httpx.Client(
            base_url=killed.stdout.readline().strip(), headers={"Authorization": f"Bearer {secret}"}, timeout=60
        )
        files = [{"file": (f"{number}.txt", f"Note {number} about okapis.".encode())} for number in range(3)]
        said = [client.post("/v1/documents", files=file) for file in files]
        assert [response.status_code for response in said] == [201] * 3
        uris = [response.json()["uri"] for response in said]
        eventually(lambda: _turn(postgres, address) != "{}", 300)
        other = servers.enter_context(serve(tmp_path, reader, collection=address, store=store))
        eventually(lambda: {_state(other, uri) for uri in uris} == {"indexing"})  # by the first server
        killed.kill()
        lock.close()
        eventually(lambda: {_state(other, uri) for uri in uris} == {"ready"}, 300)
        eventually(lambda: postgres.sql(f"SELECT DISTINCT state FROM {_schema(address)}.uploads") == "ready")
    for uri in uris:
        rows = postgres.sql(f"SELECT count(*), count(died) FROM {_schema(address)}.documents WHERE uri = '{uri}'")
        assert rows == "1|0"
    # A server with an empty cache folder has everything: keys, uploads, documents.
    shutil.rmtree(tmp_path / "cache")
    with serve(tmp_path, reader, collection=address, store=store) as restarted:
        hits = restarted.client("guest").post("/v1/search", json={"query": "okapis", "k": 3}).json()["data"]
        assert {hit["uri"] for hit in hits} == set(uris)
        late = _upload(restarted, "late.txt", "Late.").json()["uri"]
        eventually(lambda: {_state(restarted, uri) for uri in [*uris, late]} == {"ready"}, 300)


def _schema(address: str) -> str:
    return address.rpartition("collection=")[2]


def _turn(postgres: PostgresServer, address: str) -> str:
    return postgres.sql(f"SELECT value FROM {_schema(address)}.properties WHERE key = 'uploads'")
