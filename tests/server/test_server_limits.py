"""Limits of requests: slots, sizes and times; clients that disconnect or are slow."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import httpx
import openai
import pytest
from support.running_server import QUESTION, Running, SlowReader, eventually, request_lines, serve

from ragfm import Collection
from ragfm.core.types import Vectors
from ragfm.server import event_stream, uvicorn_server
from ragfm.server.mcp_server import MAX_STREAMS
from ragfm.server.request_guard import Limits
from ragfm.testing import HashingEmbedder, ScriptedReader

pytestmark = pytest.mark.timing

ASK = {"model": "handbook", "messages": QUESTION}


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, SlowReader]]:
    reader = SlowReader(slots=1)
    with serve(tmp_path_factory.mktemp("slow"), reader, waiting=2, limits=Limits(upload=5000, body=20_000)) as it:
        yield it, reader


def start(it: Running, key: str, stream: bool = True) -> socket.socket:
    """Send a request without reading the answer."""
    request = httpx.Client().build_request(
        "POST",
        f"{it.address}/v1/chat/completions",
        json={**ASK, "stream": stream},
        headers={"Authorization": f"Bearer {it.secrets[key]}"},
    )
    host, port = it.address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    request.headers["connection"] = "close"
    head = "POST /v1/chat/completions HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in request.headers.items())
    connection.sendall(head.encode() + b"\r\n" + request.read())
    return connection


@pytest.mark.parametrize("silent", [False, True], ids=["between words", "before the first word"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_goes_away_frees_its_turn(slow: tuple[Running, SlowReader], silent: bool, stream: bool) -> None:
    it, reader = slow
    reader.silent = silent  # or an answer of 20 seconds
    connection = start(it, "hr", stream)
    eventually(lambda: reader.busy)
    time.sleep(0.2)
    connection.close()
    eventually(lambda: reader.busy == 0, 10.0)
    queue = it.app.state.service.served.models["handbook"].queue
    eventually(lambda: queue.running.total() == 0, 10.0)


def test_over_the_queue_is_429_at_once_and_each_key_has_its_share(
    slow: tuple[Running, SlowReader], caplog: pytest.LogCaptureFixture
) -> None:
    it, reader = slow
    reader.silent = True
    queue = it.app.state.service.served.models["handbook"].queue
    with closing(start(it, "hr")):
        eventually(lambda: reader.busy)
        with closing(start(it, "hr")) as waiting:
            eventually(lambda: queue.waiting == 1)
            with caplog.at_level("INFO", "ragfm.server"):
                with pytest.raises(openai.RateLimitError) as caught:
                    it.openai("hr").chat.completions.create(**ASK)
                noted = eventually(lambda: request_lines(caplog))
            assert noted[0]["status"] == 429
            assert noted[0]["ms"] < 10_000  # the other answers take far longer
            assert 1 <= int(caught.value.response.headers["Retry-After"]) <= 60
            asked = reader.asked
            with closing(start(it, "guest")):
                eventually(lambda: queue.waiting == 2)
                assert it.client("other").post("/v1/chat/completions", json=ASK).status_code == 429
                assert it.client("other").post("/v1/search", json={"query": "leave"}).status_code == 200
                waiting.close()  # who goes away while it waits is forgotten
                eventually(lambda: queue.waiting == 1)
            eventually(lambda: queue.waiting == 0)
        assert reader.asked == asked
    eventually(lambda: queue.running.total() == 0 and reader.busy == 0)


def test_sizes(slow: tuple[Running, SlowReader]) -> None:
    it, _ = slow
    client = it.client()

    def chunks() -> Iterator[bytes]:
        yield from [b"x" * 1000] * 100

    for said in (
        client.post("/v1/search", content=b"x" * 20_001),
        client.post("/v1/search", content=chunks(), headers={"content-type": "application/json"}),
        client.post("/v1/documents", files={"file": ("a.txt", b"x" * 5000)}),
    ):
        assert (said.status_code, said.json()["error"]["code"]) == (413, "too_large")
    assert client.post("/v1/search", json={"query": "leave"}).status_code == 200


def test_an_answer_has_its_time_and_its_tokens(tmp_path: Path) -> None:
    reader = SlowReader()
    with serve(tmp_path, reader, limits=Limits(answer_tokens=20, body_seconds=2.0)) as it:
        answer = it.openai().chat.completions.create(**ASK, max_tokens=1000)
        assert answer.usage.completion_tokens == 20
        assert answer.choices[0].finish_reason == "length"
        reader.silent = True
        it.app.state.service.limits = Limits(answer_seconds=2.0)
        begin = time.monotonic()
        with pytest.raises(openai.APIStatusError) as caught:
            it.openai().chat.completions.create(**ASK, stream=True)
        assert caught.value.status_code == 503
        assert time.monotonic() - begin < 20
        eventually(lambda: reader.busy == 0)
        host, port = it.address.removeprefix("http://").split(":")
        head = (
            f"POST /v1/search HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {it.secrets['hr']}\r\nContent-Length: 9\r\n"
        )
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n{")
            assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_waiting_streams_get_keepalive_comments_and_errors_as_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(event_stream, "KEEPALIVE_SECONDS", 0.02)
    reader = SlowReader(slots=1, words=3)
    with serve(tmp_path, reader, limits=Limits(answer_seconds=2.0)) as it, caplog.at_level("INFO", "ragfm.server"):
        reader.silent = True
        with closing(start(it, "hr")) as silent, closing(start(it, "guest")) as waiting:
            for connection in (silent, waiting):  # one is before its first word, one is in the queue
                lines = "".join(iter(lambda: connection.recv(4096).decode(), "")).splitlines()  # noqa: B023
                assert lines[0] == "HTTP/1.1 200 OK"
                assert lines.count(": ping") > 5
                assert '"code":"timeout"' in next(line for line in lines if line.startswith("data: "))
        eventually(lambda: [line["error"] for line in request_lines(caplog)] == ["TimeoutError"] * 2)
        eventually(lambda: reader.busy == 0)
        with pytest.raises(openai.APIError, match="The request timed out"):
            list(it.openai().chat.completions.create(**ASK, stream=True))
        reader.silent = False
        it.app.state.service.limits = Limits()
        monkeypatch.setattr(event_stream, "KEEPALIVE_SECONDS", 0.001)  # a comment between any two events
        assert len(list(it.openai().chat.completions.create(**ASK, stream=True))) == 4


def test_slow_and_huge_request_headers_are_cut_off_while_others_are_served(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uvicorn_server, "HEAD_SECONDS", 1.0)
    host, port = running.address.removeprefix("http://").split(":")
    connect = lambda: socket.create_connection((host, int(port)), timeout=20)  # noqa: E731
    connections = [connect() for _ in range(100)]
    for _ in range(100):
        connections.append(connect())
        connections[-1].sendall(b"GET /healthz HTTP/1.1\r\nX: ")
    for _ in range(100):  # these have been served once before
        connections.append(connect())
        connections[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")
        assert b"200 OK" in connections[-1].recv(4096)
    begin = time.monotonic()
    while time.monotonic() - begin < 1.0:
        for connection in connections[100:]:
            try:
                connection.sendall(b"a")
            except OSError:
                break
        assert running.client().get("/v1/models").status_code == 200
    for connection in connections:
        with suppress(ConnectionResetError):
            while connection.recv(4096):  # up to its end, else TimeoutError
                pass
        connection.close()
    with connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n" + b"X: " + b"a" * 100_000)
        assert connection.recv(1000).startswith(b"HTTP/1.1 4")


def test_many_at_once_get_their_answers(tmp_path: Path) -> None:
    four, busy = threading.Barrier(4), list[int]()

    class Together(SlowReader):
        """Begins with four answers at once."""

        def _words(self, ended: threading.Event) -> Iterator[str]:
            four.wait(60)
            busy.append(self.busy)
            yield from super()._words(ended)

    with serve(tmp_path, Together(slots=4, words=20)) as it, ThreadPoolExecutor(24) as pool:
        ask = lambda n: it.openai(("hr", "guest")[n % 2]).chat.completions.create(**ASK).usage.completion_tokens  # noqa: E731
        assert list(pool.map(ask, range(24))) == [20] * 24
    assert max(busy) == 4


def exchange(it: Running, request: bytes) -> bytes:
    """Send bytes at once and return the response; the connection is closed by the server or after the response."""
    host, port = it.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        ("GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Long: " + "a" * 100_000, b"", 431),
        ("GET /v1/models?" + "a" * 40_000 + " HTTP/1.1\r\nHost: x", b"", 431),
        (
            "POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5\r\n"
            "Transfer-Encoding: chunked",
            b'11\r\n{"query":"leave"}\r\n0\r\n\r\n',
            400,
        ),
        ("GET /v1/models HTTP/1.1\r\nHost: [::1", b"", 400),
        ("GET /healthz HTTP/1.1\r\nHost: [::1", b"", 400),
        ("GET /v1/models HTTP/1.1\r\nHost: x:port", b"", 400),
        ("GET /v1/models HTTP/1.1\r\nHost: x\r\nOrigin: http://[::1", b"", 400),
        ("GET /v1/documents?after=a%00b HTTP/1.1\r\nHost: x", b"", 400),
        ("GET /v1/documents?after=%ff HTTP/1.1\r\nHost: x", b"", 400),
        ("GET /v1/documents/a%00b HTTP/1.1\r\nHost: x", b"", 400),
        ("DELETE /v1/documents/%C3%28 HTTP/1.1\r\nHost: x", b"", 400),
        ("GET /v1/models HTTP/1.1\r\nHost: [::1]:80\r\nX-Long: " + "a" * 20_000, b"", 200),
    ],
    ids=[
        "long header",
        "long query",
        "two lengths",
        "host",
        "host of a public path",
        "port",
        "origin",
        "NUL",
        "UTF-8",
        "NUL in a path",
        "UTF-8 of a path",
        "valid",
    ],
)
def test_heads_that_are_too_large_or_not_valid_are_refused(
    running: Running, head: str, body: bytes, status: int
) -> None:
    head += f"\r\nAuthorization: Bearer {running.secrets['hr']}\r\n\r\n"
    said = exchange(running, head.encode() + body)
    assert said.startswith(f"HTTP/1.1 {status} ".encode()), said[:200]
    if status == 431:
        assert b"connection: close" in said.lower()


class SlowEmbedder(HashingEmbedder):
    """Takes a while for each batch of passages, and counts the texts."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        self.batches.append(len(texts))
        time.sleep(0.1)
        return super().embed_passages(texts)


def test_embeddings_leave_room_for_others_and_end_with_their_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = SlowEmbedder()
    with serve(tmp_path, ScriptedReader(["Yes."])) as it:
        monkeypatch.setattr(Collection, "embedder", embedder)
        body = {"model": "handbook", "input": ["leave"] * 256}
        host, port = it.address.removeprefix("http://").split(":")
        content = json.dumps(body).encode()
        head = (
            f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {it.secrets['guest']}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        ).encode()
        connections = [socket.create_connection((host, int(port)), timeout=20) for _ in range(48)]
        for connection in connections:
            connection.sendall(head + content)
        queue = it.app.state.service.served.embedding_queue
        eventually(lambda: queue.running["guest"] == 1 and queue.waiting > 20)
        assert queue.running.total() == 1  # half of the slots, whatever is waiting
        begun = len(embedder.batches)
        said = it.client("hr").post("/v1/embeddings", json={"model": "handbook", "input": ["leave"] * 32})
        assert (said.status_code, len(said.json()["data"])) == (200, 32)
        assert len(embedder.batches) - begun < 100  # two of its own, and what the other key did meanwhile, of 768
        for connection in connections:
            connection.close()
        eventually(lambda: queue.running.total() == queue.waiting == 0)
        begun = len(embedder.batches)
        said = it.client("guest").post("/v1/embeddings", json=body)
        assert [row["index"] for row in said.json()["data"]] == list(range(256))
        assert said.json()["usage"]["prompt_tokens"] == 256 * len(embedder.tokenize(["leave"])[0])
        assert embedder.batches[begun:] == [16] * 16


def test_a_key_has_a_limited_number_of_streams_of_mcp(running: Running) -> None:
    def open_stream(key: str) -> tuple[socket.socket, bytes]:
        host, port = running.address.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), timeout=20)
        head = (
            f"GET /mcp HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
            f"Authorization: Bearer {running.secrets[key]}\r\n\r\n"
        )
        connection.sendall(head.encode())
        said = b""
        while b"\r\n\r\n" not in said or (b" 429 " in said and not said.endswith(b"}")):
            said += connection.recv(4096)
        return connection, said

    opened = [open_stream("guest") for _ in range(MAX_STREAMS)]
    assert all(said.startswith(b"HTTP/1.1 200") for _, said in opened)
    _, refused = open_stream("guest")
    assert refused.startswith(b"HTTP/1.1 429")
    assert b"too_many_streams" in refused
    other, said = open_stream("other")
    assert said.startswith(b"HTTP/1.1 200")
    for connection in (other, *(connection for connection, _ in opened)):
        connection.close()

    def opens_again() -> bool:
        connection, said = open_stream("guest")
        connection.close()
        return said.startswith(b"HTTP/1.1 200")

    eventually(opens_again)
