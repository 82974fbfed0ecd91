"""Shutdown: after SIGTERM, running streams complete within the drain time."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import termios
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from support.openai_server import running_server
from support.running_server import QUESTION, SlowReader, eventually, serve
from support.shell import Shell

import ragfm
from ragfm import Collection
from ragfm.samples import copy_handbook
from ragfm.server.api_keys import SCOPES, Key, KeyFile, default_key_path
from ragfm.server.uvicorn_server import Server

SCRIPT = "from ragfm.cli import main; main()"


@pytest.fixture(scope="module")
def handbook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("handbook")
    documents = copy_handbook(folder)
    Collection.open(folder / ".ragfm", embedder="hashing").sync(documents)
    return folder


def begin(handbook: Path, secret: str) -> tuple[subprocess.Popen[str], openai.OpenAI]:
    """Start `ragfm serve` with the bundled model and wait until it is ready. Prompts are short, to save time."""
    command = [sys.executable, "-c", SCRIPT, "serve", "-c", f"handbook={handbook / '.ragfm'}", "--port", "0"]
    command += ["--adapter", "none", "--drain", "240"]  # with an adapter, most answers are short, too
    env = {**os.environ, "RAGFM_ASK__K": "1", "RAGFM_ASK__ANSWER_TOKENS": "128"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    assert process.stderr
    address = next(line["address"] for line in map(json.loads, process.stderr) if line["event"] == "start")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=secret, max_retries=0, timeout=240)
    eventually(lambda: httpx.get(f"{address}/readyz", timeout=60).status_code == 200, 300)
    return process, client


def end_during_streams(handbook: Path, secret: str) -> int:
    """Send SIGTERM during three streams. Returns how many of them ended after it."""
    process, client = begin(handbook, secret)

    def ask(number: int) -> Any:
        question = {"role": "user", "content": f"List all that is said about leave of kind {number}, with examples."}
        stream = client.chat.completions.create(
            model="handbook", messages=[question], stream=True, temperature=1.0, seed=number
        )
        return list(stream)[-1]

    def let_in() -> bool:
        figures = httpx.get(
            f"{str(client.base_url).removesuffix('/v1/')}/metrics",
            headers={"Authorization": f"Bearer {secret}"},
            timeout=60,
        ).text
        running = re.search(r"^ragfm_running (\S+)", figures, re.M)
        done = re.search(r"^ragfm_requests_total\{.*chat/completions.*\} (\S+)", figures, re.M)
        return sum(float(found[1]) for found in (running, done) if found) == 3

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, number) for number in range(3)]
        eventually(let_in, 300)  # a small reader's answer is one chunk, so that the first chunk would be too late
        signalled = datetime.now(UTC)
        process.send_signal(signal.SIGTERM)
        ends = [each.result(240) for each in asked]
    assert process.wait(120) == 0
    for end in ends:
        assert end.choices[0].finish_reason in ("stop", "length")
        assert end.usage.completion_tokens
        assert end.model_extra["ragfm"]["passages"]
    lines = [json.loads(line) for line in process.stderr or ()]
    assert {line["level"] for line in lines} == {"info"}
    answers = [line for line in lines if line.get("route") == "/v1/chat/completions"]
    assert [line["status"] for line in answers] == [200] * 3
    return sum(datetime.fromisoformat(line["time"]) > signalled for line in answers)


@pytest.mark.slow
def test_sigterm_during_streams_ends_them_cleanly(handbook: Path) -> None:
    secret = KeyFile(default_key_path(handbook / ".ragfm")).add(Key(name="ann", scopes=SCOPES))
    with ThreadPoolExecutor(3) as servers:  # one waits where another computes
        running = list(servers.map(lambda _: end_during_streams(handbook, secret), range(3)))
    assert min(running) > 0
    assert sum(running) > 6  # of nine: of a single server, two answers may end before the signal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_server_after_its_streams_and_all_of_its_log_is_json(
    handbook: Path, number: signal.Signals
) -> None:
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        "serve",
        "-c",
        f"handbook={handbook / '.ragfm'}",
        "--port",
        "0",
        "--no-auth",
    ]
    with running_server() as model:
        model.pause = 1.0
        env = {**os.environ, "OPENAI_BASE_URL": f"{model.address}/v1", "RAGFM_ASK__CONTEXT_TOKENS": "2048"}

        def attach() -> None:
            signal.signal(number, signal.SIG_DFL)  # where the tests run under nohup
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # a terminal, which sends SIGHUP

        screen, terminal = os.openpty()
        process = subprocess.Popen(
            [*command, "--reader", "m=openai:m", "--drain", "240"],
            stdin=terminal,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            start_new_session=True,
            preexec_fn=attach,
        )
        os.close(terminal)
        assert process.stderr
        lines = [json.loads(process.stderr.readline())]
        while lines[-1]["event"] != "start":
            lines.append(json.loads(process.stderr.readline()))
        client = openai.OpenAI(base_url=f"{lines[-1]['address']}/v1", api_key="none", max_retries=0, timeout=300)
        stream = client.chat.completions.create(model="handbook", messages=QUESTION, stream=True)
        chunks = [next(stream)]
        process.send_signal(number)
        while lines[-1]["event"] != "stop":
            lines.append(json.loads(process.stderr.readline()))
        model.pause = 0.0
        chunks += stream
        lines += map(json.loads, process.stderr)
    assert process.wait(60) == 0
    os.close(screen)
    assert chunks[-1].choices[0].finish_reason == "stop"
    events = {line["event"]: line for line in lines}
    assert events["start"]["version"] == ragfm.__version__
    assert events["start"]["models"] == ["handbook", "handbook:m"]
    assert (events["stop"]["signal"], events["stop"]["running"]) == (number.name, 1)
    assert lines[-1]["event"] == "stopped"


def test_sighup_reloads_the_settings(handbook: Path) -> None:
    """Changes that are safe are applied, others are named, and a broken file changes nothing."""
    settings = handbook / "ragfm.toml"
    settings.write_text("[search]\nk = 1\n")
    command = [sys.executable, "-c", SCRIPT, "serve", "-c", f"handbook={handbook / '.ragfm'}", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--no-auth", "--reader", "none"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # without a terminal, as a service
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    assert process.stderr
    lines = map(json.loads, process.stderr)
    address = next(line["address"] for line in lines if line["event"] == "start")

    def hits() -> int:
        found = httpx.post(f"{address}/v1/search", json={"query": "leave"}, timeout=60)
        return len(found.json()["data"])

    def reload(text: str, *events: str) -> list[Any]:
        settings.write_text(text)
        process.send_signal(signal.SIGHUP)
        logged = (line for line in lines if line["event"] in {"reload", "reload_failed", "restart_needed"})
        found = [next(logged) for _ in events]
        assert tuple(line["event"] for line in found) == events
        return found

    try:
        assert hits() == 1
        text = (
            '[search]\nk = 2\n[ask]\nstrategy = "zero-shot"\nverifier = "none"\n[server.oidc]\nclient_secret = "s3"\n'
        )
        done, *kept = reload(text, "reload", "restart_needed", "restart_needed")
        assert done["changed"] == ["search.k"]
        assert [line["message"] for line in kept] == [
            "restart needed: setting ask.verifier",
            "restart needed: setting server.oidc.client_secret",
        ]
        assert "s3" not in json.dumps(kept)
        assert hits() == 2
        for broken, reason in (("[search", "cannot be read"), ('[ask]\nstrategy = "no.toml"\n', "no.toml")):
            (failed,) = reload(broken, "reload_failed")
            assert reason in failed["message"]
            assert hits() == 2
    finally:
        settings.unlink()
        process.terminate()
        assert process.wait(60) == 0


def test_streams_end_with_an_error_after_the_drain_time(tmp_path: Path) -> None:
    reader = SlowReader()
    with serve(tmp_path, reader, drain=0.3) as it:
        stream = it.openai().chat.completions.create(model="handbook", messages=QUESTION, stream=True)
        next(stream)
        it.server.should_exit = True
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert caught.value.code == "ending"  # an event, and no broken connection
    assert reader.busy == 0


def test_a_request_without_a_stream_ends_with_an_error_after_the_drain_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragfm.server.uvicorn_server._REPORT_SECONDS", 1.0)
    begun, over = threading.Event(), threading.Event()

    def search_for_long(*_: Any, **__: Any) -> Any:
        begun.set()
        over.wait()

    monkeypatch.setattr(Collection, "search", search_for_long)
    with serve(tmp_path, SlowReader(), drain=0.1) as it, it.client() as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.post, "/v1/search", json={"query": "leave"})
        assert begun.wait(60)
        it.server.should_exit = True
        said = asked.result()
        over.set()
    assert (said.status_code, said.json()["error"]["code"]) == (503, "ending")


def test_a_server_that_ends_is_not_ready_and_still_answers_during_the_delay(tmp_path: Path) -> None:
    with serve(tmp_path, SlowReader(), shutdown_delay=60.0) as it, it.client() as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        it.server.handle_exit(signal.SIGTERM, None)
        unready = eventually(lambda: (said := client.get("/readyz")).status_code == 503 and said)
        assert unready.json()["status"] == "ending"
        found = httpx.post(f"{it.address}/v1/search", json={"query": "leave"}, headers=dict(client.headers))
        assert found.status_code == 200
        assert found.headers["connection"] == "close"  # the client's next request goes to another server
        it.server.handle_exit(signal.SIGTERM, None)  # a second signal ends it at once


def test_a_request_on_a_kept_connection_is_answered_after_the_listener_was_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragfm.server.uvicorn_server._KEPT_SECONDS", 60.0)
    with serve(tmp_path, SlowReader()) as it, it.client() as client:
        assert client.get("/healthz").status_code == 200
        it.server.handle_exit(signal.SIGTERM, None)
        eventually(lambda: _refused(it.address))
        assert client.get("/healthz").headers["connection"] == "close"


def test_connections_that_only_the_kernel_has_accepted_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragfm.server.uvicorn_server._KEPT_SECONDS", 60.0)
    connected = threading.Event()

    async def end(server: Server) -> None:
        connected.wait()  # in the event loop, which therefore accepts nothing
        server.handle_exit(signal.SIGTERM, None)
        await server.shutdown()

    with serve(tmp_path, SlowReader()) as it:
        address = urlsplit(it.address)
        asyncio.run_coroutine_threadsafe(end(it.server), it.server.servers[0].get_loop())
        clients = [socket.create_connection((address.hostname, address.port), timeout=60) for _ in range(20)]
        for client in clients:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connected.set()
        replies = [client.makefile("rb").read() for client in clients]
        for client in clients:
            client.close()
    assert [reply.split(b"\r\n")[0] for reply in replies] == [b"HTTP/1.1 200 OK"] * 20


def _refused(address: str) -> bool:
    try:
        httpx.get(f"{address}/healthz")
    except httpx.ConnectError:
        return True
    return False


def test_an_address_in_use_prints_one_line(handbook: Path) -> None:
    KeyFile(default_key_path(handbook / ".ragfm")).add(Key(name="taken"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = Shell(handbook)("serve", "-c", handbook / ".ragfm", "--port", str(port), code=1)
    assert said.stderr.splitlines()[-1].startswith(f"Error: The server cannot listen at 127.0.0.1:{port}.")


def test_the_command_line_refuses_a_server_open_to_all(handbook: Path) -> None:
    shell = Shell(handbook)
    shell.env["RAGFM_KEYS"] = str(handbook / "none.json")
    for wrong, code, word in ((["--no-auth", "--host", "0.0.0.0"], 2, "loopback"), ([], 1, "ragfm keys add")):
        assert word in shell("serve", "-c", handbook / ".ragfm", *wrong, code=code).stderr
