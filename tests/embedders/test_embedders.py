"""The embedder for servers with OpenAI's API."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragfm import Collection, Settings
from ragfm.core.errors import EmbeddingError, TooLongError
from ragfm.core.types import Embedder
from ragfm.embedders import load_embedder
from ragfm.embedders import openai_embedder as endpoint_module
from ragfm.testing import HashingEmbedder, check_embedder

TEXTS = ["A cat sits on a mat.", "A kitten rests on a rug.", "Interest rates rose.", "Naïve café 日本語 😀 [x]"]


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    return load_embedder("bundled")


# --- A server ----------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint over the hashing embedder; the first answers may be `failures` instead."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.failures: list[tuple[int, dict[str, str], object]] = []
        self.asked: list[tuple[str | None, dict[str, Any]]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.headers["Authorization"], body))
        if self.path != "/v1/embeddings":
            return self._answer(404, {}, {"error": {"message": f"no {self.path}"}})
        if self.server.failures:
            return self._answer(*self.server.failures.pop(0))
        vectors = HashingEmbedder(max_tokens=10_000).embed_passages(body["input"])
        rows = [{"index": place, "embedding": (3 * row).tolist()} for place, row in enumerate(vectors)]
        return self._answer(200, {}, {"data": rows[::-1]})  # the order is the client's to restore

    def _answer(self, status: int, headers: dict[str, str], body: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        monkeypatch.setenv("OPENAI_BASE_URL", f"{running.address}/v1/")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
        monkeypatch.setattr(endpoint_module, "RETRIES", 2)
        yield running
        running.shutdown()


def test_an_endpoint_keeps_the_contract(server: Server) -> None:
    embedder = load_embedder("openai:text-embedding-3-small")
    check_embedder(embedder)
    assert embedder.dim == 64
    assert {key for key, _ in server.asked} == {"Bearer sk-secret-1"}
    assert {body["model"] for _, body in server.asked} == {"text-embedding-3-small"}


def test_many_texts_are_split_into_requests_and_returned_in_order(server: Server) -> None:
    texts = [f"word{number}" for number in range(150)]
    embedder = load_embedder("openai:m")
    assert np.allclose(embedder.embed_passages(texts), HashingEmbedder().embed_passages(texts), atol=1e-6)
    assert [len(body["input"]) for _, body in server.asked] == [64, 64, 22]
    assert embedder.dim == embedder.dim == 64
    assert len(server.asked) == 4  # the dimension is asked for once


def test_temporary_failures_are_retried(server: Server) -> None:
    server.failures = [(429, {"Retry-After": "0"}, {}), (503, {}, b"<html>")]
    assert load_embedder("openai:m").embed_queries(["boats"]).shape == (1, 64)
    server.failures = [(500, {}, {})] * 3
    with pytest.raises(EmbeddingError, match=r"from 127\.0\.0\.1: status 500"):
        load_embedder("openai:m").embed_queries(["boats"])
    assert len(server.asked) == 6


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, {}, {"error": {"message": "Incorrect API key provided: sk-secret-1"}}), "status 401, Incorrect"),
        ((200, {}, {"data": []}), "shape"),
        ((200, {}, {"nothing": 1}), "cannot be read"),
        ((200, {}, {"data": [{"index": 0, "embedding": [None, None]}]}), "zeros or null"),
        ((200, {}, {"data": [{"index": 0, "embedding": [0, 0]}]}), "zeros or null"),
    ],
)
def test_permanent_failures_are_reported_at_once_and_without_the_key(
    server: Server, answer: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.failures = [answer]
    with caplog.at_level(logging.DEBUG), pytest.raises(EmbeddingError, match=said) as caught:
        load_embedder("openai:m").embed_queries(["boats"])
    assert len(server.asked) == 1
    assert "secret" not in str(caught.value) + caplog.text


def test_a_redirect_does_not_carry_the_key_away(server: Server) -> None:
    with Server() as other:
        threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True).start()
        server.failures = [(302, {"Location": f"{other.address}/v1/embeddings"}, {})]
        with pytest.raises(EmbeddingError, match="status 302"):
            load_embedder("openai:m").embed_queries(["boats"])
        assert other.asked == []
        other.shutdown()


def test_an_unreachable_server_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setattr(endpoint_module, "RETRIES", 0)
    with pytest.raises(EmbeddingError, match="Connection refused"):
        load_embedder("openai:m").embed_queries(["boats"])


def test_a_text_that_is_too_long_is_not_sent(server: Server) -> None:
    with pytest.raises(TooLongError, match="question cannot be embedded: it has 300 tokens, and 'm' accepts 256"):
        load_embedder("openai:m").embed_queries(["word " * 300])
    assert server.asked == []


def test_a_collection_keeps_no_key_and_finds_its_endpoint_again(server: Server, docs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    Collection.open(folder, settings=Settings(), embedder="openai:m").sync(docs)
    hits = Collection.open(folder, settings=Settings()).search("dogs on Fridays", 1)
    assert hits[0].uri.endswith("pets.markdown")
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"openai:m" in kept
    assert b"secret" not in kept
