"""The scripts of examples/ run as they are."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from support.postgres_server import PostgresServer
from support.running_server import SlowReader, eventually, make_collection
from support.website import Site, serve

from ragfm import AsyncRag, Collection, Rag
from ragfm.core.errors import ModelNotFoundError
from ragfm.ingestion.connector_options import build_connector
from ragfm.models.model_lookup import find_model
from ragfm.testing import check_connector

SCALE_OUT = Path(__file__).parents[1] / "examples" / "scale-out"


def test_every_script_is_in_the_docs() -> None:
    page = (SCALE_OUT.parents[1] / "docs" / "scale-out.md").read_text(encoding="utf-8")
    for path in SCALE_OUT.glob("*.py"):
        assert path.name == "parts.py" or path.name in page
        assert "support" not in path.read_text(encoding="utf-8")


def _run(name: str, *words: str) -> None:
    try:
        find_model("bundled", "reader")
    except ModelNotFoundError:
        pytest.skip("needs the bundled reader")
    command = [sys.executable, str(SCALE_OUT / name), *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("Done.\n")


@pytest.fixture
def fastapi_example() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("fastapi_example", SCALE_OUT.parent / "fastapi" / "app.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # FastAPI resolves annotations in it
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_clients_that_leave_the_fastapi_example_free_their_slots(fastapi_example: Any, tmp_path: Path) -> None:
    reader = SlowReader(words=20)
    app = fastapi_example.create_app(AsyncRag(Rag(Collection.open(make_collection(tmp_path)), reader=reader)))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started)
    host, port = server.servers[0].sockets[0].getsockname()
    answered = httpx.get(f"http://{host}:{port}/ask", params={"question": "How much leave?"}, timeout=60)
    assert answered.json()["status"]
    reader.words, reader.silent = 2, True
    with socket.create_connection((host, port)) as connection:
        connection.sendall(b"GET /ask?question=leave HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: reader.busy == 1)
    eventually(lambda: reader.busy == 0)
    server.should_exit = True
    thread.join(20)


@pytest.mark.slow
def test_one_machine() -> None:
    _run("one_machine.py")


@pytest.mark.slow
def test_two_servers(postgres: PostgresServer) -> None:
    _run("two_servers.py", postgres.address("handbook"))


@pytest.fixture
def wiki(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A wiki, with the connector of the example installed."""
    shutil.copy(SCALE_OUT.parent / "connector" / "wiki.py", tmp_path)
    metadata = tmp_path / "wiki-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: wiki\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[ragfm.connectors]\nwiki = wiki:WikiConnector\n")
    monkeypatch.syspath_prepend(tmp_path)
    with serve() as site:
        yield site
    sys.modules.pop("wiki", None)


def _publish(wiki: Site, **readers: str) -> None:
    pages = [{"id": key, "version": 1, "readers": names.split()} for key, names in readers.items()]
    wiki.page("/pages", json.dumps(pages))
    for page in pages:
        wiki.page(f"/pages/{page['id']}", json.dumps({**page, "title": f"Page {page['id']}", "text": "The text."}))


def test_the_example_of_a_connector_brings_permissions(wiki: Site, tmp_path: Path, collection: Collection) -> None:
    (tmp_path / "map.toml").write_text('"group:hr" = "hr"\n"user:ann" = "ann"\n"everyone" = "*"\n')
    _publish(wiki, a="group:hr", b="user:ann user:eve", c="everyone")
    options = {"identities": str(tmp_path / "map.toml")}
    check_connector(build_connector("wiki", wiki.url(), options))

    def seen(*groups: str) -> set[str]:
        handle = collection.as_groups(set(groups))
        uris = {info.uri for info in handle.documents()}
        assert {hit.uri for hit in handle.search("the text", k=9)} == uris
        return {uri.removeprefix("wiki/") for uri in uris}

    report = collection.sync(wiki.url(), connector="wiki", name="wiki", options=options)
    assert [it.identity for it in report.unmapped] == ["user:eve"]
    assert (seen(), seen("hr"), seen("ann")) == ({"c"}, {"a", "c"}, {"b", "c"})
    wiki.log.clear()
    _publish(wiki, a="group:hr", b="user:ann user:eve", c="user:ann")
    assert collection.sync().unchanged == 3
    assert wiki.asked() == ["/pages"]
    assert (seen(), seen("hr"), seen("ann")) == (set(), {"a"}, {"b", "c"})
    wiki.page("/pages", "busy", status=503)
    assert "503" in str(collection.sync().failed)
    assert (seen("hr"), seen("ann")) == ({"a"}, {"b", "c"})
