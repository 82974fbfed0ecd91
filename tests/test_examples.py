"""The scripts of examples/ run as they are."""

from __future__ import annotations

import importlib.util
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

from ragfm import AsyncRag, Collection, Rag
from ragfm.core.errors import ModelNotFoundError
from ragfm.models.model_lookup import find_model

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
