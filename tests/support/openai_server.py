"""A server with OpenAI's protocol that fails on demand, and speaks like vLLM or llama-server if a test says so."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = "One, two, three, four, five, six, seven, eight, nine, ten, and so on for ever."


class Server(ThreadingHTTPServer):
    """Sends WORDS, word by word, or the next of `failures`: (status, headers, body), or a number of words to send.

    With `silent` it sends this many words, and then nothing until the client disconnects; 0 is before the response.
    With `endless` (status, start, and what follows it again and again), it sends that until the client disconnects.
    `owner` makes it a `vllm` or a `llamacpp` server, with adapters: names and their paths. With `starting`, it does not
    say yet what it is.
    """

    daemon_threads = True

    def __init__(self, owner: str | None = None, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.owner, self.words = owner, WORDS
        self.adapters: dict[str, str] = {}
        self.other_requests: list[tuple[str, dict[str, Any]]] = []
        """Path and body of the requests that are not for an answer."""
        self.asked: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.failures: list[Any] = []
        self.endless: tuple[int, bytes, bytes] | None = None
        self.pause, self.starting = 0.0, False
        self.prompt_tokens: Callable[[dict[str, Any]], int] = lambda body: 30
        self.silent: int | None = None
        self.waits, self.broken = threading.Event(), threading.Event()
        self.connections: set[Any] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        super().close_request(request)
        self.connections.discard(request)

    def handle_error(self, *_: Any) -> None:
        self.broken.set()

    def die(self) -> None:
        """End like a killed process: all connections break."""
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def running_server(owner: str | None = None, port: int = 0) -> Iterator[Server]:
    with Server(owner, port) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.other_requests.append((self.path, {}))
        adapters = self.server.adapters
        if self.server.starting:
            self._reply(503, {"error": {"message": "loading the model"}})
        elif self.path == "/v1/models" and self.server.owner:
            names = ["m", *adapters] if self.server.owner == "vllm" else ["m"]
            self._reply(200, {"data": [{"id": name, "owned_by": self.server.owner} for name in names]})
        elif self.path == "/lora-adapters" and self.server.owner == "llamacpp":
            self._reply(200, [{"id": i, "path": path, "scale": 1.0} for i, path in enumerate(adapters.values())])
        else:
            self._reply(404, {"error": {"message": "not found"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.path.endswith("/chat/completions"):
            self.server.other_requests.append((self.path, body))
            tokens = sum(len(message["content"].split()) + 3 for message in body.get("messages", ()))
            match self.server.owner, self.path:
                case "vllm", "/tokenize":
                    self._reply(200, {"count": tokens, "max_model_len": 512, "tokens": list(range(tokens))})
                case "llamacpp", "/v1/chat/completions/input_tokens":
                    self._reply(200, {"object": "response.input_tokens", "input_tokens": tokens})
                case _:
                    self._reply(404, {"error": {"message": "not found"}})
            return
        self.server.asked.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.server.waits.set()
        self._wait_where_silent(0)
        if self.server.endless:
            status, start, more = self.server.endless
            self.send_response(status)
            self.send_header("Content-Type", "text/event-stream" if status == 200 else "application/json")
            self.end_headers()
            self.wfile.write(start)
            while True:
                self.wfile.write(more)
        failure = self.server.failures.pop(0) if self.server.failures else None
        if isinstance(failure, tuple):
            status, headers, content = failure
            self._reply(status, content, headers)
        elif self.server.owner != "vllm" and "cache_salt" in body:
            self._reply(400, {"error": {"message": "cache_salt is unknown"}})
        else:
            self._say(body, failure)

    def _reply(self, status: int, content: Any, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _say(self, body: dict[str, Any], cut: int | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        words = self.server.words.split(" ")
        said = words[: body["max_tokens"]]
        for at, word in enumerate(said[:cut]):
            choice: dict[str, Any] = {"index": 0, "delta": {"content": word if at == 0 else f" {word}"}}
            if body.get("logprobs"):
                choice["logprobs"] = {"content": [{"token": word, "logprob": -0.5}]}
            self._send({"choices": [choice]})
            time.sleep(self.server.pause)
            self._wait_where_silent(at + 1)
        if cut is not None:
            return
        reason = "length" if len(said) < len(words) else "stop"
        self._send({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        used = {"prompt_tokens": self.server.prompt_tokens(body), "completion_tokens": len(said), "total_tokens": 0}
        self._send({"choices": [], "usage": {**used, "prompt_tokens_details": {"cached_tokens": 10}}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _wait_where_silent(self, words: int) -> None:
        if self.server.silent == words:
            self.rfile.read(1)  # nothing comes: this ends when the client goes
            raise ConnectionAbortedError

    def _send(self, value: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


def wait_until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "the condition was never met"
        time.sleep(0.01)
