"""Limits of requests: slots, sizes and times; clients that disconnect or are slow."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import httpx
import openai
import pytest
from support.running_server import QUESTION, Running, SlowReader, eventually, serve

from ragfm.server import event_stream, uvicorn_server
from ragfm.server.request_guard import Limits

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
def test_a_client_that_goes_away_frees_its_turn_within_a_second(
    slow: tuple[Running, SlowReader], silent: bool, stream: bool
) -> None:
    it, reader = slow
    reader.silent = silent
    connection = start(it, "hr", stream)
    eventually(lambda: reader.busy)
    time.sleep(0.2)
    connection.close()
    eventually(lambda: reader.busy == 0, 1.0)
    queue = it.app.state.service.served.models["handbook"].queue
    eventually(lambda: queue.running.total() == 0, 1.0)


def test_over_the_queue_is_429_at_once_and_each_key_has_its_share(
    slow: tuple[Running, SlowReader], caplog: pytest.LogCaptureFixture
) -> None:
    it, reader = slow
    reader.silent = False
    queue = it.app.state.service.served.models["handbook"].queue
    with closing(start(it, "hr")):
        eventually(lambda: reader.busy)
        with closing(start(it, "hr")) as waiting:
            eventually(lambda: queue.waiting == 1)
            with caplog.at_level("INFO", "ragfm.server"):
                with pytest.raises(openai.RateLimitError) as caught:
                    it.openai("hr").chat.completions.create(**ASK)
                noted = eventually(lambda: [vars(record)["fields"] for record in caplog.records])
            assert noted[0]["status"] == 429
            assert noted[0]["ms"] < 100
            assert 1 <= int(caught.value.response.headers["Retry-After"]) <= 60
            asked = reader.asked
            with closing(start(it, "guest")):
                eventually(lambda: queue.waiting == 2)
                assert it.client("other").post("/v1/chat/completions", json=ASK).status_code == 429
                assert it.client("other").post("/v1/search", json={"query": "leave"}).status_code == 200
                waiting.close()  # who goes away while it waits is forgotten
                eventually(lambda: queue.waiting == 1, 1.0)
            eventually(lambda: queue.waiting == 0, 1.0)
        assert reader.asked == asked
    eventually(lambda: queue.running.total() == 0 and reader.busy == 0, 1.0)


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
    with serve(tmp_path, reader, limits=Limits(answer_seconds=2.0, answer_tokens=20, body_seconds=0.5)) as it:
        answer = it.openai().chat.completions.create(**ASK, max_tokens=1000)
        assert answer.usage.completion_tokens == 20
        assert answer.choices[0].finish_reason == "length"
        reader.silent = True
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
    monkeypatch.setattr(event_stream, "KEEPALIVE_SECONDS", 0.1)
    reader = SlowReader(slots=1, words=3)
    with serve(tmp_path, reader, limits=Limits(answer_seconds=2.0)) as it, caplog.at_level("INFO", "ragfm.server"):
        reader.silent = True
        with closing(start(it, "hr")) as silent, closing(start(it, "guest")) as waiting:
            for connection in (silent, waiting):  # one is before its first word, one is in the queue
                lines = "".join(iter(lambda: connection.recv(4096).decode(), "")).splitlines()  # noqa: B023
                assert lines[0] == "HTTP/1.1 200 OK"
                assert lines.count(": ping") > 5
                assert '"code":"timeout"' in next(line for line in lines if line.startswith("data: "))
        noted = lambda: [vars(record)["fields"] for record in caplog.records if "fields" in vars(record)]  # noqa: E731
        eventually(lambda: [line["error"] for line in noted()] == ["TimeoutError"] * 2)
        eventually(lambda: reader.busy == 0)
        with pytest.raises(openai.APIError, match="The request timed out"):
            list(it.openai().chat.completions.create(**ASK, stream=True))
        reader.silent = False
        monkeypatch.setattr(event_stream, "KEEPALIVE_SECONDS", 0.001)  # a comment between any two events
        assert len(list(it.openai().chat.completions.create(**ASK, stream=True))) == 4


def test_slow_and_huge_heads_are_cut_off_while_others_are_served(
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
    reader = SlowReader(slots=4, words=20)
    with serve(tmp_path, reader) as it, ThreadPoolExecutor(24) as pool:
        most, done = [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.005):
                most[0] = max(most[0], reader.busy)

        watching = threading.Thread(target=watch)
        watching.start()
        ask = lambda n: it.openai(("hr", "guest")[n % 2]).chat.completions.create(**ASK).usage.completion_tokens  # noqa: E731
        assert list(pool.map(ask, range(24))) == [20] * 24
        done.set()
        watching.join()
        assert most[0] == 4
