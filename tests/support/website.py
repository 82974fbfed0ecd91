"""A local web site for tests: pages that change, fail, redirect or break off, and a log of requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answer:
    body: bytes | str = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False  # close the connection in the middle of the body
    head: int | None = None  # the status of a HEAD request, if it differs
    times: int | None = None  # answer with `status` this many times, then with 200


@dataclass
class Site:
    pages: dict[str, Answer] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    def page(self, path: str, body: bytes | str = b"", status: int = 200, **headers: str) -> Answer:
        """Add or replace a page; underscores in header names become hyphens."""
        extra = {key.replace("_", "-"): value for key, value in headers.items()}
        answer = Answer(body, status, {"Content-Type": "text/html; charset=utf-8"} | extra)
        self.pages[path] = answer
        return answer

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def asked(self, method: str | None = None) -> list[str]:
        """The requested paths, without robots.txt."""
        return [path for verb, path in self.log if method in (None, verb) and path != "/robots.txt"]


@contextmanager
def serve() -> Iterator[Site]:
    """Serve a site on a free port."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body are two writes

        def do_GET(self) -> None:
            site.log.append((self.command, self.path))
            site.headers.append(dict(self.headers))
            answer = site.pages.get(self.path, Answer(status=404))
            status = answer.status
            if answer.times is not None:
                answer.times -= 1
                status = 200 if answer.times < 0 else status
            if self.command == "HEAD" and answer.head is not None:
                status = answer.head
            body = answer.body.encode() if isinstance(answer.body, str) else answer.body
            self.send_response(status)
            for key, value in answer.headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body) + 99 * answer.cut))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            if answer.cut:
                self.close_connection = True

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
