"""Two servers of one collection are restarted in turn, while questions are asked through a proxy."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from support.free_port import free_port
from support.openai_server import running_server
from support.running_server import QUESTION, eventually, make_collection

from ragfm import Collection

CLIENTS = 4


class Proxy:
    """What a proxy does, in the client: it chooses among servers that are ready, each in turn.

    `/readyz` is asked ten times a second. A request goes to the next server if no connection could be made, and only
    then: all else may have had an effect, so it counts as failed.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses, self._ready = addresses, dict.fromkeys(addresses, True)
        self._turns = itertools.count()
        self.answers: list[tuple[str, float, float]] = []
        """Server, begin and end of each complete answer."""
        self.failures: list[object] = []
        self.refused = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._check, args=(address,)) for address in addresses]
        self._threads += [threading.Thread(target=self._ask_on) for _ in range(CLIENTS)]

    def __enter__(self) -> Proxy:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _check(self, address: str) -> None:
        while not self._stop.wait(0.1):
            try:
                self._ready[address] = httpx.get(f"{address}/readyz", timeout=60).status_code == 200
            except httpx.TransportError:
                self._ready[address] = False

    def _ask_on(self) -> None:
        with httpx.Client(timeout=120) as client:  # it keeps connections
            while not self._stop.is_set():
                try:
                    self.answers.append(self._ask(client))
                except Exception as error:
                    self.failures.append(error)

    def _ask(self, client: httpx.Client) -> tuple[str, float, float]:
        body = {"model": "handbook", "messages": QUESTION, "stream": True}
        while True:
            ready = [address for address in self._addresses if self._ready[address]] or self._addresses
            address = ready[next(self._turns) % len(ready)]
            begin = time.monotonic()
            try:
                with client.stream("POST", f"{address}/v1/chat/completions", json=body) as response:
                    lines = list(response.iter_lines())
            except httpx.ConnectError:
                self.refused += 1
                time.sleep(0.01)
                continue
            assert response.status_code == 200, lines
            assert "data: [DONE]" in lines
            assert not any('"error"' in line for line in lines), lines
            return address, begin, time.monotonic()


def start(collection: str, port: int, delay: float) -> subprocess.Popen[str]:
    """Start `ragfm serve`, and wait until it is ready."""
    command = [sys.executable, "-m", "ragfm", "serve", "-c", f"handbook={collection}", "--no-auth"]
    command += [f"--port={port}", f"--shutdown-delay={delay}", "--reader", "openai:m"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any(json.loads(line)["event"] == "start" for line in process.stderr)
    threading.Thread(target=process.stderr.read, daemon=True).start()
    eventually(lambda: httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=60).status_code == 200, 300)
    return process


@pytest.mark.slow
def test_no_request_fails(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One server announces its end to the proxy by `--shutdown-delay`, the other one just ends."""
    with Collection.open(make_collection(tmp_path)) as folder:
        folder.copy(address)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAGFM_ASK__CONTEXT_TOKENS", "2048")
    delays = (1.5, 0.0)
    with running_server() as model:
        model.pause = 0.05  # an answer takes about a second
        monkeypatch.setenv("RAGFM_READER_OPTIONS__OPENAI__BASE_URL", f"{model.address}/v1")
        ports = [free_port() for _ in delays]
        servers = [start(address, port, delay) for port, delay in zip(ports, delays, strict=True)]
        try:
            names = [f"http://127.0.0.1:{port}" for port in ports]
            with Proxy(names) as proxy:
                for number, delay in enumerate(delays):
                    known = len(proxy.answers)
                    eventually(lambda: len({name for name, *_ in proxy.answers[known:]}) == 2, 300)  # noqa: B023
                    signalled = time.monotonic()
                    servers[number].send_signal(signal.SIGTERM)
                    assert servers[number].wait(60) == 0
                    running = [end for name, begin, end in proxy.answers if name == names[number] and begin < signalled]
                    assert max(running) > signalled  # an answer that was running is complete
                    servers[number] = start(address, ports[number], delay)
                known = len(proxy.answers)
                eventually(lambda: len({name for name, *_ in proxy.answers[known:]}) == 2, 300)
        finally:
            for server in servers:
                server.kill()
                server.wait()
    assert proxy.failures == []
